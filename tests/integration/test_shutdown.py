"""Machines that end: by request, at the timeout, by an administrator, while vfsd is there and while it is not."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import MACHINE, SHARE, Client, Vfsd, process_exists, until, wait_for
from tests.integration.test_machines import refused
from tests.integration.tiny_guest import BUTTON, HELLO, started, walked

UNIT, SLICE = "vfsd-machine-tiny.service", "vfsd-tiny.slice"
SECOND = 1_000_000
GUEST_DONE = "the guest powered off"
BY_FORCE = "the guest did not power off in time and was ended by force"


def console(vfsd: Vfsd, pid: int) -> str:
    """What QEMU and its guest wrote to the journal."""
    entries = vfsd.journal(f"_PID={pid}")
    return "\n".join(text(entry["MESSAGE"]) for entry in entries)


def text(message: Any) -> str:
    return bytes(message).decode(errors="replace") if isinstance(message, list) else str(message)


async def booted(vfsd: Vfsd, client: Client, folder: Path, **options: Any) -> tuple[str, int]:
    """A tiny guest that is up; its path and QEMU's process id."""
    path = await started(client, folder, **options)
    pid = await client.get(path, MACHINE, "MainPID")
    await until(lambda: HELLO in console(vfsd, pid), "the guest is up")
    return path, pid


def gone(vfsd: Vfsd, pid: int) -> bool:
    return not process_exists(pid) and vfsd.unit_property(UNIT, "LoadState") == "not-found"


def assert_clean(vfsd: Vfsd) -> None:
    """Nothing of a machine runs, and no unit failed."""
    assert vfsd.units() == []
    assert not vfsd.systemctl("list-units", "--failed", "--plain", "--no-legend", "vfsd*")


async def test_the_guest_is_asked_and_ends(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, pid = await booted(vfsd, client, folder, shares=[folder])
    [share] = await client.get(path, MACHINE, "Shares")
    before = time.monotonic()
    await client.call(path, MACHINE, "Shutdown", "t", 0)
    assert time.monotonic() - before < 1
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the guest powers off", 5)
    assert walked(client.signals, path) == ["starting", "running", "stopping", "stopped"]
    assert client.signals.states(path)[-1][2] == GUEST_DONE
    await until(lambda: walked(client.signals, share)[-1] == "stopped", "the share is stopped")
    assert BUTTON in console(vfsd, pid)
    assert await client.get(path, MACHINE, "Reason") == GUEST_DONE
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)


async def test_a_guest_that_just_began_to_boot_is_asked_again(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    path = await started(client, folder)
    await client.call(path, MACHINE, "Shutdown", "t", 0)
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the guest powers off", 8)
    assert client.signals.states(path)[-1][2] == GUEST_DONE


async def test_a_paused_guest_is_asked_too(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, _ = await booted(vfsd, client, folder)
    await client.call(path, MACHINE, "Pause")
    await client.call(path, MACHINE, "Shutdown", "t", 0)
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the guest powers off", 5)
    assert walked(client.signals, path) == ["starting", "running", "paused", "stopping", "stopped"]
    assert client.signals.states(path)[-1][2] == GUEST_DONE


async def test_a_guest_that_powers_off_by_itself(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, _ = await booted(vfsd, client, folder, shares=[folder])
    await press_the_button(vfsd, "qmp-stop")
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the guest powers off", 5)
    assert walked(client.signals, path) == ["starting", "running", "stopped"]
    assert client.signals.states(path)[-1][2] == GUEST_DONE
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)


async def press_the_button(
    vfsd: Vfsd, monitor: str, command: bytes = b"system_powerdown", *, machine: str = "tiny"
) -> None:
    """As somebody does who has nothing to do with vfsd."""
    reader, writer = await asyncio.open_unix_connection(vfsd.runtime / "machine" / machine / monitor)
    await reader.readline()
    writer.write(b'{"execute":"qmp_capabilities"}\n{"execute":"' + command + b'"}\n')
    await reader.readline()
    await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(("default", "given", "expected"), [(60, 1, 1), (1, 3, 3), (2, 0, 2)])
async def test_a_guest_that_ignores_it_ends_by_force_at_the_timeout(
    vfsd: Vfsd, client: Client, folder: Path, default: int, given: int, expected: int
) -> None:
    options = {"ShutdownTimeoutUSec": ("t", default * SECOND)}
    path, pid = await booted(vfsd, client, folder, stubborn=True, shares=[folder], **options)
    before = time.monotonic()
    await client.call(path, MACHINE, "Shutdown", "t", given * SECOND)
    assert time.monotonic() - before < 0.8
    await refused(client.call(path, MACHINE, "Shutdown", "t", 0), "WrongState", "stopping")
    for member in ("Pause", "Reset", "Start", "Remove"):
        await refused(client.call(path, MACHINE, member), "WrongState", "stopping")
    await until(lambda: walked(client.signals, path)[-1] != "stopping", "it ends by force", 8)
    assert expected - 0.2 <= time.monotonic() - before <= expected + 1.2
    assert client.signals.states(path)[-1] == ("stopping", "stopped", BY_FORCE)
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)
    assert gone(vfsd, pid)


async def test_kill_during_a_shutdown(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, pid = await booted(vfsd, client, folder, stubborn=True, shares=[folder])
    await client.call(path, MACHINE, "Shutdown", "t", 0)
    before = time.monotonic()
    await client.call(path, MACHINE, "Kill")
    assert time.monotonic() - before < 3
    assert client.signals.states(path)[-1] == ("stopping", "stopped", "killed on request")
    assert_clean(vfsd)
    assert gone(vfsd, pid)


# administrators


@pytest.mark.parametrize("vfsd_is", ["there", "stopped", "killed"])
async def test_systemctl_stop_asks_the_guest_first(
    vfsd: Vfsd, client: Client, folder: Path, vfsd_is: str
) -> None:
    path, pid = await booted(vfsd, client, folder, shares=[folder])
    if vfsd_is == "killed":
        vfsd.systemctl("kill", "-s", "KILL", "vfsd.service")
    if vfsd_is != "there":
        vfsd.systemctl("stop", "vfsd.service")
        assert vfsd.main_pid() == 0
        vfsd.systemctl("reset-failed", "vfsd.service", check=False)
    vfsd.systemctl("daemon-reload")
    await asyncio.to_thread(vfsd.systemctl, "stop", UNIT)
    assert BUTTON in console(vfsd, pid)
    assert not process_exists(pid)
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)
    if vfsd_is == "there":
        await until(lambda: walked(client.signals, path)[-1] == "stopped", "vfsd tells it")
        assert walked(client.signals, path) == ["starting", "running", "stopping", "stopped"]
        assert client.signals.states(path)[-1][2] == GUEST_DONE
    else:
        vfsd.systemctl("start", "vfsd.service")
    assert await client.get(path, MACHINE, "State") == "stopped"


async def test_systemctl_stop_ends_a_guest_that_ignores_it(vfsd: Vfsd, client: Client, folder: Path) -> None:
    options = {"ShutdownTimeoutUSec": ("t", SECOND)}
    _path, pid = await booted(vfsd, client, folder, stubborn=True, shares=[folder], **options)
    vfsd.systemctl("stop", "vfsd.service")
    before = time.monotonic()
    vfsd.systemctl("stop", UNIT)
    assert 0.8 < time.monotonic() - before < 4
    assert not process_exists(pid)
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)


