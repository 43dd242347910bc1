"""QEMU and virtiofsd are replaced under a running guest: for how long does it stand still, and how long does all take?

By hand it is QEMU's CPR (docs/devel/migration/CPR.rst, mode cpr-transfer, since 10.0): the guest's memory stays where
it is, and only the state of the devices goes from one QEMU to the other.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from tests.bench.bare import fresh
from tests.bench.booted import FILE, ThroughVfsd, both, check
from tests.bench.bus import CallFailed, Client
from tests.bench.by_hand import ByHand
from tests.bench.machines import SETTLE
from tests.bench.qmp import RETRY, START_TIMEOUT, seconds_of
from tests.bench.results import Results, Row
from tests.bench.rounds import Turn, paired, progress
from tests.bench.setting import NAME, Plan
from tests.bench.stats import spread

SECTION = "refresh"
_MIGRATION_TIMEOUT = 20.0
_WRITE_TIMEOUT = 10.0

HOLD = """
mkfifo /held
(exec 8<>/held 9>>"$1"; while read -r line <&8; do echo "$line" >&9; done) </dev/null >/dev/null 2>&1 &
"""
"""Holds a file of the share's open, and writes to it what it is told to."""
HELD = "held"


class NotRefreshable(Exception):
    """This vfsd can't refresh the machine; the text is its answer."""


async def measure(results: Results, client: Client, rounds: int) -> None:
    """Machine.Refresh beside a second QEMU and virtiofsd by hand."""
    plan = await asyncio.to_thread(Plan.make, 1)
    async with both(plan, client) as (vfsd, first):
        hand = Hand(first)
        where = f"/mnt/{plan.spec.shares[0].tag}/{HELD}"
        await vfsd.shell(HOLD, where)
        first.agent.shell(HOLD, where)
        turns = {"by hand": hand.turn, "vfsd": _vfsd_turn(vfsd, plan.sources[0])}
        missing = ""
        try:
            await hand.turn(-1)  # the first of each finds cold caches
            try:
                await turns["vfsd"](-1)
            except NotRefreshable as error:
                missing = "vfsd: not supported"
                progress(f"{missing}: {error}")
                del turns["vfsd"]
            samples = await paired(results, "refresh", turns, rounds)
        finally:
            hand.now.abandon()
    tell(results, samples.get("vfsd", {}), samples["by hand"], missing)


def tell(results: Results, vfsd: dict[str, list[float]], hand: dict[str, list[float]], missing: str) -> None:
    """Add what was measured of each; `missing` says why there is nothing of vfsd's."""
    if not hand:
        return
    if vfsd:
        for what, title in (("still", "guest stands still"), ("whole", "whole")):
            results.compare(SECTION, f"{title}: vfsd / by hand", vfsd[what], hand[what])
    rows = {
        "by hand: guest stands still, from STOP to RESUME": "still",
        "by hand: downtime that QEMU reports": "downtime",
        "by hand: until the guest goes on": "resumed",
        "by hand: whole": "whole",
    }
    for title, what in rows.items():
        value = spread([seconds * 1000 for seconds in hand[what]])
        results.add(Row(SECTION, title, value, "ms", None, missing))


def _vfsd_turn(vfsd: ThroughVfsd, source: Path) -> Turn:
    async def run(number: int) -> dict[str, float]:
        begin = time.perf_counter()
        try:
            await vfsd.call("Refresh")
        except CallFailed as error:
            if "org.freedesktop.DBus.Error.NotSupported" in str(error):
                raise NotRefreshable(str(error)) from None
            raise
        whole = time.perf_counter() - begin
        still = await vfsd.get("RefreshDowntimeUSec") / 1e6  # from STOP to RESUME, too
        await vfsd.ready()
        await vfsd.shell('echo "$1" >/held', f"turn {number}")
        await asyncio.to_thread(_wait_for_line, source / HELD, f"turn {number}")
        check(await vfsd.read(f"/mnt/{source.name}/{FILE}"))
        await asyncio.sleep(SETTLE)
        return {"still": still, "whole": whole}

    return run


class Hand:
    """A machine that moves from one QEMU to the next."""

    def __init__(self, first: ByHand) -> None:
        self.now = first
        self._folders = (f"{NAME}-2", NAME)

    async def turn(self, number: int) -> dict[str, float]:
        """Replace QEMU and virtiofsd."""
        old, new = self.now, ByHand(self.now.plan, self._folders[0])
        try:
            measured = replace(old, new)
        except BaseException:
            new.abandon()
            raise
        self.now = new
        self._folders = self._folders[::-1]
        new.greet()
        new.agent.shell('echo "$1" >/held', f"turn {number}")
        [source] = new.plan.sources
        await asyncio.to_thread(_wait_for_line, source / HELD, f"turn {number}")
        check(new.read(f"/mnt/{source.name}/{FILE}"))
        await asyncio.sleep(SETTLE)
        return measured


def replace(old: ByHand, new: ByHand) -> dict[str, float]:
    """Let a guest go on in another QEMU, with fresh virtiofsds, and end the one that it was in."""
    main, state = (fresh(new.own.folder / name) for name in ("main", "cpr"))
    begin = time.perf_counter()
    channel = {"channel-type": "cpr", "addr": _address(state)}
    new.spawn("-incoming", f"unix:{main}", "-incoming", json.dumps(channel))
    new.connect_ahead()
    old.monitor.execute("migrate-set-parameters", mode="cpr-transfer")
    _wait_for_socket(state)
    old.monitor.execute("migrate", channels=[{"channel-type": "main", "addr": _address(main)}, channel])
    resumed_event = new.monitor.wait_for("RESUME")
    resumed = time.perf_counter() - begin
    migration = _completed(old)
    stopped_event = old.monitor.wait_for("STOP")
    old.end()
    return {
        "downtime": migration["downtime"] / 1000,
        "still": seconds_of(resumed_event) - seconds_of(stopped_event),
        "resumed": resumed,
        "whole": time.perf_counter() - begin,
    }


def _address(path: Path) -> dict[str, Any]:
    return {"transport": "socket", "type": "unix", "path": str(path)}


def _wait_for_socket(path: Path) -> None:
    """Wait until QEMU has bound a socket; nothing else tells that it has."""
    end = time.perf_counter() + START_TIMEOUT
    while not path.exists():
        if time.perf_counter() > end:
            raise TimeoutError("the new QEMU waits for no state")
        time.sleep(RETRY)


def _completed(machine: ByHand) -> dict[str, Any]:
    """How a migration went that has ended. :raise RuntimeError: it failed."""
    end = time.perf_counter() + _MIGRATION_TIMEOUT
    while time.perf_counter() < end:
        told: dict[str, Any] = machine.monitor.execute("query-migrate")
        if told["status"] == "completed":
            return told
        if told["status"] in ("failed", "cancelled"):
            raise RuntimeError(f"the migration {told['status']}: {told.get('error-desc', '')}")
        time.sleep(RETRY)
    raise TimeoutError("the migration has not ended")


def _wait_for_line(path: Path, line: str) -> None:
    """Wait until a file that the guest holds open has a line. :raise TimeoutError."""
    end = time.perf_counter() + _WRITE_TIMEOUT
    while line not in path.read_text().splitlines():
        if time.perf_counter() > end:
            raise TimeoutError("the guest does not write to the file that it held open")
        time.sleep(0.01)
