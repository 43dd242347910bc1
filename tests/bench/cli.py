"""The command: what to measure and how often, and the cleaning up, whatever happens."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NoReturn

from tests.bench import calls, daemon, deaths, guests, heals, machines, many, plugging, refreshes
from tests.bench.bus import BUS, SYSTEMD, VFSD, Client
from tests.bench.results import Results, table
from tests.bench.rounds import progress
from tests.bench.setting import clean, systemctl

OUTPUT = Path("/tmp/bench.json")
QUICK_SECTION_TIMEOUT, SECTION_TIMEOUT = 150.0, 900.0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="tests/bench/run",
        description="Measures vfsd against bare processes and raw systemd calls, in the lab. A goal that is "
        "missed is no failure: exit code 0 means that everything was measured.",
    )
    which = top.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="few rounds, some 4 minutes (default)")
    which.add_argument("--full", action="store_true", help="three times as many rounds")
    top.add_argument("--rounds", type=int, help="rounds of the machines; others follow in proportion")
    top.add_argument(
        "--only", action="append", choices=SECTIONS, metavar="NAME", help=f"of {', '.join(SECTIONS)}"
    )
    top.add_argument("--output", type=Path, default=OUTPUT, help=f"where the JSON goes (default: {OUTPUT})")
    return top


Section = Callable[[Results, Client, int, bool], Awaitable[None]]


async def _machines(results: Results, client: Client, rounds: int, _full: bool) -> None:
    await machines.measure(results, client, rounds)


async def _guests(results: Results, client: Client, rounds: int, _full: bool) -> None:
    await guests.measure(results, client, max(3, rounds // 2))


async def _many(results: Results, _client: Client, rounds: int, _full: bool) -> None:
    await many.measure(results, rounds)


async def _calls(results: Results, _client: Client, rounds: int, _full: bool) -> None:
    await calls.measure(results, rounds * 3)


async def _deaths(results: Results, client: Client, rounds: int, _full: bool) -> None:
    await deaths.measure(results, client, rounds)


async def _plugging(results: Results, client: Client, rounds: int, _full: bool) -> None:
    await plugging.measure(results, client, rounds * 2)


async def _heals(results: Results, client: Client, rounds: int, _full: bool) -> None:
    await heals.measure(results, client, rounds)


async def _refreshes(results: Results, client: Client, rounds: int, _full: bool) -> None:
    await refreshes.measure(results, client, rounds)


async def _daemon(results: Results, _client: Client, rounds: int, full: bool) -> None:
    await daemon.measure(results, rounds, 30.0 if full else 10.0)


SECTIONS: dict[str, Section] = {
    "daemon": _daemon,
    "calls": _calls,
    "machines": _machines,
    "deaths": _deaths,
    "shares": _many,
    "guests": _guests,
    "plugging": _plugging,
    "heals": _heals,
    "refreshes": _refreshes,
}


async def _run(options: argparse.Namespace, results: Results) -> None:
    rounds = options.rounds or (18 if options.full else 5)
    client = await Client.connect()
    for rule in (
        f"type='signal',sender='{SYSTEMD[0]}',member='UnitRemoved'",
        f"type='signal',sender='{VFSD}',member='StateChanged'",
    ):
        await client.match(rule)
    await client.call(*SYSTEMD, "Subscribe")
    await client.call(*BUS, "StartServiceByName", "su", VFSD, 0)
    for name, section in SECTIONS.items():
        if options.only and name not in options.only:
            continue
        begin = time.perf_counter()
        try:
            limit = QUICK_SECTION_TIMEOUT if rounds <= 5 else SECTION_TIMEOUT
            async with asyncio.timeout(limit):
                await section(results, client, rounds, options.full)
        except Exception as error:
            results.problems.append(f"{name}: {type(error).__name__}: {error}")
            progress(results.problems[-1])
            await asyncio.to_thread(clean)
        progress(f"{name}: {time.perf_counter() - begin:.0f} s")
    client.close()


def _exit_on_signal(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _about(options: argparse.Namespace, seconds: float) -> dict[str, object]:
    def first_line(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        return (done.stdout.splitlines() or [""])[0]

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds),
        "full": options.full,
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "systemd": first_line("systemctl", "--version"),
        "qemu": first_line("qemu-system-" + platform.machine(), "--version"),
        "libvirt": "not measured here",
    }


def main() -> int:
    """Measure; returns the exit code."""
    options = parser().parse_args()
    if Path("/etc/hostname").read_text(encoding="utf-8").strip() != "vfsd-lab":
        print("bench: this runs in the lab only: make bench", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on_signal)
    results = Results()
    begin = time.perf_counter()
    systemctl("start", "vfsd.service")
    clean()
    try:
        asyncio.run(_run(options, results))
    except KeyboardInterrupt:
        results.problems.append("interrupted")
    finally:
        clean()
        if results.rows:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            results.write(options.output, _about(options, time.perf_counter() - begin))
    print(table(results.rows))
    print("\nlibvirt: not measured here (the lab has none)")
    for problem in results.problems:
        print(f"problem: {problem}")
    return 1 if results.problems else 0
