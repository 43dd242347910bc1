"""Refresh: QEMU and every virtiofsd are replaced under the running guest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dbus_next import Variant

from tests.integration.conftest import only_system
from tests.integration.harness import (
    MACHINE,
    ROOT,
    SHARE,
    BusError,
    Client,
    Vfsd,
    process_exists,
    until,
    wait_for,
)
from tests.integration.test_hotplug import builtin, execute, guest_is_ready, refused
from tests.integration.test_network import BRIDGE, GUEST, HOST, TAP, bridge, tap
from tests.integration.tiny_guest import make_image, started, tiny_machine
from vfsd.journal import MessageId

__all__ = ["bridge", "tap"]
COPIED = {"ExtraArguments": ("as", ["-machine", "aux-ram-share=off"])}
"""QEMU's memory can't be handed over then, as before QEMU 10.0, but has to be copied."""
WRITER = "(i=0; while sleep 0.02; do i=$((i+1)); echo $i; done) >/first/log 2>/dev/null </dev/null &"
"""Holds a file open and writes lines to it."""


async def ready(vfsd: Vfsd, client: Client, folder: Path, **options: tuple[str, object]) -> str:
    """A running built-in guest that writes to an open file of a share; returns the machine."""
    folder.chmod(0o777)
    machine = await builtin(client, folder, **options)
    await guest_is_ready(vfsd, machine)
    # what is asked of the agent at first is answered: on a busy host a move would not wait long enough for it
    await until(lambda: vfsd.get(machine, MACHINE, "GuestSystem"), "its agent has told all")
    assert (await execute(client, machine, "sh", "-c", WRITER))[0] == 0
    return machine


async def goes_on(folder: Path) -> None:
    """The guest writes on, and no line was lost or written twice."""
    log = folder / "log"

    def lines() -> list[str]:
        return log.read_text().splitlines()[:-1]  # the last one may be half there

    await until(log.exists, "the guest has begun to write")
    before = len(lines())
    await until(lambda: len(lines()) > before + 3, "the guest writes on", 10)
    assert lines() == [str(number + 1) for number in range(len(lines()))]


async def pids(client: Client, machine: str) -> list[int]:
    """QEMU's and those of all virtiofsd."""
    shares = await client.get(machine, MACHINE, "Shares")
    return [
        await client.get(machine, MACHINE, "MainPID"),
        *[await client.get(share, SHARE, "MainPID") for share in shares],
    ]


def running(vfsd: Vfsd) -> list[str]:
    """Units that are there, without slices."""
    return [unit for unit in vfsd.units() if not unit.endswith(".slice")]


@pytest.mark.parametrize("copied", [False, True])
async def test_open_files_go_on(vfsd: Vfsd, client: Client, folder: Path, copied: bool) -> None:
    secret = {"Credentials": ("a{ss}", {"token": "secret"})}
    machine = await ready(vfsd, client, folder, **secret, **(COPIED if copied else {}))
    [share] = await client.get(machine, MACHINE, "Shares")
    first, before = await pids(client, machine), running(vfsd)
    downtimes = []
    for second in (True, False, True):
        client.signals.seen.clear()
        old = await pids(client, machine)
        await client.call(machine, MACHINE, "Refresh")
        new = await pids(client, machine)
        assert all(new) and not set(old) & set(new)
        assert not any(map(process_exists, old))
        await goes_on(folder)
        unit = f"vfsd-machine-guest{'-2' if second else ''}.service"
        assert await client.get(machine, MACHINE, "Unit") == unit
        assert client.signals.changes(machine, "Unit") == [unit]
        assert vfsd.unit_property(unit, "MainPID") == str(new[0])
        assert (
            vfsd.unit_property(unit, "Slice")
            == await client.get(machine, MACHINE, "Slice")
            == "vfsd-guest.slice"
        )
        service = await client.get(share, SHARE, "ServiceUnit")
        assert vfsd.unit_property(service, "MainPID") == str(new[1])
        path = Path(await client.get(share, SHARE, "SocketPath"))
        assert path.is_socket()
        assert (path.name.endswith(".sock-2"), "-2.service" in service) == (second, second)
        assert len(running(vfsd)) == len(before)
        # for everybody else nothing has happened
        assert client.signals.states(machine) == client.signals.states(share) == []
        assert client.signals.changes(machine, "GuestReady") == []
        assert await client.get(machine, MACHINE, "GuestReady") is True
        assert await client.get(share, SHARE, "MountedAt") == "/first"
        assert not (vfsd.runtime / "machine/guest/credentials").exists()
        downtimes.append(await client.get(machine, MACHINE, "RefreshDowntimeUSec"))
    told = vfsd.journal("VFSD_MACHINE=guest", f"MESSAGE_ID={MessageId.REFRESHED}")[-3:]
    assert [int(entry["VFSD_DOWNTIME_USEC"]) for entry in told] == downtimes
    assert all(0 < downtime < 5_000_000 for downtime in downtimes)
    assert "1 virtiofsd replaced" in told[0]["MESSAGE"]
    assert set(first).isdisjoint(await pids(client, machine))
    # a vfsd that comes up finds what there is, and the end is a polite one
    vfsd.restart()
    assert await client.get(machine, MACHINE, "Unit") == "vfsd-machine-guest-2.service"
    assert await client.get(machine, MACHINE, "RefreshDowntimeUSec") == downtimes[-1]
    assert await client.get(share, SHARE, "State") == "active"
    await goes_on(folder)
    await client.call(machine, MACHINE, "Shutdown", "t", 0)
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "stopped", "it stops")
    assert await client.get(machine, MACHINE, "Reason") == "the guest powered off"
    wait_for(lambda: vfsd.units() == [], "no unit is left")
    # what starts next has the first names again, whichever vfsd starts it
    vfsd.restart()
    await client.call(machine, MACHINE, "Start")
    assert running(vfsd) == before
    assert await client.get(machine, MACHINE, "RefreshDowntimeUSec") == 0


