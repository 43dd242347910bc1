"""Go → running, and end → all gone."""

from __future__ import annotations

import asyncio

from dbus_next import Variant

from tests.bench.bare import Bare
from tests.bench.bus import Client
from tests.bench.modes import Mode, Raw, RawForm, Vfsd
from tests.bench.results import Results
from tests.bench.rounds import Samples, Turn, paired
from tests.bench.setting import Plan
from tests.bench.stats import median

START_GOAL, END_GOAL = 1.1, 1.3
SETTLE = 0.05
"""Seconds after each turn in which systemd clears up and the journal is written."""
COUNTS = (1, 4, 16)
_SANDBOXED = {
    "raw": RawForm(),
    "raw, Wants=": RawForm(wants=True),
}
_OTHERS = {
    "raw, no sandbox": RawForm(sandboxed=False),
    "raw, all of vfsd's units": RawForm(whole=True),
}


async def measure(results: Results, client: Client, rounds: int) -> None:
    """Sections 1 and 2 of the goals: each machine that is started is ended, by kill and by quit in turn."""
    for count in COUNTS:
        plan = await asyncio.to_thread(Plan.make, count)
        modes: dict[str, Mode] = {"bare": Bare(plan)}
        modes |= {name: Raw(plan, client, form) for name, form in (_SANDBOXED | _OTHERS).items()}
        modes["vfsd"] = Vfsd(plan, client)
        if count == 1:
            modes["vfsd, Builtin"] = Vfsd(plan, client, {"Builtin": Variant("b", True)})
        turns = {name: _turn(mode) for name, mode in modes.items()}
        for mode in modes.values():  # the first of each finds cold caches
            await turns_once(mode)
        fewer = max(4, rounds * 2 // 3) if count == COUNTS[-1] else rounds
        samples = await paired(results, f"machines, N={count}", turns, fewer)
        _tell(results, count, samples)


async def turns_once(mode: Mode) -> None:
    """One turn whose time does not count."""
    await _turn(mode)(0)


def _turn(mode: Mode) -> Turn:
    async def run(number: int) -> dict[str, float]:
        try:
            measured = {"start": await mode.start()}
            if number % 2:
                measured["quit"] = await mode.quit()
            else:
                measured["kill"] = await mode.kill()
        except BaseException:
            await mode.abandon()
            raise
        await asyncio.sleep(SETTLE)
        return measured

    return run


def best(samples: Samples, what: str, names: list[str]) -> str:
    """The mode with the least median."""
    return min(names, key=lambda name: median(samples[name][what]))


def _tell(results: Results, count: int, samples: Samples) -> None:
    if not samples["vfsd"]:
        return
    section = "go → running"
    suffix = f", N={count}"
    floor = best(samples, "start", list(_SANDBOXED))
    vfsd, bare = samples["vfsd"]["start"], samples["bare"]["start"]
    results.compare(section, f"vfsd / best raw ({floor}){suffix}", vfsd, samples[floor]["start"], START_GOAL)
    plain = samples["raw, no sandbox"]["start"]
    results.compare(section, f"vfsd / raw, no sandbox{suffix}", vfsd, plain)
    whole = samples["raw, all of vfsd's units"]["start"]
    results.compare(section, f"vfsd / raw, all of vfsd's units{suffix}", vfsd, whole)
    results.compare(section, f"vfsd / bare{suffix}", vfsd, bare)
    for name in (*_SANDBOXED, *_OTHERS):
        results.compare(section, f"{name} / bare{suffix}", samples[name]["start"], bare)
    if "vfsd, Builtin" in samples:
        results.compare(section, f"vfsd with Builtin / vfsd{suffix}", samples["vfsd, Builtin"]["start"], vfsd)
    for end in ("kill", "quit"):
        if end not in samples["vfsd"]:
            continue
        told = "end → all gone"
        ended, raw = samples["vfsd"][end], samples[floor][end]
        results.compare(told, f"{end}: vfsd / {floor}{suffix}", ended, raw, END_GOAL)
        whole = samples["raw, all of vfsd's units"][end]
        results.compare(told, f"{end}: vfsd / raw, all of vfsd's units{suffix}", ended, whole)
        results.compare(told, f"{end}: {floor} / bare{suffix}", raw, samples["bare"][end])
