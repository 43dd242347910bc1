"""SIGKILL for vfsd in the middle of each operation: afterwards it is done or undone, never between."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.integration.harness import MACHINE, ROOT, SHARE, BusError, Client, Vfsd
from tests.integration.tiny_guest import tiny_machine

MACHINE_PATH, SHARE_PATH = f"{ROOT}/machine/tiny", f"{ROOT}/share/alone"
DELAYS = {
    "system": (0, 0.004, 0.010, 0.020, 0.035, 0.055),
    "user": (0.002, 0.007, 0.015, 0.028, 0.045, 0.060),
}
"""Seconds from the call to the kill; the two buses run the same code and so sweep one range between them."""
LATE = (0.1, 0.16)
"""More of them for a start, which takes longer."""


async def nothing(client: Client, folder: Path) -> None:
    """Begin without any object."""


async def with_share(client: Client, folder: Path) -> None:
    await client.create_share("alone", folder)


async def with_machine(client: Client, folder: Path) -> None:
    await tiny_machine(client, folder, shares=[folder])


async def with_both(client: Client, folder: Path) -> None:
    await with_share(client, folder)
    await with_machine(client, folder)


async def with_attached(client: Client, folder: Path) -> None:
    await with_both(client, folder)
    await client.call(MACHINE_PATH, MACHINE, "AttachShare", "sa{sv}", "alone", {})


async def with_running(client: Client, folder: Path) -> None:
    await with_attached(client, folder)
    await client.call(MACHINE_PATH, MACHINE, "Start")


async def start_machine(client: Client, folder: Path) -> None:
    await client.call(MACHINE_PATH, MACHINE, "Start")


async def shut_down(client: Client, folder: Path) -> None:
    await client.call(MACHINE_PATH, MACHINE, "Shutdown", "t", 200_000)


async def kill(client: Client, folder: Path) -> None:
    await client.call(MACHINE_PATH, MACHINE, "Kill")


async def attach(client: Client, folder: Path) -> None:
    await client.call(MACHINE_PATH, MACHINE, "AttachShare", "sa{sv}", "alone", {})


async def detach(client: Client, folder: Path) -> None:
    await client.call(MACHINE_PATH, MACHINE, "DetachShare", "s", "alone")


async def remove_machine(client: Client, folder: Path) -> None:
    await client.manager("RemoveMachine", "s", "tiny")


async def remove_share(client: Client, folder: Path) -> None:
    await client.manager("RemoveShare", "s", "alone")


async def stop_share(client: Client, folder: Path) -> None:
    await client.call(SHARE_PATH, SHARE, "Stop")


Step = Callable[[Client, Path], Awaitable[None]]
OPERATIONS: dict[str, tuple[Step, Step, set[str]]] = {
    "create a share": (nothing, with_share, {"listening"}),
    "create a machine": (nothing, with_machine, {"stopped"}),
    "start": (with_attached, start_machine, {"stopped", "running"}),
    "shut down": (with_running, shut_down, {"running", "stopped"}),
    "kill": (with_running, kill, {"running", "stopped"}),
    "attach": (with_both, attach, {"stopped"}),
    "detach": (with_attached, detach, {"stopped"}),
    "remove a machine": (with_attached, remove_machine, {"stopped"}),
    "remove a share": (with_share, remove_share, {"listening"}),
    "stop a share": (with_share, stop_share, {"listening", "stopped"}),
}
"""Name: what is there before, the operation, and the states that its object may have at the end."""


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_vfsd_is_killed_in_the_middle(vfsd: Vfsd, client: Client, folder: Path, operation: str) -> None:
    before, operate, allowed = OPERATIONS[operation]
    name = "alone" if operate in (with_share, remove_share, stop_share) else "tiny"
    seen = set()
    for delay in DELAYS[vfsd.scope] + (LATE if operate is start_machine else ()):
        await before(client, folder)
        pid = vfsd.main_pid()
        call = asyncio.ensure_future(operate(client, folder))
        await asyncio.sleep(delay)
        await asyncio.to_thread(vfsd.crash, pid)
        with contextlib.suppress(BusError):
            await call
        states = await settled(vfsd, client, listening=operate is not stop_share)
        assert set(states) <= {"alone", "tiny"} | {n for n in states if n.startswith("tiny.")}, (
            delay,
            states,
        )
        assert states.get(name, "none") in {*allowed, "none"}, (delay, states)
        seen.add(states.get(name, "none"))
        if states.get("tiny") == "running":
            # what was known to the one that started it alone
            assert await client.get(MACHINE_PATH, MACHINE, "AcceleratorInUse") == "tcg", delay
            assert await client.get(MACHINE_PATH, MACHINE, "ConsolePath"), delay
        await forget(client)
        assert vfsd.leftovers() == [], delay
    print(operation, seen)


async def settled(vfsd: Vfsd, client: Client, *, listening: bool) -> dict[str, str]:
    """The objects' states, once nothing contradicts anything.

    :param listening: whether the share that stands alone has to serve, as nobody stopped it.
    """
    wrong = ["not asked yet"]
    for _ in range(60):
        states = await states_of(client)
        wrong = contradictions(vfsd, states)
        if listening and states.get("alone", "listening") not in ("listening", "active"):
            wrong.append("the share does not listen")
        if not wrong and not {"starting", "stopping"} & set(states.values()):
            return states
        await asyncio.sleep(0.1)
    raise AssertionError(f"{states}: {wrong}")


async def states_of(client: Client) -> dict[str, str]:
    states = {name: state for name, state, *_ in await client.manager("ListMachines")}
    return states | {name: state for name, state, *_ in await client.manager("ListShares")}


def contradictions(vfsd: Vfsd, states: dict[str, str]) -> list[str]:
    """What units, files and processes there are that the objects do not account for, and the other way round."""
    wrong = []
    running = [name for name in ("tiny",) if states.get(name) in ("running", "paused")]
    units = set(vfsd.units())
    expected = set()
    for name, state in states.items():
        if name == "tiny" and state == "running":
            expected |= {"vfsd-machine-tiny.service", "vfsd-machine-tiny.socket", "vfsd-tiny.slice"}
        elif name != "tiny" and state in ("listening", "active"):
            escaped = name.replace("-", r"\x2d")
            expected |= {f"vfsd-share-{escaped}.{kind}" for kind in ("socket", "service")}
    wrong += [f"unit {unit}" for unit in units ^ expected]
    definitions = vfsd.runtime / "definitions"
    defined = {path.name for path in definitions.iterdir()}
    for name in defined:
        kind, _, rest = name.partition("-")
        if rest.rpartition(".")[0] not in states or name.endswith(".new"):
            wrong.append(f"definition {kind} {rest}")
    wrong += [
        f"no definition of {n}" for n in states if not n.startswith("tiny.") and not has(definitions, n)
    ]
    wrong += [f"link {p.name}" for p in (vfsd.runtime / "source").iterdir() if p.name not in states]
    served = {name for name, state in states.items() if state in ("listening", "active")}
    wrong += [f"socket {p.name}" for p in (vfsd.runtime / "share").iterdir() if p.stem not in served]
    wrong += [f"folder {p.name}" for p in (vfsd.runtime / "machine").iterdir() if p.name not in states]
    machines = [p for p in processes("qemu-system") if "guest=tiny," in p]
    if len(machines) != len(running):
        wrong.append(f"{len(machines)} QEMUs")
    serving = [name for name, state in states.items() if state == "active"]
    daemons = processes("virtiofsd")
    if bool(daemons) != bool(serving):
        wrong.append(f"virtiofsd {daemons}, active {serving}")
    return wrong


def has(definitions: Path, name: str) -> bool:
    for kind in ("machine", "share"):
        with contextlib.suppress(OSError):
            return bool(json.loads((definitions / f"{kind}-{name}.json").read_text()))
    return False


def processes(program: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and program in str((entry / "exe").readlink()):
                found.append((entry / "cmdline").read_text())
    return found


async def forget(client: Client) -> None:
    """End and remove everything."""
    for name, state, path in await client.manager("ListMachines"):
        if state not in ("stopped", "failed"):
            await client.call(path, MACHINE, "Kill")
        await client.manager("RemoveMachine", "s", name)
    for name, *_ in await client.manager("ListShares"):
        for _ in range(50):  # it may still be coming back from the machine
            try:
                await client.manager("RemoveShare", "s", name)
            except BusError as error:
                if error.name != "ShareBusy":
                    raise
                await asyncio.sleep(0.05)
            else:
                break