async def test_a_guest_that_writes_all_the_time_is_not_left_hanging(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    """Notice of a request may be lost on the way, if seldom; the agent helps then."""
    folder.chmod(0o777)
    machine = await builtin(client, folder)
    await guest_is_ready(vfsd, machine)
    writer = "while dd if=/dev/zero of=/first/busy bs=1 count=100000 conv=notrunc; do :; done"
    await execute(client, machine, "sh", "-c", f"({writer}) >/dev/null 2>&1 </dev/null &")
    busy = folder / "busy"
    await until(busy.exists, "the guest writes")
    for _ in range(15):
        await client.call(machine, MACHINE, "Refresh")
        written = busy.stat().st_mtime_ns
        await until(lambda: busy.stat().st_mtime_ns != written, "the guest writes on", 10)  # noqa: B023


def second_qemu() -> int:
    """The process id of a QEMU that waits for a guest, or has just taken it; 0 if there is none."""
    return _find(
        lambda words: words[0].startswith("/") and "-incoming" in words and "qemu-system" in words[0]
    )


def second_virtiofsd(first: int) -> Callable[[], int]:
    """Finds another virtiofsd than the first and its child."""

    def find() -> int:
        return _find(lambda words: words[0].endswith("/virtiofsd") and "--fd=3" in words, first)

    return find


def _find(fits: Callable[[list[str]], bool], but: int = 0) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            words = (folder / "cmdline").read_text().split("\0")
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            if fits(words) and but not in (int(folder.name), parent):
                return int(folder.name)
    return 0


async def kill_when_there(find: Callable[[], int], delay: float) -> None:
    pid = await until(find, "it comes up", 15)
    await asyncio.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


DELAYS = (0.0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5)


@pytest.mark.parametrize("copied", [False, True])
async def test_a_second_qemu_that_dies_is_not_missed(
    vfsd: Vfsd, client: Client, folder: Path, copied: bool
) -> None:
    machine = await ready(vfsd, client, folder, **(COPIED if copied else {}))
    failed = 0
    for delay in DELAYS:
        old = await pids(client, machine)
        killing = asyncio.ensure_future(kill_when_there(second_qemu, delay))
        try:
            await client.call(machine, MACHINE, "Refresh")
        except BusError as error:
            assert error.name in ("UnitFailed", "MonitorFailed"), error
            assert "goes on as it was" in error.message
            failed += 1
        else:
            killing.cancel()
            break  # it was quicker
        await killing
        assert await pids(client, machine) == old
        assert await client.get(machine, MACHINE, "State") == "running"
        assert not any(unit.endswith("-2.service") for unit in running(vfsd))
        await goes_on(folder)
    assert failed >= 2


async def test_a_second_virtiofsd_that_dies_is_not_missed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await ready(vfsd, client, folder)
    failed = 0
    for delay in DELAYS:
        old = await pids(client, machine)
        killing = asyncio.ensure_future(kill_when_there(second_virtiofsd(old[1]), delay))
        try:
            await client.call(machine, MACHINE, "Refresh")
        except BusError as error:
            assert error.name in ("UnitFailed", "MonitorFailed"), error
            failed += 1
        else:
            killing.cancel()
            break
        await killing
        assert await pids(client, machine) == old
        await goes_on(folder)
    assert failed >= 1


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.3, 0.4])
async def test_a_vfsd_that_dies_in_between_leaves_one_of_the_two(
    vfsd: Vfsd, client: Client, folder: Path, delay: float
) -> None:
    machine = await ready(vfsd, client, folder)
    old = await pids(client, machine)
    calling = asyncio.ensure_future(client.call(machine, MACHINE, "Refresh"))
    await until(second_qemu, "it comes up", 15)
    await asyncio.sleep(delay)
    vfsd.crash()
    with contextlib.suppress(BusError):
        await calling
    now = await pids(client, machine)
    assert now == old or not set(now) & set(old)
    assert await client.get(machine, MACHINE, "State") == "running"
    one = re.compile(r"vfsd-machine-.*\.service")
    wait_for(lambda: len(list(filter(one.match, running(vfsd)))) == 1, "one is left")
    await guest_is_ready(vfsd, machine)
    await goes_on(folder)
    await client.call(machine, MACHINE, "Refresh")
    await goes_on(folder)


