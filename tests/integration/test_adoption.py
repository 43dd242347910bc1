"""vfsd ends and comes back: everything that runs goes on, and is found again as it is."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.harness import MACHINE, SHARE, Client, Vfsd, process_exists, until, wait_for
from tests.integration.test_failures import virtiofsd
from tests.integration.test_machines import set_property
from tests.integration.test_shutdown import assert_clean, booted, press_the_button
from tests.integration.tiny_guest import started, tiny_machine, walked

WAYS = ["restart", "TERM", "KILL"]


def end(vfsd: Vfsd, how: str) -> None:
    """End vfsd, and see that it is gone and stays so."""
    old = vfsd.main_pid()
    if how != "restart":
        vfsd.systemctl("kill", "-s", how, "--kill-whom=main", "vfsd.service")
        wait_for(lambda: not process_exists(old), "vfsd is gone")
    vfsd.systemctl("stop", "vfsd.service")
    vfsd.systemctl("reset-failed", "vfsd.service", check=False)


def begin(vfsd: Vfsd) -> None:
    vfsd.systemctl("start", "vfsd.service")


async def picture(client: Client) -> dict[str, dict[str, Any]]:
    """All properties of all shares and machines."""
    shown = {}
    for path, interfaces in (await client.objects()).items():
        for interface in (SHARE, MACHINE):
            if interface in interfaces:
                shown[path] = {name: value.value for name, value in interfaces[interface].items()}
    return shown


def differences(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Object and property, with the value before and after."""
    return {
        f"{path} {name}": (before.get(path, {}).get(name), after.get(path, {}).get(name))
        for path in {**before, **after}
        for name in {**before.get(path, {}), **after.get(path, {})}
        if before.get(path, {}).get(name) != after.get(path, {}).get(name)
    }


@pytest.mark.parametrize("how", WAYS)
async def test_everything_is_found_again(vfsd: Vfsd, client: Client, folder: Path, how: str) -> None:
    await client.create_share("listens", folder, ReadOnly=("b", True), Cache=("s", "never"))
    stopped = await client.create_share("stopped", folder)
    await client.call(stopped, SHARE, "Stop")
    attached = await client.create_share("attached", folder)
    served = await client.create_share("served", folder)
    _, writer = await asyncio.open_unix_connection(await client.get(served, SHARE, "SocketPath"))
    running = await tiny_machine(client, folder, "running", shares=[folder, Path("/srv")])
    await client.call(
        running, MACHINE, "AttachShare", "sa{sv}", "attached", {"MountPoint": Variant("s", "/a b")}
    )
    paused = await tiny_machine(client, folder, "paused", Persistent=("b", True))
    broken = await started(client, folder, "broken")
    idle = await tiny_machine(client, folder, "idle", shares=[folder], Append=("s", 'a "b" ${C} %d,'))
    for path in (running, paused):
        await client.call(path, MACHINE, "Start")
    await client.call(paused, MACHINE, "Pause")
    os.kill(await client.get(broken, MACHINE, "MainPID"), signal.SIGKILL)
    await until(lambda: walked(client.signals, broken)[-1] == "failed", "the end is noticed")
    await until(lambda: walked(client.signals, served)[-1:] == ["active"], "the client is served")
    before = await picture(client)
    pids = [shown["MainPID"] for shown in before.values() if shown["MainPID"]]
    assert len(pids) == 6
    units = [shown["Unit"] for shown in before.values() if "Unit" in shown]
    invocations = [vfsd.unit_property(unit, "InvocationID") for unit in units]

    end(vfsd, how)
    begin(vfsd)
    after = await picture(client)
    for shown in (*before.values(), *after.values()):
        if "Tag" in shown or shown["Name"] == "idle":
            # that of a share, and of a machine that was never started, begins anew with vfsd
            del shown["StateChangedUSec"]
    assert differences(before, after) == {}
    assert all(process_exists(pid) for pid in pids)
    assert [vfsd.unit_property(unit, "InvocationID") for unit in units] == invocations

    # and everything goes on working
    await client.call(running, MACHINE, "Pause")
    await client.call(running, MACHINE, "Resume")
    await client.call(paused, MACHINE, "Resume")
    for path in (running, paused):
        await client.call(path, MACHINE, "Kill")
    await until(lambda: client.signals.states(attached)[-1][1] == "listening", "the share listens again")
    for path in (idle, broken):
        await client.call(path, MACHINE, "Start")
        await client.call(path, MACHINE, "Kill")
    writer.close()
    await writer.wait_closed()
    await until(lambda: client.signals.states(served)[-1][1] == "listening", "the client is gone")


@pytest.mark.parametrize("how", ["TERM", "KILL"])
async def test_a_guest_that_powers_off_while_vfsd_is_down(
    vfsd: Vfsd, client: Client, folder: Path, how: str
) -> None:
    path, pid = await booted(vfsd, client, folder, shares=[folder])
    alone = await client.create_share("alone", folder)
    end(vfsd, how)
    await press_the_button(vfsd, "qmp")
    wait_for(lambda: not process_exists(pid), "QEMU ends")
    begin(vfsd)
    assert await client.get(path, MACHINE, "State") == "stopped"
    assert await client.get(path, MACHINE, "MainPID") == 0
    assert await client.get(path, MACHINE, "AcceleratorInUse") == ""
    [share] = await client.get(path, MACHINE, "Shares")
    assert await client.get(share, SHARE, "State") == "stopped"
    assert await client.get(alone, SHARE, "State") == "listening"
    await client.call(path, MACHINE, "Start")
    await client.call(path, MACHINE, "Kill")


