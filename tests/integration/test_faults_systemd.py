"""systemd is reloaded, executed anew, or ends; its journal stops; an administrator works on vfsd's units."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import census
from tests.integration.census import counted  # noqa: F401  # a fixture
from tests.integration.conftest import only_system, only_user
from tests.integration.harness import (
    MACHINE,
    SHARE,
    TESTER,
    BusError,
    Client,
    CommandFailed,
    Vfsd,
    process_exists,
    wait_for,
)
from tests.integration.sharing import message_of

pytestmark = pytest.mark.usefixtures("counted")

UNIT = "vfsd-machine-tiny.service"
FLOOD = 700
"""Entries: more than a socket has room for (512 messages, which systemd sets net.unix.max_dgram_qlen to)."""


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
def test_systemd_reads_everything_again_while_a_machine_starts(vfsd: Vfsd, folder: Path, verb: str) -> None:
    with census.scene(vfsd, folder) as made:
        before = census.take(vfsd)
        vfsd.systemctl(verb)
        census.unchanged(vfsd, before)
        vfsd.call(made.machine, MACHINE, "Kill")
        command = vfsd.argv(["busctl", vfsd.flag, "call", "org.vfsd1", made.machine, MACHINE, "Start"])
        with subprocess.Popen(command) as start:
            wait_for(lambda: UNIT in vfsd.units(), "it begins")
            vfsd.systemctl(verb)
            assert start.wait(30) == 0
        census.unchanged(vfsd, before, processes=False)
        os.kill(vfsd.get(made.machine, MACHINE, "MainPID"), signal.SIGKILL)
        census.told_within(
            census.TRUTH, lambda: vfsd.get(made.machine, MACHINE, "State") == "failed", "its end is noticed"
        )


def test_the_folder_of_transient_units_is_emptied(vfsd: Vfsd, folder: Path) -> None:
    """What runs goes on, and is stopped and started as ever, though systemd has forgotten how it was made."""
    with census.scene(vfsd, folder) as made:
        before = census.take(vfsd)
        transient = vfsd.runtime.parent / "systemd/transient"
        for path in transient.glob("vfsd-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        vfsd.systemctl("daemon-reload")
        census.unchanged(vfsd, before)
        vfsd.crash()
        census.unchanged(vfsd, before)
        vfsd.call(made.machine, MACHINE, "Kill")
        vfsd.call(made.listening, SHARE, "Stop")
        vfsd.call(made.listening, SHARE, "Start")
        vfsd.call(made.machine, MACHINE, "Start")
        census.unchanged(vfsd, before, processes=False)


@contextlib.contextmanager
def drop_in(vfsd: Vfsd, unit: str, text: str) -> Iterator[None]:
    """An administrator's addition to a unit, or to all units whose names begin so."""
    base = Path("/run/systemd/system") if vfsd.scope == "system" else vfsd.runtime.parent / "systemd/user"
    place = base / f"{unit}.d"
    vfsd.run("mkdir", "-p", str(place))
    vfsd.run("sh", "-c", 'printf "$0" >"$1"', text, f"{place}/50-test.conf")
    vfsd.systemctl("daemon-reload")
    try:
        yield
    finally:
        vfsd.run("rm", "-r", str(place))
        vfsd.systemctl("daemon-reload")


def test_drop_ins_of_an_administrator(vfsd: Vfsd, folder: Path) -> None:
    with (
        drop_in(vfsd, "vfsd-machine-.service", "[Service]\nTasksMax=77\n"),
        drop_in(vfsd, "vfsd-share-.service", "[Service]\nTasksMax=78\nEnvironment=MARK=drop-in\n"),
        drop_in(vfsd, "vfsd.service", "[Service]\nTasksMax=79\n"),
        census.scene(vfsd, folder) as made,
    ):
        before = census.take(vfsd)
        wanted = {
            UNIT: "77",
            vfsd.get(made.served, SHARE, "ServiceUnit"): "78",
            vfsd.get(made.own, SHARE, "ServiceUnit"): "78",
            "vfsd.service": "79",
        }
        for act in (lambda: None, lambda: vfsd.systemctl("daemon-reload"), vfsd.crash):
            act()
            assert {unit: vfsd.unit_property(unit, "TasksMax") for unit in wanted} == wanted
            census.unchanged(vfsd, before)
        pid = vfsd.get(made.served, SHARE, "MainPID")
        assert b"MARK=drop-in" in Path(f"/proc/{pid}/environ").read_bytes()


def test_units_that_are_masked_while_they_run(vfsd: Vfsd, folder: Path) -> None:
    """What runs goes on; what is started next is refused, and the unit and the remedy are named."""
    with census.scene(vfsd, folder) as made:
        units = (UNIT, vfsd.get(made.listening, SHARE, "SocketUnit"))
        before = census.take(vfsd)
        vfsd.systemctl("mask", "--runtime", vfsd.get(made.served, SHARE, "SocketUnit"))
        census.unchanged(vfsd, before)
        vfsd.systemctl("unmask", "--runtime", vfsd.get(made.served, SHARE, "SocketUnit"))
        vfsd.call(made.machine, MACHINE, "Kill")
        vfsd.call(made.listening, SHARE, "Stop")
        vfsd.systemctl("mask", "--runtime", *units)
        try:
            for unit, path, interface in (
                (units[0], made.machine, MACHINE),
                (units[1], made.listening, SHARE),
            ):
                with pytest.raises(CommandFailed) as caught:
                    vfsd.call(path, interface, "Start")
                assert f"{unit} is masked, unmask it" in message_of(caught.value)
                assert vfsd.get(path, interface, "State") == "failed"
        finally:
            vfsd.systemctl("unmask", "--runtime", *units)
        vfsd.call(made.machine, MACHINE, "Start")
        vfsd.call(made.listening, SHARE, "Start")
        census.unchanged(vfsd, before, processes=False)


