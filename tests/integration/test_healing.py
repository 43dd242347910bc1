"""What OnShareFailure does when virtiofsd is killed under a running guest."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from dbus_next import Variant

from tests.integration.harness import MACHINE, SHARE, Client, Vfsd, process_exists, until, wait_for
from tests.integration.test_hotplug import builtin, execute, guest_is_ready
from tests.integration.tiny_guest import started, tiny_machine


def kill_virtiofsd(vfsd: Vfsd, share: str) -> None:
    os.kill(int(vfsd.get(share, SHARE, "MainPID")), signal.SIGKILL)


async def test_a_healed_share_serves_the_guest_again(vfsd: Vfsd, client: Client, folder: Path) -> None:
    folder.chmod(0o777)
    inner = folder / "inner"
    inner.mkdir()
    inner.chmod(0o777)
    shares = [[str(folder), "/first", {}], [str(inner), "/first/nested", {}]]
    machine = await builtin(client, folder, OnShareFailure=("s", "heal"), Shares=("a(ssa{sv})", shares))
    await guest_is_ready(vfsd, machine)
    share, nested = await client.get(machine, MACHINE, "Shares")
    script = "cd /first; echo before >x; mkdir deep /bound; echo deep >deep/z; mount --bind deep /bound"
    assert (await execute(client, machine, "sh", "-c", script))[0] == 0
    begun = time.monotonic()
    kill_virtiofsd(vfsd, share)
    await until(lambda: True in client.signals.changes(machine, "Degraded"), "the machine is degraded")
    await until(lambda: client.signals.changes(machine, "Degraded")[-1] is False, "it is healed", 20)
    took = time.monotonic() - begun
    status, output, _ = await execute(client, machine, "sh", "-c", "cat /first/x; echo after >/first/y")
    assert (status, output) == (0, b"before\n")
    # so does what was mounted out of it, and in it
    status, output, _ = await execute(client, machine, "sh", "-c", "cat /bound/z; echo in >/first/nested/i")
    assert (status, output) == (0, b"deep\n")
    assert (inner / "i").read_text() == "in\n"
    assert await client.get(nested, SHARE, "MountedAt") == "/first/nested"
    assert (folder / "y").read_text() == "after\n"
    assert took < 10, took
    assert await client.get(share, SHARE, "State") == "active"
    assert await client.get(share, SHARE, "MountedAt") == "/first"
    reason = await client.get(share, SHARE, "Reason")
    assert "healed after virtiofsd was killed by SIGKILL" in reason
    assert "hang until the guest reboots" in reason
    healed = vfsd.journal("VFSD_MACHINE=guest", "MESSAGE_ID=8a1b1f0c6c5d4b0d9a5fe3f6a7c1e245")
    assert any("healed after" in entry["MESSAGE"] for entry in healed)

    # a reboot gives the share its own tag back, by which the guest mounts it
    # without a sync, which would wait for the dead file system
    await execute(client, machine, "sh", "-c", "(sleep 0.2; reboot -n -f) </dev/null >/dev/null 2>&1 &")
    await until(lambda: not vfsd.get(machine, MACHINE, "GuestReady"), "the guest reboots")
    await guest_is_ready(vfsd, machine)
    status, output, _ = await execute(client, machine, "cat", "/first/y")
    assert (status, output) == (0, b"after\n")
    assert "paused" not in [new for _, new, _ in client.signals.states(machine)]

    # what dies again and again is left alone at last
    for _ in range(4):
        pid = await client.get(share, SHARE, "MainPID")
        if vfsd.get(share, SHARE, "State") == "failed":
            break
        os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: (
                (
                    vfsd.get(share, SHARE, "MainPID") not in (0, pid)  # noqa: B023
                    and vfsd.get(share, SHARE, "State") == "active"
                )
                or "not healed" in vfsd.get(share, SHARE, "Reason")
            ),
            "it is healed, or given up",
        )
    assert await client.get(share, SHARE, "State") == "failed"
    assert "failed 4 times within 60 s" in await client.get(share, SHARE, "Reason")
    assert await client.get(machine, MACHINE, "Degraded") is True
    assert await client.get(machine, MACHINE, "State") == "running"


async def test_a_vfsd_that_dies_as_it_heals(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """The fresh virtiofsd served then, nobody had mounted it, and all seemed well."""
    (folder / "x").write_text("here")
    options = {"OnShareFailure": ("s", "heal"), "SparePorts": ("u", 20)}
    machine = await builtin(client, folder, **options)
    await guest_is_ready(vfsd, machine)
    [share] = await client.get(machine, MACHINE, "Shares")

    def healed() -> bool:
        good = vfsd.get(share, SHARE, "State") == "active" and not vfsd.get(machine, MACHINE, "Degraded")
        return good and bool(vfsd.get(share, SHARE, "MountedAt") == "/first")

    for delay in (0.1, 0.2, 0.3, 0.45):
        kill_virtiofsd(vfsd, share)
        await asyncio.sleep(delay)
        vfsd.crash()
        await until(healed, f"it is healed, {delay}", 60)
        assert (await execute(client, machine, "cat", "/first/x"))[:2] == [0, b"here"], delay


async def test_a_guest_without_agent_can_not_be_healed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await started(client, folder, shares=[folder], OnShareFailure=("s", "heal"))
    [share] = await client.get(machine, MACHINE, "Shares")
    kill_virtiofsd(vfsd, share)
    wait_for(lambda: "not healed" in vfsd.get(share, SHARE, "Reason"), "it says why not")
    assert "no agent" in await client.get(share, SHARE, "Reason")
    assert await client.get(share, SHARE, "State") == "failed"
    assert await client.get(machine, MACHINE, "Degraded") is True


async def test_stop_ends_the_machine(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await started(client, folder, shares=[folder], OnShareFailure=("s", "stop"))
    [share] = await client.get(machine, MACHINE, "Shares")
    kill_virtiofsd(vfsd, share)
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "stopped", "the machine stops")
    assert "stopped: share" in await client.get(machine, MACHINE, "Reason")
    assert "SIGKILL" in await client.get(machine, MACHINE, "Reason")


async def test_restart_starts_it_again(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await started(client, folder, shares=[folder], OnShareFailure=("s", "restart"))
    [share] = await client.get(machine, MACHINE, "Shares")
    pid = await client.get(machine, MACHINE, "MainPID")
    kill_virtiofsd(vfsd, share)
    wait_for(
        lambda: (
            vfsd.get(machine, MACHINE, "State") == "running" and vfsd.get(machine, MACHINE, "MainPID") != pid
        ),
        "the machine runs anew",
    )
    assert not process_exists(pid)
    assert await client.get(share, SHARE, "State") == "active"
    assert await client.get(machine, MACHINE, "Degraded") is False


async def test_a_vfsd_that_was_killed_in_between_starts_it_again(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    options = {"OnShareFailure": ("s", "restart"), "ShutdownTimeoutUSec": ("t", 1_500_000)}
    machine = await tiny_machine(client, folder, "tiny", shares=[folder], stubborn=True, **options)
    await client.call(machine, MACHINE, "Start")
    [share] = await client.get(machine, MACHINE, "Shares")
    pid = await client.get(machine, MACHINE, "MainPID")
    kill_virtiofsd(vfsd, share)
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "stopping", "it is shut down")
    os.kill(vfsd.main_pid(), signal.SIGKILL)
    wait_for(lambda: not process_exists(pid), "QEMU is gone", 30)
    vfsd.systemctl("reset-failed", "vfsd.service", check=False)
    vfsd.systemctl("start", "vfsd.service")
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "running", "the machine runs anew")


async def test_the_policy_can_be_set(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_machine("m", Builtin=("b", True))
    for policy in ("heal", "restart", "stop", "signal"):
        await client.call(
            path,
            "org.freedesktop.DBus.Properties",
            "Set",
            "ssv",
            MACHINE,
            "OnShareFailure",
            Variant("s", policy),
        )
        assert await client.get(path, MACHINE, "OnShareFailure") == policy
