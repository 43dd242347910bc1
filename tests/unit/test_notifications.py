"""Guests that talk to vfsd: who is heard, and that nobody can talk it down.

Guests are clients on 127.0.0.0/8 here, where the last byte stands for the CID: the kernel vouches for that too, and
AF_VSOCK leads nowhere without a guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from vfsd import notifications, vsock
from vfsd.notifications import BURST, MESSAGES_MAX, OPEN_MAX, Notifications
from vfsd.vsock import MESSAGE_MAX, Notice

OURS, NEIGHBOUR, STRANGER = 11, 12, 13
READY = b"READY=1\nSTATUS=Ready."


class House:
    """Notifications on a socket of the loopback network, and what was heard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[tuple[int, Notice]] = []
        self.kept: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.listeners: list[socket.socket] = []
        self.wanted: list[int] = []
        monkeypatch.setattr(vsock, "listen", self.make)
        self.notifications = Notifications(self.spawn, lambda address: int(address[0].rpartition(".")[2]))
        self.notifications.on_listen = self.kept.append
        for cid in (OURS, NEIGHBOUR):
            self.expect(cid)

    def expect(self, cid: int) -> None:
        self.notifications.expect(cid, lambda notice: self.heard.append((cid, notice)))

    def make(self, wanted: int) -> socket.socket:
        self.wanted.append(wanted)
        made = socket.socket()
        made.bind(("127.0.0.1", 0))
        made.listen(128)
        made.setblocking(False)
        self.listeners.append(made)
        return made

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def connect(self, cid: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self.listeners[0].getsockname()[1]
        return await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.0.{cid}", 0))

    async def say(self, cid: int, message: bytes) -> None:
        """As systemd does: one message, then wait for the other end to close."""
        reader, writer = await self.connect(cid)
        with contextlib.suppress(OSError):  # who isn't heard may be cut off in the middle of a word
            writer.write(message)
            writer.write_eof()
            async with asyncio.timeout(10):
                assert await reader.read() == b"", "nothing is ever answered"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    made = House(monkeypatch)
    made.notifications.listen(0)
    made.notifications.begin()
    yield made
    failures = [task.exception() for task in made.tasks if task.done()]
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    assert failures == [None] * len(failures)
    assert all(listener.fileno() == -1 for listener in made.listeners)


async def test_who_is_expected_is_heard(house: House) -> None:
    await house.say(OURS, READY)
    await house.say(NEIGHBOUR, b"STOPPING=1")
    assert house.heard == [(OURS, Notice(ready=True)), (NEIGHBOUR, Notice(ready=False, ssh=False))]


async def test_nobody_else_is_heard(house: House) -> None:
    await house.say(STRANGER, READY)
    house.notifications.forget(OURS)
    await house.say(OURS, READY)
    assert house.heard == []


async def test_who_is_gone_before_the_end_of_its_message_is_not_heard(house: House) -> None:
    reader, writer = await house.connect(OURS)
    writer.write(READY)
    await writer.drain()
    await house.say(NEIGHBOUR, READY)  # by then vfsd has begun to read
    house.notifications.forget(OURS)
    house.notifications.expect(OURS, lambda notice: house.heard.append((0, notice)))  # its successor
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert house.heard == [(NEIGHBOUR, Notice(ready=True))]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\n",
        bytes(range(256)) * 8,
        b"READY=1\n" * MESSAGE_MAX,
        b"x" * (1 << 20),
        b"READY=" + b"1" * MESSAGE_MAX,
    ],
    ids=["nothing", "no line", "garbage", "many lines", "a megabyte", "a long line"],
)
async def test_nonsense_changes_nothing(house: House, message: bytes) -> None:
    await house.say(OURS, message)
    assert [notice for _, notice in house.heard if notice != Notice()] == []
    await house.say(OURS, READY)
    assert house.heard[-1] == (OURS, Notice(ready=True))


async def test_the_longest_message(house: House) -> None:
    await house.say(OURS, b"READY=1\n" + b"x" * (MESSAGE_MAX - 8))
    assert house.heard == [(OURS, Notice(ready=True))]


async def test_a_message_in_pieces(house: House) -> None:
    reader, writer = await house.connect(OURS)
    for letter in READY:
        writer.write(bytes([letter]))
        await writer.drain()
        await asyncio.sleep(0)
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert house.heard == [(OURS, Notice(ready=True))]


async def test_who_never_ends_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifications, "MESSAGE_TIMEOUT", 0.05)
    reader, writer = await house.connect(OURS)
    writer.write(READY)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    assert house.heard == []


async def test_one_guest_has_few_connections_at_a_time(house: House) -> None:
    idle = [await house.connect(OURS) for _ in range(OPEN_MAX)]
    await house.say(OURS, READY)
    assert house.heard == []
    await house.say(NEIGHBOUR, READY)
    assert house.heard == [(NEIGHBOUR, Notice(ready=True))]
    for reader, writer in idle:
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
    await house.say(OURS, READY)
    assert house.heard[-1] == (OURS, Notice(ready=True))


async def test_who_talks_without_end_is_heard_no_more_and_others_are(house: House) -> None:
    for _ in range(MESSAGES_MAX + BURST):
        await house.say(OURS, b"STATUS=x")
    assert len(house.heard) == MESSAGES_MAX - 1
    await house.say(NEIGHBOUR, READY)
    assert house.heard[-1] == (NEIGHBOUR, Notice(ready=True))
    house.expect(OURS)  # it is started anew
    await house.say(OURS, READY)
    assert house.heard[-1] == (OURS, Notice(ready=True))


async def test_what_was_said_while_nobody_listened_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    left = house.make(0)
    monkeypatch.setattr(vsock, "inherited", lambda descriptor: socket.socket(fileno=descriptor))
    talk = asyncio.get_running_loop().create_task(house.say(OURS, READY))
    await asyncio.sleep(0.05)
    other, useless = socket.socketpair()
    house.notifications.inherit([left.detach(), other.detach()])
    house.listeners.clear()
    assert house.notifications.listen(5) > 0
    assert (house.wanted, house.kept) == ([0], []), "there is one already, which systemd keeps"
    assert house.heard == []
    house.notifications.begin()
    await talk
    assert house.heard == [(OURS, Notice(ready=True))]
    useless.close()
    house.tasks[0].cancel()
    await asyncio.gather(*house.tasks, return_exceptions=True)


async def test_one_port_for_all(house: House) -> None:
    assert house.notifications.listen(0) == house.notifications.listen(99)
    assert house.wanted == [0]
    assert house.kept == [house.listeners[0].fileno()]


async def test_without_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> socket.socket:
        raise OSError("no vsock")

    monkeypatch.setattr(vsock, "listen", refuse)
    house = House.__new__(House)
    house.tasks = []
    talks = Notifications(house.spawn)
    with pytest.raises(OSError, match="no vsock"):
        talks.listen(0)
    talks.begin()
    assert house.tasks == []
