"""What there is of one vfsd: objects, units, files, processes, descriptors; so that nothing is lost or leaked."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import MACHINE, SHARE, CommandFailed, Vfsd, clean, wait_for
from tests.integration.tiny_guest import make_image

TRUTH = 1.0
"""Seconds within which the bus tells the truth."""
_WATCHES = 3
"""vfsd's inotify descriptors, of which one comes last when it comes up."""
_KEPT = 2
"""Sockets that are made when first needed, and kept: to logind for a machine, to journald for an entry."""
_PROGRAMS = ("qemu-system", "virtiofsd")


@dataclass(frozen=True)
class Census:
    """One vfsd and what is its, at one moment."""

    states: dict[str, str]
    """By object: state, and what it complains of."""
    units: dict[str, str]
    """Loaded ones and their state."""
    files: frozenset[str]
    """Below the runtime folder, and definitions that persist."""
    processes: dict[int, str]
    """QEMUs and virtiofsds in units of every vfsd."""
    descriptors: Counter[str]
    """Of vfsd itself, by kind: sockets, memory files, folders that are watched, …"""

    def differences(self, later: Census, *, processes: bool = True) -> list[str]:
        """What is not the same in a later one.

        :param processes: whether each process must still be the same one, or just as many must run.
        """
        return [
            *_of("object", self.states, later.states),
            *_of("unit", self.units, later.units),
            *(f"file {path}" for path in sorted(self.files ^ later.files)),
            *(_of("process", self.processes, later.processes) if processes else self._programs(later)),
            *_of("descriptors", self._other_descriptors(later), later.descriptors),
        ]

    def _other_descriptors(self, later: Census) -> Counter[str]:
        """These descriptors, as a later census may have them."""
        more = later.descriptors["socket"] - self.descriptors["socket"]
        return (
            Counter({**self.descriptors, "socket": later.descriptors["socket"]})
            if abs(more) <= _KEPT
            else self.descriptors
        )

    def _programs(self, later: Census) -> list[str]:
        before, after = Counter(self.processes.values()), Counter(later.processes.values())
        return _of("processes", before, after)


def take(vfsd: Vfsd) -> Census:
    """Count what there is now, once a vfsd that just came up has asked QEMU and virtiofsd what they can do."""
    wait_for(lambda: _descriptors(vfsd.main_pid())["anon_inode:inotify"] == _WATCHES, "it has come up")
    listed = vfsd.systemctl("list-units", "--all", "--plain", "--no-legend", "--full", "vfsd-*")
    units = {row[0]: row[2] for row in map(str.split, listed.splitlines()) if row}
    shares = {path: f"{state} {source}" for _, state, source, path in vfsd.manager("ListShares")}
    machines = {path: state for _, state, path in vfsd.manager("ListMachines")}
    return Census(shares | machines, units, _files(vfsd), processes(), _descriptors(vfsd.main_pid()))


@pytest.fixture
def counted(vfsd: Vfsd) -> Iterator[Census]:
    """What there was before a test; fails if that is not all there is once its objects are removed."""
    before = take(vfsd)
    yield before
    clean(vfsd)
    unchanged(vfsd, before, processes=False)


def unchanged(vfsd: Vfsd, before: Census, *, within: float = 20, **how: Any) -> None:
    """Wait until everything is as it was; fails with what is not."""
    end = time.monotonic() + within
    while left := _compared(vfsd, before, **how):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def processes() -> dict[int, str]:
    """QEMUs and virtiofsds that run, with their program; without those that vfsd asks what they can do."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            program = (entry / "exe").readlink().name if entry.name.isdigit() else ""
            if program.startswith(_PROGRAMS) and "vfsd.service" not in (entry / "cgroup").read_text():
                found[int(entry.name)] = program
    return found


def told_within(seconds: float, condition: Any, what: str) -> None:
    """The bus tells the truth in time; a busctl takes a tenth of a second itself, and much longer on a busy host."""
    wait_for(condition, what, seconds + 1.5)


@dataclass
class Scene:
    """A share that listens, one that serves a client, and a machine that runs with a share of its own."""

    listening: str
    served: str
    machine: str
    own: str
    connection: socket.socket
    """The client of the served one."""

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def scene(vfsd: Vfsd, folder: Path, *options: str, stubborn: bool = False) -> Scene:
    """Make one, with no client of the bus that would have to live through what happens to it.

    :param options: further ones of the machine, as busctl takes them: name, signature, value, three for each.
    """
    listening = vfsd.manager("CreateShare", "ssa{sv}", "listens", str(folder), "0")
    served = vfsd.manager("CreateShare", "ssa{sv}", "serves", str(folder), "0")
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(vfsd.get(served, SHARE, "SocketPath"))
    given = {
        "Image": ["s", str(make_image(folder / "tiny.img", stubborn=stubborn))],
        "Memory": ["t", str(32 << 20)],
        "Network": ["s", "none"],
        "Accelerator": ["s", "tcg"],
        "Shares": ["a(ssa{sv})", "1", str(folder), "", "0"],
    }
    defaults = [word for name, value in given.items() for word in (name, *value)]
    count = str(len(given) + len(options) // 3)
    machine = vfsd.manager("CreateMachine", "sa{sv}", "tiny", count, *defaults, *options)
    vfsd.call(machine, MACHINE, "Start")
    [own] = vfsd.get(machine, MACHINE, "Shares")
    wait_for(lambda: vfsd.get(served, SHARE, "State") == "active", "the client is served")
    return Scene(listening, served, machine, own, connection)


def reachable(vfsd: Vfsd) -> bool:
    """Whether vfsd answers, without being started for it."""
    command = ("busctl", vfsd.flag, "--auto-start=no", "call", "org.vfsd1", "/org/vfsd1")
    try:
        vfsd.run(*command, "org.freedesktop.DBus.Peer", "Ping")
    except CommandFailed:
        return False
    return True


def _compared(vfsd: Vfsd, before: Census, **how: Any) -> list[str]:
    try:
        return before.differences(take(vfsd), **how)
    except CommandFailed as error:
        return [str(error)]


def _of(what: str, before: Any, after: Any) -> list[str]:
    return [
        f"{what} {key}: {before.get(key)} → {after.get(key)}"
        for key in sorted({**before, **after})
        if before.get(key) != after.get(key)
    ]


def _files(vfsd: Vfsd) -> frozenset[str]:
    found = set()
    for base in (vfsd.runtime, vfsd.state / "definitions", vfsd.state / "machine"):
        for path in base.rglob("*"):
            with contextlib.suppress(OSError):
                found.add(f"{path} {stat.filemode(path.lstat().st_mode)[0]}")
    return frozenset(found)


def _descriptors(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            kind = re.sub(r"\d+", "N", os.fspath(entry.readlink()).partition(":[")[0])
            if "/inhibit/" not in kind:  # logind gives it a little after a machine was started
                found[kind] += 1
    return found
