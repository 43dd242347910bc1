"""`vfsctl console`: a guest's console on a terminal, on a pipe, and across a restart of vfsd."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import MACHINE, Client, Vfsd, until, wait_for
from tests.integration.tiny_guest import HELLO, started, tiny_machine
from tests.integration.vfsctl import SMALL, Terminal, ok, running, vfsctl


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


def test_console_on_a_terminal(vfsd: Vfsd, terminals: list[Terminal]) -> None:
    ok(vfsd, "machine", "add", "guest", "--builtin", *SMALL)
    ok(vfsd, "machine", "start", "guest")
    first = Terminal(vfsd, "console", "guest")
    terminals.append(first)
    first.expect("guest:~# ")
    assert "This is guest; Ctrl-]" in first.text
    assert first.is_raw
    first.send("echo $((6*7))x\r")
    first.expect("42x")

    second = Terminal(vfsd, "console", "guest")
    terminals.append(second)
    second.expect("42x")
    second.send("echo $((6*8))x\r")
    first.expect("48x")
    second.expect("48x")
    second.send("sh -c 'echo be\"\"gin; exec sleep 1000'\r")
    first.expect("begin")
    second.send("\x03")  # the guest's, too
    first.expect("guest:~# ")
    second.send("\x1d\x1d")
    time.sleep(1.2)
    second.send("\x1d")
    time.sleep(0.5)
    assert second.process.poll() is None, "too slow for an escape"
    time.sleep(1)
    second.send("\x1d\x1d\x1d")
    assert second.end() == 0

    for end in (vfsd.restart, vfsd.crash):
        shown = first.text.count("48x")
        end()
        wait_for(lambda: vfsd.run("busctl", vfsd.flag, "status", "org.vfsd1", check=False), "vfsd is there")
        wait_for(lambda: '"running"' in vfsctl(vfsd, "machine", "show", "guest", "--json").out, "it runs on")
        before = first.text.count("49x")
        deadline = time.monotonic() + 30
        while first.text.count("49x") == before:  # what is typed while there is no vfsd is lost
            assert time.monotonic() < deadline, first.text[-500:]
            first.send("echo $((7*7))x\r")
            time.sleep(1)
            first._drain()
        assert first.text.count("48x") == shown, "what was shown is not shown again"

    first.send("poweroff\r")
    assert first.end() == 0
    assert "guest stopped: the guest powered off" in first.text


def has_size(terminal: Terminal, size: str) -> None:
    """The guest's terminal has that size, sooner or later."""
    deadline = time.monotonic() + 30
    while size not in terminal.text:
        assert time.monotonic() < deadline, terminal.text[-500:]
        terminal.send("stty size\r")  # keys that come while the shell draws its prompt anew are lost
        time.sleep(0.5)
        terminal._drain()


def test_the_guests_terminal_has_the_size_of_this_one(vfsd: Vfsd, terminals: list[Terminal]) -> None:
    ok(vfsd, "machine", "add", "guest", "--builtin", *SMALL)
    ok(vfsd, "machine", "start", "guest")
    terminal = Terminal(vfsd, "console", "guest", columns=97)
    terminals.append(terminal)
    terminal.expect("guest:~# ")
    has_size(terminal, "24 97\r\n")
    terminal.resize(41, 133)
    has_size(terminal, "41 133\r\n")
    terminal.send("\x1d\x1d\x1d")
    assert terminal.end() == 0


async def test_console_without_a_terminal(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder)
    done = vfsctl(vfsd, "console", "tiny")
    assert done.code == 1
    assert 'Machine "tiny" is stopped' in done.err
    assert "start it" in done.err
    done = vfsctl(vfsd, "console", "none")
    assert (done.code, "vfsctl machine list" in done.err) == (4, True)

    path = await started(client, folder, "other")
    with running(vfsd, "console", "other") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{HELLO}\n"
        await client.call(path, MACHINE, "Kill")
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (0, "")
        assert err == "other stopped: killed on request\n"
    await client.call(path, MACHINE, "Start")
    with running(vfsd, "console", "other") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{HELLO}\n"
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert await client.get(path, MACHINE, "State") == "running", "who leaves does not end it"
    with running(vfsd, "console", "other") as process:
        pid = await client.get(path, MACHINE, "MainPID")
        assert process.stdout is not None
        assert process.stdout.readline() == f"{HELLO}\n"
        os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert err.startswith("other failed: ")


async def test_what_comes_from_a_pipe_is_typed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await started(client, folder)
    done = vfsctl(vfsd, "machine", "show", "tiny", "--json")
    assert done.json()["State"] == "running"
    read_end, write_end = os.pipe()
    with running(vfsd, "console", "tiny", stdin=read_end) as process:
        os.close(read_end)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{HELLO}\n"
        os.write(write_end, b"typed\r\n")
        os.close(write_end)
        assert process.stdout.readline() == "typed\n"
        await client.call(path, MACHINE, "Kill")
        assert process.wait(30) == 0
    await until(lambda: not vfsctl(vfsd, "machine", "show", "tiny", "--json").json()["MainPID"], "it ended")
