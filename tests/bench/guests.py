"""The guest's marker after it mounted all shares, and what the guest's own reads and writes take."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from tests.bench.bare import Bare
from tests.bench.bus import Client
from tests.bench.machines import SETTLE
from tests.bench.modes import Mode, Vfsd
from tests.bench.results import Results
from tests.bench.rounds import Turn, paired
from tests.bench.setting import MARKER, Plan
from tests.bench.stats import Goal, median, ratios, spread

MARKER_GOAL = 1.05
DATA_GOAL = Goal(1.05, "1.00 (± 0.05)")
GUEST_TIMEOUT = 60.0
READ_MIB, WRITE_MIB, FILES = 64, 32, 250
PHASES = ("read", "write", "metadata")
_LINE = re.compile(rb"bench-phase ([a-z]+)\r?\n")

COMMAND = f"""
cd /mnt/s0
say() {{ echo "bench-phase $1"; }}
say begin
dd if=big of=/dev/null bs=1M 2>/dev/null
say read
dd if=/dev/zero of=out bs=1M count={WRITE_MIB} conv=fsync 2>/dev/null
say write
mkdir m
i=0
while [ $i -lt {FILES} ]; do : >m/$i; [ -s m/$i ]; i=$((i+1)); done
ls -l m >/dev/null
rm -r m
say metadata
rm out
"""


async def measure(results: Results, client: Client, rounds: int) -> None:
    """Sections 3 and 4 of the goals. With one share the guest goes on to use it."""
    for count in (1, 4):
        command = COMMAND if count == 1 else None
        plan = await asyncio.to_thread(Plan.make, count, command)
        _fill(plan.sources[0] / "big")
        modes: dict[str, Mode] = {"bare": Bare(plan), "vfsd": Vfsd(plan, client)}
        turns = {name: _turn(mode, whole=command is not None) for name, mode in modes.items()}
        samples = await paired(results, f"guest, N={count}", turns, rounds)
        vfsd, bare = samples["vfsd"], samples["bare"]
        if not vfsd:
            continue
        what = f"vfsd / bare, N={count}"
        results.compare("go → guest's marker", what, vfsd["marker"], bare["marker"], MARKER_GOAL)
        for phase in PHASES if command else ():
            value = spread(ratios(vfsd[phase], bare[phase]))
            results.add_with_times(
                "data path in the guest",
                f"{phase}: vfsd / bare",
                value,
                DATA_GOAL,
                median(vfsd[phase]),
                median(bare[phase]),
            )


def _fill(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(READ_MIB):
            file.write(bytes(1 << 20))


def _turn(mode: Mode, *, whole: bool) -> Turn:
    async def run(_number: int) -> dict[str, float]:
        begin = time.perf_counter()
        try:
            await mode.start()
            async with asyncio.timeout(GUEST_TIMEOUT):
                measured = await _follow(mode.console, begin, whole=whole)
            await mode.kill()
        except BaseException:
            await mode.abandon()
            raise
        await asyncio.sleep(SETTLE)
        return measured

    return run


async def _follow(console: Path, begin: float, *, whole: bool) -> dict[str, float]:
    """Read the console until all has been said; lines are dated as they come."""
    reader, writer = await asyncio.open_unix_connection(str(console))
    measured: dict[str, float] = {}
    last = begin
    try:
        while True:
            line = await reader.readline()
            now = time.perf_counter()
            if not line:
                raise EOFError("the console ended before the guest was done")
            if MARKER in line and "marker" not in measured:
                measured["marker"] = now - begin
                if not whole:
                    return measured
            if phase := _LINE.search(line):
                measured[phase[1].decode()] = now - last
                last = now
                if phase[1] == PHASES[-1].encode():
                    return measured
    finally:
        writer.close()
