"""Which labs are up: one folder each under /run, locked by the warden for as long as it lives.

A lock cannot outlive its process, so a lab whose lock is free was killed and can be swept away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab import LabError, cgroup

FOLDER = Path("/run/vfsd-lab")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")


@dataclass(frozen=True)
class Record:
    """What others have to know about a lab that is up."""

    name: str
    warden: int
    init: int
    project: str
    base: str


def folder(name: str) -> Path:
    """Return the lab's folder, for a name that can be a host name and a file name."""
    if not _NAME.fullmatch(name):
        raise LabError(f"{name!r} is no name for a lab: use a to z, 0 to 9 and -, at most 40.")
    return FOLDER / name


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    FOLDER.mkdir(mode=0o755, exist_ok=True)
    with (FOLDER / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _try_lock(path: Path) -> int | None:
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def claim(name: str) -> int:
    """Take the name for the calling process, after sweeping away labs whose warden was killed."""
    path = folder(name)
    with _exclusive():
        for other in FOLDER.iterdir():
            if other.is_dir() and (fd := _try_lock(other)) is not None:
                clear(other)
                os.close(fd)
        try:
            (path / "mnt").mkdir(parents=True)
        except FileExistsError:
            raise LabError(f"A lab named {name} is up already.") from None
        fd = _try_lock(path)
        assert fd is not None
        return fd


def clear(path: Path) -> None:
    """Remove a lab's control groups and its folder."""
    with contextlib.suppress(FileNotFoundError):
        cgroup.destroy([Path(line) for line in (path / "cgroups").read_text().splitlines()])
    shutil.rmtree(path)


def release(name: str) -> None:
    """Give the name back: the warden's last step."""
    with _exclusive():
        clear(folder(name))


def publish(record: Record) -> None:
    """Write the record, whole or not at all."""
    part = folder(record.name) / "state.part"
    part.write_text(json.dumps(asdict(record)))
    part.rename(folder(record.name) / "state.json")


def find(name: str) -> Record:
    """Return the record of a lab that is up."""
    path = folder(name)
    # The exclusive lock keeps this look at a lab's lock from being taken for the lab's own hold.
    with _exclusive(), contextlib.suppress(FileNotFoundError):
        if (fd := _try_lock(path)) is None:
            return Record(**json.loads((path / "state.json").read_text()))
        os.close(fd)
    raise LabError(f"No lab named {name} is up: start one with `up --name {name}`.")


def running() -> list[Record]:
    """Return the labs that are up."""
    records = []
    for path in sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []:
        if path.is_dir():
            with contextlib.suppress(LabError):
                records.append(find(path.name))
    return records
