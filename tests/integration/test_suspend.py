"""Suspend and Thaw: a running guest is saved to disk, and goes on later."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbus_next import Variant

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd, until, wait_for
from tests.integration.test_hotplug import execute, guest_is_ready, refused
from tests.integration.test_refresh import goes_on, ready
from tests.integration.tiny_guest import started


def saved(vfsd: Vfsd) -> Path:
    return vfsd.state / "machine/guest/guest"


async def test_open_files_go_on_after_a_sleep(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await ready(vfsd, client, folder)
    [share] = await client.get(machine, MACHINE, "Shares")
    assert await client.get(machine, MACHINE, "Suspended") is False
    await refused(client.call(machine, MACHINE, "Thaw"), "WrongState", "running")
    await client.call(machine, MACHINE, "Suspend")
    assert await client.get(machine, MACHINE, "State") == "stopped"
    assert await client.get(machine, MACHINE, "Reason") == "suspended to disk"
    assert await client.get(machine, MACHINE, "Suspended") is True
    assert await client.get(share, SHARE, "State") == "stopped"
    assert vfsd.units() == []
    assert saved(vfsd).stat().st_mode & 0o777 == 0o600
    assert saved(vfsd).parent.stat().st_mode & 0o777 == 0o700
    lines = (folder / "log").read_text()
    # a suspended machine is one that waits
    vfsd.restart()
    assert await client.get(machine, MACHINE, "Suspended") is True
    assert await client.get(machine, MACHINE, "Reason") == "suspended to disk"
    assert "stopped (suspended)" in vfsd.run("vfsctl", vfsd.flag, "status")
    await refused(client.call(machine, MACHINE, "Start"), "WrongState", "Thaw", "Kill")
    change = (machine, "org.freedesktop.DBus.Properties", "Set", "ssv", MACHINE, "CPUs", Variant("u", 2))
    await refused(client.call(*change), "WrongState", "suspended")
    await client.call(*change[:5], "TasksMax", Variant("t", 500))  # a limit is no part of what was saved
    assert (folder / "log").read_text() == lines
    client.signals.seen.clear()
    await client.call(machine, MACHINE, "Thaw")
    assert [new for _, new, _ in client.signals.states(machine)] == ["starting", "running"]
    assert await client.get(machine, MACHINE, "Suspended") is False
    assert not saved(vfsd).exists()
    assert vfsd.unit_property("vfsd-guest.slice", "TasksMax") == "500"
    await goes_on(folder)
    await guest_is_ready(vfsd, machine)
    await until(lambda: vfsd.get(share, SHARE, "MountedAt") == "/first", "its agent is asked")
    # and all that can be done with a machine
    await client.call(machine, MACHINE, "Refresh")
    vfsd.run("vfsctl", vfsd.flag, "machine", "suspend", "guest")
    vfsd.run("vfsctl", vfsd.flag, "machine", "thaw", "guest")
    await goes_on(folder)
    await client.call(machine, MACHINE, "Suspend")
    await client.call(machine, MACHINE, "Kill")
    assert await client.get(machine, MACHINE, "Suspended") is False
    assert not saved(vfsd).exists()
    await client.call(machine, MACHINE, "Start")
    await client.call(machine, MACHINE, "Suspend")
    vfsd.manager("RemoveMachine", "s", "guest")
    assert not saved(vfsd).parent.exists()


async def test_a_missing_file_is_named_and_nothing_is_lost(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await ready(vfsd, client, folder)
    await client.call(machine, MACHINE, "Suspend")
    (folder / "log").rename(folder / "moved")
    await refused(
        client.call(machine, MACHINE, "Thaw"), "UnitFailed", "could not be started", "Migration failed"
    )
    assert await client.get(machine, MACHINE, "State") == "failed"
    assert await client.get(machine, MACHINE, "Suspended") is True
    (folder / "moved").rename(folder / "log")
    await client.call(machine, MACHINE, "Thaw")
    await goes_on(folder)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.3, 0.6])
async def test_a_vfsd_that_dies_in_between(vfsd: Vfsd, client: Client, folder: Path, delay: float) -> None:
    machine = await ready(vfsd, client, folder)
    calling = asyncio.ensure_future(client.call(machine, MACHINE, "Suspend"))
    await asyncio.sleep(delay)
    vfsd.crash()
    with contextlib.suppress(BusError):
        await calling

    def settled() -> bool:
        state, suspended = vfsd.get(machine, MACHINE, "State"), vfsd.get(machine, MACHINE, "Suspended")
        return (state, suspended) in (("running", False), ("stopped", True))

    wait_for(settled, "it runs or is suspended")
    if await client.get(machine, MACHINE, "Suspended"):
        await client.call(machine, MACHINE, "Thaw")
    await goes_on(folder)


async def test_what_can_not_be_suspended(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await ready(vfsd, client, folder)
    [share] = await client.get(machine, MACHINE, "Shares")
    os.kill(await client.get(share, SHARE, "MainPID"), signal.SIGKILL)
    await until(lambda: vfsd.get(machine, MACHINE, "Degraded"), "it is degraded")
    await refused(client.call(machine, MACHINE, "Suspend"), "NotSupported", "does not serve")
    assert await client.get(machine, MACHINE, "State") == "running"


@pytest.fixture
def small_disk(vfsd: Vfsd) -> Iterator[None]:
    """A state folder of machines that has room for 4 MiB."""
    where = vfsd.state / "machine"
    where.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M,mode=0700", "tmpfs", where], check=True)
    yield
    subprocess.run(["umount", "-l", where], check=True)


@only_system
async def test_a_full_disk(vfsd: Vfsd, client: Client, folder: Path, small_disk: None) -> None:
    machine = await ready(vfsd, client, folder)
    await refused(client.call(machine, MACHINE, "Suspend"), "Failed", "goes on", "No space left")
    assert await client.get(machine, MACHINE, "Suspended") is False
    assert not saved(vfsd).exists()
    await goes_on(folder)


async def test_a_paused_guest_and_one_with_a_disk(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await started(client, folder)
    await client.call(machine, MACHINE, "Pause")
    await client.call(machine, MACHINE, "Suspend")
    await client.call(machine, MACHINE, "Thaw")
    assert await client.get(machine, MACHINE, "State") == "running"
    await client.call(machine, MACHINE, "Shutdown", "t", 0)
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "stopped", "it stops")
    assert await client.get(machine, MACHINE, "Reason") == "the guest powered off"


async def test_a_deleted_file_that_the_guest_has_open_is_named(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    machine = await ready(vfsd, client, folder)
    await execute(
        client,
        machine,
        "sh",
        "-c",
        "(exec 5>/first/gone; rm /first/gone; exec sleep 1d) </dev/null >/dev/null 2>&1 &",
    )
    await until(lambda: not (folder / "gone").exists(), "it is deleted")
    for call in ("Suspend", "Suspend"):
        words = ("could not be suspended, and goes on", "deleted file open, (/gone)")
        await refused(client.call(machine, MACHINE, call), "UnitFailed", *words)
        assert await client.get(machine, MACHINE, "State") == "running"
        await goes_on(folder)
    await execute(client, machine, "killall", "sleep")
    await client.call(machine, MACHINE, "Suspend")
    await client.call(machine, MACHINE, "Thaw")


async def test_it_goes_on_after_a_reboot_of_the_host(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """As far as vfsd can tell: what is kept until the next reboot is gone, and machines with Autostart are started."""
    keep = {"Persistent": ("b", True), "Autostart": ("b", True)}
    machine = await ready(vfsd, client, folder, **keep)
    await client.call(machine, MACHINE, "Refresh")
    await client.call(machine, MACHINE, "Suspend")
    vfsd.systemctl("stop", "vfsd.service")
    shutil.rmtree(vfsd.runtime / "machine")
    shutil.rmtree(vfsd.runtime / "definitions")
    (vfsd.runtime / "begun").unlink()
    vfsd.systemctl("start", "vfsd.service")
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "running", "it goes on by itself", 30)
    assert await client.get(machine, MACHINE, "Suspended") is False
    await goes_on(folder)


async def test_a_guest_of_a_machine_that_is_gone_is_forgotten(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    machine = await ready(vfsd, client, folder)
    await client.call(machine, MACHINE, "Suspend")
    assert saved(vfsd).exists()
    vfsd.systemctl("stop", "vfsd.service")
    shutil.rmtree(vfsd.runtime / "definitions")  # as a reboot does
    vfsd.systemctl("start", "vfsd.service")
    assert vfsd.manager("ListMachines") == []
    assert not saved(vfsd).exists()
