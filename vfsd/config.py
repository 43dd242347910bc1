"""Folders of TOML: `shares/NAME.toml` and `machines/NAME.toml`, the first folder that has a name wins."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vfsd import document, files
from vfsd.model import MachineSpec, ShareSpec
from vfsd.names import Scope
from vfsd.store import BadFile

Spec = TypeVar("Spec", ShareSpec, MachineSpec)
_NULL = os.makedev(1, 3)
"""/dev/null (null(4))."""


def load_shares(folders: Sequence[Path], scope: Scope, bad: BadFile) -> Iterator[tuple[Path, ShareSpec]]:
    """The shares that the folders define, each with its file."""
    yield from _load(folders, "shares", lambda text, name: document.read_share(text, name, scope), bad)


def load_machines(folders: Sequence[Path], scope: Scope, bad: BadFile) -> Iterator[tuple[Path, MachineSpec]]:
    """The machines that the folders define, each with its file."""
    yield from _load(folders, "machines", lambda text, name: document.read_machine(text, name, scope), bad)


def _load(
    folders: Sequence[Path], kind: str, read: Callable[[str, str], Spec], bad: BadFile
) -> Iterator[tuple[Path, Spec]]:
    for path in _files(folders, kind):
        try:
            yield path, read(files.read_text(path), path.stem)
        except document.BadDocument as error:
            bad(path, str(error))
        except UnicodeDecodeError as error:
            bad(path, f"it is no UTF-8 text ({error})")
        except OSError as error:
            bad(path, f"it can't be read ({error.strerror})")


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
