"""How the host is before and after: processes, descriptors, memory, units, files."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.raw import VFSD, Bus
from tests.integration.harness import Vfsd

STATS = "org.freedesktop.DBus.Debug.Stats"
MIB = 1 << 20
GROWTH_MAX = {"vfsd": 16 * MIB, "manager": 2 * MIB, "bus": 2 * MIB}
"""Bytes by which the memory of its own may grow after the warm-up. What vfsd keeps has limits, which take 11 MiB to
fill (tests/fuzz/health.py), and each of its six threads has a heap: the first 16 minutes took 7 MiB. systemd and
dbus-daemon took less than 0.2 MiB for some 5,000 units in 32 minutes."""
THREADS = 1 + min(32, (os.cpu_count() or 1) + 4)
"""Threads of vfsd: Python's pool grows to this size as it is used (concurrent.futures.ThreadPoolExecutor)."""
SETTLING = 30.0
"""Seconds in which what is under way must be over."""


@dataclass(frozen=True, slots=True)
class Process:
    """What one process has of the host."""

    pid: int
    resident: int
    """Bytes in RAM."""
    own: int
    """Bytes in RAM that no other process has (USS)."""
    descriptors: int
    memfds: int
    threads: int
    watches: int
    """inotify's."""

    def __str__(self) -> str:
        return (
            f"{self.resident / MIB:.1f} MiB, {self.own / MIB:.1f} of its own, {self.descriptors} descriptors, "
            f"{self.memfds} memfds, {self.threads} threads, {self.watches} watches"
        )


@dataclass(frozen=True, slots=True)
class Health:
    """One scope at one moment."""

    daemons: dict[str, Process]
    """vfsd, the service manager, the bus."""
    match_rules: int
    stored: int
    """Descriptors in vfsd's descriptor store."""
    units: frozenset[str]
    """All that the service manager has loaded of vfsd's."""
    files: frozenset[str]
    control_groups: frozenset[str]
    mounts: int
    processes: Counter[str]
    """Of the whole host, by command line."""

    def lines(self) -> Iterator[str]:
        """To be shown."""
        for name, process in self.daemons.items():
            yield f"{name}: {process}"
        yield (
            f"{self.match_rules} match rules, {self.stored} descriptors stored, {len(self.units)} units, "
            f"{len(self.files)} files, {len(self.control_groups)} control groups, {self.mounts} mounts, "
            f"{self.processes.total()} processes"
        )


def _process(pid: int) -> Process:
    folder = Path(f"/proc/{pid}")
    rollup = dict(
        line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:] if ":" in line
    )

    def size(*names: str) -> int:
        return sum(int(rollup[name].split()[0]) * 1024 for name in names)

    descriptors = memfds = watches = 0
    for entry in (folder / "fd").iterdir():
        try:
            target = str(entry.readlink())
            descriptors += 1
            memfds += target.startswith("/memfd:")
            if target == "anon_inode:inotify":
                watches += (folder / "fdinfo" / entry.name).read_text().count("inotify wd:")
        except FileNotFoundError:
            continue
    threads = len(list((folder / "task").iterdir()))
    return Process(
        pid, size("Rss"), size("Private_Clean", "Private_Dirty"), descriptors, memfds, threads, watches
    )


def _processes() -> Counter[str]:
    """What runs, by command line, without the daemons of systemd's, which come and go by themselves."""
    found: Counter[str] = Counter()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            words = (folder / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0] and not words[0].rpartition("/")[2].startswith("systemd-"):
            found[" ".join(words)[:200]] += 1
    return found


def _files(vfsd: Vfsd) -> Iterator[str]:
    manager = Path("/run" if vfsd.scope == "system" else f"/run/user/{vfsd.owner_uid}")
    folders = [vfsd.runtime, vfsd.state, vfsd.config]
    folders += [manager / "systemd" / name for name in ("transient", "system.control", "user.control")]
    if vfsd.scope == "system":
        folders += [Path("/run/systemd/dynamic-uid"), Path("/run/systemd/machines"), Path("/run/credentials")]
        folders += [Path("/run/vfsd-vsock"), Path("/dev/shm")]
    for folder in folders:
        for path in folder.rglob("*"):
            if folder.name != "transient" or path.name.startswith("vfsd"):
                yield str(path)


def _control_groups(vfsd: Vfsd) -> Iterator[str]:
    for folder in Path("/sys/fs/cgroup").rglob("vfsd*"):
        mine = ("user.slice" in folder.parts) == (vfsd.scope == "user")
        if mine and folder.is_dir():
            yield str(folder)


def _bus_pid(vfsd: Vfsd) -> int:
    return int(vfsd.unit_property("dbus.service", "MainPID"))


def _manager_pid(vfsd: Vfsd) -> int:
    if vfsd.scope == "system":
        return 1
    return int(Vfsd("system").unit_property(f"user@{vfsd.owner_uid}.service", "MainPID"))


def observe(vfsd: Vfsd) -> Health:
    """Look at everything."""
    with Bus(vfsd) as bus:
        [stats] = bus.call_bus("GetConnectionStats", "s", VFSD, interface=STATS)
    daemons = {"vfsd": vfsd.main_pid(), "manager": _manager_pid(vfsd), "bus": _bus_pid(vfsd)}
    return Health(
        daemons={name: _process(pid) for name, pid in daemons.items()},
        match_rules=int(stats["MatchRules"].value),
        stored=int(vfsd.unit_property("vfsd.service", "NFileDescriptorStore") or 0),
        units=frozenset(vfsd.units()),
        files=frozenset(_files(vfsd)),
        control_groups=frozenset(_control_groups(vfsd)),
        mounts=len(Path("/proc/1/mountinfo").read_text().splitlines()),
        processes=_processes(),
    )


def compare(before: Health, after: Health) -> list[str]:
    """What there is too much of."""
    wrong = []
    for name, now in after.daemons.items():
        then = before.daemons[name]
        if now.own > then.own + GROWTH_MAX[name]:
            wrong.append(f"{name} grew by {(now.own - then.own) / MIB:.1f} MiB")
        for what in ("descriptors", "memfds", "threads", "watches"):
            allowed = getattr(then, what)
            if what == "threads" and name == "vfsd":
                allowed = max(allowed, THREADS)
            more = getattr(now, what) - allowed
            if more > 0:
                wrong.append(f"{name} has {more} more {what}")
    for what in ("match_rules", "stored", "mounts"):
        more = getattr(after, what) - getattr(before, what)
        if more > 0:
            wrong.append(f"{more} more {what.replace('_', ' ')}")
    for what in ("units", "files", "control_groups"):
        more = sorted(getattr(after, what) - getattr(before, what))
        wrong += [f"{what.replace('_', ' ')}: {item}" for item in more]
    wrong += [f"process: {line} ({count})" for line, count in (after.processes - before.processes).items()]
    return wrong


def settled(vfsd: Vfsd, before: Health) -> Health:
    """How it is once nothing is too much, or time is up."""
    end = time.monotonic() + SETTLING
    while compare(before, now := observe(vfsd)) and time.monotonic() < end:
        time.sleep(1)
    return now
