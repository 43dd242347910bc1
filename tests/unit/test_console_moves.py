"""A console whose QEMU is replaced under its readers, or talks nonsense, which the real one does not on demand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vfsd.console import Console
from vfsd.console import console as module
from vfsd.console.history import LIMIT
from vfsd.errors import MonitorFailed, NotSupported, WrongState
from vfsd.paths import Paths


class Surroundings:
    """What a console knows of vfsd."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder, folder, ())
        self.spawned: list[asyncio.Task[None]] = []
        self.paths.machine("x").folder.mkdir(parents=True)

    def spawn(self, work: Any) -> asyncio.Task[None]:
        self.spawned.append(asyncio.get_running_loop().create_task(work))
        return self.spawned[-1]


class Qemu:
    """The two ends of a console that QEMU has for vfsd."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._listening.setblocking(False)
        self._client: socket.socket | None = None
        self._ring = b""
        self.writes_before_answer: list[bytes] = []
        self.answers: dict[str, Any] = {}

    def write(self, data: bytes) -> None:
        if self._client is not None:
            self._client.sendall(data)
        self._ring = (self._ring + data)[-LIMIT:]

    def typed(self) -> bytes:
        assert self._client is not None
        with contextlib.suppress(BlockingIOError):
            return self._client.recv(1 << 16)
        return b""

    async def execute(self, command: str, **_: Any) -> Any:
        if self.writes_before_answer:
            self.write(self.writes_before_answer.pop(0))
        await asyncio.sleep(0)
        if command in self.answers:
            return self.answers[command]
        if command == "query-chardev":
            state = "" if self._client else "disconnected:"
            with contextlib.suppress(BlockingIOError):
                self._client, _ = self._listening.accept()
                self._client.setblocking(False)
            return [{"label": "journal", "filename": "file"}, {"label": "tap", "filename": f"{state}unix:x"}]
        assert command == "ringbuf-read"
        answer, self._ring = base64.b64encode(self._ring).decode(), b""
        return answer

    def end(self) -> None:
        self._listening.close()
        if self._client is not None:
            self._client.close()


class House:
    """A console, its present QEMU, and those who read."""

    def __init__(self, folder: Path) -> None:
        self.around = Surroundings(folder)
        self._path = self.around.paths.machine("x").console_tap
        self.qemu = Qemu(self._path)
        around: Any = self.around
        self.console = Console(around, "x", lambda: around.paths.machine("x"), self._execute)
        self._ends: list[socket.socket] = []

    async def _execute(self, command: str, **arguments: Any) -> Any:
        return await self.qemu.execute(command, **arguments)  # of the present one

    async def open(self) -> socket.socket:
        end = socket.socket(fileno=await self.console.open())
        self._ends.append(end)
        end.settimeout(5)
        return end

    def replace(self) -> Qemu:
        """Another QEMU, at the same path; returns the one that was."""
        old, self.qemu = self.qemu, Qemu(self._path)
        return old

    async def moved(self) -> None:
        self.console.moved()
        await asyncio.gather(*self.around.spawned)

    def end(self) -> None:
        self.qemu.end()
        for end in self._ends:
            end.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.end()


async def test_readers_keep_their_descriptor_when_qemu_is_replaced(house: House) -> None:
    house.qemu.write(b"boot ")
    reader = await house.open()
    house.qemu.write(b"last ")
    await house.console.keep()
    old = house.replace()
    house.qemu.write(b"on ")
    house.qemu.writes_before_answer = [b"and ", b"on ", b"and "]
    await house.moved()
    old.end()
    house.qemu.write(b"on")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert reader.recv(999) == b"boot last on and on and on"
    reader.send(b"typed")
    for _ in range(5):
        await asyncio.sleep(0)
    assert house.qemu.typed() == b"typed"
    other = await house.open()
    assert other.recv(999) == b"boot last on and on and on"
    house.console.ended()
    assert reader.recv(1) == b""


async def test_what_was_written_before_qemu_was_replaced_is_known_after_it(house: House) -> None:
    house.qemu.write(b"before ")
    await house.console.keep()
    house.replace().end()
    await house.moved()
    house.qemu.write(b"after")
    assert (await house.open()).recv(99) == b"before after"
    house.console.ended()


async def test_a_move_that_fails_ends_the_readers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT", 0.05)
    reader = await house.open()
    house.replace().end()
    house.qemu.answers["query-chardev"] = [{"label": "tap", "filename": "unix:of somebody else"}]
    await house.moved()
    assert reader.recv(1) == b""
    assert not house.console._readers
    house.console.ended()


@pytest.mark.parametrize("answer", [None, 7, "no base64!", "abc", ["x"]])
async def test_a_ring_that_answers_nonsense(house: House, answer: Any) -> None:
    house.qemu.answers["ringbuf-read"] = answer
    with pytest.raises(MonitorFailed, match='console of machine "x"'):
        await house.open()
    del house.qemu.answers["ringbuf-read"]


async def test_a_ring_that_answers_too_much_is_cut(house: House) -> None:
    house.qemu.answers["ringbuf-read"] = base64.b64encode(b"a" * (5 * LIMIT) + b"end").decode()
    reader = await house.open()
    got = b""
    while not got.endswith(b"end"):
        got += reader.recv(1 << 20)
        await asyncio.sleep(0)
    assert len(got) == LIMIT
    house.console.ended()


@pytest.mark.parametrize("answer", [None, {}, [7], [{"label": "tap"}], "tap"])
async def test_a_list_of_devices_that_is_none(house: House, answer: Any) -> None:
    house.qemu.answers["query-chardev"] = answer
    with pytest.raises((MonitorFailed, NotSupported)):
        await house.open()


async def test_a_qemu_of_an_older_vfsd_has_no_tap(house: House) -> None:
    house.qemu.answers["query-chardev"] = [{"label": "journal", "filename": "file"}]
    with pytest.raises(NotSupported, match="started by an older vfsd"):
        await house.open()


async def test_nobody_listens(house: House) -> None:
    house.around.paths.machine("x").console_tap.unlink()
    with pytest.raises(MonitorFailed, match="can't be reached"):
        await house.open()


async def test_a_machine_that_ends_while_its_console_is_opened(house: House) -> None:
    opening = asyncio.create_task(house.console.open())
    for _ in range(4):
        await asyncio.sleep(0)
    house.console.ended()
    with pytest.raises(WrongState, match="ended meanwhile"):
        await opening