def test_a_unit_that_is_stopped_by_hand(vfsd: Vfsd, folder: Path) -> None:
    with census.scene(vfsd, folder) as made:
        vfsd.systemctl("kill", "-s", "KILL", UNIT)
        census.told_within(
            census.TRUTH, lambda: vfsd.get(made.machine, MACHINE, "State") == "failed", "its end is noticed"
        )
        vfsd.systemctl("stop", vfsd.get(made.listening, SHARE, "SocketUnit"))
        census.told_within(
            census.TRUTH, lambda: vfsd.get(made.listening, SHARE, "State") == "stopped", "its end is noticed"
        )
        vfsd.systemctl("stop", "vfsd.slice")
        census.told_within(
            census.TRUTH, lambda: vfsd.get(made.served, SHARE, "State") == "stopped", "its end is noticed"
        )
        assert census.processes() == {}


@only_system
@pytest.mark.parametrize("how", ["stop", "STOP"])
async def test_the_journal_takes_nothing(vfsd: Vfsd, client: Client, folder: Path, how: str) -> None:
    """vfsd serves on, even when journald is there and takes nothing, and the entries come when it does again."""
    with census.scene(vfsd, folder) as made:
        since = time.time()
        journald = int(vfsd.unit_property("systemd-journald.service", "MainPID"))
        sockets = ["systemd-journald.socket", "systemd-journald-dev-log.socket"]
        if how == "stop":
            vfsd.systemctl("stop", *sockets, "systemd-journald.service")
        else:
            os.kill(journald, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            for _ in range(FLOOD):
                with contextlib.suppress(BusError):  # each refusal is an entry
                    await client.manager("GetShare", "s", "none")
            vfsd.call(made.machine, MACHINE, "Pause")
            assert vfsd.get(made.machine, MACHINE, "State") == "paused"
            assert time.monotonic() - begun < 60, "it waited for the journal"
        finally:
            if how == "stop":
                vfsd.systemctl("start", *sockets, "systemd-journald.service")
            else:
                os.kill(journald, signal.SIGCONT)
        vfsd.call(made.machine, MACHINE, "Resume")
        field = f"_PID={vfsd.main_pid()}"
        wait_for(
            lambda: vfsd.journal(field, "VFSD_NEW_STATE=running", since=since),
            "entries come again",
        )


@only_system
def test_polkit_is_not_there(vfsd: Vfsd, folder: Path) -> None:
    vfsd.systemctl("mask", "--runtime", "--now", "polkit.service")
    try:
        with census.scene(vfsd, folder) as made:
            vfsd.call(made.machine, MACHINE, "Pause")
    finally:
        vfsd.systemctl("unmask", "--runtime", "polkit.service")


@only_user
def test_the_users_systemd_is_restarted(vfsd: Vfsd, folder: Path) -> None:
    """Machines are asked to power off and end; what is defined is there again, and Autostart counts."""
    uid = vfsd.owner_uid
    with census.scene(vfsd, folder, "Autostart", "b", "true", "Persistent", "b", "true") as made:
        pid = vfsd.get(made.machine, MACHINE, "MainPID")
        vfsd.systemctl("enable", "--runtime", "vfsd.service")
        subprocess.run(["systemctl", "restart", f"user@{uid}.service"], check=True, timeout=60)
        assert not process_exists(pid)
        census.told_within(census.TRUTH, lambda: census.reachable(vfsd), "vfsd is there")
        wait_for(lambda: vfsd.get(made.machine, MACHINE, "State") == "running", "Autostart")
        wait_for(lambda: vfsd.get(made.listening, SHARE, "State") == "listening", "it listens again")
        vfsd.systemctl("disable", "--runtime", "vfsd.service")
        subprocess.run(["systemctl", "reset-failed"], check=True)
    wait_for(lambda: vfsd.systemctl("is-system-running", check=False).strip() == "running", "all is well")


def linger(verb: str) -> None:
    """Let the user's systemd outlive his sessions, or not. From a unit: logind wants to know the caller's cgroup."""
    command = ["systemd-run", "--quiet", "--wait", "--pipe", "loginctl", f"{verb}-linger", TESTER]
    subprocess.run(command, check=True, timeout=60)


@only_user
def test_a_logout_without_lingering(vfsd: Vfsd, folder: Path) -> None:
    """logind ends the user's systemd 10 s after the last session: guests are asked first; what persists is kept."""
    with census.scene(vfsd, folder, "Persistent", "b", "true") as made:
        pid = vfsd.get(made.machine, MACHINE, "MainPID")
        linger("disable")
        try:
            wait_for(lambda: not process_exists(pid), "the machine ends", 60)
            wait_for(lambda: not vfsd.runtime.parent.exists(), "the runtime folder is gone", 60)
            assert census.processes() == {}
        finally:
            linger("enable")
        wait_for((vfsd.runtime.parent / "bus").exists, "the user's bus is there", 60)
        assert [row[:2] for row in vfsd.manager("ListMachines")] == [["tiny", "stopped"]]
        assert [path for *_, path in vfsd.manager("ListShares")] == [made.own]
