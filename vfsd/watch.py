"""Files that are replaced or changed, by inotify(7): no polling. Python's standard library has no access to it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

_CHANGED = 0x00000008 | 0x00000040 | 0x00000080 | 0x00000100 | 0x00000200
"""IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE (sys/inotify.h)."""
_HEADER = struct.Struct("iIII")
"""Watch, mask, cookie, length of the name that follows (struct inotify_event)."""
_BUFFER = 64 << 10
QUIET = 1.0
"""Seconds without a change until it is told: a package is unpacked in several steps."""


class FileWatch:
    """Tells when one of some files was changed, replaced or removed, once it is quiet again."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)
        self._folders: dict[Path, int] = {}
        self._names: set[tuple[int, str]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch these, and no others. Their folders are watched: a file that is replaced is another one."""
        wanted = set(paths)
        for folder in {path.parent for path in wanted} - self._folders.keys():
            number = self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _CHANGED)
            if number >= 0:  # else it is gone already
                self._folders[folder] = number
        for folder in self._folders.keys() - {path.parent for path in wanted}:
            self._libc.inotify_rm_watch(self._descriptor, self._folders.pop(folder))
        self._names = {
            (self._folders[path.parent], path.name) for path in wanted if path.parent in self._folders
        }

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._timer is not None:
            self._timer.cancel()

    def _read(self) -> None:
        data = os.read(self._descriptor, _BUFFER)
        place = 0
        while place < len(data):
            number, _, _, length = _HEADER.unpack_from(data, place)
            place += _HEADER.size
            name = os.fsdecode(data[place : place + length].rstrip(b"\0"))
            place += length
            if (number, name) in self._names:
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._loop.call_later(QUIET, self._on_change)
