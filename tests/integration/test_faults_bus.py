"""The message bus is started anew, vfsd is killed again and again, and a second vfsd comes to the bus."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import census
from tests.integration.census import counted  # noqa: F401  # a fixture
from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, SHARE, CommandFailed, Vfsd, wait_for

pytestmark = pytest.mark.usefixtures("counted")

BACK = 2.0
"""Seconds from a bus that is back to a vfsd that is: systemd starts it after one, and it finds everything again."""
KILLS = 7
"""More than systemd allows by default, which is 5 starts within 10 s."""


def test_the_bus_is_restarted(vfsd: Vfsd, folder: Path) -> None:
    with census.scene(vfsd, folder) as made:
        before = census.take(vfsd)
        old = vfsd.main_pid()
        vfsd.systemctl("restart", "dbus.service")
        census.told_within(BACK, lambda: census.reachable(vfsd), "vfsd is back by itself")
        assert vfsd.main_pid() != old
        healthy(vfsd)
        census.unchanged(vfsd, before)
        vfsd.call(made.machine, MACHINE, "Pause")
        vfsd.call(made.machine, MACHINE, "Resume")
    wait_for(lambda: vfsd.get(made.served, SHARE, "State") == "listening", "the client's end is noticed")


def test_the_bus_is_restarted_in_the_middle_of_a_start(vfsd: Vfsd, folder: Path) -> None:
    """vfsd doesn't wait for answers that never come: what it had begun is done or undone when it is back."""
    with census.scene(vfsd, folder) as made:
        vfsd.call(made.machine, MACHINE, "Kill")
        before = census.take(vfsd)
        command = ["busctl", vfsd.flag, "call", "org.vfsd1", made.machine, MACHINE, "Start"]
        with subprocess.Popen(vfsd.argv(command), stderr=subprocess.DEVNULL) as call:
            wait_for(lambda: "vfsd-machine-tiny.service" in vfsd.units(), "it begins")
            vfsd.systemctl("restart", "dbus.service")
            call.wait(10)
        census.told_within(BACK, lambda: census.reachable(vfsd), "vfsd is back by itself")
        if vfsd.get(made.machine, MACHINE, "State") == "failed":
            vfsd.call(made.machine, MACHINE, "Start")
        if vfsd.get(made.machine, MACHINE, "State") == "running":
            vfsd.call(made.machine, MACHINE, "Kill")
        census.unchanged(vfsd, before)
    healthy(vfsd)


def healthy(vfsd: Vfsd) -> None:
    """The next test must not suffer from this one: logind does not come back to a new bus by itself."""
    if vfsd.scope == "system":
        vfsd.systemctl("restart", "systemd-logind.service")
    wait_for(lambda: vfsd.systemctl("is-system-running", check=False).strip() == "running", "all is well")


@pytest.fixture
def impatient(vfsd: Vfsd) -> Iterator[Vfsd]:
    """An administrator's drop-in: started again after 50 ms."""
    folder = (
        "/run/systemd/system" if vfsd.scope == "system" else f"{vfsd.runtime.parent}/systemd/user.control"
    )
    place = Path(folder) / "vfsd.service.d"
    vfsd.run("mkdir", "-p", str(place))
    vfsd.run("sh", "-c", f"printf '[Service]\\nRestartSec=50ms\\n' >{place}/50-soon.conf")
    vfsd.systemctl("daemon-reload")
    yield vfsd
    vfsd.run("rm", "-r", str(place))
    vfsd.systemctl("daemon-reload")


@only_system
def test_it_is_killed_again_and_again(impatient: Vfsd, folder: Path) -> None:
    vfsd = impatient
    with census.scene(vfsd, folder):
        before = census.take(vfsd)
        for _ in range(KILLS):
            pid = vfsd.main_pid()
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: vfsd.main_pid() not in (0, pid) and census.reachable(vfsd), "it is back")  # noqa: B023
        assert int(vfsd.unit_property("vfsd.service", "NRestarts")) >= KILLS
        census.unchanged(vfsd, before)


def test_a_second_one_on_the_bus_leaves_at_once(vfsd: Vfsd, folder: Path) -> None:
    with census.scene(vfsd, folder) as made:
        before, pid = census.take(vfsd), vfsd.main_pid()
        for _ in range(3):
            with pytest.raises(CommandFailed, match=r": 4\n\n.*another vfsd serves the \w+ bus"):
                vfsd.run("vfsd", vfsd.flag)
        census.unchanged(vfsd, before)
        assert vfsd.main_pid() == pid
        vfsd.call(made.machine, MACHINE, "Pause")
