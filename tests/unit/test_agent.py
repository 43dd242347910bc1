"""The client of the guest's agent, against an agent that a test scripts: silent, lying, endless."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from vfsd.agent import REPLY_MAX, Agent, clean
from vfsd.errors import GuestTimeout, NotSupported, VfsdError
from vfsd.inside import GuestMount, parse_mounts

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def agent(folder: Path, talk: Talk) -> AsyncIterator[Agent]:
    """An agent's client whose other side is the script."""
    writers = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await talk(reader, writer)

    server = await asyncio.start_unix_server(accept, str(folder / "agent"), limit=1 << 22)
    client = Agent(folder / "agent", "m")
    try:
        yield client
    finally:
        client.close()
        for writer in writers:
            writer.transport.abort()
        server.close()
        await asyncio.sleep(0.02)


def honest(answers: dict[str, Any]) -> Talk:
    """Answers as qemu-ga does; a list is given one by one."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line.rpartition(b"\xff")[2])
            name = request["execute"]
            if name == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
                continue
            answer = answers[name]
            raw = answer.pop(0) if isinstance(answer, list) else answer
            writer.write(raw if isinstance(raw, bytes) else json.dumps(raw).encode() + b"\n")
        writer.close()

    return talk


async def test_a_command_and_its_answer(tmp_path: Path) -> None:
    done = {"exited": True, "exitcode": 3, "out-data": base64.b64encode(b"out\0").decode()}
    script = {
        "guest-exec": {"return": {"pid": 7}},
        "guest-exec-status": [{"return": {"exited": False}}, {"return": done}],
    }
    async with agent(tmp_path, honest(script)) as client:
        result = await client.execute(["x", "y"])
        assert (result.status, result.output, result.errors) == (3, b"out\0", b"")


async def test_a_signal_is_128_and_its_number(tmp_path: Path) -> None:
    script = {
        "guest-exec": {"return": {"pid": 7}},
        "guest-exec-status": {"return": {"exited": True, "signal": 9}},
    }
    async with agent(tmp_path, honest(script)) as client:
        assert (await client.execute(["x"])).status == 137


@pytest.mark.parametrize(
    "answer",
    [b"garbage\n", b"[1]\n", b"\n", b"[" * 100_000 + b"\n", {"return": {"pid": "7"}}, {"return": []}, {}],
    ids=["garbage", "list", "empty", "deep", "text", "no table", "nothing"],
)
async def test_an_answer_that_makes_no_sense(tmp_path: Path, answer: Any) -> None:
    script = {"guest-exec": answer, "guest-ping": {"return": {}}}
    async with agent(tmp_path, honest(script)) as client:
        with pytest.raises(VfsdError, match="no sense"):
            await client.execute(["x"])
        # and the next command is not confused by it
        assert await client.command("guest-ping") == {}


@pytest.mark.parametrize(
    "told",
    [
        {"exited": True, "exitcode": -1},
        {"exited": True, "exitcode": 1 << 40},
        {"exited": True, "signal": "KILL"},
        {"exited": 1},
        {"exited": True, "exitcode": 0, "out-data": "not base64!"},
        {"exited": True, "exitcode": 0, "out-data": 5},
    ],
    ids=json.dumps,
)
async def test_an_end_that_can_not_be(tmp_path: Path, told: Any) -> None:
    script = {"guest-exec": {"return": {"pid": 7}}, "guest-exec-status": {"return": told}}
    async with agent(tmp_path, honest(script)) as client:
        with pytest.raises(VfsdError, match="no sense"):
            await client.execute(["x"])


async def test_refusals_are_told_in_clean_words(tmp_path: Path) -> None:
    words = "no\x1b[31m such\n" + "x" * 10_000
    script = {
        "guest-ping": {"error": {"class": "GenericError", "desc": words}},
        "guest-x": {"error": {"class": "CommandNotFound", "desc": "unknown"}},
        "guest-y": {"error": 5},
    }
    async with agent(tmp_path, honest(script)) as client:
        with pytest.raises(VfsdError, match="refused guest-ping: no") as caught:
            await client.command("guest-ping")
        assert len(str(caught.value)) < 500
        assert "\x1b" not in str(caught.value)
        with pytest.raises(NotSupported, match="guest-x"):
            await client.command("guest-x")
        with pytest.raises(VfsdError, match="guest-y"):
            await client.command("guest-y")


async def test_silence_ends_in_time_and_is_forgiven(tmp_path: Path) -> None:
    silent = True

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if silent:
                continue
            request = json.loads(line.rpartition(b"\xff")[2])
            if request["execute"] == "guest-sync-delimited":
                # what was asked before is answered late, and the sync of then too
                writer.write(b'{"return": {"late": 1}}\n\xff{"return": 1}\n')
                writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
            else:
                writer.write(b'{"return": {"now": 1}}\n')
        writer.close()

    async with agent(tmp_path, talk) as client:
        with pytest.raises(GuestTimeout, match="guest-ping"):
            await client.command("guest-ping", 0.2)
        silent = False
        assert await client.command("guest-ping") == {"now": 1}


async def test_one_that_was_silent_is_asked_by_another_connection(tmp_path: Path) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await honest({"guest-ping": {"return": {}}})(reader, writer)
        await reader.read()
        writer.close()

    async with agent(tmp_path, talk) as client:
        with pytest.raises(GuestTimeout):
            await client.command("guest-ping", 0.2)
        assert await client.command("guest-ping") == {}
        assert await client.command("guest-ping") == {}
    assert connections == 2


@pytest.mark.parametrize(
    "chunk", [b"y\n" * 5000, b"\xff" * 10_000, b"x" * 10_000], ids=["lines", "sentinels", "line"]
)
async def test_endless_talk_is_bounded(tmp_path: Path, chunk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        with contextlib.suppress(OSError):
            while True:
                writer.write(chunk)
                await writer.drain()

    async with agent(tmp_path, talk) as client:
        sizes, receive = [0], client._receive

        async def measured() -> None:
            await receive()
            sizes.append(len(client._received))

        monkeypatch.setattr(client, "_receive", measured)
        with pytest.raises(VfsdError):
            await client.command("guest-ping", 1)
        assert 0 < max(sizes) <= REPLY_MAX + (64 << 10)


async def test_endless_talk_leaves_others_their_turn(tmp_path: Path) -> None:
    """A real process talks, for within this one the talker would wait for its turn too."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "agent"))
        server.listen()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.01)
                turns += 1

        client = Agent(tmp_path / "agent", "m")
        asking = asyncio.create_task(client.command("guest-ping", 1))
        counting = asyncio.create_task(count())
        server.setblocking(False)
        talker, _ = await asyncio.get_running_loop().sock_accept(server)
        talker.setblocking(True)
        silent = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec("yes", stdout=talker.fileno(), stderr=silent)
        talker.close()
        begun = time.monotonic()
        with pytest.raises(GuestTimeout):
            await asking
        took = time.monotonic() - begun
        client.close()
        await process.wait()
        counting.cancel()
    assert took < 3
    assert turns > 10


