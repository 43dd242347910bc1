"""The console over the bus: many readers, replay, and what a guest, a reader or a caller can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from dbus_next import Message, MessageType, Variant

from tests.integration import talking_guest, tiny_guest
from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, MANAGER, ROOT, BusError, Client, Vfsd, until
from tests.integration.talking_guest import BYTES, COUNT, numbers

LIMIT = 64 << 10
TAP = 1
"""Descriptors that vfsd keeps of a console once it was opened."""
SOON = 30
"""Seconds, on a busy machine."""

Opener = Callable[[str], Awaitable["Screen"]]


class Screen:
    """An open console."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self.text = b""
        self.ended = False

    def read(self) -> bytes:
        """All that came up to now."""
        with contextlib.suppress(BlockingIOError):
            while not self.ended:
                piece = self._end.recv(1 << 20)
                self.text += piece
                self.ended = not piece
        return self.text

    def type(self, data: bytes) -> int:
        """How much of it was taken."""
        try:
            return self._end.send(data)
        except BlockingIOError:
            return 0

    async def expect(self, text: bytes) -> None:
        await until(lambda: text in self.read(), f"{text[:40]!r}", SOON)

    async def end(self) -> None:
        def at_end() -> bool:
            self.read()
            return self.ended

        await until(at_end, "the end", SOON)

    async def has(self, length: int) -> bytes:
        """All that came, once it is that long."""
        await until(lambda: len(self.read()) >= length, f"{length} bytes, not {len(self.text)}", SOON)
        return self.text

    def close(self) -> None:
        self._end.close()


@pytest.fixture
async def opened(vfsd: Vfsd) -> AsyncIterator[Opener]:
    """Opens consoles, each time on a connection of its own as vfsd may have been restarted."""
    screens: list[Screen] = []

    async def open_console(path: str) -> Screen:
        client = await Client.connect(vfsd, listen=False, descriptors=True)
        try:
            screens.append(
                Screen(socket.socket(fileno=await client.descriptor(path, MACHINE, "OpenConsole")))
            )
        finally:
            await client.close()
        return screens[-1]

    yield open_console
    for screen in screens:
        screen.close()


async def talker(client: Client, folder: Path) -> str:
    image = talking_guest.make_image(folder)
    return await tiny_guest.started(client, folder, "talker", Image=("s", str(image)))


def descriptors(vfsd: Vfsd) -> int:
    """How many vfsd has open."""
    return len(list(Path(f"/proc/{vfsd.main_pid()}/fd").iterdir()))


async def test_readers_see_the_same_and_each_may_type(
    vfsd: Vfsd, client: Client, folder: Path, opened: Opener
) -> None:
    path = await tiny_guest.started(client, folder)
    first, second = await opened(path), await opened(path)
    hello = tiny_guest.HELLO.encode()
    await first.expect(hello)
    await second.expect(hello)
    first.type(b"one")
    await second.expect(b"one")
    second.type(b"two")
    await first.expect(b"onetwo")
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(await client.get(path, MACHINE, "ConsolePath"))
        terminal = Screen(plain)
        assert terminal.type(b"\r\n") == 2
        await terminal.expect(b"\r\n")
    await first.expect(b"onetwo\r\n")
    third = await opened(path)
    await third.expect(b"onetwo\r\n")
    assert third.read() == first.read() == second.read()
    assert third.text.count(hello) == 1
    unit = await client.get(path, MACHINE, "Unit")
    matches = ("_TRANSPORT=stdout", f"_SYSTEMD_{'USER_' if vfsd.scope == 'user' else ''}UNIT={unit}")
    await until(
        lambda: any("onetwo" in str(entry["MESSAGE"]) for entry in vfsd.journal(*matches)), "the journal"
    )


