"""`vfsctl run`: a guest that lives and dies with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import Vfsd, wait_for
from tests.integration.vfsctl import BOOT_TIMEOUT, SMALL, Terminal, nothing_left, ok, running, vfsctl


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


def test_run_a_command(vfsd: Vfsd, folder: Path) -> None:
    (folder / "in").write_text("hello\n")
    command = "cat /data/in; printf '%s|' \"a  b\" ü; echo made >/data/out; exit 7"
    done = vfsctl(vfsd, "run", "--builtin", *SMALL, "--share", f"{folder}:/data", "--exec", command)
    assert (done.code, done.out, done.err) == (7, "hello\na  b|ü|", "")
    assert (folder / "out").read_text() == "made\n"
    assert (folder / "out").stat().st_uid == vfsd.owner_uid
    nothing_left(vfsd)


def test_run_refuses_writes_to_what_is_read_only(vfsd: Vfsd, folder: Path) -> None:
    done = vfsctl(
        vfsd, "run", "--builtin", *SMALL, "--share", f"{folder}:/data:ro", "--exec", "echo >/data/x"
    )
    assert done.code == 1
    assert "Read-only" in done.out
    assert not list(folder.iterdir())


def test_run_takes_input_from_a_pipe(vfsd: Vfsd) -> None:
    done = vfsctl(vfsd, "run", "--builtin", *SMALL, stdin="echo $((6*7))x; poweroff\n")
    assert done.code == 0
    assert "42x" in done.out
    assert "stopped: the guest powered off" in done.err
    nothing_left(vfsd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_run_ends_its_machine_when_it_is_ended(vfsd: Vfsd, number: signal.Signals) -> None:
    with running(vfsd, "run", "--builtin", *SMALL, "--name", "brief") as process:
        wait_for(lambda: '"running"' in vfsctl(vfsd, "machine", "show", "brief", "--json").out, "it runs", 20)
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    nothing_left(vfsd)


def test_run_that_is_ended_at_any_moment_leaves_nothing(vfsd: Vfsd) -> None:
    for delay in (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.8):
        with running(vfsd, "run", "--builtin", *SMALL) as process:
            time.sleep(delay)
            process.terminate()
            process.wait(30)
    nothing_left(vfsd)


def test_run_tells_why_the_machine_ended(vfsd: Vfsd) -> None:
    with running(vfsd, "run", "--builtin", *SMALL, "--name", "victim") as process:
        wait_for(
            lambda: '"running"' in vfsctl(vfsd, "machine", "show", "victim", "--json").out, "it runs", 20
        )
        pid = vfsctl(vfsd, "machine", "show", "victim", "--json").json()["MainPID"]
        os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert err.startswith("victim failed: ")
    nothing_left(vfsd)


def test_run_survives_a_restart_of_vfsd(vfsd: Vfsd, folder: Path) -> None:
    command = "while ! [ -e /data/go ]; do sleep 0.1; done; echo over"
    with running(
        vfsd, "run", "--builtin", *SMALL, "-s", f"{folder}:/data", "--name", "long", "--exec", command
    ) as process:
        wait_for(lambda: '"running"' in vfsctl(vfsd, "machine", "show", "long", "--json").out, "it runs", 20)
        vfsd.restart()
        (folder / "go").touch()
        out, err = process.communicate(timeout=BOOT_TIMEOUT)
        assert (process.returncode, out) == (0, "over\n"), err
    nothing_left(vfsd)


def test_run_of_what_fails_to_start(vfsd: Vfsd, folder: Path) -> None:
    done = vfsctl(vfsd, "run", "--builtin", *SMALL, "--share", f"{folder}/missing")
    assert done.code == 1
    assert done.err.startswith("Error: ")
    assert vfsctl(vfsd, "run", "--builtin", "--share", f"{folder}/missing", "--exec", "true").code == 125
    nothing_left(vfsd)


def test_run_does_not_remove_a_machine_of_another(vfsd: Vfsd) -> None:
    ok(vfsd, "machine", "add", "mine", "--builtin")
    assert vfsctl(vfsd, "run", "--builtin", "--name", "mine").code == 1
    assert vfsctl(vfsd, "machine", "show", "mine").code == 0


def test_run_on_a_terminal(vfsd: Vfsd, terminals: list[Terminal]) -> None:
    terminal = Terminal(vfsd, "run", "--builtin", *SMALL)
    terminals.append(terminal)
    terminal.expect("guest:~# ")
    assert terminal.is_raw
    terminal.send("echo $((6*7))x\r")
    terminal.expect("42x")
    terminal.send("sleep 1000\r")
    time.sleep(1)
    terminal.send("\x03")
    terminal.expect(r"guest:~# ", 10)
    terminal.send("\x1d\x1d")
    time.sleep(1.2)
    terminal.send("\x1d")
    time.sleep(0.5)
    assert terminal.process.poll() is None, "too slow for an escape"
    time.sleep(1)
    terminal.send("\x1d\x1d\x1d")
    assert terminal.end() == 0
    nothing_left(vfsd)


def test_the_terminal_is_restored_when_run_is_ended(vfsd: Vfsd, terminals: list[Terminal]) -> None:
    terminal = Terminal(vfsd, "run", "--builtin", *SMALL, "--name", "term")
    terminals.append(terminal)
    terminal.expect("guest:~# ")
    pids = vfsd.run("pgrep", "-f", "vfsctl run --builtin.*--name term").split()
    os.kill(int(pids[-1]), signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM
    nothing_left(vfsd)
