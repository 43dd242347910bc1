"""systemd-machined: machines are registered, what machinectl asks for is polite, and machined may be absent or hang."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import only_system, only_user
from tests.integration.harness import MACHINE, BusError, Client, Vfsd, process_exists, until
from tests.integration.test_shutdown import GUEST_DONE, UNIT, assert_clean, booted, console
from tests.integration.tiny_guest import BUTTON, started, walked
from vfsd.journal import MessageId
from vfsd.machined import CALL_TIMEOUT
from vfsd.units import LEADER

MACHINED = "systemd-machined.service"
BUS_SERVICE = Path("/usr/share/dbus-1/system-services/org.freedesktop.machine1.service")
MACHINE1 = ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager")
SYSTEM = Vfsd("system")
SHELL = "built-in shell (ash)"
"""The built-in guest is up."""


@pytest.fixture(autouse=True)
def machined() -> Iterator[None]:
    """machined is there, and is afterwards."""
    SYSTEM.systemctl("start", MACHINED)
    yield
    pid = machined_pid()
    if pid:
        os.kill(pid, signal.SIGCONT)
    SYSTEM.systemctl("unmask", "--runtime", MACHINED)
    SYSTEM.systemctl("reset-failed", MACHINED, check=False)
    SYSTEM.systemctl("start", MACHINED)


def machined_pid() -> int:
    return int(SYSTEM.unit_property(MACHINED, "MainPID"))


def machinectl(*arguments: str) -> str:
    return SYSTEM.run("machinectl", *arguments)


def registered() -> dict[str, tuple[str, str]]:
    """Class and service of each machine but the host itself."""
    listed = json.loads(machinectl("list", "--output=json") or "[]")
    return {item["machine"]: (item["class"], item["service"]) for item in listed}


def shown(name: str, field: str) -> str:
    return machinectl("show", name, "--property", field, "--value").strip()


def in_unit(unit: str, vfsd: Vfsd = SYSTEM) -> dict[int, str]:
    """Command lines of a unit's processes."""
    folder = Path("/sys/fs/cgroup") / vfsd.unit_property(unit, "ControlGroup").lstrip("/")
    if not folder.is_dir():  # where cgroup v1 is mounted too
        folder = Path("/sys/fs/cgroup/unified") / folder.relative_to("/sys/fs/cgroup")
    pids = [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    return {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids}


def leaders(unit: str, vfsd: Vfsd = SYSTEM) -> list[int]:
    return [pid for pid, command in in_unit(unit, vfsd).items() if f"/{LEADER.name} " in command]


def registered_unit(name: str) -> str:
    return shown(name, "Unit") if name in registered() else ""


def told(since: float) -> list[dict[str, Any]]:
    """vfsd's entries on what is not registered."""
    return SYSTEM.journal(f"MESSAGE_ID={MessageId.NOT_REGISTERED.value}", since=since)


async def is_registered(name: str = "tiny") -> None:
    await until(lambda: name in registered(), f"{name} is registered")


async def is_registered_with(unit: str) -> None:
    await until(lambda: registered_unit("tiny") == unit, f"tiny is registered with {unit}")


def sockets_of(pid: int) -> set[str]:
    links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return {link for link in links if link.startswith(("socket:", "anon_inode:", "/memfd:"))}


@only_system
async def test_a_machine_is_registered(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, pid = await booted(vfsd, client, folder, shares=[folder])
    await is_registered()
    assert registered()["tiny"] == ("vm", "vfsd")
    assert shown("tiny", "Unit") == UNIT
    [leader] = leaders(UNIT)
    assert int(shown("tiny", "Leader")) == leader
    assert set(in_unit(UNIT)) == {pid, leader}
    assert f"Leader: {leader}" in machinectl("status", "tiny")
    assert await client.get(path, MACHINE, "MainPID") == pid == int(vfsd.unit_property(UNIT, "MainPID"))
    await client.call(path, MACHINE, "Kill")


@only_system
async def test_a_leader_holds_nothing_of_qemus_and_is_small(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, pid = await booted(vfsd, client, folder, shares=[folder])
    [leader] = leaders(UNIT)
    assert not sockets_of(leader) & sockets_of(pid)
    assert len(list(Path(f"/proc/{leader}/fd").iterdir())) < 6
    rollup = Path(f"/proc/{leader}/smaps_rollup").read_text()
    own = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
    assert own < 1024, rollup
    await client.call(path, MACHINE, "Kill")


@only_system
@pytest.mark.parametrize("vfsd_is", ["there", "stopped"])
@pytest.mark.parametrize("verb", ["poweroff", "terminate"])
async def test_machinectl_ends_a_machine_politely(
    vfsd: Vfsd, client: Client, folder: Path, verb: str, vfsd_is: str
) -> None:
    since = time.time()
    path, pid = await booted(vfsd, client, folder, shares=[folder])
    await is_registered()
    [leader] = leaders(UNIT)
    if vfsd_is == "stopped":
        vfsd.systemctl("stop", "vfsd.service")
    machinectl(verb, "tiny")
    await until(lambda: not process_exists(pid), "the guest powers off")
    assert BUTTON in console(vfsd, pid)
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert not process_exists(leader)
    assert_clean(vfsd)
    assert "tiny" not in registered()
    if vfsd_is == "there":
        await until(lambda: walked(client.signals, path)[-1] == "stopped", "vfsd tells it")
        assert client.signals.states(path)[-1][2] == GUEST_DONE
    assert await client.get(path, MACHINE, "State") == "stopped"
    killed = [entry for entry in vfsd.journal(f"UNIT={UNIT}", since=since) if "SIGKILL" in entry["MESSAGE"]]
    assert killed == []


@only_system
async def test_a_guest_that_ignores_the_button_is_asked_again(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    timeout = {"ShutdownTimeoutUSec": ("t", 3_000_000)}
    path, _ = await booted(vfsd, client, folder, stubborn=True, **timeout)
    await is_registered()
    [leader] = leaders(UNIT)
    before = time.monotonic()
    machinectl("poweroff", "tiny")
    await until(lambda: walked(client.signals, path)[-1] == "stopping", "it is asked")
    machinectl("poweroff", "tiny")
    machinectl("reboot", "tiny")
    # while it begins a systemctl there are two
    await until(lambda: leaders(UNIT) == [leader], "it takes more than one signal")
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "it ends by force")
    assert 2.5 < time.monotonic() - before < 10
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)
    await until(lambda: "tiny" not in registered(), "machined forgets it")


@only_system
@pytest.mark.parametrize("vfsd_is", ["there", "stopped"])
async def test_machinectl_reboots_a_guest(vfsd: Vfsd, client: Client, folder: Path, vfsd_is: str) -> None:
    path = await client.create_machine("dev", Builtin=("b", True), Accelerator=("s", "tcg"))
    await client.call(path, MACHINE, "Start")
    pid = await client.get(path, MACHINE, "MainPID")
    await until(lambda: SHELL in console(vfsd, pid), "the guest is up", 60)
    await is_registered("dev")
    if vfsd_is == "stopped":
        vfsd.systemctl("stop", "vfsd.service")
    machinectl("reboot", "dev")
    await until(lambda: console(vfsd, pid).count(SHELL) > 1, "the guest is up again", 60)
    assert process_exists(pid)
    if vfsd_is == "there":
        assert await client.get(path, MACHINE, "Reason") == "the guest rebooted"
    assert await client.get(path, MACHINE, "State") == "running"
    await client.call(path, MACHINE, "Kill")


@only_system
async def test_a_machine_that_ends_is_registered_no_more(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, _ = await booted(vfsd, client, folder)
    for end in ("kill", "signal", "shutdown"):
        await is_registered()
        [leader] = leaders(UNIT)
        if end == "kill":
            await client.call(path, MACHINE, "Kill")
        elif end == "signal":
            vfsd.systemctl("kill", "--kill-whom=main", "-s", "KILL", UNIT)
        else:
            await client.call(path, MACHINE, "Shutdown", "t", 0)
        await until(lambda: walked(client.signals, path)[-1] in ("stopped", "failed"), "it ends")
        await until(lambda: "tiny" not in registered(), "machined forgets it")
        assert not process_exists(leader)
        await until(lambda: not vfsd.units(), "systemd forgets the units")
        await client.call(path, MACHINE, "Start")
    await is_registered()
    assert int(shown("tiny", "Leader")) == leaders(UNIT)[0]
    await client.call(path, MACHINE, "Kill")


@only_system
async def test_a_machine_that_cannot_start_leaves_no_leader(vfsd: Vfsd, client: Client, folder: Path) -> None:
    with pytest.raises(BusError, match="could not be started"):
        await started(client, folder, ExtraArguments=("as", ["-no-such-option"]))
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert "tiny" not in registered()


@only_system
async def test_a_restarted_vfsd_registers_what_is_not(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, pid = await booted(vfsd, client, folder)
    await is_registered()
    vfsd.restart()
    assert registered()["tiny"] == ("vm", "vfsd")
    vfsd.run("busctl", "call", *MACHINE1, "UnregisterMachine", "s", "tiny")
    assert "tiny" not in registered()
    assert process_exists(pid)
    vfsd.restart()
    await is_registered()
    assert int(shown("tiny", "Leader")) == leaders(UNIT)[0]
    await client.call(path, MACHINE, "Kill")


@only_system
async def test_a_restarted_machined_knows_them(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, _ = await booted(vfsd, client, folder)
    await is_registered()
    vfsd.systemctl("restart", MACHINED)
    await is_registered()
    vfsd.systemctl("stop", MACHINED)
    Path("/run/systemd/machines/tiny").unlink()
    vfsd.systemctl("start", MACHINED)
    await is_registered()
    await client.call(path, MACHINE, "Kill")


@only_system
async def test_a_refreshed_machine_is_registered_anew(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path, _ = await booted(vfsd, client, folder, shares=[folder])
    await is_registered()
    for _ in range(2):
        before = shown("tiny", "Leader")
        await client.call(path, MACHINE, "Refresh")
        unit = await client.get(path, MACHINE, "Unit")
        await is_registered_with(unit)
        assert int(shown("tiny", "Leader")) == leaders(unit)[0] != int(before)
        assert not process_exists(int(before))
    assert unit == UNIT
    await client.call(path, MACHINE, "Refresh")
    unit = await client.get(path, MACHINE, "Unit")
    await is_registered_with(unit)
    vfsd.restart()
    assert registered_unit("tiny") == unit
    pid = await client.get(path, MACHINE, "MainPID")
    machinectl("poweroff", "tiny")
    await until(lambda: client.signals.states(path)[-1][1] == "stopped", "the guest powers off")
    assert client.signals.states(path)[-1][2] == GUEST_DONE
    assert BUTTON in console(vfsd, pid)
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)


@contextlib.contextmanager
def without_machined() -> Iterator[None]:
    """Not installed, as the bus sees it."""
    kept = BUS_SERVICE.with_suffix(".kept")
    shutil.move(BUS_SERVICE, kept)
    try:
        reload_bus()
        SYSTEM.systemctl("stop", MACHINED)
        yield
    finally:
        shutil.move(kept, BUS_SERVICE)
        reload_bus()


def reload_bus() -> None:
    bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
    SYSTEM.run("busctl", "call", *bus, "ReloadConfig")


@only_system
async def test_without_machined_there_is_no_leader(vfsd: Vfsd, client: Client, folder: Path) -> None:
    since = time.time()
    with without_machined():
        path, pid = await booted(vfsd, client, folder)
        assert set(in_unit(UNIT)) == {pid}
        assert vfsd.unit_property(UNIT, "ExecStartPost") == ""
    assert told(since) == []
    vfsd.systemctl("start", MACHINED)
    [entry] = await until(lambda: told(since), "it is told")
    assert 'machine "tiny" is not registered' in entry["MESSAGE"]
    assert "a new start registers it" in entry["MESSAGE"]
    assert "tiny" not in registered()
    await client.call(path, MACHINE, "Kill")
    await client.call(path, MACHINE, "Start")
    await is_registered()
    await client.call(path, MACHINE, "Kill")


@only_system
async def test_a_machined_that_is_masked(vfsd: Vfsd, client: Client, folder: Path) -> None:
    since = time.time()
    vfsd.systemctl("mask", "--runtime", "--now", MACHINED)
    path, pid = await booted(vfsd, client, folder)
    [entry] = await until(lambda: told(since), "it is told")
    assert "masked" in entry["MESSAGE"]
    assert (entry["PRIORITY"], entry["VFSD_MACHINE"]) == ("6", "tiny")
    vfsd.systemctl("unmask", "--runtime", MACHINED)
    vfsd.systemctl("start", MACHINED)
    await is_registered()
    assert process_exists(pid)
    await client.call(path, MACHINE, "Kill")


@only_system
async def test_a_machined_that_hangs(vfsd: Vfsd, client: Client, folder: Path) -> None:
    since = time.time()
    hanging = machined_pid()
    os.kill(hanging, signal.SIGSTOP)
    before = time.monotonic()
    path = await started(client, folder)
    assert time.monotonic() - before < CALL_TIMEOUT / 2
    other = await started(client, folder, "other")
    await client.call(other, MACHINE, "Shutdown", "t", 0)
    await until(lambda: walked(client.signals, other)[-1] == "stopped", "one that is not registered ends")
    [entry] = await until(lambda: told(since), "it is told", CALL_TIMEOUT + 10)
    assert "does not answer" in entry["MESSAGE"]
    assert await client.get(path, MACHINE, "State") == "running"
    vfsd.restart()
    assert await client.get(path, MACHINE, "State") == "running"
    os.kill(hanging, signal.SIGCONT)
    await is_registered()
    assert "other" not in registered()
    await client.call(path, MACHINE, "Kill")


@only_system
async def test_a_name_that_machined_refuses(vfsd: Vfsd, client: Client, folder: Path) -> None:
    since = time.time()
    path = await started(client, folder, "my_vm")
    [entry] = await until(lambda: told(since), "it is told")
    assert 'machine "my_vm" is not registered with systemd-machined' in entry["MESSAGE"]
    assert "host names" in entry["MESSAGE"]
    assert (entry["PRIORITY"], entry["OBJECT_SYSTEMD_UNIT"]) == ("6", "vfsd-machine-my_vm.service")
    assert leaders("vfsd-machine-my_vm.service") == []
    await client.call(path, MACHINE, "Kill")


@contextlib.contextmanager
def unit_of(unit: str, *command: str) -> Iterator[None]:
    """A transient service."""
    SYSTEM.run("systemd-run", "--quiet", "--collect", f"--unit={unit}", *command)
    try:
        yield
    finally:
        SYSTEM.systemctl("stop", unit, check=False)


@only_system
async def test_a_name_that_another_has(vfsd: Vfsd, client: Client, folder: Path) -> None:
    since = time.time()
    with unit_of("foreign.service", "/bin/sleep", "1000"):
        [pid] = in_unit("foreign.service")
        vfsd.run(
            "busctl", "call", *MACHINE1, "RegisterMachine", "sayssus", "tiny", "0", "x", "vm", str(pid), ""
        )
        path, _ = await booted(vfsd, client, folder)
        [entry] = await until(lambda: told(since), "it is told")
        assert "foreign.service has registered a machine of that name" in entry["MESSAGE"]
        assert shown("tiny", "Unit") == "foreign.service"
        await client.call(path, MACHINE, "Kill")
        assert process_exists(pid)
        assert shown("tiny", "Unit") == "foreign.service"


@only_user
async def test_a_users_machines_are_not_registered(vfsd: Vfsd, client: Client, folder: Path) -> None:
    since = time.time()
    path, pid = await booted(vfsd, client, folder)
    await asyncio.sleep(0.5)
    assert set(in_unit(UNIT, vfsd)) == {pid}
    assert "tiny" not in registered()
    assert told(since) == []
    await client.call(path, MACHINE, "Kill")
