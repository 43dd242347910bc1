"""Folders of TOML: `shares/NAME.toml` and `machines/NAME.toml`, the first folder that has a name wins.

Keys are the property names in snake_case; `memory` and `memory_max` are a number of bytes or a text such as "2G"; a
machine's own shares are `[[shares]]` tables with `source` and, if wanted, `mount_point`.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vfsd import files
from vfsd.errors import VfsdError
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec, ShareSpec
from vfsd.names import Scope
from vfsd.options import Option
from vfsd.store import BadFile

_SIZES = ("memory", "memory_max")
"""Keys of bytes."""
_SIZE = re.compile(r"(\d+)([KMGT]?)")
_NULL = os.makedev(1, 3)
"""/dev/null (null(4))."""
_DECODE_LINE = re.compile(r"\(at line (\d+)")


class _BadKey(Exception):
    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def load_shares(folders: Sequence[Path], scope: Scope, bad: BadFile) -> Iterator[tuple[Path, ShareSpec]]:
    """The shares that the folders define, each with its file."""
    for path in _files(folders, "shares"):
        document = _read(path, bad)
        if document is None:
            continue
        try:
            source, options = _share_options(document)
            yield path, ShareSpec.from_options(path.stem, source, scope, options)
        except (_BadKey, VfsdError) as error:
            _report(path, error, bad)


def load_machines(folders: Sequence[Path], scope: Scope, bad: BadFile) -> Iterator[tuple[Path, MachineSpec]]:
    """The machines that the folders define, each with its file."""
    for path in _files(folders, "machines"):
        document = _read(path, bad)
        if document is None:
            continue
        try:
            tables = document.pop("shares", [])
            if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
                raise _BadKey("shares", "shares must be [[shares]] tables")
            options = _options(MACHINE_OPTIONS, document)
            shares = [(source, "", given) for source, given in map(_share_options, tables)]
            options["Shares"] = ("a(ssa{sv})", shares)
            yield path, MachineSpec.from_options(path.stem, scope, options)
        except (_BadKey, VfsdError) as error:
            _report(path, error, bad)


def _files(folders: Sequence[Path], kind: str) -> list[Path]:
    found: dict[str, Path] = {}
    for folder in folders:
        try:
            paths = sorted((folder / kind).glob("*.toml"))
        except OSError:
            continue
        for path in paths:
            if not path.name.startswith("."):  # an editor's
                found.setdefault(path.name, path)
    # an empty file, or a link to /dev/null, hides those of later folders, as systemd has it
    return [path for _, path in sorted(found.items()) if not _hides(path)]


def _hides(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return (stat.S_ISREG(found.st_mode) and found.st_size == 0) or (
        found.st_rdev == _NULL and stat.S_ISCHR(found.st_mode)
    )


def _read(path: Path, bad: BadFile) -> dict[str, Any] | None:
    text = ""
    try:
        text = files.read_text(path)
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = _DECODE_LINE.search(str(error))
        bad(path, f"line {line[1] if line else len(text.splitlines())}: {error}")
    except UnicodeDecodeError as error:
        bad(path, f"it is no UTF-8 text ({error})")
    except RecursionError:
        bad(path, "it is nested too deeply")
    except OSError as error:
        bad(path, f"it can't be read ({error.strerror})")
    return None


def _report(path: Path, error: Exception, bad: BadFile) -> None:
    line = _line_of(path, error.key) if isinstance(error, _BadKey) else _line_named_in(path, str(error))
    bad(path, f"line {line}: {error}" if line else str(error))


def _line_of(path: Path, key: str) -> int:
    """The first line that sets a key, 0 if none does."""
    pattern = re.compile(rf"""\s*(\[+\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
    try:
        lines = files.read_text(path).splitlines()
    except (OSError, UnicodeDecodeError):
        return 0
    return next((number for number, line in enumerate(lines, 1) if pattern.match(line)), 0)


def _line_named_in(path: Path, message: str) -> int:
    """The line of the option that an error names, 0 if it names none."""
    for table in (MACHINE_OPTIONS, SHARE_OPTIONS):
        for name, option in table.items():
            if re.search(rf"\b({name}|{option.field.replace('_', ' ')})\b", message):
                line = _line_of(path, option.field)
                if line:
                    return line
    return _line_of(path, "source") if message.startswith("the source of") else 0


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