async def test_the_last_64_kib_are_replayed_exactly_whatever_becomes_of_vfsd(
    vfsd: Vfsd, client: Client, folder: Path, opened: Opener
) -> None:
    path = await talker(client, folder)
    first = await opened(path)
    await first.expect(talking_guest.HELLO)
    begin = len(first.text)
    first.type(b"!")
    said = (await first.has(begin + BYTES))[begin:]
    assert said == numbers(0)
    second = await opened(path)
    assert await second.has(LIMIT) == said[-LIMIT:]
    first.close()
    second.close()
    history = vfsd.runtime / "machine/talker/console-history"
    assert (history.stat().st_mode & 0o777, history.stat().st_size <= LIMIT) == (0o600, True)

    for more, end in ((b"a", vfsd.restart), (b"b", vfsd.crash)):
        with socket.socket(socket.AF_UNIX) as plain:  # while nobody else reads
            plain.connect(str(vfsd.runtime / "machine/talker/console"))
            terminal = Screen(plain)
            terminal.type(more)
            await terminal.expect(more)
        said += more
        reader = await opened(path)
        assert await reader.has(LIMIT) == said[-LIMIT:]
        end()
        await reader.end()
        vfsd.manager("ListMachines")
        again = await opened(path)
        assert await again.has(LIMIT) == said[-LIMIT:]
        again.type(more)
        said += more
        await again.has(LIMIT + 1)
        again.close()
    last = await opened(path)
    assert await last.has(LIMIT) == said[-LIMIT:]


async def test_no_byte_is_lost_or_doubled_for_who_comes_while_the_guest_writes(
    client: Client, folder: Path, opened: Opener
) -> None:
    path = await talker(client, folder)
    for _ in range(3):  # vfsd joins ring and tap once in a machine's life
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(await client.get(path, MACHINE, "ConsolePath"))
            terminal = Screen(plain)
            asyncio.get_running_loop().add_reader(plain, terminal.read)  # or the guest would wait for it
            while b"a" not in terminal.read():  # it may have said hello before
                terminal.type(b"a")
                await asyncio.sleep(0.1)
            terminal.type(b"!")
            await terminal.expect(b"0010 ")
            reading = asyncio.create_task(terminal.expect(b"7FFF "))
            first = await opened(path)
            later: list[Screen] = []
            while not reading.done():
                if len(later) < 20:
                    later.append(await opened(path))
                for reader in (first, *later):
                    reader.read()
                await asyncio.sleep(0.02)
            await reading
            asyncio.get_running_loop().remove_reader(plain)
        for reader in (first, *later):
            await reader.expect(b"7FFF ")
            text = reader.text.rpartition(b"a")[2]
            assert not talking_guest.break_in(text)
            assert len(text) >= LIMIT or text.startswith(b"0000 ")
        assert later
        for reader in (first, *later):
            reader.close()
        last = await opened(path)
        assert await last.has(LIMIT) == numbers(0)[-LIMIT:]
        await client.call(path, MACHINE, "Kill")
        await client.call(path, MACHINE, "Start")


async def test_a_reader_that_does_not_read_holds_up_nobody(
    vfsd: Vfsd, client: Client, folder: Path, opened: Opener
) -> None:
    path = await talker(client, folder)
    good = await opened(path)
    await good.expect(talking_guest.HELLO)
    begin = len(good.text)
    idle = await opened(path)
    good.type(b"!!!")
    said = (await good.has(begin + 3 * BYTES))[begin:]
    assert said == numbers(0, 3 * COUNT)
    await idle.has(2 * LIMIT)
    good.type(b"z")
    await until(lambda: idle.read().endswith(b"z"), "what is written once it reads again")
    text = idle.text.partition(talking_guest.HELLO)[2].removesuffix(b"z")
    assert LIMIT <= len(text) < len(said)
    assert said.startswith(text), "nothing but the end is missing"


async def test_a_guest_that_does_not_read_holds_up_nobody(
    vfsd: Vfsd, client: Client, folder: Path, opened: Opener
) -> None:
    path = await tiny_guest.started(client, folder)
    before = descriptors(vfsd)
    typist, other = await opened(path), await opened(path)
    await other.expect(tiny_guest.HELLO.encode())
    taken, idle = 0, 0
    while idle < 20:
        piece = typist.type(b"x" * 4096)
        taken += piece
        idle = 0 if piece else idle + 1
        assert taken < 4 << 20, "what nobody reads is not stored"
        await asyncio.sleep(0.02)
    await other.expect(b"x")
    assert (await client.get(path, MACHINE, "State")) == "running"
    typist.close()
    other.close()
    await until(lambda: descriptors(vfsd) <= before + TAP, "the readers are gone", SOON)
    await client.call(path, MACHINE, "Kill")
    await until(lambda: descriptors(vfsd) < before, "the monitor and the tap are closed", SOON)


