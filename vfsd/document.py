"""A share or a machine as TOML: read, and written so that it reads back the same.

Keys are the property names in snake_case; `memory` and `memory_max` are a number of bytes or a text such as "2G"; a
machine's own shares are `[[shares]]` tables with `source` and, if wanted, `mount_point`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from vfsd.errors import VfsdError
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec, Sandbox, ShareSpec
from vfsd.names import Scope
from vfsd.options import Option

_SIZES = ("memory", "memory_max")
"""Keys of bytes."""
_SIZE = re.compile(r"(\d+)([KMGT]?)")
_DECODE_LINE = re.compile(r"\(at line (\d+)")


class BadDocument(Exception):
    """It can't be used; the message says why, and in which line if that is known."""


class _BadKey(Exception):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def read_share(text: str, name: str, scope: Scope) -> ShareSpec:
    """:raise BadDocument: it defines no share."""
    document = _parse(text)
    try:
        source, options = _share_options(document)
        return ShareSpec.from_options(name, source, scope, options)
    except (_BadKey, VfsdError) as error:
        raise BadDocument(_with_line(text, error)) from None


def read_machine(text: str, name: str, scope: Scope) -> MachineSpec:
    """:raise BadDocument: it defines no machine."""
    document = _parse(text)
    try:
        tables = document.pop("shares", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise _BadKey("shares", "shares must be [[shares]] tables")
        options = _options(MACHINE_OPTIONS, document)
        shares = [(source, "", given) for source, given in map(_share_options, tables)]
        options["Shares"] = ("a(ssa{sv})", shares)
        return MachineSpec.from_options(name, scope, options)
    except (_BadKey, VfsdError) as error:
        raise BadDocument(_with_line(text, error)) from None


def write_share(spec: ShareSpec, scope: Scope) -> str:
    """The document that defines a share; options that have their default are left out."""
    default = ShareSpec(name=spec.name, source="/", sandbox=Sandbox.default(scope))
    return "".join(_share_lines(spec, default))


def write_machine(spec: MachineSpec, scope: Scope) -> str:
    """The document that defines a machine and its own shares; those attached to it are not part of it."""
    lines = list(_lines(MACHINE_OPTIONS, spec, MachineSpec(name=spec.name)))
    for share in spec.shares:
        default = ShareSpec(name=share.name, source="/", sandbox=Sandbox.default(scope))
        # by default a tag is made of the source, and of the tags before
        lines += ["\n[[shares]]\n", *_share_lines(share, default, always="tag")]
    return "".join(lines)


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = _DECODE_LINE.search(str(error))
        raise BadDocument(f"line {line[1] if line else len(text.splitlines())}: {error}") from None
    except RecursionError:
        raise BadDocument("it is nested too deeply") from None


def _with_line(text: str, error: Exception) -> str:
    line = _line_of(text, error.key) if isinstance(error, _BadKey) else _line_named_in(text, str(error))
    return f"line {line}: {error}" if line else str(error)


def _line_of(text: str, key: str) -> int:
    """The first line that sets a key, 0 if none does."""
    pattern = re.compile(rf"""\s*(\[+\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 0)


def _line_named_in(text: str, message: str) -> int:
    """The line of the option that an error names, 0 if it names none."""
    for table in (MACHINE_OPTIONS, SHARE_OPTIONS):
        for name, option in table.items():
            if re.search(rf"\b({name}|{option.field.replace('_', ' ')})\b", message):
                line = _line_of(text, option.field)
                if line:
                    return line
    return _line_of(text, "source") if message.startswith("the source of") else 0


def _share_options(document: Mapping[str, Any]) -> tuple[str, dict[str, tuple[str, Any]]]:
    given = dict(document)
    source = given.pop("source", None)
    if not isinstance(source, str):
        raise _BadKey("source", "a share needs source, an absolute path as a text")
    return source, _options(SHARE_OPTIONS, given)


def _options(table: Mapping[str, Option], document: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    by_key = {option.field: option for option in table.values()}
    options = {}
    for key, given in document.items():
        option = by_key.get(key)
        value = _size(key, given) if key in _SIZES else given
        if option is None:
            raise _BadKey(key, f'"{key}" is no key; there are {", ".join(by_key)}')
        if not option.fits(value):
            raise _BadKey(key, f"{key} must be {option.wanted}")
        options[option.dbus_name] = (option.signature, value)
    return options


def _size(key: str, value: Any) -> Any:
    """Bytes from 1024, or "2G". Anything else is left for the type check to refuse."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        if isinstance(value, str):
            raise _BadKey(key, f'{key} must be a number of bytes, or a text such as "2G"')
        return value
    return int(match[1]) << (10 * " KMGT".index(match[2] or " "))


def _share_lines(spec: ShareSpec, default: ShareSpec, *, always: str = "") -> Iterator[str]:
    yield f"source = {_text(spec.source)}\n"
    yield from _lines(SHARE_OPTIONS, spec, default, always=always)


def _lines(table: Mapping[str, Option], spec: object, default: object, *, always: str = "") -> Iterator[str]:
    for option in table.values():
        value = option.to_dbus(spec)
        if option.field == always or value != option.to_dbus(default):
            yield f"{option.field} = {_value(option.field, value)}\n"


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return _written_size(value) if key in _SIZES else str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        inner = ", ".join(f"{_text(name)} = {_text(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return _text(value)


def _written_size(number: int) -> str:
    for power, unit in ((40, "T"), (30, "G"), (20, "M")):
        if number and number % (1 << power) == 0:
            return f'"{number >> power}{unit}"'
    return str(number)


def _text(value: str) -> str:
    """A basic string of TOML, whose escapes are JSON's; it wants DEL escaped, too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
