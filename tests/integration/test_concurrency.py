"""Many clients at once: no deadlock, no signal lost or doubled, the order on each object kept."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.harness import MACHINE, ROOT, SHARE, BusError, Client, Vfsd, until
from tests.integration.test_machines import escaped
from tests.integration.tiny_guest import make_image, tiny_machine

CLIENTS = 50
EXPECTED = {
    *("WrongState", "NoSuchMachine", "MachineExists", "NoSuchShare", "ShareExists", "ShareBusy"),
    *("UnknownObject", "UnitFailed"),
}
"""What a client may be told when others do as they like with the same objects. UnitFailed: the image is in use."""


@pytest.fixture
async def clients(vfsd: Vfsd) -> AsyncIterator[list[Client]]:
    connected = [await Client.connect(vfsd) for _ in range(CLIENTS)]
    yield connected
    for one in connected:
        await one.close()


async def test_clients_with_objects_of_their_own(
    vfsd: Vfsd, client: Client, clients: list[Client], folder: Path
) -> None:
    async def live(number: int, one: Client) -> None:
        share = await one.create_share(f"s{number}", folder)
        machine = await one.create_machine(
            f"m{number}", Builtin=("b", True), Shares=("a(ssa{sv})", [[str(folder), "", {}]])
        )
        await one.call(machine, MACHINE, "AttachShare", "sa{sv}", f"s{number}", {})
        assert await one.get(share, SHARE, "Machine") == machine
        await one.call(machine, MACHINE, "DetachShare", "s", f"s{number}")
        await one.call(share, SHARE, "Stop")
        await one.call(share, SHARE, "Start")
        await one.manager("RemoveMachine", "s", f"m{number}")
        await one.manager("RemoveShare", "s", f"s{number}")

    async with asyncio.timeout(40):
        await asyncio.gather(*(live(number, one) for number, one in enumerate(clients)))
    assert not [path for path in await client.objects() if path != ROOT]
    for number in range(CLIENTS):
        states = [new for _, new, _ in client.signals.states(f"{ROOT}/share/s{number}")]
        assert [s for s in states if s != "stopping"] == ["stopped", "listening", "stopped"]
        assert client.signals.states(f"{ROOT}/machine/m{number}") == []
    story_is_whole(client)
    await until(lambda: not vfsd.leftovers(), "all is gone", 10)


async def test_clients_that_fight_over_the_same_machines(
    vfsd: Vfsd, client: Client, clients: list[Client], folder: Path
) -> None:
    chance = random.Random(4711)
    names = ["a", "b", "c", "d"]
    for name in names:
        make_image(folder / f"{name}.img")
    members = [
        "Start",
        "Start",
        "Kill",
        "Kill",
        "Pause",
        "Resume",
        "Reset",
        "Remove",
        "create",
        "create",
        "share",
    ]
    told: dict[str, int] = defaultdict(int)

    async def fight(one: Client, steps: list[tuple[str, str]]) -> None:
        for name, member in steps:
            path = f"{ROOT}/machine/{name}"
            try:
                if member == "create":
                    await tiny_machine(one, folder, name, shares=[folder])
                elif member == "share":
                    await one.create_share(f"share-{name}", folder)
                    await one.manager("RemoveShare", "s", f"share-{name}")
                else:
                    await one.call(path, MACHINE, member)
                told[f"{member} done"] += 1
            except BusError as error:
                assert error.name in EXPECTED, error
                told[error.name] += 1

    plans = [[(chance.choice(names), chance.choice(members)) for _ in range(6)] for _ in clients]
    for name in names:
        await tiny_machine(client, folder, name, shares=[folder])
    async with asyncio.timeout(100):
        await asyncio.gather(*(fight(one, plan) for one, plan in zip(clients, plans, strict=True)))
    print(dict(told))
    assert told["Start done"] >= 2
    assert told["Kill done"] >= 1
    story_is_whole(client)
    for name, state, path in await client.manager("ListMachines"):
        states = client.signals.states(path)
        assert not states or states[-1][1] == state
        assert (state in ("running", "paused")) == (f"vfsd-machine-{name}.service" in vfsd.units())
        if state not in ("stopped", "failed"):
            await client.call(path, MACHINE, "Kill")
        await client.call(path, MACHINE, "Remove")
    await until(lambda: not vfsd.leftovers(), "all is gone", 10)


async def test_machines_that_start_and_end_at_once(
    vfsd: Vfsd, client: Client, clients: list[Client], folder: Path
) -> None:
    async def live(number: int, one: Client) -> None:
        path = await tiny_machine(one, folder, f"m{number}", shares=[folder])
        await one.call(path, MACHINE, "Start")
        await one.call(path, MACHINE, "Kill")
        await one.call(path, MACHINE, "Remove")

    async with asyncio.timeout(60):
        await asyncio.gather(*(live(number, one) for number, one in enumerate(clients[:8])))
    for number in range(8):
        states = [new for _, new, _ in client.signals.states(f"{ROOT}/machine/m{number}")]
        assert states == ["starting", "running", "stopped"]
        share = f"{ROOT}/share/{escaped(f'm{number}.{folder.name}')}"
        assert client.signals.states(share)[-1][1] == "stopped"
    story_is_whole(client)
    assert vfsd.leftovers() == []


def story_is_whole(client: Client) -> None:
    """For each object: it appears, each state follows from the one before and is told once each way, it goes."""
    shown: dict[str, str | None] = {}
    announced: dict[str, str] = {}
    for message in client.signals.seen:
        if message.member == "InterfacesAdded":
            path, interfaces = message.body
            assert path not in shown, f"{path} appeared twice"
            [state] = [p["State"].value for p in interfaces.values() if "State" in p]
            shown[path] = announced[path] = state
        elif message.member == "InterfacesRemoved":
            assert message.body[0] in shown, f"{message.body[0]} went without having been there"
            del shown[message.body[0]]
        elif message.member == "PropertiesChanged" and "State" in message.body[1]:
            assert message.path in shown, f"{message.path} changed and was not there"
            value = message.body[1]["State"].value
            assert value != announced[message.path], f"{message.path}: {value} told twice"
            announced[message.path] = value
        elif message.member == "StateChanged":
            old, new, _ = message.body
            assert shown[message.path] == old, (message.path, message.body)
            assert announced[message.path] == new, (message.path, message.body)
            shown[message.path] = new
