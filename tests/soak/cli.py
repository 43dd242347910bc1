"""The command: one run, its figures, and what was wrong."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path

from tests.soak.soak import soak
from tests.soak.tally import Tally, quantile


def report(tally: Tally) -> list[str]:
    """The figures of a run."""
    lines = [f"{count:8} {name}" for name, count in sorted(tally.done.items())]
    lines += [f"{count:8} refused: {name}" for name, count in sorted(tally.refused.items())]
    timed = {**tally.took, **{f"Get ({scope})": each for scope, each in tally.latencies.items()}}
    for name, values in sorted(timed.items()):
        p50, p99 = quantile(values, 0.5) * 1e3, quantile(values, 0.99) * 1e3
        lines.append(
            f"{len(values):8} times {name}: p50 {p50:.1f} ms, p99 {p99:.1f}, longest {max(values) * 1e3:.0f}"
        )
    return lines


def _print(text: str) -> None:
    print(f"{time.strftime('%T')} {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until done; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.soak",
        description="Makes, uses, breaks and removes machines and shares at random, ends vfsd in between, and "
        "compares the host with how it was before. Only for a lab.",
    )
    parser.add_argument("--minutes", type=float, default=3, metavar="N", help="for how long (default: 3)")
    parser.add_argument(
        "--seed", default=str(random.randrange(1 << 32)), metavar="S", help="as printed before"
    )
    parser.add_argument(
        "--machines", type=int, default=2, metavar="K", help="how many run at once, on all buses (default: 2)"
    )
    scope = parser.add_mutually_exclusive_group()
    for name in ("system", "user"):
        scope.add_argument(
            f"--{name}", action="store_const", const=[name], dest="scopes", help=f"the {name} bus only"
        )
    scope.add_argument(
        "--both", action="store_const", const=["system", "user"], dest="scopes", help="the default"
    )
    given = parser.parse_args(arguments)
    if Path("/etc/hostname").read_text(encoding="ascii").strip() != "vfsd-lab":
        parser.error("this is no lab, and vfsd would be ended there")
    _print(f"seed {given.seed}")
    scopes = given.scopes or ["system", "user"]
    tally = asyncio.run(soak(scopes, given.minutes * 60, given.seed, given.machines, _print))
    for line in report(tally):
        _print(line)
    for text in tally.wrong:
        _print(f"WRONG: {text}")
    _print(f"{len(tally.wrong)} things were wrong; seed {given.seed}")
    return 1 if tally.wrong else 0
