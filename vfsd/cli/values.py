"""From words on the command line to values with the types that the bus wants."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vfsd.cli import remote
from vfsd.cli.errors import CliError, Exit

if TYPE_CHECKING:
    from vfsd.options import Option

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SIZE_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ]*)\s*")
_SPAN_UNITS = {
    **dict.fromkeys(("us", "µs", "usec"), 1),
    **dict.fromkeys(("ms", "msec"), 1_000),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), 1_000_000),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60_000_000),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3_600_000_000),
}
_PERCENT = re.compile(r"\d+(?:\.\d+)?")
_BOOLEANS = {
    **dict.fromkeys(("yes", "true", "on", "1", "y"), True),
    **dict.fromkeys(("no", "false", "off", "0", "n"), False),
}
_INTEGER_MAX = {"u": (1 << 32) - 1, "t": (1 << 64) - 1}
_ESCAPED = re.compile(r"\\([:\\])|:")


class Typed(NamedTuple):
    """A value with its D-Bus type: what becomes a variant."""

    signature: str
    value: Any


Options = dict[str, Typed]
"""Options by property name, as CreateShare and CreateMachine take them."""


class ShareArgument(NamedTuple):
    """A directory for the guest, as `DIR[:MOUNTPOINT][:ro]` names it."""

    source: str
    mount_point: str
    read_only: bool


def _wrong(message: str, hint: str = "") -> CliError:
    return CliError(message, hint, Exit.USAGE)


def parse_size(text: str) -> int:
    """Bytes from `2G`, `512M`, `1.5 GiB` or `1048576`; the units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise _wrong(f'"{text}" is no size', "write it as 512M or 2G.")
    unit = 1 << _SIZE_UNITS[match[2].upper()]
    # A float is exact to 2^53 only.
    return round(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def parse_timespan(text: str) -> int:
    """Microseconds from `30s`, `500ms`, `1min 30s` or `30` (seconds), as systemd writes them."""
    total, position, stripped = 0.0, 0, text.strip()
    while match := _SPAN.match(stripped, position):
        unit = _SPAN_UNITS.get(match[2])
        if unit is None:
            break
        total, position = total + float(match[1]) * unit, match.end()
    if not stripped or position < len(stripped):
        raise _wrong(f'"{text}" is no time', "write it as 30s, 500ms or 1min 30s.")
    return round(total)


def parse_percent(text: str) -> int:
    """Microseconds in a second from `150%` of a processor, as systemd's CPUQuota= has it."""
    number = text.removesuffix("%")
    if not _PERCENT.fullmatch(number):
        raise _wrong(f'"{text}" is no percentage', "write it as 50% or 150%; 100% is one processor.")
    return round(float(number) * 10_000)


def parse_boolean(text: str) -> bool:
    """Yes or no, in systemd's spellings."""
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise _wrong(f'"{text}" is neither yes nor no', "write yes or no.") from None


def parse_value(option: Option, text: str) -> Typed:
    """The value of an option from its text; for a list, one element of it."""
    signature = option.signature
    if signature == "b":
        return Typed("b", parse_boolean(text))
    if signature in _INTEGER_MAX:
        number = _parse_number(option, text)
        if number > _INTEGER_MAX[signature]:
            raise _wrong(f"{option.dbus_name}={text} is too large", f"the most is {_INTEGER_MAX[signature]}.")
        return Typed(signature, number)
    if signature == "as":
        return Typed("as", [text])
    if signature == "a{ss}":
        name, equals, content = text.partition("=")
        if not equals:
            raise _wrong(f'"{text}" is not of the form NAME=VALUE', f"write {option.dbus_name}=NAME=VALUE.")
        return Typed("a{ss}", {name: content})
    return Typed("s", text)


def _parse_number(option: Option, text: str) -> int:
    if option.dbus_name == "CPUQuotaPerSecUSec" and text.endswith("%"):
        return parse_percent(text)
    if option.dbus_name.endswith("USec"):
        return parse_timespan(text)
    if option.signature == "t":
        return parse_size(text)
    if not (text.isascii() and text.isdigit()):
        raise _wrong(f'{option.dbus_name} can\'t be "{text}"', "write a whole number.")
    return int(text)


def find_option(table: Mapping[str, Option], name: str) -> Option:
    """The option that is meant by `ReadOnly`, `read_only` or `read-only`."""
    wanted = _plain(name)
    for option in table.values():
        if wanted in (_plain(option.dbus_name), _plain(option.field)):
            return option
    raise _wrong(f'there is no option "{name}"', f"there are {', '.join(table)}.")


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def parse_assignments(table: Mapping[str, Option], texts: tuple[str, ...]) -> Options:
    """Options from `NAME=VALUE`; the name of a list or a table may stand more than once."""
    options: Options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise _wrong(f'"{text}" is not of the form NAME=VALUE')
        option = find_option(table, name)
        typed = parse_value(option, value)
        if option.dbus_name in options:
            typed = _joined(options[option.dbus_name], typed)
        options[option.dbus_name] = typed
    return options


def parse_settings(table: Mapping[str, Option], texts: tuple[str, ...]) -> Options:
    """The same, where `NAME=` empties a list or a table, as in a unit of systemd's."""
    options: Options = {}
    rest = []
    for text in texts:
        name, equals, value = text.partition("=")
        option = find_option(table, name) if equals and not value else None
        if option is not None and option.signature in ("as", "a{ss}"):
            options[option.dbus_name] = Typed(option.signature, [] if option.signature == "as" else {})
        else:
            rest.append(text)
    return options | parse_assignments(table, tuple(rest))


def _joined(before: Typed, typed: Typed) -> Typed:
    """What an option that stands twice has: both, if it is a list or a table, else the last."""
    if typed.signature == "as":
        return Typed("as", [*before.value, *typed.value])
    if typed.signature == "a{ss}":
        return Typed("a{ss}", {**before.value, **typed.value})
    return typed


def parse_credential_file(text: str) -> tuple[str, str]:
    """Name and absolute path from `NAME:FILE`."""
    name, colon, path = text.partition(":")
    if not (name and colon and path):
        raise _wrong(f'"{text}" is not of the form NAME:FILE')
    return name, absolute(path)


def own_words(command: tuple[str, ...]) -> tuple[str, ...]:
    """A guest's command without the `--` before it, which click leaves there since its options aren't vfsctl's."""
    return command[1:] if command[:1] == ("--",) else command


def absolute(path: str) -> str:
    """An absolute path for vfsd, which has another working directory, and may be on another host.

    Symbolic links stay, except before a `..`, where only the target tells what is meant.
    """
    if not path:
        raise _wrong("the path is empty")
    if host := remote.named():
        if not path.startswith("/"):
            raise _wrong(f'"{path}" is not an absolute path', f"begin it with /: it is a path of {host}.")
        return path
    if ".." in Path(path).parts:
        return os.path.realpath(path)
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute() keeps "./" and "//"


def parse_share(text: str) -> ShareArgument:
    """Read `DIR[:MOUNTPOINT][:ro]`. In DIR and MOUNTPOINT `\\:` is a colon and `\\\\` a backslash."""
    source, *rest = _split(text)
    form = "write DIR[:MOUNTPOINT][:ro]; a colon in a path is written \\:"
    if not source:
        raise _wrong(f'"{text}" names no directory', form)
    mode = rest.pop() if rest and rest[-1] in ("ro", "rw") else "rw"
    mount_point = rest.pop(0) if rest else ""
    if rest:
        raise _wrong(f'"{text}" has too many parts', form)
    if mount_point and not mount_point.startswith("/"):
        raise _wrong(f'the mount point "{mount_point}" is not an absolute path', form)
    return ShareArgument(absolute(source), mount_point, mode == "ro")


def _split(text: str) -> list[str]:
    parts = [""]
    position = 0
    for match in _ESCAPED.finditer(text):
        parts[-1] += text[position : match.start()]
        if match[1]:
            parts[-1] += match[1]
        else:
            parts.append("")
        position = match.end()
    parts[-1] += text[position:]
    return parts