async def test_systemctl_stop_of_the_slice(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, pid = await booted(vfsd, client, folder, shares=[folder])
    await asyncio.to_thread(vfsd.systemctl, "stop", SLICE)
    assert BUTTON in console(vfsd, pid)
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the machine is stopped")
    assert walked(client.signals, path) == ["starting", "running", "stopping", "stopped"]
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)


async def test_stopping_vfsd_stops_neither_shares_nor_machines(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    share = await client.create_share("alone", folder)
    path, pid = await booted(vfsd, client, folder, shares=[folder])
    running = [unit for unit in vfsd.units() if vfsd.unit_property(unit, "ActiveState") == "active"]
    vfsd.systemctl("stop", "vfsd.service")
    await asyncio.sleep(0.5)
    for unit in running:
        assert vfsd.unit_property(unit, "ActiveState") == "active", unit
    assert process_exists(pid)
    # D-Bus starts vfsd again
    assert await client.get(path, MACHINE, "State") == "running"
    assert await client.get(path, MACHINE, "MainPID") == pid
    assert await client.get(share, SHARE, "State") == "listening"
    await client.call(path, MACHINE, "Kill")


async def test_a_shutdown_ends_by_force_though_vfsd_is_down(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, pid = await booted(vfsd, client, folder, stubborn=True, shares=[folder])
    before = time.monotonic()
    await client.call(path, MACHINE, "Shutdown", "t", 3 * SECOND)
    vfsd.systemctl("kill", "-s", "KILL", "vfsd.service")
    vfsd.systemctl("stop", "vfsd.service")
    vfsd.systemctl("reset-failed", "vfsd.service", check=False)
    await asyncio.sleep(1)
    assert process_exists(pid)
    wait_for(lambda: not process_exists(pid), "it ends by force", 6)
    assert 2.5 < time.monotonic() - before < 5
    wait_for(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)
    assert vfsd.main_pid() == 0
    assert await client.get(path, MACHINE, "State") == "stopped"


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
async def test_a_shutdown_ends_by_force_after_vfsd_came_back(
    vfsd: Vfsd, client: Client, folder: Path, signal: str
) -> None:
    path, pid = await booted(vfsd, client, folder, stubborn=True)
    before = time.monotonic()
    await client.call(path, MACHINE, "Shutdown", "t", 3 * SECOND)
    old = vfsd.main_pid()
    vfsd.systemctl("kill", "-s", signal, "--kill-whom=main", "vfsd.service")
    wait_for(lambda: not process_exists(old), "vfsd is gone")
    vfsd.systemctl("start", "vfsd.service")
    assert await client.get(path, MACHINE, "State") == "stopping"
    assert await client.get(path, MACHINE, "MainPID") == pid
    await until(lambda: client.signals.states(path)[-1][1] == "stopped", "it ends by force", 6)
    assert 2.5 < time.monotonic() - before < 5
    assert client.signals.states(path)[-1] == ("stopping", "stopped", BY_FORCE)
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)