async def test_waiting_for_another_command_counts(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with agent(tmp_path, talk) as client:
        begun = time.monotonic()
        asked = [client.command("guest-ping", 0.5) for _ in range(20)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(end) for end in ends} == {GuestTimeout}
        assert time.monotonic() - begun < 3


async def test_many_small_parts_are_not_taken_apart(tmp_path: Path) -> None:
    """A megabyte of `[]` would become sixty."""
    parts = b'{"return": [' + b"[]," * 500_000 + b"0]}\n"
    text = base64.b64encode(bytes(1 << 20)).decode()
    script = {"guest-x": parts, "guest-y": {"return": {"text": text}}}
    async with agent(tmp_path, honest(script)) as client:
        with pytest.raises(VfsdError, match="no sense"):
            await client.command("guest-x")
        assert await client.command("guest-y") == {"text": text}


async def test_what_was_said_unasked_is_no_answer(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line.rpartition(b"\xff")[2])
            if request["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
            else:
                writer.write(b'{"return": {"asked": 1}}\n{"return": {"asked": 0}}\n')
        writer.close()

    async with agent(tmp_path, talk) as client:
        for _ in range(3):
            assert await client.command("guest-ping") == {"asked": 1}
            assert client.answers


async def test_an_answer_that_is_too_long(tmp_path: Path) -> None:
    async with agent(tmp_path, honest({"guest-ping": b"x" * (REPLY_MAX + (1 << 20)) + b"\n"})) as client:
        with pytest.raises(VfsdError, match="more than 4 MiB"):
            await client.command("guest-ping")


async def test_nobody_there(tmp_path: Path) -> None:
    client = Agent(tmp_path / "nothing", "m")
    with pytest.raises(NotSupported, match="can't be reached"):
        await client.command("guest-ping")
    client.close()


def test_mounts_of_virtiofs_alone() -> None:
    text = (
        "22 1 0:20 / / rw,relatime - virtiofs root rw\n"
        "27 22 0:24 / /a\\040b\\134c ro,nosuid shared:1 - virtiofs my\\040tag rw\n"
        "28 22 0:25 / /x rw - ext4 /dev/vda rw\nnonsense\n1 2 - virtiofs\n"
        "29 22 0:24 /in\\040it /bound rw - virtiofs t rw\n"
        "30 22 0:26 / /nul\\000 rw - virtiofs nul rw\n"
        f"31 22 0:26 / /{'x' * 5000} rw - virtiofs long rw\n"
    )
    assert parse_mounts(text) == [
        GuestMount("root", "/", "rw,relatime"),
        GuestMount("my tag", "/a b\\c", "ro,nosuid"),
        GuestMount("t", "/bound", "rw", "/in it"),
    ]


def test_clean_text() -> None:
    assert clean("a\nb\x07\u202ec" + "d" * 50, 10) == "a b  cdddd"
