"""A process is killed: how long after the kernel knows does vfsd's StateChanged come?"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time

from tests.bench.bus import BUS, MACHINE, PROPERTIES, SHARE, SYSTEMD, VFSD, Client, Header, RawBus
from tests.bench.machines import SETTLE
from tests.bench.modes import Vfsd
from tests.bench.results import Results, Row
from tests.bench.rounds import Turn, paired
from tests.bench.setting import NAME, Plan
from tests.bench.stats import Goal, median, spread
from vfsd import names

GOAL = Goal(5.0, "pidfd + ≤ 5 ms")
SIGNAL_TIMEOUT = 10.0


async def measure(results: Results, client: Client, rounds: int) -> None:
    """Section 7 of the goals."""
    plan = await asyncio.to_thread(Plan.make, 1)
    share = plan.spec.shares[0].name
    machine_path, share_path = names.machine_path(NAME), names.share_path(share)
    targets = {
        "QEMU": (machine_path, MACHINE, names.machine_unit(NAME)),
        "virtiofsd": (share_path, SHARE, names.share_service_unit(share)),
    }
    mode = Vfsd(plan, client)
    turns = {name: _turn(mode, *target) for name, target in targets.items()}
    samples = await paired(results, "deaths", turns, rounds)
    for name, measured in samples.items():
        if measured:
            section = "death → StateChanged"
            note = (
                f"kill → pidfd {median(measured['pidfd']) * 1000:.1f} ms, "
                f"systemd's PropertiesChanged {median(measured['systemd']) * 1000:.1f} ms after it"
            )
            value = spread([seconds * 1000 for seconds in measured["vfsd"]])
            results.add(Row(section, f"{name}: after pidfd", value, "ms", GOAL, note))


def _turn(mode: Vfsd, path: str, interface: str, unit: str) -> Turn:
    async def run(_number: int) -> dict[str, float]:
        bus = RawBus()
        try:
            await mode.start()
            for rule in (
                f"sender='{VFSD}',member='StateChanged',path='{path}'",
                f"sender='{SYSTEMD[0]}',member='PropertiesChanged',path='{names.unit_object_path(unit)}'",
            ):
                bus.call(*BUS, "AddMatch", "s", f"type='signal',{rule}")
            await asyncio.sleep(0.5)  # the guest boots, as most that die have done
            pid = int(bus.call(VFSD, path, PROPERTIES, "Get", "ss", interface, "MainPID").body()[0].value)
            bus.poll()
            measured = _kill(pid, bus)
        finally:
            bus.close()
            await mode.abandon()
            await asyncio.sleep(SETTLE)
        return measured

    return run


def _kill(pid: int, bus: RawBus) -> dict[str, float]:
    """Kill and watch both the process and the bus; times are seconds after the process's end."""
    descriptor = os.pidfd_open(pid)
    begin = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    ended = told = supervised = 0.0
    try:
        while not (ended and told):
            waiting = [bus.socket.fileno()] + ([] if ended else [descriptor])
            ready, _, _ = select.select(waiting, [], [], SIGNAL_TIMEOUT)
            now = time.perf_counter()
            if not ready:
                raise TimeoutError("no StateChanged came")
            if descriptor in ready:
                ended = now
            for message in bus.poll() if bus.socket.fileno() in ready else []:
                supervised = supervised or (now if _from_systemd(message) else 0.0)
                told = told or (now if message.member == "StateChanged" else 0.0)
    finally:
        os.close(descriptor)
    return {"pidfd": ended - begin, "vfsd": told - ended, "systemd": (supervised or told) - ended}


def _from_systemd(message: Header) -> bool:
    return message.member == "PropertiesChanged"
