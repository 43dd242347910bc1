"""How vfsd is: what must not have changed when all is over."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.raw import VFSD, Bus
from tests.integration.harness import Vfsd, wait_for
from vfsd import errors
from vfsd.journal import MessageId

STATS = "org.freedesktop.DBus.Debug.Stats"
GROWTH_MAX = 40 << 20
"""Bytes by which the memory may grow after the warm-up. What is kept has limits: 4,096 small entries of properties,
4,096 small fields of units, 4,096 callers, 512 types. With random calls alone it went from 22 to 33 MiB in 52,000 and
stayed there for 20,000 more; floods of large replies leave holes in the heap (35 MiB at most in 170,000 calls)."""
SECRETS = ("Traceback", 'File "', "/usr/lib", "internal error")
"""What no error may hold."""


def _all(kind: type[errors.VfsdError]) -> Iterator[str]:
    yield kind.dbus_name
    for each in kind.__subclasses__():
        yield from _all(each)


DOCUMENTED = frozenset(_all(errors.VfsdError))
"""Names of the errors that vfsd may answer with."""


@dataclass(frozen=True, slots=True)
class Health:
    """vfsd at one moment."""

    pid: int
    restarts: int
    memory: int
    """Bytes that are its own: anonymous memory in RAM."""
    descriptors: frozenset[str]
    """What each leads to."""
    threads: int
    match_rules: int

    def __str__(self) -> str:
        return (
            f"pid {self.pid}, {self.restarts} restarts, {self.memory / (1 << 20):.1f} MiB, "
            f"{len(self.descriptors)} descriptors, {self.threads} threads, {self.match_rules} match rules"
        )


def observe(vfsd: Vfsd, bus: Bus) -> Health:
    """Look at vfsd."""
    pid = vfsd.main_pid()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    [stats] = bus.call_bus("GetConnectionStats", "s", VFSD, interface=STATS)
    return Health(
        pid,
        int(vfsd.unit_property("vfsd.service", "NRestarts")),
        int(status["RssAnon"].split()[0]) * 1024,
        frozenset(_descriptors(pid)),
        int(status["Threads"]),
        int(stats["MatchRules"].value),
    )


def _descriptors(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            yield f"{link.name} {link.readlink()}"


def complaints(vfsd: Vfsd, since: float) -> list[str]:
    """What vfsd called a bug of its own."""
    field = "_SYSTEMD_UNIT" if vfsd.scope == "system" else "_SYSTEMD_USER_UNIT"
    matches = (f"MESSAGE_ID={MessageId.INTERNAL_ERROR}", f"{field}=vfsd.service")
    entries = vfsd.journal(*matches, since=since)
    return [f"{entry['MESSAGE']}\n{entry.get('EXCEPTION_TEXT', '')}" for entry in entries]


def compare(before: Health, after: Health) -> list[str]:
    """What is wrong with how it is now."""
    wrong = []
    if (after.pid, after.restarts) != (before.pid, before.restarts):
        wrong.append("vfsd ended meanwhile")
    if after.memory > before.memory + GROWTH_MAX:
        wrong.append("its memory grew")
    if len(after.descriptors) > len(before.descriptors):
        wrong.append(f"it has more descriptors ({_peers(after.descriptors - before.descriptors)})")
    if after.match_rules > before.match_rules:
        wrong.append("it has more match rules")
    return [f"{text}: {before} before, {after} now" for text in wrong]


def _peers(descriptors: frozenset[str]) -> str:
    """What they are; of sockets, what is at the other end."""
    command = ["ss", "--unix", "--all", "--processes", "--no-header"]
    sockets = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=True
    ).stdout.splitlines()
    parts = []
    for descriptor in sorted(descriptors):
        _, _, inode = descriptor.rstrip("]").partition("socket:[")
        parts.append(descriptor)
        parts += [" ".join(line.split()) for line in sockets if inode and inode in line.split()]
    return ", ".join(parts)


def settled(vfsd: Vfsd, bus: Bus, before: Health, timeout: float = 20) -> Health:
    """vfsd once it has nothing left to do, or the timeout is over."""
    end = time.monotonic() + timeout
    while compare(before, now := observe(vfsd, bus)) and time.monotonic() < end:
        time.sleep(0.5)
    return now


def nothing_left(vfsd: Vfsd) -> list[str]:
    """Units and files that are left when every object is removed."""
    try:
        wait_for(lambda: not vfsd.leftovers(), "everything is gone")
    except AssertionError:
        return [f"left: {item}" for item in vfsd.leftovers()]
    return []
