"""How many files a virtiofsd holds open, and a warning before it has all that it may.

A guest keeps a descriptor in virtiofsd for each file that it remembers, not only for those that it has open, unless
InodeFileHandles does without. Nothing tells when a process runs out of descriptors, so this is the one thing at which
vfsd looks again and again, while shares are active: see HACKING.md for what it costs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfsd import host_proc
from vfsd.journal import Pace
from vfsd.model import ShareState

if TYPE_CHECKING:
    from vfsd.context import Context, Thing
    from vfsd.share import Share

_LIMIT = "Max open files"
RESERVE = 610
"""Descriptors that virtiofsd 1.13 keeps for itself, besides those of its thread pool (INTERNAL_FD_RESERVE in its
main.rs): a guest that wants more than the others gets ENFILE. It does not start with less, so one that did reserves
none."""
INTERVAL, NEAR_INTERVAL = 5.0, 1.0
"""Seconds between looks, and where a virtiofsd has more than half of what it may."""
NEAR = 0.5
LEVELS = (0.8, 0.95)
"""Parts of the limit at which is warned."""
CALM = 0.7
"""The part below which a warning is over."""
_IDLE = 20
"""A look is followed by a pause of so many times the processor time that it took, at least."""


@dataclass(frozen=True, slots=True)
class Use:
    """What one virtiofsd has open, and may have open for its guest; 0 if that has no limit."""

    open: int
    limit: int

    @property
    def part(self) -> float:
        """Of the limit."""
        return self.open / self.limit if self.limit else 0.0


def count(main_pid: int) -> int | None:
    """Files that a virtiofsd holds open, told in some µs; 0 if it is gone, None if the kernel doesn't tell at once."""
    counts = [_size(pid) for pid in _processes(main_pid)]
    return None if 0 in counts else max(counts, default=0)


def look(main_pid: int) -> Use | None:
    """The same with its limit, None if it is gone. Before Linux 6.2 this takes 4 ms for 1000 files."""
    found = [(_size(pid) or _listed(pid), pid) for pid in _processes(main_pid)]
    if not found:
        return None
    most, pid = max(found)
    return Use(most, _limit(pid))


def _look_at(main_pids: list[int]) -> tuple[list[Use | None], float]:
    """What each has, and the seconds of processor time that it took to find out."""
    begun = time.thread_time()
    return [look(pid) for pid in main_pids], time.thread_time() - begun


def _processes(main_pid: int) -> list[int]:
    """The main process and its children: with Sandbox namespace the main one only waits for the one that serves."""
    try:
        children = (host_proc.root() / f"{main_pid}/task/{main_pid}/children").read_text()
    except OSError:
        return []  # it is gone, or 0
    return [main_pid, *map(int, children.split())]


def _size(pid: int) -> int:
    """Open files of a process; 0 if it is gone, or the kernel is older than 6.2."""
    try:
        return (host_proc.root() / f"{pid}/fd").stat().st_size
    except OSError:
        return 0


def _listed(pid: int) -> int:
    try:
        return sum(1 for _ in (host_proc.root() / f"{pid}/fd").iterdir())
    except OSError:
        return 0


def _limit(pid: int) -> int:
    """What there is for the guest, so that there is some room yet; 0 if there is no limit, or the process is gone."""
    try:
        lines = (host_proc.root() / f"{pid}/limits").read_text().splitlines()
    except OSError:
        return 0
    [line] = (line for line in lines if line.startswith(_LIMIT))
    soft = line.removeprefix(_LIMIT).split()[0]
    limit = int(soft) if soft.isdecimal() else 0
    return limit - RESERVE if limit > RESERVE else limit


class Alarm:
    """Says when to warn: once at each level, and again after it was calm."""

    def __init__(self) -> None:
        self._reached = 0

    def rings(self, part: float) -> bool:
        """Whether to warn, now that this part of the limit is in use."""
        reached = sum(part >= level for level in LEVELS)
        if part < CALM:
            self._reached = 0
        if reached <= self._reached:
            return False
        self._reached = reached
        return True


class Watch:
    """Looks at the shares that are active; a listener of the context."""

    def __init__(self, context: Context, shares: Callable[[], Iterable[Share]]) -> None:
        self._context = context
        self._shares = shares
        self._alarms: dict[int, Alarm] = {}
        """By virtiofsd's main process."""
        self._paces: dict[str, Pace] = {}
        """By share: a guest may open and close files for ever."""
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look while a share is active."""
        if self._task is None and self._active():
            self._task = self._context.spawn(self._look())

    def added(self, thing: Thing) -> None:
        """It is not active yet."""

    def removed(self, thing: Thing) -> None:
        """Forget it."""
        self._paces.pop(thing.name, None)

    def changed(self, thing: Thing) -> None:
        """Only states matter."""

    def state_changed(self, thing: Thing, old: str, new: str, reason: str) -> None:  # noqa: ARG002
        """A share may have become active."""
        if new == ShareState.ACTIVE:
            self.begin()

    def files_running_out(self, share: Share, use: Use) -> None:
        """That is told here."""

    def _active(self) -> list[Share]:
        return [share for share in self._shares() if share.main_pid and share.state is ShareState.ACTIVE]

    async def _look(self) -> None:
        pause = INTERVAL
        while True:
            await asyncio.sleep(pause)
            active = self._active()
            if not active:
                break
            pids = [share.main_pid for share in active]
            uses, took = await asyncio.to_thread(_look_at, pids)
            self._alarms = {pid: self._alarms.get(pid) or Alarm() for pid in pids}
            for share, pid, use in zip(active, pids, uses, strict=True):
                if use is not None:
                    self._judge(share, self._alarms[pid], use)
            near = any(use is not None and use.part > NEAR for use in uses)
            pause = max(NEAR_INTERVAL if near else INTERVAL, _IDLE * took)
        self._alarms.clear()
        self._task = None

    def _judge(self, share: Share, alarm: Alarm, use: Use) -> None:
        share.open_files = use.open
        if alarm.rings(use.part) and self._paces.setdefault(share.name, Pace()).pace("-"):
            self._context.files_running_out(share, use)
