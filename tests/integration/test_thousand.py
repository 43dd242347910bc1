"""A thousand shares and fifty clients at once: nothing lost, nothing twice, nothing left."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dbus_next import Message

from tests.integration.harness import MANAGER, ROOT, SHARE, BusError, Client, Vfsd, until
from tests.integration.sharing import quiet

MANY = 1000
CLIENTS = 50
EACH = 6
IN_FLIGHT = 100
"""Calls of one client at once: the system bus allows 128."""


class RawClient:
    """A connection that leaves what it receives as bytes, or unread."""

    def __init__(self, vfsd: Vfsd) -> None:
        self._serial = itertools.count(1)
        self.socket = socket.socket(socket.AF_UNIX)
        os.setresuid(vfsd.owner_uid, vfsd.owner_uid, 0)
        try:
            self.socket.connect(vfsd.bus_address().partition("=")[2])
        finally:
            os.setresuid(0, 0, 0)
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(vfsd.owner_uid).encode().hex().encode() + b"\r\n")
        assert self.socket.recv(100).startswith(b"OK")
        self.socket.sendall(b"BEGIN\r\n")
        self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> int:
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            serial=next(self._serial),
        )
        self.socket.sendall(bytes(message._marshall()))
        return int(message.serial)

    def call(self, *arguments: Any) -> int:
        """Call, and read until the reply is whole; returns its size in bytes."""
        self.send(*arguments)
        buffer = b""
        while True:
            buffer += self.socket.recv(1 << 20)
            while len(buffer) >= 16:
                body, _, fields = (int.from_bytes(buffer[at : at + 4], "little") for at in (4, 8, 12))
                size = 16 + fields + (-fields % 8) + body
                if len(buffer) < size:
                    break
                if buffer[1] in (2, 3):
                    assert buffer[1] == 2, buffer[:size]
                    return size
                buffer = buffer[size:]


async def pipelined(calls: Iterable[Any]) -> list[Any]:
    """Many calls of one client, as many at once as the bus allows."""
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one(call: Any) -> Any:
        async with slots:
            return await call

    return await asyncio.gather(*map(one, calls))


def check_stories(client: Client) -> dict[str, list[str]]:
    """That the signals of each object make one whole story; returns the states of each."""
    shown: dict[str, str] = {}
    states: dict[str, list[str]] = defaultdict(list)
    announced: dict[str, str] = {}
    for message in client.signals.seen:
        if message.member == "InterfacesAdded":
            path, interfaces = message.body
            assert path not in shown, f"{path} was added twice"
            shown[path] = announced[path] = interfaces[SHARE]["State"].value
            states[path].append(f"+{shown[path]}")
        elif message.member == "InterfacesRemoved":
            del shown[message.body[0]]
            states[message.body[0]].append("-")
        elif message.path != ROOT:
            assert message.path in shown, f"{message.member} of {message.path}, which is not there"
            if message.member == "PropertiesChanged" and "State" in message.body[1]:
                announced[message.path] = message.body[1]["State"].value
            elif message.member == "StateChanged":
                old, new, _ = message.body
                assert (shown[message.path], announced[message.path]) == (old, new), message.body
                shown[message.path] = new
                states[message.path].append(new)
    return states


async def test_a_thousand_shares(vfsd: Vfsd, client: Client, folder: Path) -> None:
    vfsd_pid = vfsd.main_pid()
    with RawClient(vfsd) as deaf, RawClient(vfsd) as reader:
        # subscribes, and never reads a byte of what comes
        rule = "type='signal',sender='org.vfsd1'"
        deaf.send("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "AddMatch", "s", rule)
        paths = await pipelined(client.create_share(f"s{n}", folder) for n in range(MANY))
        assert len(set(paths)) == MANY
        rows = await client.manager("ListShares")
        assert [row[1] for row in rows] == ["listening"] * MANY
        times = []
        for _ in range(5):
            began = time.perf_counter()
            size = reader.call("org.vfsd1", ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
            times.append(time.perf_counter() - began)
        assert size > MANY * 500
        assert statistics.median(times) < 0.05, times
        await pipelined(client.call(path, SHARE, "Stop") for path in paths)
        await pipelined(client.call(path, SHARE, "Start") for path in paths[::2])
        await pipelined(client.manager("RemoveShare", "s", f"s{n}") for n in range(MANY))
    await until(lambda: client.signals.members().count("InterfacesRemoved") == MANY, "all are gone", 30)
    await quiet(client)
    states = check_stories(client)
    assert sorted(states) == sorted(paths)
    for number, path in enumerate(paths):
        story = [state for state in states[path] if state != "stopping"]
        again = ["listening", "stopped"] if number % 2 == 0 else []
        assert story == ["+listening", "stopped", *again, "-"], (path, states[path])
    assert vfsd.main_pid() == vfsd_pid
    assert vfsd.leftovers() == []


async def test_fifty_clients_at_once(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """Each with shares of its own, and all of them quarrelling over three."""
    clients = [await Client.connect(vfsd, listen=False) for _ in range(CLIENTS)]
    quarrels: list[str] = []

    async def own(one: Client, name: str) -> None:
        path = await one.create_share(name, folder)
        await one.call(path, SHARE, "Stop")
        await one.call(path, SHARE, "Start")
        assert await one.get(path, SHARE, "State") == "listening"
        await one.call(path, SHARE, "Remove")

    async def quarrel(one: Client, name: str) -> None:
        path = f"{ROOT}/share/{name}"
        for call in (
            lambda: one.create_share(name, folder),
            lambda: one.call(path, SHARE, "Stop"),
            lambda: one.call(path, SHARE, "Start"),
            lambda: one.manager("RemoveShare", "s", name),
        ):
            try:
                await call()
            except BusError as error:
                quarrels.append(error.name)

    async def work(number: int, one: Client) -> None:
        for turn in range(EACH):
            await own(one, f"c{number}n{turn}")
            await quarrel(one, f"common{turn % 3}")

    vfsd_pid = vfsd.main_pid()
    await asyncio.gather(*(work(number, one) for number, one in enumerate(clients)))
    for one in clients:
        await one.close()
    await quiet(client, 0.5)
    states = check_stories(client)
    for number in range(CLIENTS):
        for turn in range(EACH):
            told = [state for state in states[f"{ROOT}/share/c{number}n{turn}"] if state != "stopping"]
            assert told == ["+listening", "stopped", "listening", "stopped", "-"]
    assert set(quarrels) <= {"ShareExists", "NoSuchShare", "UnknownObject", "WrongState"}
    assert quarrels, "they met"
    for _, _, _, path in await client.manager("ListShares"):
        await client.call(path, SHARE, "Remove")
    assert vfsd.main_pid() == vfsd_pid
    assert vfsd.leftovers() == []


async def test_a_caller_that_never_reads_hurts_nobody(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """Its replies, some hundred megabytes of them, are not vfsd's to keep."""
    await pipelined(client.create_share(f"s{n}", folder) for n in range(100))
    before = resident(vfsd.main_pid())
    with RawClient(vfsd) as deaf:
        deaf.socket.settimeout(0.5)
        try:
            for _ in range(2000):
                deaf.send("org.vfsd1", ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        except (TimeoutError, ConnectionError):
            pass  # the bus takes no more of it
        began = time.perf_counter()
        assert len(await client.manager("ListShares")) == 100
        assert time.perf_counter() - began < 5
        assert await client.get(ROOT, MANAGER, "Scope") == vfsd.scope
    assert resident(vfsd.main_pid()) < before + (64 << 20)
    await pipelined(client.manager("RemoveShare", "s", f"s{n}") for n in range(100))


def resident(pid: int) -> int:
    """Bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
