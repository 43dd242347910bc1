"""The host's shutdown waits for machines, and asks their guests first.

logind is real, and so are its signals and its delay; what it starts in the end is a target that does nothing instead of
the one that halts the lab. (logind's dry run waits for nobody and sends no signal.)
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import only_user
from tests.integration.harness import MACHINE, Client, Vfsd, until, wait_for
from tests.integration.test_shutdown import console
from tests.integration.tiny_guest import HELLO, started, walked
from vfsd.host_shutdown import REASON
from vfsd.journal import MessageId

LOGIN1 = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
TARGET = Path("/run/systemd/system/halt.target")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def locks(vfsd: Vfsd) -> list[list[Any]]:
    """The locks of this vfsd, as logind has them: what, who, why, mode, uid, pid."""
    [found] = json.loads(run("busctl", "--json=short", "call", *LOGIN1, "ListInhibitors"))["data"]
    return [lock for lock in found if lock[1] == "vfsd" and lock[5] == vfsd.main_pid()]


@pytest.fixture
def harmless_halt() -> Iterator[None]:
    """logind's Halt goes all the way, and nothing halts.

    logind is started anew, for it has never heard of a journald that was stopped with its sockets.
    """
    run("systemctl", "restart", "systemd-logind.service")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text("[Unit]\nDescription=Nothing\n")
    run("systemctl", "daemon-reload")
    assert run("systemctl", "show", "--value", "-p", "FragmentPath", "halt.target").strip() == str(TARGET)
    yield
    run("systemctl", "stop", "halt.target")
    TARGET.unlink()
    run("systemctl", "daemon-reload")


async def test_the_lock_is_held_while_a_machine_runs(vfsd: Vfsd, client: Client, folder: Path) -> None:
    assert locks(vfsd) == []
    first = await started(client, folder, "one")
    await until(lambda: locks(vfsd), "the first machine takes it")
    second = await started(client, folder, "two")
    [[what, who, why, mode, uid, _]] = locks(vfsd)
    assert (what, who, mode, uid) == ("shutdown", "vfsd", "delay", vfsd.owner_uid)
    assert "virtual machines" in why
    assert "virtual machines" in run("systemd-inhibit", "--list", "--no-pager")
    await client.call(first, MACHINE, "Kill")
    assert len(locks(vfsd)) == 1
    vfsd.restart()
    wait_for(lambda: len(locks(vfsd)) == 1, "the next vfsd takes it again")
    vfsd.crash()
    wait_for(lambda: len(locks(vfsd)) == 1, "the one after a crash too")
    await client.call(second, MACHINE, "Kill")
    await until(lambda: not locks(vfsd), "the last machine lets it go")


async def test_guests_are_asked_before_the_host_shuts_down(
    vfsd: Vfsd, client: Client, folder: Path, harmless_halt: None
) -> None:
    paths = [await started(client, folder, name, shares=[folder]) for name in ("one", "two")]
    for path in paths:
        pid = await client.get(path, MACHINE, "MainPID")
        await until(lambda pid=pid: HELLO in console(vfsd, pid), "the guest is up")  # type: ignore[misc]
    wait_for(lambda: locks(vfsd), "the lock is held")
    before = time.time()
    run("busctl", "call", *LOGIN1, "Halt", "b", "false")
    for path in paths:
        await until(lambda path=path: walked(client.signals, path)[-1] == "stopped", "the guest ends")  # type: ignore[misc]
        assert walked(client.signals, path) == ["starting", "running", "stopping", "stopped"]
        assert await client.get(path, MACHINE, "Reason") == REASON
    entries = wait_for(
        lambda: vfsd.journal("_SYSTEMD_UNIT=systemd-logind.service", since=before)[1:], "logind goes on"
    )
    [halting] = [entry for entry in entries if entry["MESSAGE"] == "System is halting."]
    told = vfsd.journal(f"MESSAGE_ID={MessageId.HOST_SHUTDOWN.value}", since=before)
    mine = [entry for entry in told if int(entry["_PID"]) == vfsd.main_pid()]
    assert [entry["MESSAGE"].rpartition(" ")[2] for entry in mine] == ["2"]
    states = vfsd.journal(
        f"MESSAGE_ID={MessageId.MACHINE_STATE.value}", "VFSD_NEW_STATE=stopped", since=before
    )
    assert {entry["VFSD_MACHINE"] for entry in states} == {"one", "two"}
    stamps = [int(entry["__REALTIME_TIMESTAMP"]) for entry in (*mine, *states, halting)]
    assert stamps == sorted(stamps), "logind waited"
    assert locks(vfsd) == []
    [path, _] = paths
    await client.call(path, MACHINE, "Start")  # the host did not go down, so all is as ever
    await until(lambda: locks(vfsd), "the lock is held again")


async def test_only_logind_is_believed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await started(client, folder)
    wait_for(lambda: locks(vfsd), "the lock is held")
    listed = json.loads(run("busctl", "--system", "--json=short", "list", "--unique"))
    listening = [one["name"] for one in listed if one["pid"] == vfsd.main_pid()]
    assert listening
    for name in listening:
        vfsd.run(
            "busctl",
            "--system",
            "emit",
            f"--destination={name}",
            *LOGIN1[1:],
            "PrepareForShutdown",
            "b",
            "true",
        )
    await asyncio.sleep(0.5)
    assert await client.get(path, MACHINE, "State") == "running"
    assert walked(client.signals, path) == ["starting", "running"]


@only_user
async def test_without_the_system_bus_a_machine_runs_all_the_same(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    before = time.time()
    vfsd.systemctl("set-environment", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent")
    try:
        vfsd.restart()
        path = await started(client, folder)
        assert await client.get(path, MACHINE, "State") == "running"
        [entry] = wait_for(
            lambda: vfsd.journal(f"MESSAGE_ID={MessageId.NO_SHUTDOWN_LOCK.value}", since=before), "it is told"
        )
        assert (entry["PRIORITY"], "No such file" in entry["MESSAGE"]) == ("6", True)
        await client.call(path, MACHINE, "Kill")
    finally:
        vfsd.systemctl("unset-environment", "DBUS_SYSTEM_BUS_ADDRESS")
        vfsd.restart()