async def test_a_qemu_that_is_killed_while_vfsd_is_down(vfsd: Vfsd, client: Client, folder: Path) -> None:
    attached = await client.create_share("attached", folder)
    path = await tiny_machine(client, folder, shares=[folder])
    await client.call(path, MACHINE, "AttachShare", "sa{sv}", "attached", {})
    await client.call(path, MACHINE, "Start")
    pid = await client.get(path, MACHINE, "MainPID")
    end(vfsd, "TERM")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not [unit for unit in vfsd.units() if "tiny" in unit], "systemd forgets the units")
    client.signals.seen.clear()
    begin(vfsd)
    assert await client.get(path, MACHINE, "State") == "failed"
    assert "SIGKILL" in await client.get(path, MACHINE, "Reason")
    await until(lambda: client.signals.states(attached), "the share comes back")
    assert await client.get(attached, SHARE, "State") == "listening"
    end(vfsd, "TERM")
    begin(vfsd)
    assert await client.get(path, MACHINE, "State") == "failed"
    await client.call(path, MACHINE, "Start")
    assert await client.get(path, MACHINE, "Reason") == ""
    end(vfsd, "TERM")
    begin(vfsd)
    assert await client.get(path, MACHINE, "State") == "running"


async def test_a_virtiofsd_that_ends_while_vfsd_is_down(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await started(client, folder, shares=[folder, Path("/srv")])
    share, other = await client.get(path, MACHINE, "Shares")
    pid = virtiofsd(await client.get(share, SHARE, "MainPID"))
    end(vfsd, "KILL")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not process_exists(pid), "virtiofsd is gone")
    await asyncio.sleep(0.3)
    begin(vfsd)
    assert await client.get(path, MACHINE, "State") == "running"
    assert await client.get(path, MACHINE, "Degraded") is True
    assert await client.get(share, SHARE, "State") == "failed"
    assert await client.get(share, SHARE, "Reason") != ""
    assert await client.get(other, SHARE, "State") == "active"
    end(vfsd, "KILL")
    begin(vfsd)
    assert await client.get(path, MACHINE, "Degraded") is True
    await client.call(path, MACHINE, "Kill")
    assert_clean(vfsd)


async def test_a_shutdown_that_ends_while_vfsd_is_down(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, pid = await booted(vfsd, client, folder, stubborn=True)
    await client.call(path, MACHINE, "Shutdown", "t", 1_000_000)
    end(vfsd, "KILL")
    wait_for(lambda: not process_exists(pid), "it ends by force", 5)
    wait_for(lambda: not vfsd.units(), "systemd forgets the units")
    begin(vfsd)
    assert await client.get(path, MACHINE, "State") == "stopped"
    assert await client.get(path, MACHINE, "Reason") == "ended while vfsd was not running"
    await client.call(path, MACHINE, "Start")
    await client.call(path, MACHINE, "Kill")


async def test_what_is_set_is_kept(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder, shares=[folder])
    await set_property(client, path, "Memory", Variant("t", 48 << 20))
    end(vfsd, "KILL")
    begin(vfsd)
    assert await client.get(path, MACHINE, "Memory") == 48 << 20
    await client.call(path, MACHINE, "Remove")
    end(vfsd, "KILL")
    begin(vfsd)
    assert await picture(client) == {}


async def test_autostart_is_for_boots(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder, Persistent=("b", True), Autostart=("b", True))
    vfsd.restart()
    await asyncio.sleep(0.5)
    assert vfsd.get(path, MACHINE, "State") == "stopped"
    vfsd.systemctl("stop", "vfsd.service")
    shutil.rmtree(vfsd.runtime / "definitions")  # what a reboot takes away
    (vfsd.runtime / "begun").unlink()
    vfsd.systemctl("start", "vfsd.service")
    wait_for(lambda: vfsd.get(path, MACHINE, "State") == "running", "the machine is started at boot")
    vfsd.manager("KillMachine", "s", vfsd.get(path, MACHINE, "Name"))
    vfsd.restart()
    await asyncio.sleep(0.5)
    assert vfsd.get(path, MACHINE, "State") == "stopped"


def test_what_a_killed_removal_left_is_swept(vfsd: Vfsd, folder: Path) -> None:
    vfsd.systemctl("stop", "vfsd.service")
    memory = vfsd.runtime / "definitions/share-ghost.memory"
    memory.write_text('{"removing": true}')
    (vfsd.runtime / "source/ghost").symlink_to(folder)
    (vfsd.runtime / "machine/ghost").mkdir()
    (vfsd.runtime / "machine/ghost/deadline").write_text("1")
    if vfsd.scope == "user":
        for path in (memory, vfsd.runtime / "machine/ghost", vfsd.runtime / "machine/ghost/deadline"):
            shutil.chown(path, vfsd.owner_uid, vfsd.owner_uid)
    vfsd.systemctl("start", "vfsd.service")
    assert vfsd.leftovers() == []
    vfsd.manager("CreateShare", "ssa{sv}", "ghost", str(folder), "0")
    vfsd.restart()
    assert vfsd.manager("ListShares")[0][:2] == ["ghost", "listening"]
