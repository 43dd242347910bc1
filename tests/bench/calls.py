"""What a call to vfsd takes, beside a bare dbus-next service that only answers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.bus import BUS, PROPERTIES, ROOT, SHARE, VFSD, RawBus
from tests.bench.many import VfsdShares, share_names
from tests.bench.results import Results, Row
from tests.bench.rounds import progress
from tests.bench.stats import Goal, median, ratios, spread

ECHO = "org.vfsd1.bench"
POLICY_FILE = Path("/etc/dbus-1/system.d/vfsd-bench.conf")
_POLICY = f"""<busconfig>
  <policy user="root"><allow own="{ECHO}"/><allow send_destination="{ECHO}"/></policy>
</busconfig>
"""
GET_GOAL = 1.2
OBJECTS_GOAL = 5.0
CALLS = 60
"""Calls of each service in a round."""
OBJECTS = 1000


@contextlib.contextmanager
def echo_service(bus: RawBus) -> Iterator[None]:
    """A running echo service. The bus needs a policy for it: it lets nobody own a name that none allows."""
    command = [sys.executable, "-m", "tests.bench.echo", ECHO]
    try:
        POLICY_FILE.write_text(_POLICY)
        bus.call(*BUS, "ReloadConfig")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout
                process.stdout.readline()
                yield
            finally:
                process.terminate()
    finally:
        POLICY_FILE.unlink(missing_ok=True)
        bus.call(*BUS, "ReloadConfig")


async def measure(results: Results, rounds: int) -> None:
    """Section 6 of the goals."""
    shares = VfsdShares()
    bus = RawBus()
    try:
        progress("calls: making shares")
        shares.create(OBJECTS)
        _compare_get(results, bus, rounds)
        _managed_objects(results, bus, rounds)
    finally:
        with contextlib.suppress(Exception):
            shares.remove(OBJECTS)
        shares.bus.close()
        bus.close()


def _compare_get(results: Results, bus: RawBus, rounds: int) -> None:
    path = f"{ROOT}/share/{share_names(1)[0].replace('-', '_2d')}"
    vfsd: list[float] = []
    echo: list[float] = []
    with echo_service(bus):
        for _ in range(rounds):
            times: dict[str, list[float]] = {ECHO: [], VFSD: []}
            for number in range(2 * CALLS):
                service = (ECHO, VFSD)[number % 2]
                serial, raw = bus.message(service, path, PROPERTIES, "Get", "ss", SHARE, "State")
                begin = time.perf_counter()
                bus.exchange(serial, raw)
                times[service].append(time.perf_counter() - begin)
            vfsd.append(median(times[VFSD]))
            echo.append(median(times[ECHO]))
    results.samples["get"] = {"vfsd": vfsd, "echo": echo}
    results.compare("calls", "Get, p50: vfsd / dbus-next echo", vfsd, echo, GET_GOAL)


def _managed_objects(results: Results, bus: RawBus, rounds: int) -> None:
    times = []
    size = 0
    for _ in range(max(rounds, 10)):
        serial, raw = bus.message(VFSD, ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        begin = time.perf_counter()
        size = len(bus.exchange(serial, raw).raw)
        times.append(time.perf_counter() - begin)
    results.samples["objects"] = times
    value = spread([seconds * 1000 for seconds in times])
    results.add(
        Row("calls", f"GetManagedObjects of {OBJECTS}", value, "ms", Goal(OBJECTS_GOAL), f"{size >> 10} KiB")
    )
    base = [seconds / max(times[0], 1e-9) for seconds in times]
    results.samples["objects, relative to the first"] = ratios(base, [1.0] * len(base))
