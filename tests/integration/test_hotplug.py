"""Shares that come and go while the machine runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.conftest import only_user
from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd, until, wait_for
from tests.integration.tiny_guest import started


async def builtin(client: Client, folder: Path, **options: tuple[str, Any]) -> str:
    """A running built-in guest with one share, once its shell is there."""
    defaults: dict[str, tuple[str, Any]] = {
        "Builtin": ("b", True),
        "Memory": ("t", 256 << 20),
        "Network": ("s", "none"),
        "Accelerator": ("s", "tcg"),
        "Shares": ("a(ssa{sv})", [[str(folder), "/first", {}]]),
    }
    path = await client.create_machine("guest", **{**defaults, **options})
    await client.call(path, MACHINE, "Start")
    return path


async def guest_is_ready(vfsd: Vfsd, machine: str) -> None:
    await until(lambda: vfsd.get(machine, MACHINE, "GuestReady"), "the guest is ready", 60)


async def execute(client: Client, machine: str, *arguments: str) -> list[Any]:
    """Run a command in the guest: status, output, errors."""
    return await client.raw("org.vfsd1", machine, MACHINE, "Execute", "asa{sv}", [list(arguments), {}])


async def refused(call: Any, name: str, *words: str) -> None:
    with pytest.raises(BusError) as caught:
        await call
    assert caught.value.name == name, caught.value
    for word in words:
        assert word in caught.value.message


async def test_a_device_comes_and_the_guest_that_ignores_its_end_keeps_it(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    """The tiny guest knows no hot-plug: DetachShare times out, and nothing is lost."""
    share = await client.create_share("late", folder)
    machine = await started(client, folder)
    await client.call(machine, MACHINE, "AttachShare", "sa{sv}", "late", {})
    assert await client.get(machine, MACHINE, "Shares") == [share]
    await until(lambda: "active" in [new for _, new, _ in client.signals.states(share)], "it is active")
    assert vfsd.unit_property("vfsd-share-late.socket", "Slice") == "vfsd-tiny.slice"
    assert "vfsd-machine-tiny.service" in vfsd.unit_property("vfsd-share-late.socket", "BindsTo")
    pid = await client.get(share, SHARE, "MainPID")
    await refused(client.call(machine, MACHINE, "DetachShare", "s", "late"), "GuestTimeout", "late")
    assert await client.get(machine, MACHINE, "Shares") == [share]
    assert await client.get(share, SHARE, "State") == "active"
    assert await client.get(share, SHARE, "MainPID") == pid
    # a restarted vfsd knows the device still
    vfsd.restart()
    assert vfsd.get(share, SHARE, "State") == "active"
    assert not vfsd.get(machine, MACHINE, "Degraded")
    vfsd.manager("KillMachine", "s", "tiny")
    wait_for(lambda: vfsd.get(share, SHARE, "State") == "listening", "it listens on its own again")
    assert vfsd.unit_property("vfsd-share-late.socket", "Slice") == "vfsd.slice"


async def test_what_can_not_be_attached(vfsd: Vfsd, client: Client, folder: Path) -> None:
    for name in ("one", "two", "same"):
        (folder / name).mkdir()
        await client.create_share(name, folder / name, Tag=("s", "one" if name == "same" else name))
    machine = await started(client, folder, SparePorts=("u", 1))
    attach = (machine, MACHINE, "AttachShare", "sa{sv}")
    await client.call(*attach, "one", {})
    await refused(client.call(*attach, "same", {}), "InvalidArgs", "tag")
    await refused(client.call(*attach, "two", {}), "NotSupported", "SparePorts")
    await refused(client.call(*attach, "one", {}), "ShareBusy", "tiny")
    await refused(client.call(*attach, "none", {}), "NoSuchShare")
    for name in ("two", "same"):
        path = await client.manager("GetShare", "s", name)
        assert await client.get(path, SHARE, "Machine") == "/"
        await until(lambda: vfsd.get(path, SHARE, "State") == "listening", f"{name} listens")  # noqa: B023
    assert await client.get(machine, MACHINE, "State") == "running"
    await client.call(machine, MACHINE, "Pause")
    await refused(client.call(*attach, "two", {}), "WrongState", "paused")


async def test_a_virtiofsd_that_can_not_start_leaves_nothing_behind(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    """Its source vanishes between its definition and its attachment."""
    source = folder / "gone"
    source.mkdir()
    share = await client.create_share("gone", source)
    machine = await started(client, folder)
    source.rmdir()
    call = client.call(machine, MACHINE, "AttachShare", "sa{sv}", "gone", {})
    await refused(call, "SourceNotFound", "gone")
    assert await client.get(machine, MACHINE, "Shares") == []
    assert await client.get(share, SHARE, "Machine") == "/"
    assert await client.get(machine, MACHINE, "State") == "running"
    source.mkdir()
    await client.call(machine, MACHINE, "AttachShare", "sa{sv}", "gone", {})
    assert await client.get(machine, MACHINE, "Shares") == [share]


async def test_a_guest_mounts_it_at_once_and_gives_it_back(vfsd: Vfsd, client: Client, folder: Path) -> None:
    late, first = folder / "late", folder / "first"
    late.mkdir()
    first.mkdir()
    for place in (late, first):
        place.chmod(0o777)
    share = await client.create_share("late", late)
    machine = await builtin(client, first)
    await guest_is_ready(vfsd, machine)
    options = {"MountPoint": Variant("s", "/mnt/odd 'place'")}
    await client.call(machine, MACHINE, "AttachShare", "sa{sv}", "late", options)
    assert await client.get(share, SHARE, "MountedAt") == "/mnt/odd 'place'"
    odd = "'/mnt/odd '\\''place'\\'"
    assert (await execute(client, machine, "sh", "-c", f"echo here >{odd}/x"))[0] == 0
    assert (late / "x").read_text() == "here\n"
    # in use: refused, and as it was
    await execute(client, machine, "sh", "-c", f"cd {odd} && sleep 60 </dev/null >/dev/null 2>&1 &")
    detach = (machine, MACHINE, "DetachShare", "s")
    await refused(client.call(*detach, "late"), "ShareBusy", "/mnt/odd 'place'")
    assert await client.get(share, SHARE, "MountedAt") == "/mnt/odd 'place'"
    await execute(client, machine, "killall", "sleep")
    await client.call(*detach, "late")
    assert share not in await client.get(machine, MACHINE, "Shares")
    await until(lambda: vfsd.get(share, SHARE, "State") == "listening", "it listens again")
    assert await client.get(share, SHARE, "MountedAt") == ""
    # and one that was there from the beginning
    own = f"guest.{first.name}"
    await client.call(*detach, own)
    assert await client.get(machine, MACHINE, "Shares") == []


async def test_a_vfsd_that_came_up_just_now_waits_for_the_agent(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    """It was not asked to mount, or to unmount what was then torn out, while vfsd did not know of it yet."""
    source = folder / "late"
    source.mkdir()
    await client.create_share("late", source, MountPoint=("s", "/late"))
    machine = await builtin(client, folder)
    await guest_is_ready(vfsd, machine)
    vfsd.systemctl("stop", "vfsd.service")
    await client.call(machine, MACHINE, "AttachShare", "sa{sv}", "late", {})  # the bus starts vfsd
    _, output, _ = await execute(client, machine, "mount", "-t", "virtiofs")
    assert b"late on /late " in output
    vfsd.systemctl("stop", "vfsd.service")
    await client.call(machine, MACHINE, "DetachShare", "s", "late")
    _, output, _ = await execute(client, machine, "mount", "-t", "virtiofs")
    assert b"/late" not in output


@only_user
async def test_what_is_mounted_is_not_torn_from_a_guest_whose_agent_is_silent(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    machine = await builtin(client, folder)
    await guest_is_ready(vfsd, machine)
    [share] = await client.get(machine, MACHINE, "Shares")
    # what reads its requests
    await execute(client, machine, "sh", "-c", "(sleep 0.5; killall -STOP awk) </dev/null >/dev/null 2>&1 &")
    await asyncio.sleep(2)
    vfsd.restart()
    detach = client.call(machine, MACHINE, "DetachShare", "s", f"guest.{folder.name}")
    await refused(detach, "GuestTimeout", "does not answer")
    assert await client.get(machine, MACHINE, "Shares") == [share]
    assert await client.get(share, SHARE, "State") == "active"


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3])
async def test_a_virtiofsd_that_dies_meanwhile(
    vfsd: Vfsd, client: Client, folder: Path, delay: float
) -> None:
    """The share is attached or it is not, and the machine goes on; a reset takes away what the guest has kept."""
    folder.chmod(0o777)
    late = folder / "late"
    late.mkdir()
    share = await client.create_share("late", late)
    machine = await builtin(client, folder)
    await guest_is_ready(vfsd, machine)
    options = {"MountPoint": Variant("s", "/late")}
    attaching = asyncio.ensure_future(client.call(machine, MACHINE, "AttachShare", "sa{sv}", "late", options))
    pid = await until(lambda: vfsd.get(share, SHARE, "MainPID"), "virtiofsd is there")
    await asyncio.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    try:
        await attaching
    except BusError as error:
        assert error.name in ("MonitorFailed", "GuestTimeout", "UnitFailed", "NotSupported", "Failed"), error
        assert share not in await client.get(machine, MACHINE, "Shares")
        await until(lambda: vfsd.get(share, SHARE, "State") == "listening", "it listens again")
        await client.call(machine, MACHINE, "Reset")
        await until(lambda: not vfsd.get(machine, MACHINE, "GuestReady"), "it boots again")
        await guest_is_ready(vfsd, machine)
        await client.call(machine, MACHINE, "Refresh")  # which a device of no share would prevent
        await client.call(machine, MACHINE, "AttachShare", "sa{sv}", "late", options)
        assert await client.get(share, SHARE, "MountedAt") == "/late"
    else:
        assert share in await client.get(machine, MACHINE, "Shares")
        await until(lambda: vfsd.get(share, SHARE, "State") == "failed", "it is told")
        assert await client.get(machine, MACHINE, "Degraded") is True
    assert await client.get(machine, MACHINE, "State") == "running"
    assert (await execute(client, machine, "ls", "/first"))[0] == 0
