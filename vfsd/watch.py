"""Files and folders that are replaced or changed, by inotify(7): no polling.

Python's standard library has no access to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import operator
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _MOVE_SELF = 0x40, 0x80, 0x100, 0x200, 0x800
_MASK_ADD, _OVERFLOW, _IGNORED = 0x20000000, 0x4000, 0x8000
"""sys/inotify.h."""
_CHANGED = 0x08 | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
"""IN_CLOSE_WRITE and these."""
_HEADER = struct.Struct("iIII")
"""Watch, mask, cookie, length of the name that follows (struct inotify_event)."""
_BUFFER = 64 << 10
QUIET = 1.0
"""Seconds without a change until it is told: a package is unpacked in several steps."""


class _Inotify:
    """One instance of inotify, read in the running event loop."""

    def __init__(self, on_event: Callable[[int, int, str], None]) -> None:
        """:param on_event: is told of the watch, the mask and the name within the watched folder."""
        self._on_event = on_event
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)

    def add(self, folder: Path, mask: int) -> int:
        """Watch a folder; returns the watch's number, negative if that is not possible: it may be gone already."""
        return int(self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask))

    def remove(self, number: int) -> None:
        """End a watch; no error if it ended by itself."""
        self._libc.inotify_rm_watch(self._descriptor, number)

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _read(self) -> None:
        data = os.read(self._descriptor, _BUFFER)
        place = 0
        while place < len(data):
            number, mask, _, length = _HEADER.unpack_from(data, place)
            place += _HEADER.size
            name = os.fsdecode(data[place : place + length].rstrip(b"\0"))
            place += length
            self._on_event(number, mask, name)


class FileWatch:
    """Tells when one of some files was changed, replaced or removed, once it is quiet again."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._inotify = _Inotify(self._event)
        self._folders: dict[Path, int] = {}
        self._names: set[tuple[int, str]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, paths: Iterable[Path]) -> None:
        """Watch these, and no others. Their folders are watched: a file that is replaced is another one."""
        wanted = set(paths)
        for folder in {path.parent for path in wanted} - self._folders.keys():
            number = self._inotify.add(folder, _CHANGED)
            if number >= 0:  # else it is gone already
                self._folders[folder] = number
        for folder in self._folders.keys() - {path.parent for path in wanted}:
            self._inotify.remove(self._folders.pop(folder))
        self._names = {
            (self._folders[path.parent], path.name) for path in wanted if path.parent in self._folders
        }

    def close(self) -> None:
        """Watch nothing any more."""
        self._inotify.close()
        if self._timer is not None:
            self._timer.cancel()

    def _event(self, number: int, _mask: int, name: str) -> None:
        if (number, name) in self._names:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(QUIET, self._on_change)


class LossWatch:
    """Tells when something was taken away from some folders, or a folder itself, once it is quiet again.

    What has a name that begins with a dot is no loss.
    """

    def __init__(self, on_change: Callable[[], None], quiet: float) -> None:
        """:param quiet: seconds without a loss until it is told."""
        self._on_change = on_change
        self._quiet = quiet
        self._inotify = _Inotify(self._event)
        self._folders: dict[int, Path] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, folders: Iterable[Path]) -> None:
        """Watch these; one that was made anew too."""
        for folder in set(folders) - set(self._folders.values()):
            number = self._inotify.add(folder, _DELETE | _MOVED_FROM)
            if number >= 0:
                self._folders[number] = folder

    def _event(self, number: int, mask: int, name: str) -> None:
        gone = mask & _IGNORED and self._folders.pop(number, None) is not None
        if gone or mask & _OVERFLOW or (mask & (_DELETE | _MOVED_FROM) and not name.startswith(".")):
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self._quiet, self._on_change)


class FolderWatch:
    """Tells at once when one of some folders is removed, moved or replaced, or comes into being."""

    def __init__(self, on_change: Callable[[set[str]], None]) -> None:
        """:param on_change: is told of the paths that may be something else now."""
        self._on_change = on_change
        self._inotify = _Inotify(self._event)
        self._watched: dict[int, dict[str, int]] = {}
        """By the number of a watch, the paths that lead through that folder, and what is watched for each."""
        self._ways: dict[str, dict[int, str]] = {}
        """By path, the watches on the way to it, and what comes next there."""

    def watch(self, path: str) -> None:
        """Watch an absolute path, or again after it was told to have changed."""
        before, ways = self._ways.get(path, {}), {}
        for folder, mask in _ways(Path(path)):
            number = self._inotify.add(folder, mask | _MASK_ADD)
            if number < 0:
                continue
            ways[number] = Path(path).relative_to(folder).parts[0]
            paths = self._watched.setdefault(number, {})
            paths[path] = mask
            # what it was watched for on behalf of a path that was missing then is not needed any more
            self._inotify.add(folder, functools.reduce(operator.or_, paths.values()))
        self._ways[path] = ways
        self._leave(path, before.keys() - ways.keys())

    def unwatch(self, path: str) -> None:
        """Watch a path no more; no error if it was not."""
        self._leave(path, self._ways.pop(path, {}).keys())

    def _leave(self, path: str, numbers: Iterable[int]) -> None:
        for number in numbers:
            paths = self._watched[number]
            del paths[path]
            if not paths:
                del self._watched[number]
                self._inotify.remove(number)

    def _event(self, number: int, mask: int, name: str) -> None:
        paths = self._watched.get(number, {})
        if mask & _OVERFLOW:
            paths = dict.fromkeys(self._ways, 0)
        elif not mask & _MOVE_SELF:
            paths = {path: wanted for path, wanted in paths.items() if self._ways[path][number] == name}
        if paths:
            self._on_change(set(paths))


def _ways(path: Path) -> Iterator[tuple[Path, int]]:
    """The folders to watch for one path, and for what: as little as will do, since others work in them too."""
    folders = [folder for folder in path.parents if folder.is_dir()]
    if not folders:
        return  # the root folder: nothing becomes of it
    nearest, *others = folders
    mask = _MOVE_SELF | _DELETE | _MOVED_FROM | _MOVED_TO
    yield nearest, mask if path.is_dir() else mask | _CREATE
    for folder in others:
        yield folder, _MOVE_SELF
