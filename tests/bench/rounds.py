"""Rounds of turns: every mode once in each round, one after the other."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping

from tests.bench.results import Results
from tests.bench.stats import turn_order

Turn = Callable[[int], Awaitable[dict[str, float]]]
"""Runs one mode once, given the number of the round; returns what was measured, in seconds."""
Samples = dict[str, dict[str, list[float]]]
"""Measurements by mode and by what was measured; the n-th of each mode are a pair."""

TURN_TIMEOUT = 120.0


def progress(text: str) -> None:
    """Say on standard error what is going on."""
    print(text, file=sys.stderr, flush=True)


async def paired(results: Results, section: str, modes: Mapping[str, Turn], rounds: int) -> Samples:
    """Run the rounds. A round in which a turn fails is left out, whole, and told as a problem."""
    samples: Samples = {mode: {} for mode in modes}
    for count in range(rounds):
        progress(f"{section}: round {count + 1} of {rounds}")
        try:
            found = {}
            for mode in turn_order(list(modes), count):
                async with asyncio.timeout(TURN_TIMEOUT):
                    found[mode] = await modes[mode](count)
        except Exception as error:
            told = f"{section}, round {count + 1}, {mode}: {type(error).__name__}: {error}"
            results.problems.append(told)
            progress(told)
            if "VFSD_BENCH_TRACE" in os.environ:
                traceback.print_exc()
            continue
        for mode, measured in found.items():
            for what, seconds in measured.items():
                samples[mode].setdefault(what, []).append(seconds)
    results.samples[section] = samples
    return samples