async def test_the_console_ends_with_the_machine(
    vfsd: Vfsd, client: Client, folder: Path, opened: Opener
) -> None:
    path = await tiny_guest.tiny_machine(client, folder)
    with pytest.raises(BusError) as refused:
        await opened(path)
    assert refused.value.name == "WrongState"
    before = descriptors(vfsd)
    await client.call(path, MACHINE, "Start")
    readers = [await opened(path) for _ in range(3)]
    await readers[0].expect(tiny_guest.HELLO.encode())
    await client.call(path, MACHINE, "Shutdown", "t", 0)
    for reader in readers:
        await reader.end()
        assert reader.text.endswith(f"{tiny_guest.BUTTON}\r\n".encode()), "its last words too"
    await until(lambda: not (vfsd.runtime / "machine/tiny/console-history").exists(), "nothing is kept")
    await until(lambda: descriptors(vfsd) <= before, "all descriptors are closed")

    await client.call(path, MACHINE, "Start")
    reader = await opened(path)
    await reader.expect(tiny_guest.HELLO.encode())
    assert tiny_guest.BUTTON.encode() not in reader.text, "the last guest's words are not the next one's"
    os.kill(await client.get(path, MACHINE, "MainPID"), signal.SIGKILL)
    await reader.end()
    await until(lambda: descriptors(vfsd) <= before, "all descriptors are closed")


async def test_a_console_is_open_so_often_and_no_more(
    vfsd: Vfsd, client: Client, folder: Path, opened: Opener
) -> None:
    path = await tiny_guest.started(client, folder)
    before = descriptors(vfsd)
    readers = [await opened(path) for _ in range(64)]
    with pytest.raises(BusError) as refused:
        await opened(path)
    assert refused.value.name == "LimitsExceeded"
    for reader in readers:
        reader.close()
    await until(lambda: descriptors(vfsd) <= before + TAP, "they are closed")
    await (await opened(path)).expect(tiny_guest.HELLO.encode())


async def test_a_caller_that_takes_no_descriptors_gets_none(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_guest.started(client, folder)
    before = descriptors(vfsd)
    with contextlib.suppress(BusError, TimeoutError):
        await asyncio.wait_for(client.call(path, MACHINE, "OpenConsole"), 1)
    await until(lambda: descriptors(vfsd) <= before + TAP, "the console is closed")


async def test_descriptors_that_callers_send_are_never_vfsds(vfsd: Vfsd, client: Client) -> None:
    hostile = await Client.connect(vfsd, listen=False, descriptors=True)
    await client.manager("ListShares")
    before = descriptors(vfsd)
    read_end, write_end = os.pipe()
    for member, signature, body in (
        ("ListShares", "", []),
        ("CreateMachine", "sa{sv}", ["x", {"Memory": Variant("h", 0)}]),
        ("GetShare", "h", [0]),
    ):
        for _ in range(100):
            message = Message(
                destination="org.vfsd1",
                path=ROOT,
                interface=MANAGER,
                member=member,
                signature=signature,
                body=body,
                unix_fds=[write_end] * 16,
            )
            reply = await hostile.bus.call(message)
            assert reply is not None
            assert reply.message_type is (MessageType.ERROR if signature else MessageType.METHOD_RETURN)
    os.close(write_end)
    os.set_blocking(read_end, False)
    await until(lambda: os.read(read_end, 1) == b"", "no copy is left")
    assert descriptors(vfsd) == before
    os.close(read_end)
    await hostile.close()


@only_system
async def test_a_qemu_that_does_not_answer_is_an_error(
    vfsd: Vfsd, client: Client, folder: Path, opened: Opener
) -> None:
    path = await tiny_guest.started(client, folder)
    before = descriptors(vfsd)
    pid = await client.get(path, MACHINE, "MainPID")
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BusError) as refused:
            await opened(path)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert refused.value.name == "MonitorFailed"
    assert 'console of machine "tiny"' in refused.value.message
    await until(lambda: descriptors(vfsd) <= before, "nothing is left")
    await (await opened(path)).expect(tiny_guest.HELLO.encode())
