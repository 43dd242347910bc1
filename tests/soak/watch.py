"""What is looked at all the time: how long a Get takes, whether the bus tells what systemd does, and the journal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from dbus_next import Variant

from tests.fuzz.raw import RETURN, Bus, Call
from tests.integration.harness import MACHINE, ROOT, SHARE, BusError, Vfsd
from tests.soak.caller import PROPERTIES, Caller
from tests.soak.tally import Tally

GET_INTERVAL = 0.2
LOOK_INTERVAL = 4.0
TRUTH = 5.0
"""Seconds after which the bus must tell what systemd does; on an idle machine it is less than one."""
COMPLAINTS = ("Traceback", "A bug in vfsd", "Background work failed")
"""What vfsd must never write into the journal."""


def measure_gets(vfsd: Vfsd, bus: Bus, tally: Tally, go_on: Callable[[], bool]) -> None:
    """Get a property again and again, in a thread of its own: the event loop is busy. Closes the connection."""
    call = Call(ROOT, PROPERTIES, "Get", "ss", ["org.vfsd1.Manager", "Version"])
    with bus:
        while go_on():
            begun = time.monotonic()
            reply = bus.call(call)
            took = time.monotonic() - begun
            if not tally.was_away(vfsd.scope, begun):
                tally.latencies[vfsd.scope].append(took)
                if reply.message_type.value != RETURN:
                    tally.blame(f"{vfsd.scope}: Get: {reply.error_name}")
            time.sleep(GET_INTERVAL)


async def compare_with_systemd(caller: Caller, go_on: Callable[[], bool]) -> None:
    """Look again and again whether states on the bus are those of the units."""
    while go_on():
        await asyncio.sleep(LOOK_INTERVAL)
        first = await _disagreements(caller)
        seen, end = first, time.monotonic() + TRUTH
        while seen and time.monotonic() < end:
            await asyncio.sleep(0.5)
            seen &= await _disagreements(caller)
        caller.tally.done[f"look at all states ({caller.vfsd.scope})"] += 1
        for text in sorted(seen):
            caller.tally.blame(f"{caller.vfsd.scope}: for {TRUTH:.0f} s: {text}")


async def _disagreements(caller: Caller) -> set[str]:
    """Where bus and systemd differ at this moment, which may be on the way from one to the other."""
    begun = time.monotonic()
    try:
        objects = await caller.objects()
    except BusError:
        if caller.tally.was_away(caller.vfsd.scope, begun):
            return set()
        raise
    units = await asyncio.to_thread(_units, caller.vfsd)
    if caller.tally.was_away(caller.vfsd.scope, begun):
        return set()
    found, known = set(), set()
    for path, interfaces in objects.items():
        for interface, check in ((MACHINE, _machine), (SHARE, _share)):
            if interface in interfaces:
                values = interfaces[interface]
                known |= {
                    str(values[key].value)
                    for key in ("Unit", "Slice", "SocketUnit", "ServiceUnit")
                    if key in values
                }
                if said := check(values, units):
                    found.add(f"{path}: {said}")
    services = {unit for unit in units if unit.endswith(".service")}
    # a second set of units is there in the middle of a Refresh
    found |= {f"{unit} belongs to nothing" for unit in services - known if not unit.endswith("-2.service")}
    return found


@dataclass(frozen=True, slots=True)
class _Unit:
    active: str
    main_pid: int


def _units(vfsd: Vfsd) -> dict[str, _Unit]:
    """vfsd's services and sockets that are loaded."""
    text = vfsd.systemctl("show", "-p", "Id,ActiveState,MainPID", "vfsd-*.service", "vfsd-*.socket")
    found = {}
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("Id") and values["Id"] != "vfsd-vsock.socket":
            found[values["Id"]] = _Unit(values.get("ActiveState", ""), int(values.get("MainPID", 0)))
    return found


_GONE = _Unit("inactive", 0)


def _machine(values: dict[str, Variant], units: dict[str, _Unit]) -> str:
    state, unit = values["State"].value, units.get(values["Unit"].value, _GONE)
    pid = values["MainPID"].value
    runs = unit.active == "active"
    if state in ("running", "paused") and (not runs or unit.main_pid != pid):
        return f"{state} with MainPID {pid}, but {unit}"
    if state in ("stopped", "failed") and unit.active not in ("inactive", "failed"):
        return f"{state}, but {unit}"
    return ""


def _share(values: dict[str, Variant], units: dict[str, _Unit]) -> str:
    state = values["State"].value
    socket = units.get(values["SocketUnit"].value, _GONE)
    service = units.get(values["ServiceUnit"].value, _GONE)
    pid = values["MainPID"].value
    if state == "active" and (service.active not in ("active", "activating") or service.main_pid != pid):
        return f"{state} with MainPID {pid}, but {service}"
    if state == "listening" and (socket.active != "active" or service.active in ("active", "activating")):
        return f"{state}, but {socket}, {service}"
    if state == "stopped" and {socket.active, service.active} - {"inactive", "failed"}:
        return f"{state}, but {socket}, {service}"
    return ""


def complaints(vfsd: Vfsd, since: float) -> list[str]:
    """What vfsd wrote into the journal and must not; `since` is seconds since the epoch."""
    field = "_SYSTEMD_UNIT" if vfsd.scope == "system" else "_SYSTEMD_USER_UNIT"
    found = []
    for entry in vfsd.journal(f"{field}=vfsd.service", since=since):
        text = f"{entry.get('MESSAGE', '')}\n{entry.get('EXCEPTION_TEXT', '')}"
        if any(word in text for word in COMPLAINTS):
            found.append(f"{vfsd.scope}: in the journal: {text.strip()}")
    return found
