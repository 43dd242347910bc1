"""The mount table of the service manager, where virtiofsd finds what it serves, and when it changes: no polling.

proc_pid_mountinfo(5) can be waited upon (EPOLLPRI) and tells of every mount and umount, whoever made it, at once.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TextIO

from vfsd import host_proc
from vfsd.names import Scope

AUTOMOUNT = "autofs"
"""What lies there until somebody looks; it is not looked at, or it would be mounted for nothing."""
_REMOTE = frozenset(("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "autofs"))
"""File systems that may not answer for ever when their server is away."""
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One file system at one place."""

    number: int
    parent: int
    device: str
    """MAJOR:MINOR; the major number is 0 if no block device is below, and with btrfs."""
    place: str
    kind: str
    source: str
    """What was mounted: often the node of a device."""

    @property
    def may_hang(self) -> bool:
        """Whether to look at it may take for ever."""
        return self.kind in _REMOTE or self.kind.startswith("fuse.")

    @property
    def has_device(self) -> bool:
        """Whether its number is that of a block device."""
        return not self.device.startswith("0:")


_NOWHERE = Mount(0, 0, "0:0", "/", "", "")


class MountTable:
    """What is mounted where."""

    def __init__(self, mounts: Iterable[Mount]) -> None:
        listed = list(mounts)
        self._below = {(mount.parent, mount.place): mount for mount in listed}
        numbers = {mount.number for mount in listed}
        roots = (mount for mount in listed if mount.place == "/" and mount.parent not in numbers)
        self._root = next(roots, _NOWHERE)

    @classmethod
    def parse(cls, text: str) -> MountTable:
        """Read the text of a mountinfo."""
        return cls(_parse_line(line) for line in text.splitlines())

    def above(self, path: str) -> list[Mount]:
        """The mounts that one comes through on the way to an absolute path, that which holds it last."""
        found = [self._topmost(self._root)]
        for place in reversed((PurePosixPath(path), *PurePosixPath(path).parents)):
            mount = self._below.get((found[-1].number, str(place)))
            if mount is not None and mount is not found[-1]:
                found.append(self._topmost(mount))
        return found

    def _topmost(self, mount: Mount) -> Mount:
        """What was mounted over it at the same place."""
        while (over := self._below.get((mount.number, mount.place))) is not None and over is not mount:
            mount = over
        return mount


def _parse_line(line: str) -> Mount:
    fields, _, rest = line.partition(" - ")
    number, parent, device, _, place, *_ = fields.split(" ")
    kind, source, *_ = rest.split(" ")
    return Mount(int(number), int(parent), device, _unescape(place), kind, _unescape(source))


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


class MountMonitor:
    """The mount table as it is now."""

    def __init__(self, scope: Scope) -> None:
        """A system's vfsd has a mount namespace of its own, in which folders lie that are mounts nowhere else."""
        self._path = (
            host_proc.root() / "1/mountinfo" if scope is Scope.SYSTEM else Path("/proc/self/mountinfo")
        )
        self._file, self._changed = self._watch()
        self._table: MountTable | None = None

    def start(self, on_change: Callable[[], None]) -> None:
        """Tell of each change from now on, in the running event loop."""
        # by an open file of its own: whoever waits takes the news, and an event loop that waits for an epoll has it
        # taken from that before it asks it
        self._told = self._watch()
        changed = self._told[1]

        def tell() -> None:
            changed.poll(0)
            on_change()

        asyncio.get_running_loop().add_reader(changed, tell)

    @property
    def table(self) -> MountTable:
        """What is mounted at this moment, even if the change was not told yet."""
        if self._changed.poll(0) or self._table is None:
            self._file.seek(0)
            self._table = MountTable.parse(self._file.read())
        return self._table

    def _watch(self) -> tuple[TextIO, select.epoll]:
        file = self._path.open(encoding="utf-8", errors="surrogateescape", newline="\n")
        changed = select.epoll()
        changed.register(file, select.EPOLLPRI | select.EPOLLET)
        return file, changed
