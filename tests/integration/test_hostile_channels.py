"""A guest whose root attacks what it has besides its shares: console, agent's port, panic device, reset button."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator

import pytest
from dbus_next import Variant

from tests.integration.conftest import kept_clean
from tests.integration.harness import MACHINE, BusError, Client, Vfsd, until
from tests.integration.hostile_guest import HostileGuest, contained, hostile_guest
from tests.integration.test_endings import GUEST_EVENT
from tests.integration.tiny_guest import DISK, walked

SECONDS = 3
RESETTING = bytes.fromhex("b0fe e664 ebfa")  # outb 0xfe, 0x64: the keyboard controller's reset line; again
ANSWER_MAX = 30
"""Seconds until a question to the guest is answered, were it by an error, on a busy host."""


@pytest.fixture(scope="module")
def vfsd() -> Iterator[Vfsd]:
    """The system's, for all tests of this file."""
    with kept_clean("system") as service:
        yield service


@pytest.fixture(scope="module")
def guest(vfsd: Vfsd) -> Iterator[HostileGuest]:
    with hostile_guest(vfsd, shares=False) as made:
        yield made


async def test_a_console_that_is_flooded(guest: HostileGuest, vfsd: Vfsd) -> None:
    """One reads it, one has it open and does not."""
    reader = await Client.connect(vfsd, listen=False, descriptors=True)
    ends = [await reader.descriptor(guest.path, MACHINE, "OpenConsole") for _ in range(2)]
    received = bytearray()
    os.set_blocking(ends[0], False)

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            received.extend(os.read(ends[0], 1 << 16))

    asyncio.get_running_loop().add_reader(ends[0], read)
    since = time.time()
    try:
        async with contained(guest):
            found = await guest.attack(reader, "console", SECONDS)
            await until(lambda: len(received) > found["written"] // 2, "it is read", 60)
    finally:
        asyncio.get_running_loop().remove_reader(ends[0])
        for end in ends:
            os.close(end)
        await reader.close()
    assert found["written"] > 10_000
    assert b"forged" in received
    # no field of an entry is the guest's
    assert vfsd.journal("VFSD_MACHINE=other", since=since) == []
    own = vfsd.journal("VFSD_MACHINE=hostile", "SYSLOG_IDENTIFIER=vfsd-hostile", since=since)
    assert own
    assert {entry["PRIORITY"] for entry in own} == {"6"}


async def test_an_agent_that_talks_nonsense(guest: HostileGuest, client: Client) -> None:
    python = f"chroot /tree env PYTHONPATH=/opt python3 -S -m tests.integration.hostile.agent {SECONDS / 2}"
    # by another name: who has the agent's in its arguments is killed
    script = f"(sleep 0.5; {python}; exec /.vfsd/a*t) </dev/null >/dev/null 2>&1 &"
    asked, refused = 0, set()
    call = (guest.path, MACHINE, "Execute", "asa{sv}", ["true"], {"TimeoutUSec": Variant("t", 2_000_000)})
    async with contained(guest):
        await guest.run(client, "setsid", "sh", "-c", script)
        await until(
            lambda: client.signals.changes(guest.path, "GuestReady")[-1:] == [False], "it is gone", 60
        )
        gone = time.monotonic()
        while not await client.get(guest.path, MACHINE, "GuestReady"):
            begun = time.monotonic()
            assert begun - gone < 240
            for question in (call, (guest.path, MACHINE, "QueryGuest")):
                try:
                    await client.call(*question)
                except BusError as error:
                    refused.add(error.name)
            assert time.monotonic() - begun < ANSWER_MAX
            asked += 1
            await asyncio.sleep(0.1)
    assert asked > 2
    assert refused <= {"GuestTimeout", "NotSupported", "Failed"}
    assert refused
    assert walked(client.signals, guest.path) == []
    assert await guest.run(client, "echo", "honest") == "honest\n"


async def test_panics_that_are_none(guest: HostileGuest, client: Client) -> None:
    async with contained(guest):
        # QEMU is busy with telling it, and vfsd does not listen to QEMU for a while
        with contextlib.suppress(BusError):
            await guest.attack(client, "panics", 2000)
        end = time.monotonic() + 60
        while await answer(guest, client) != "alive\n":
            assert time.monotonic() < end
    assert walked(client.signals, guest.path) == []


async def answer(guest: HostileGuest, client: Client) -> str:
    """What the guest says; "" if it can't be asked."""
    try:
        return await guest.run(client, "echo", "alive", seconds=10)
    except BusError:
        return ""


async def test_a_guest_that_resets_for_ever(guest: HostileGuest, vfsd: Vfsd, client: Client) -> None:
    image = guest.base / "resetting.img"
    image.write_bytes((RESETTING.ljust(510, b"\0") + b"\x55\xaa").ljust(DISK, b"\0"))
    image.chmod(0o666)
    since = time.time()
    machine = await client.create_machine(
        "resetting",
        Image=("s", str(image)),
        Memory=("t", 32 << 20),
        Network=("s", "none"),
        Accelerator=("s", "tcg"),
    )
    await client.call(machine, MACHINE, "Start")
    reasons = client.signals.changes
    await until(lambda: "the guest rebooted" in reasons(machine, "Reason"), "it resets", 60)
    async with contained(guest):
        await asyncio.sleep(SECONDS)
        assert await client.get(machine, MACHINE, "State") == "running"
    await client.call(machine, MACHINE, "Kill")
    assert walked(client.signals, machine)[-1] == "stopped"
    told = vfsd.journal(GUEST_EVENT, "VFSD_MACHINE=resetting", since=since)
    assert 0 < len(told) < 50
    await client.call(machine, MACHINE, "Remove")
