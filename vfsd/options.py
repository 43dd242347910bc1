"""Options: fields of a specification that the outside can give.

An option is a dataclass field; `option()` says what the outside calls it. From that one description come the
D-Bus property, the key in a TOML file and the key in a stored definition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vfsd.errors import InvalidArgs

_TYPES: Mapping[str, tuple[type, str]] = {
    "s": (str, "a text"),
    "b": (bool, "true or false"),
    "u": (int, "a whole number"),
    "t": (int, "a whole number"),
    "as": (list, "a list of texts"),
    "a{ss}": (dict, "a table of texts"),
}
DEFINITION_MAX = 16 << 10
"""Bytes of all texts in the options of one object. All objects together have to fit into one message of 32 MiB."""
_LIMITS = {"u": 1 << 32, "t": 1 << 64}


@dataclass(frozen=True, slots=True)
class Option:
    """How the outside knows a field."""

    field: str
    dbus_name: str
    signature: str
    parse: Callable[[Any], Any]
    secret: bool = False
    """Whether only the keys of its table are shown."""

    @property
    def wanted(self) -> str:
        """What a value must be, for people."""
        return _TYPES[self.signature][1]

    def fits(self, value: Any) -> bool:
        """Whether a value that no D-Bus signature vouches for has the option's type."""
        kind = _TYPES[self.signature][0]
        if kind is list:
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        if kind is dict:
            return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
        if kind is int:
            return type(value) is int and 0 <= value < _LIMITS[self.signature]
        return isinstance(value, kind)

    def to_dbus(self, spec: object) -> Any:
        """The field's value as D-Bus carries it."""
        value = getattr(spec, self.field)
        if isinstance(value, StrEnum):
            return value.value
        if self.signature == "a{ss}":
            return dict(value)
        return list(value) if isinstance(value, tuple) else value

    def shown(self, spec: object) -> Any:
        """The same, as everybody may see it: a secret table has its keys and no values."""
        value = self.to_dbus(spec)
        return dict.fromkeys(value, "") if self.secret else value


def _same(value: Any) -> Any:
    return value


def option(
    dbus_name: str,
    signature: str,
    default: Any,
    parse: Callable[[Any], Any] = _same,
    *,
    secret: bool = False,
) -> Any:
    """A field that is an option; `parse` makes the field's type from what D-Bus carries."""
    return field(default=default, metadata={"dbus": (dbus_name, signature, parse, secret)})


def pairs(table: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """A table of texts as a field keeps it: hashable, sorted by key."""
    return tuple(sorted(table.items()))


def options_of(spec: type) -> dict[str, Option]:
    """The options of a specification, by their D-Bus names."""
    table = {}
    for item in dataclasses.fields(spec):
        if "dbus" in item.metadata:
            dbus_name, signature, parse, secret = item.metadata["dbus"]
            table[dbus_name] = Option(item.name, dbus_name, signature, parse, secret)
    return table


def parse_options(
    spec: type, table: Mapping[str, Option], given: Mapping[str, tuple[str, Any]]
) -> dict[str, Any]:
    """Turn options by D-Bus name, each with its signature, into fields.

    :raise InvalidArgs: an unknown name, another type, or a value that is none of the choices.
    """
    fields = {}
    for key, (signature, value) in given.items():
        known = table.get(key)
        if known is None:
            kind = spec.__name__.removesuffix("Spec").lower()
            raise InvalidArgs(f'"{key}" is no option of a {kind}; there are {", ".join(table)}')
        require(signature == known.signature, f'{key} has type "{signature}", it must be "{known.signature}"')
        try:
            fields[known.field] = known.parse(value)
        except ValueError:
            choices = ", ".join(known.parse)  # type: ignore[arg-type]  # only the enums refuse values
            raise InvalidArgs(f'{key} is "{value}", it must be one of {choices}') from None
    return fields


def require(condition: object, message: str) -> None:
    """:raise InvalidArgs: the condition does not hold."""
    if not condition:
        raise InvalidArgs(message)


def check_size(who: str, spec: object, table: Mapping[str, Option]) -> None:
    """:raise InvalidArgs: what is shown of a definition is too large."""
    size = sum(_size(getattr(spec, known.field), known.secret) for known in table.values())
    require(
        size <= DEFINITION_MAX,
        f"the options of {who} have {size} bytes; {DEFINITION_MAX} are the most. Make them shorter, or put what is "
        "long into a file",
    )


def _size(value: Any, secret: bool) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, tuple):
        return sum(_size(item[0] if secret else item, False) for item in value)
    return 0


def check_text(what: str, *texts: str) -> None:
    """:raise InvalidArgs: a text can't be passed to a program."""
    require(not any("\0" in text for text in texts), f"{what} holds a NUL byte; take it out")


def check_path(what: str, path: str) -> None:
    """:raise InvalidArgs: the path is not absolute."""
    check_text(what, path)
    require(
        path.startswith("/"),
        f'{what} is "{path}", which is not an absolute path; give one that begins with /',
    )
