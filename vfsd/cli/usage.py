"""What processes of a machine or a share use at this moment, read from the control group file system and /proc.

What can't be read is None: a kernel may count no memory for a control group, and another user's I/O is not shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_KIB = 1024


class Sample(NamedTuple):
    """Counters at one time."""

    at: float
    """Seconds of a monotonic clock."""
    cpu_usec: int | None = None
    memory: int | None = None
    """Bytes at this time."""
    read: int | None = None
    written: int | None = None
    """Bytes that were read and written by system calls: of a virtiofsd, what its guest wanted."""


class Rates(NamedTuple):
    """What became of the counters in a second."""

    cpu: float | None = None
    """Percent of one processor."""
    memory: int | None = None
    read: float | None = None
    written: float | None = None
    """Bytes in a second."""


def rates(before: Sample | None, after: Sample | None) -> Rates:
    """What was used between two samples; nothing is known without the first one."""
    if after is None:
        return Rates()
    if before is None or after.at <= before.at:
        return Rates(memory=after.memory)
    passed = after.at - before.at

    def rate(old: int | None, new: int | None) -> float | None:
        # it falls when a process has ended, or another has its place
        return (new - old) / passed if old is not None and new is not None and new >= old else None

    cpu = rate(before.cpu_usec, after.cpu_usec)
    return Rates(
        None if cpu is None else cpu / 10_000,
        after.memory,
        rate(before.read, after.read),
        rate(before.written, after.written),
    )


def sample(
    pid: int, unit: str, at: float, *, io: bool = False, proc: Path = PROC, cgroups: Path = CGROUPS
) -> Sample:
    """Count what the processes of a unit use.

    :param pid: one of its processes, by which its control group is found.
    :param unit: its slice or service.
    :param io: whether what they read and write is counted, too.
    """
    group = _group(pid, unit, proc, cgroups)
    if group is None:
        return Sample(at)
    pids = list(_processes(group))
    read, written = _io(pids, proc) if io else (None, None)
    return Sample(
        at,
        _cpu(group, pids, proc),
        _number(group / "memory.current") or _resident(pids, proc),
        read,
        written,
    )


def _group(pid: int, unit: str, proc: Path, cgroups: Path) -> Path | None:
    """The control group of a unit that a process is in."""
    line = next((line for line in _lines(proc / str(pid) / "cgroup") if line.startswith("0::")), "")
    parts = Path(line.removeprefix("0::")).parts
    return cgroups.joinpath(*parts[1 : parts.index(unit) + 1]) if unit in parts else None


def _processes(group: Path) -> Iterator[int]:
    for folder, _, _ in os.walk(group):
        yield from (int(line) for line in _lines(Path(folder, "cgroup.procs")) if line.isdecimal())


def _cpu(group: Path, pids: list[int], proc: Path) -> int | None:
    """Microseconds."""
    for line in _lines(group / "cpu.stat"):
        if line.startswith("usage_usec "):
            return int(line.split()[1])
    found = None
    for pid in pids:
        # the name in parentheses may hold anything (proc_pid_stat(5))
        fields = "".join(_lines(proc / str(pid) / "stat")).rpartition(")")[2].split()
        if len(fields) > 12:
            found = (found or 0) + (int(fields[11]) + int(fields[12])) * 1_000_000 // _TICKS
    return found


def _resident(pids: list[int], proc: Path) -> int | None:
    """Bytes of memory, where the guest's, which QEMU and each virtiofsd have mapped, counts once."""
    own = shared = 0
    for pid in pids:
        fields = dict(
            line.split(":", 1) for line in _lines(proc / str(pid) / "status") if line.startswith("Rss")
        )
        kib = {name: int(value.split()[0]) for name, value in fields.items()}
        own += kib.get("RssAnon", 0) + kib.get("RssFile", 0)
        shared = max(shared, kib.get("RssShmem", 0))
    return (own + shared) * _KIB or None


def _io(pids: list[int], proc: Path) -> tuple[int | None, int | None]:
    """Bytes read and written; None if one of the processes does not show them."""
    read = written = 0
    for pid in pids:
        lines = _lines(proc / str(pid) / "io")
        counted = dict(line.split(": ") for line in lines)
        if "rchar" not in counted:
            return None, None
        read += int(counted["rchar"])
        written += int(counted["wchar"])
    return (read, written) if pids else (None, None)


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None