async def test_a_kill_overtakes_it(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await ready(vfsd, client, folder, **COPIED)  # which takes longer
    calling = asyncio.ensure_future(client.call(machine, MACHINE, "Refresh"))
    await until(second_qemu, "it comes up", 15)
    await client.call(machine, MACHINE, "Kill")
    await refused(calling, "WrongState", "killed meanwhile")
    assert await client.get(machine, MACHINE, "State") == "stopped"
    wait_for(lambda: vfsd.units() == [], "no unit is left")
    assert second_qemu() == 0


async def test_a_guest_that_stands_still_goes_on_doing_so(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await ready(vfsd, client, folder)
    await client.call(machine, MACHINE, "Pause")
    await client.call(machine, MACHINE, "Refresh")
    assert await client.get(machine, MACHINE, "State") == "paused"
    assert await client.get(machine, MACHINE, "RefreshDowntimeUSec") == 0
    vfsd.restart()
    assert await client.get(machine, MACHINE, "State") == "paused"
    await client.call(machine, MACHINE, "Resume")
    await goes_on(folder)


async def test_a_deleted_file_that_the_guest_has_open_is_named(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    machine = await ready(vfsd, client, folder)
    writer = "while sleep 1; do echo >&5 || >/first/lost; done"
    script = f"exec 5>/first/gone; rm /first/gone; ({writer}) </dev/null >/dev/null 2>&1 &"
    await execute(client, machine, "sh", "-c", script)
    await refused(
        client.call(machine, MACHINE, "Refresh"),
        "UnitFailed",
        "goes on as it was",
        "deleted file open, (/gone)",
    )
    await goes_on(folder)
    assert not (folder / "lost").exists()


async def test_shares_that_were_attached(vfsd: Vfsd, client: Client, folder: Path) -> None:
    folder.chmod(0o777)
    late = folder / "late"
    late.mkdir(mode=0o777)
    late.chmod(0o777)
    share = await client.create_share("late", late)
    machine = await ready(vfsd, client, folder)
    await client.call(machine, MACHINE, "Refresh")
    options = {"MountPoint": Variant("s", "/late")}
    await client.call(machine, MACHINE, "AttachShare", "sa{sv}", "late", options)
    assert await client.get(share, SHARE, "ServiceUnit") == "vfsd-share-late-2.service"
    await client.call(machine, MACHINE, "Refresh")
    assert await client.get(share, SHARE, "ServiceUnit") == "vfsd-share-late.service"
    assert (await execute(client, machine, "sh", "-c", "echo here >/late/x"))[0] == 0
    assert (late / "x").read_text() == "here\n"
    await client.call(machine, MACHINE, "Refresh")
    await client.call(machine, MACHINE, "DetachShare", "s", "late")
    wait_for(lambda: vfsd.get(share, SHARE, "State") == "listening", "it listens again")
    assert (await client.get(share, SHARE, "SocketPath")).endswith("/late.sock")
    assert Path(await client.get(share, SHARE, "SocketPath")).is_socket()
    await goes_on(folder)


async def test_ports_display_and_console_go_over(vfsd: Vfsd, client: Client, folder: Path) -> None:
    options = {
        "Network": ("s", "user"),
        "Forward": ("as", ["tcp:127.0.0.1:2299:22"]),
        "Display": ("s", "vnc"),
    }
    machine = await ready(vfsd, client, folder, **options)
    console_client = await Client.connect(vfsd, descriptors=True)
    console = socket.socket(fileno=await console_client.descriptor(machine, MACHINE, "OpenConsole"))
    console.settimeout(10)
    for _ in range(2):
        await client.call(machine, MACHINE, "Refresh")
        socket.create_connection(("127.0.0.1", 2299), timeout=5).close()
        with socket.socket(socket.AF_UNIX) as display:
            display.settimeout(5)
            display.connect(await client.get(machine, MACHINE, "DisplayPath"))
            assert display.recv(12).startswith(b"RFB ")
    console.sendall(b"echo mo''ved\n")
    heard = b""
    while b"moved" not in heard:
        heard += console.recv(4096)
    assert b"vfsd built-in guest" in heard, "what was written before is replayed"
    again = socket.socket(fileno=await console_client.descriptor(machine, MACHINE, "OpenConsole"))
    again.settimeout(10)
    replayed = b""
    while b"moved" not in replayed:
        replayed += again.recv(4096)
    assert b"vfsd built-in guest" in replayed
    console.close()
    again.close()
    await console_client.close()
    assert vfsd.journal("VFSD_MACHINE=guest", f"MESSAGE_ID={MessageId.REFRESHED}", "PRIORITY=4") == []


async def test_a_disk_goes_over(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await started(client, folder)
    for _ in range(2):
        old = await client.get(machine, MACHINE, "MainPID")
        await client.call(machine, MACHINE, "Refresh")
        assert await client.get(machine, MACHINE, "MainPID") not in (0, old)
    await client.call(machine, MACHINE, "Shutdown", "t", 0)
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "stopped", "it stops")
    assert await client.get(machine, MACHINE, "Reason") == "the guest powered off"


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_firmware_and_images_go_over(vfsd: Vfsd, client: Client, folder: Path, kind: str) -> None:
    """Files that one QEMU at a time may write to: what waits for the guest does not open them for that yet."""
    image = make_image(folder / "tiny.raw")
    if kind == "qcow2":
        image = folder / "tiny.qcow2"
        vfsd.run("qemu-img", "convert", "-O", "qcow2", str(folder / "tiny.raw"), str(image))
    machine = await tiny_machine(
        client, folder, Image=("s", str(image)), Firmware=("s", "uefi"), Memory=("t", 256 << 20)
    )
    await client.call(machine, MACHINE, "Start")
    for _ in range(2):
        old = await client.get(machine, MACHINE, "MainPID")
        await client.call(machine, MACHINE, "Refresh")
        assert await client.get(machine, MACHINE, "MainPID") not in (0, old)
    await client.call(machine, MACHINE, "Suspend")
    await client.call(machine, MACHINE, "Thaw")
    assert await client.get(machine, MACHINE, "State") == "running"


@only_system
async def test_a_bridge_takes_both(vfsd: Vfsd, client: Client, folder: Path, bridge: None) -> None:
    folder.chmod(0o777)
    machine = await builtin(client, folder, Network=("s", f"bridge:{BRIDGE}"))
    await guest_is_ready(vfsd, machine)
    up = f"until ip link set eth0 up; do sleep 0.2; done; ip addr add {GUEST}/24 dev eth0"
    assert (await execute(client, machine, "sh", "-c", up))[0] == 0
    for _ in range(2):
        await client.call(machine, MACHINE, "Refresh")
        ping = f"for i in 1 2 3 4 5 6; do ping -c 1 -W 1 {HOST} && exit; done; exit 1"
        assert (await execute(client, machine, "sh", "-c", ping))[0] == 0
    await client.call(machine, MACHINE, "Kill")


async def test_what_can_not_be_refreshed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await tiny_machine(client, folder)
    await refused(client.call(machine, MACHINE, "Refresh"), "WrongState", "stopped")


@only_system
async def test_a_tap_device_can_not(vfsd: Vfsd, client: Client, folder: Path, tap: Path) -> None:
    machine = await started(client, folder, Network=("s", f"tap:{TAP}"))
    await refused(client.call(machine, MACHINE, "Refresh"), "NotSupported", TAP, "bridge")
    assert await client.get(machine, MACHINE, "State") == "running"
    await client.call(machine, MACHINE, "Kill")


async def test_a_healed_share_can_not_until_a_reset(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await ready(vfsd, client, folder, OnShareFailure=("s", "signal"))
    [share] = await client.get(machine, MACHINE, "Shares")
    os.kill(await client.get(share, SHARE, "MainPID"), signal.SIGKILL)
    await until(lambda: vfsd.get(machine, MACHINE, "Degraded"), "it is degraded")
    await refused(client.call(machine, MACHINE, "Refresh"), "NotSupported", "does not serve")


def configured(vfsd: Vfsd, folder: Path, options: str) -> None:
    """Define the guest by a file; Reload reads it."""
    file = vfsd.config / "machines/guest.toml"
    vfsd.run("mkdir", "-p", str(file.parent))
    file.write_text(
        f'builtin = true\nmemory = "256M"\nnetwork = "none"\naccelerator = "tcg"\n'
        f'[[shares]]\nsource = "{folder}"\nmount_point = "/first"\n{options}\n'
    )
    vfsd.manager("Reload")


@pytest.fixture
def file_of_guest(vfsd: Vfsd) -> Iterator[None]:
    """Takes the file away again."""
    yield
    for name, state, _ in vfsd.manager("ListMachines"):
        if state not in ("stopped", "failed"):
            vfsd.manager("KillMachine", "s", name)
    shutil.rmtree(vfsd.config / "machines")
    vfsd.manager("Reload")


async def test_new_options_of_a_share(vfsd: Vfsd, client: Client, folder: Path, file_of_guest: None) -> None:
    folder.chmod(0o777)
    configured(vfsd, folder, "")
    machine = f"{ROOT}/machine/guest"
    await client.call(machine, MACHINE, "Start")
    await guest_is_ready(vfsd, machine)
    [share] = await client.get(machine, MACHINE, "Shares")
    assert (await execute(client, machine, "touch", "/first/before"))[0] == 0
    assert await client.get(machine, MACHINE, "NeedsRefresh") is False
    configured(vfsd, folder, "read_only = true\n")
    assert await client.get(machine, MACHINE, "NeedsRefresh") is True
    assert await client.get(share, SHARE, "ReadOnly") is False, "it is served as before"
    # taken back, and made again; and a vfsd that comes up sees it too
    configured(vfsd, folder, "")
    assert await client.get(machine, MACHINE, "NeedsRefresh") is False
    configured(vfsd, folder, "read_only = true\n")
    vfsd.restart()
    await until(lambda: vfsd.get(machine, MACHINE, "NeedsRefresh"), "it needs a refresh")
    assert "guest running (outdated)" in " ".join(vfsd.run("vfsctl", vfsd.flag, "status").split())
    vfsd.run("vfsctl", vfsd.flag, "machine", "refresh", "guest")
    assert await client.get(machine, MACHINE, "NeedsRefresh") is False
    assert await client.get(share, SHARE, "ReadOnly") is True
    status, _, errors = await execute(client, machine, "touch", "/first/after")
    assert status != 0
    assert b"Read-only file system" in errors
    assert (folder / "before").exists()


async def test_an_upgrade_is_noticed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await ready(vfsd, client, folder)
    idle = await tiny_machine(client, folder)
    for program in ("/usr/libexec/virtiofsd", "/usr/bin/qemu-system-x86_64"):
        client.signals.seen.clear()
        assert await client.get(machine, MACHINE, "NeedsRefresh") is False
        # as dpkg does: a new file in place of the old one, of the same age
        subprocess.run(["cp", "-p", program, f"{program}.dpkg-new"], check=True)
        Path(f"{program}.dpkg-new").rename(program)
        await until(lambda: client.signals.changes(machine, "NeedsRefresh") == [True], "it is told", 10)
        assert await client.get(idle, MACHINE, "NeedsRefresh") is False
        await client.call(machine, MACHINE, "Refresh")
        assert client.signals.changes(machine, "NeedsRefresh") == [True, False]
        await goes_on(folder)
