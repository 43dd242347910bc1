"""virtiofsd and QEMU are killed, hang, or have no memory; a new vfsd is installed under what runs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration import census
from tests.integration.census import counted  # noqa: F401  # a fixture
from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, SHARE, CommandFailed, Vfsd, process_exists, wait_for
from tests.integration.sharing import connected, family, message_of
from tests.integration.test_faults_systemd import drop_in

pytestmark = pytest.mark.usefixtures("counted")

QEMU_ANSWERS = 6.0
"""Seconds in which vfsd gives up a QEMU that does not answer; a busctl and a busy host included."""


def within(seconds: float, vfsd: Vfsd, path: str, interface: str, member: str, *arguments: str) -> None:
    """A call is answered in time, with an error or not."""
    begun = time.monotonic()
    vfsd.call(path, interface, member, *arguments)
    assert time.monotonic() - begun < seconds


def test_a_virtiofsd_that_hangs(vfsd: Vfsd, folder: Path) -> None:
    """Nobody can tell it from a slow disk, so nothing is said of it; but it holds up neither vfsd nor an end."""
    with census.scene(vfsd, folder) as made:
        pids = [family(vfsd.get(path, SHARE, "MainPID")) for path in (made.served, made.own)]
        for pid in (pid for pids_of_one in pids for pid in pids_of_one):
            os.kill(pid, signal.SIGSTOP)
        assert vfsd.get(made.own, SHARE, "State") == "active"
        assert vfsd.get(made.machine, MACHINE, "Degraded") is False
        within(3, vfsd, made.machine, MACHINE, "Pause")
        within(3, vfsd, made.machine, MACHINE, "Resume")
        vfsd.restart()
        assert vfsd.get(made.machine, MACHINE, "State") == "running"
        within(13, vfsd, made.served, SHARE, "Stop")
        within(13, vfsd, made.machine, MACHINE, "Kill")
        wait_for(lambda: not any(process_exists(pid) for one in pids for pid in one), "they are gone", 15)
        assert vfsd.get(made.machine, MACHINE, "State") == "stopped"
        vfsd.call(made.machine, MACHINE, "Start")


def test_a_virtiofsd_without_memory(vfsd: Vfsd, folder: Path) -> None:
    """It can't be started, or is killed by the kernel: both are told, and the socket listens on."""
    with census.scene(vfsd, folder) as made, drop_in(vfsd, "vfsd-share-.service", "[Service]\nLimitAS=4M\n"):
        for pid in family(vfsd.get(made.own, SHARE, "MainPID"))[::-1]:
            os.kill(pid, signal.SIGKILL)  # as the kernel does
        census.told_within(
            census.TRUTH, lambda: vfsd.get(made.own, SHARE, "State") == "failed", "the bus tells the truth"
        )
        assert "SIGKILL" in vfsd.get(made.own, SHARE, "Reason")
        assert vfsd.get(made.machine, MACHINE, "Degraded") is True
        # one that is started now has no memory
        with connected(vfsd.runtime / "share" / "listens.sock") as client:
            wait_for(lambda: vfsd.get(made.listening, SHARE, "Restarts") == 1, "the bus tells the truth")
            assert client.recv(1) == b""
        assert vfsd.get(made.listening, SHARE, "State") == "listening"
        assert vfsd.get(made.listening, SHARE, "Reason") != ""
        vfsd.call(made.machine, MACHINE, "Kill")
        with pytest.raises(CommandFailed) as caught:
            vfsd.call(made.machine, MACHINE, "Start")
        assert "virtiofsd" in message_of(caught.value)


@only_system
def test_a_qemu_that_hangs(vfsd: Vfsd, folder: Path) -> None:
    with census.scene(vfsd, folder) as made:
        pid = vfsd.get(made.machine, MACHINE, "MainPID")
        os.kill(pid, signal.SIGSTOP)
        assert vfsd.get(made.machine, MACHINE, "State") == "running"
        begun = time.monotonic()
        with pytest.raises(CommandFailed) as caught:
            vfsd.call(made.machine, MACHINE, "Pause")
        assert "QEMU did not answer" in message_of(caught.value)
        assert time.monotonic() - begun < 20
        # a vfsd that is started anew does not wait for it either
        begun = time.monotonic()
        vfsd.restart()
        assert vfsd.get(made.machine, MACHINE, "State") == "running"
        assert time.monotonic() - begun < QEMU_ANSWERS
        within(3, vfsd, made.machine, MACHINE, "Kill")
        assert vfsd.get(made.machine, MACHINE, "State") == "stopped"
        vfsd.call(made.machine, MACHINE, "Start")
        pid = vfsd.get(made.machine, MACHINE, "MainPID")
        os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        vfsd.call(made.machine, MACHINE, "Shutdown", "t", "1500000")
        assert vfsd.get(made.machine, MACHINE, "State") == "stopping"
        wait_for(lambda: vfsd.get(made.machine, MACHINE, "State") == "stopped", "it ends at the timeout")
        assert 1.4 < time.monotonic() - begun < 5
        assert "force" in vfsd.get(made.machine, MACHINE, "Reason")


def test_an_upgrade_while_everything_runs(vfsd: Vfsd, folder: Path) -> None:
    """What a package does: other files in place of the old ones, systemd reads its units again, and vfsd restarts."""
    with census.scene(vfsd, folder) as made:
        before = census.take(vfsd)
        for path in sorted(Path("/usr/lib/vfsd/vfsd").glob("*.py")):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(path.read_bytes())
            fresh.chmod(path.stat().st_mode)
            fresh.replace(path)
        vfsd.systemctl("daemon-reload")
        vfsd.call(made.machine, MACHINE, "Pause")
        vfsd.call(made.machine, MACHINE, "Resume")
        vfsd.systemctl("try-restart", "vfsd.service")
        census.unchanged(vfsd, before)
        vfsd.call(made.machine, MACHINE, "Pause")
        vfsd.call(made.machine, MACHINE, "Resume")
