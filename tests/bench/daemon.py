"""What vfsd itself costs: time to come up, wake-ups and memory while nothing happens; and vfsctl's whole process."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.bus import BUS, ROOT, VFSD, RawBus
from tests.bench.many import VfsdShares
from tests.bench.results import Results, Row
from tests.bench.rounds import Turn, paired, progress
from tests.bench.setting import systemctl, vfsd_pid
from tests.bench.stats import Goal, Spread, spread

SHARES = 1000
USS_GOAL, SHARE_GOAL = 20.0, 20.0
START_GOAL, ADOPT_GOAL = 100.0, 1000.0
VFSCTL_GOAL = 3.0
START_TIMEOUT = 30.0
SETTLE = 3.0
"""Seconds in which a started vfsd learns the versions of what is installed."""


def one(value: float) -> Spread:
    """A value that was measured once."""
    return Spread(value, value, value, 1)


def private_kib(pid: int) -> int:
    """USS: the memory that would come free if the process ended."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(kib) for kib in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.MULTILINE))


def switches(pid: int) -> int:
    """Context switches of all threads."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        counted = re.findall(r"^(?:non)?voluntary_ctxt_switches:\s+(\d+)", path.read_text(), re.MULTILINE)
        total += sum(map(int, counted))
    return total


async def measure(results: Results, rounds: int, idle_seconds: float) -> None:
    """Section 8 of the goals."""
    await _idle(results, idle_seconds)
    await _vfsctl(results, rounds)
    with _stopped_service():
        _starts(results, "0 units", rounds, START_GOAL)
    await _with_many(results, max(3, rounds // 3))


async def _idle(results: Results, seconds: float) -> None:
    progress(f"daemon: idle for {seconds:.0f} s")
    systemctl("restart", "vfsd.service")
    await asyncio.sleep(SETTLE)
    pid = vfsd_pid()
    before = switches(pid)
    await asyncio.sleep(seconds)
    woken = switches(pid) - before
    results.add(Row("daemon", f"context switches in {seconds:.0f} idle s", one(woken), "", Goal(0, "0")))
    results.add(Row("daemon", "USS, no shares", one(private_kib(pid) / 1024), "MB", Goal(USS_GOAL)))


async def _vfsctl(results: Results, rounds: int) -> None:
    python = "/usr/bin/python3"
    modes = {
        "asyncio": _process(python, "-c", "import asyncio"),
        "vfsctl": _process("/usr/bin/vfsctl", "status"),
    }
    samples = await paired(results, "vfsctl status", modes, rounds * 2)
    if samples["vfsctl"]:
        values, base = samples["vfsctl"]["whole"], samples["asyncio"]["whole"]
        results.compare("daemon", "vfsctl status / python3 -c 'import asyncio'", values, base, VFSCTL_GOAL)


def _process(*command: str) -> Turn:
    async def run(_number: int) -> dict[str, float]:
        begin = time.perf_counter()
        await asyncio.to_thread(
            subprocess.run, command, stdout=subprocess.DEVNULL, check=True, timeout=START_TIMEOUT
        )
        return {"whole": time.perf_counter() - begin}

    return run


@contextlib.contextmanager
def _stopped_service() -> Iterator[None]:
    """vfsd.service down, so that a vfsd can be run by hand."""
    systemctl("stop", "vfsd.service")
    try:
        yield
    finally:
        systemctl("reset-failed", "vfsd.service")
        systemctl("start", "vfsd.service")


def _starts(results: Results, what: str, rounds: int, goal: float) -> None:
    times, bare = [], []
    for number in range(rounds + 1):
        progress(f"daemon: start with {what}, {number} of {rounds}")
        begin = time.perf_counter()
        subprocess.run(["/usr/bin/python3", "-I", "-c", "import asyncio"], check=True, timeout=START_TIMEOUT)
        base = time.perf_counter() - begin
        seconds = _start_once()
        if number:  # the first has cold caches
            times.append(seconds)
            bare.append(base)
    results.samples[f"start, {what}"] = {"vfsd": times, "asyncio": bare}
    value = spread([seconds * 1000 for seconds in times])
    note = f"python3 -c 'import asyncio' {spread(bare).median * 1000:.0f} ms"
    results.add(Row("daemon", f"start → name, {what} to adopt", value, "ms", Goal(goal), note))


def _start_once() -> float:
    """Run vfsd by hand until it has its name."""
    bus = RawBus()
    rule = f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{VFSD}'"
    bus.call(*BUS, "AddMatch", "s", rule)
    begin = time.perf_counter()
    with subprocess.Popen(["/usr/bin/vfsd", "--system"], stderr=sys.stderr) as process:
        try:
            came = bus.wait_for(lambda message: message.member == "NameOwnerChanged", START_TIMEOUT)
            bus.call(VFSD, ROOT, "org.freedesktop.DBus.Peer", "Ping")
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            bus.close()
    return came.received - begin


async def _with_many(results: Results, rounds: int) -> None:
    """Memory for each share, and coming up with all of them."""
    shares = VfsdShares()
    try:
        progress(f"daemon: {SHARES} shares")
        shares.create(10)  # what is loaded with the first share is no cost of a share
        shares.remove(10)
        await asyncio.sleep(1)
        processes = {"vfsd": vfsd_pid(), "PID 1": 1}
        before = {name: private_kib(pid) for name, pid in processes.items()}
        shares.create(SHARES)
        await asyncio.sleep(1)
        grown = {name: (private_kib(pid) - before[name]) / SHARES for name, pid in processes.items()}
        note = ", ".join(f"{name} {kib:.1f} kB" for name, kib in grown.items())
        results.add(
            Row("daemon", "memory of an idle share", one(sum(grown.values())), "kB", Goal(SHARE_GOAL), note)
        )
        with _stopped_service():
            _starts(results, f"{SHARES} shares", rounds, ADOPT_GOAL)
    finally:
        with contextlib.suppress(Exception):
            shares.remove(SHARES)
        shares.bus.close()
