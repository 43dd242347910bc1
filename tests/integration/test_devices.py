"""Shares whose source goes away and comes back: a disk that is unmounted or unplugged, a directory that is removed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd, until, wait_for
from tests.integration.sharing import closed, connected, serves, wait_active, wait_state
from tests.integration.test_hotplug import builtin, execute, guest_is_ready
from tests.integration.tiny_guest import started, tiny_machine
from vfsd.journal import MessageId

SOON = 1.0
"""Seconds from an event to the signal that tells of it."""


class Disk:
    """A file system that root mounts and unmounts: in memory, or on a loop device."""

    def __init__(self, place: Path, owner: int) -> None:
        self.place = place
        self.owner = owner

    def mount(self) -> None:
        """Mount a new, empty file system."""
        self._mount("-t", "tmpfs", "disk")

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments, self.place], check=True)
        os.chown(self.place, self.owner, self.owner)
        self.place.chmod(0o777)

    def umount(self) -> None:
        subprocess.run(["umount", self.place], check=True)

    def close(self) -> None:
        while os.path.ismount(self.place):
            subprocess.run(["umount", "--lazy", self.place], check=True)


@pytest.fixture
def disk(vfsd: Vfsd, folder: Path) -> Iterator[Disk]:
    """A mounted disk; what lies below its mount point is not to be seen by anybody."""
    place = folder / "my disk"
    place.mkdir()
    (place / "below").touch()
    made = Disk(place, vfsd.owner_uid)
    made.mount()
    yield made
    made.close()


async def becomes(client: Client, path: str, state: str, since: float) -> str:
    """Wait until a share's state is told, which must be soon after an event; returns the reason."""

    def told() -> bool:
        return bool(states := client.signals.states(path)) and states[-1][1] == state

    await until(told, f"{path} is {state}")
    assert time.monotonic() - since < SOON
    return client.signals.states(path)[-1][2]


async def test_a_share_follows_its_disk(vfsd: Vfsd, client: Client, disk: Disk) -> None:
    path = await client.create_share("src", disk.place)
    socket = vfsd.runtime / "share/src.sock"
    for _ in range(2):
        since = time.monotonic()
        disk.umount()
        reason = await becomes(client, path, "unavailable", since)
        comma = "," if vfsd.scope == "user" else ""
        assert f'the source of share "src"{comma} is not there' in reason
        assert (str(disk.place) in reason) == (vfsd.scope == "user"), "no path is broadcast"
        assert "is not mounted" in reason
        assert await client.get(path, SHARE, "Reason") == reason
        await until(lambda: not socket.exists(), "nobody can connect")
        with pytest.raises(BusError, match="is not mounted") as caught:
            await client.call(path, SHARE, "Start")
        assert caught.value.name == "SourceNotFound"
        since = time.monotonic()
        disk.mount()
        await becomes(client, path, "listening", since)
        assert await client.get(path, SHARE, "Reason") == ""
    (disk.place / "on the disk").touch()
    with connected(socket):
        pid = wait_active(vfsd, path)
        wait_for(lambda: serves(pid, disk.place), "the disk is served")


async def test_a_client_keeps_what_it_has(vfsd: Vfsd, client: Client, disk: Disk) -> None:
    path = await client.create_share("src", disk.place)
    (disk.place / "first").touch()
    socket = vfsd.runtime / "share/src.sock"
    with connected(socket):
        pid = await asyncio.to_thread(wait_active, vfsd, path)
        since = time.monotonic()
        disk.umount()  # which nobody is busy with: virtiofsd has it by a mount of its own
        await becomes(client, path, "unavailable", since)
        assert await client.get(path, SHARE, "MainPID") == pid
        disk.mount()
        await until(lambda: "there again" in vfsd.get(path, SHARE, "Reason"), "it is noticed")
        assert await client.get(path, SHARE, "State") == "unavailable"
        with pytest.raises(BusError, match="end that one first"):
            await client.call(path, SHARE, "Start")
    since = time.monotonic()
    await becomes(client, path, "listening", since)
    with connected(socket):
        pid = await asyncio.to_thread(wait_active, vfsd, path)
        await asyncio.to_thread(wait_for, lambda: serves(pid, disk.place), "the disk that is there is served")


async def test_what_lies_below_a_mount_point_is_never_served(vfsd: Vfsd, client: Client, disk: Disk) -> None:
    """Neither by systemd alone, nor by a vfsd that comes up without the disk."""
    path = await client.create_share("src", disk.place, Persistent=("b", True))
    socket = vfsd.runtime / "share/src.sock"
    service = "vfsd-share-src.service"
    os.kill(vfsd.main_pid(), signal.SIGSTOP)
    try:
        disk.umount()
        with contextlib.suppress(FileNotFoundError, ConnectionError), connected(socket) as connection:
            assert closed(connection)
        assert vfsd.unit_property(service, "ExecMainPID") == "0"
    finally:
        os.kill(vfsd.main_pid(), signal.SIGCONT)
    wait_state(vfsd, path, "unavailable")
    # as after a reboot
    vfsd.systemctl("stop", "vfsd.service")
    shutil.rmtree(vfsd.runtime)
    vfsd.systemctl("start", "vfsd.service")
    wait_state(vfsd, path, "unavailable")
    assert "is not mounted" in vfsd.get(path, SHARE, "Reason")
    assert not socket.exists()
    disk.mount()
    wait_state(vfsd, path, "listening")
    # what systemd knows of the mount, after its units were read again too
    mount = subprocess.run(
        ["systemd-escape", "--path", "--suffix=mount", disk.place], check=True, capture_output=True, text=True
    ).stdout.strip()
    for _ in range(2):
        for unit in ("vfsd-share-src.socket", service):
            assert mount in shlex.split(vfsd.unit_property(unit, "After"))
        assert shlex.split(vfsd.unit_property("vfsd-share-src.socket", "StopPropagatedFrom")) == [mount]
        asserted = f"AssertPathIsMountPoint={vfsd.runtime}/mount-point/src"
        assert asserted in vfsd.systemctl("cat", service)
        vfsd.systemctl("daemon-reload")
    assert (vfsd.runtime / "mount-point/src").readlink() == disk.place


async def test_another_place_is_served_only_on_request(vfsd: Vfsd, client: Client, disk: Disk) -> None:
    path = await client.create_share("src", disk.place)
    since = time.monotonic()
    disk.umount()
    await becomes(client, path, "unavailable", since)
    await client.call(path, SHARE, "Stop")
    assert await client.get(path, SHARE, "State") == "stopped"
    disk.mount()
    disk.umount()
    await asyncio.sleep(0.2)
    assert await client.get(path, SHARE, "State") == "stopped"
    await client.call(path, SHARE, "Start")  # what was below the mount point is meant now
    with connected(vfsd.runtime / "share/src.sock"):
        pid = await asyncio.to_thread(wait_active, vfsd, path)
        await asyncio.to_thread(wait_for, lambda: serves(pid, disk.place), "that is served")


@pytest.mark.parametrize("how", ["removed", "moved", "parent moved", "replaced"])
async def test_a_directory_that_goes_and_comes(vfsd: Vfsd, client: Client, folder: Path, how: str) -> None:
    parent, away = folder / "a b", folder / "away"
    source = parent / "source"
    vfsd.run("mkdir", "-p", str(source))
    path = await client.create_share("src", source)
    moved = {"removed": None, "moved": source, "parent moved": parent, "replaced": source}[how]
    since = time.monotonic()
    if moved:
        moved.rename(away)
    else:
        source.rmdir()
    reason = await becomes(client, path, "unavailable", since)
    comma = "," if vfsd.scope == "user" else ""  # behind the path, which is not broadcast elsewhere
    assert f'the source of share "src"{comma} does not exist' in reason
    since = time.monotonic()
    if moved and how != "replaced":
        away.rename(moved)
    else:
        vfsd.run("mkdir", str(source))
    await becomes(client, path, "listening", since)
    with connected(vfsd.runtime / "share/src.sock"):
        pid = await asyncio.to_thread(wait_active, vfsd, path)
        await asyncio.to_thread(wait_for, lambda: serves(pid, source), "it is served")


async def test_a_guest_keeps_its_file_system_and_is_told(vfsd: Vfsd, client: Client, disk: Disk) -> None:
    machine = await started(client, disk.place.parent, shares=[disk.place])
    [path] = await client.get(machine, MACHINE, "Shares")
    pid = await client.get(path, SHARE, "MainPID")
    since = time.time()
    begun = time.monotonic()
    disk.umount()
    await becomes(client, path, "unavailable", begun)
    assert client.signals.changes(machine, "Degraded")[-1] is True
    assert "is not mounted" in await client.get(machine, MACHINE, "Reason")
    [entry] = vfsd.journal("VFSD_MACHINE=tiny", "VFSD_NEW_STATE=unavailable", since=since)
    assert "the source of share" in entry["VFSD_REASON"]
    assert str(disk.place) in entry["VFSD_REASON"], "the journal has the path"
    assert entry["PRIORITY"] == "4"
    assert (await client.get(machine, MACHINE, "State"), await client.get(path, SHARE, "MainPID")) == (
        "running",
        pid,
    )
    # found again as it was
    vfsd.restart()
    wait_state(vfsd, path, "unavailable")
    assert vfsd.get(machine, MACHINE, "Degraded") is True
    disk.mount()  # another one: the guest has the first
    wait_for(lambda: "there again" in vfsd.get(path, SHARE, "Reason"), "it is noticed")
    assert vfsd.get(path, SHARE, "State") == "unavailable"
    assert vfsd.get(machine, MACHINE, "Degraded") is True
    # which another virtiofsd cures
    vfsd.call(machine, MACHINE, "Refresh")
    assert vfsd.get(path, SHARE, "State") == "active"
    assert vfsd.get(path, SHARE, "Reason") == ""
    assert vfsd.get(machine, MACHINE, "Degraded") is False
    assert serves(vfsd.get(path, SHARE, "MainPID"), disk.place)
    vfsd.manager("KillMachine", "s", "tiny")


async def test_a_guest_is_healed_with_the_disk_that_came_back(vfsd: Vfsd, client: Client, disk: Disk) -> None:
    shares = [[str(disk.place), "/first", {}]]
    machine = await builtin(client, disk.place, OnShareFailure=("s", "heal"), Shares=("a(ssa{sv})", shares))
    await guest_is_ready(vfsd, machine)
    [path] = await client.get(machine, MACHINE, "Shares")
    (disk.place / "which").write_text("first\n")
    assert (await execute(client, machine, "cat", "/first/which"))[1] == b"first\n"
    for now, then in (("first", "second"), ("second", "third")):
        since, begun = time.time(), time.monotonic()
        disk.umount()
        await becomes(client, path, "unavailable", begun)
        # it is not cut off: what it has open goes on
        assert (await execute(client, machine, "cat", "/first/which"))[1] == f"{now}\n".encode()
        assert await client.get(machine, MACHINE, "Degraded") is True
        disk.mount()
        (disk.place / "which").write_text(f"{then}\n")
        await until(lambda: client.signals.changes(machine, "Degraded")[-1] is False, "it is healed")
        pid = await client.get(path, SHARE, "MainPID")
        assert (await execute(client, machine, "cat", "/first/which"))[1] == f"{then}\n".encode()
        assert await client.get(path, SHARE, "State") == "active"
        reason = await client.get(path, SHARE, "Reason")
        assert reason.startswith("healed after ")
        assert "is not mounted" in reason
        assert await client.get(path, SHARE, "Restarts") == 0
        await asyncio.sleep(0.5)  # the look that follows a healing has been
        assert await client.get(path, SHARE, "MainPID") == pid, "it is healed once"
        assert (
            len(
                vfsd.journal("VFSD_SHARE=guest.my_disk", f"MESSAGE_ID={MessageId.HEALING.value}", since=since)
            )
            == 1
        )


@only_system
@pytest.mark.parametrize("policy", ["stop", "restart"])
async def test_a_machine_that_can_not_be_without_its_disk(
    vfsd: Vfsd, client: Client, disk: Disk, policy: str
) -> None:
    machine = await started(client, disk.place.parent, shares=[disk.place], OnShareFailure=("s", policy))
    disk.umount()
    idle = {"stop": "stopped", "restart": "failed"}[policy]
    await until(lambda: idle in [new for _, new, _ in client.signals.states(machine)], "it is idle")
    assert "is not mounted" in await client.get(machine, MACHINE, "Reason")
    with pytest.raises(BusError, match=f'"{disk.place}", the source of share "tiny.my_disk"') as caught:
        await client.call(machine, MACHINE, "Start")
    assert caught.value.name == "SourceNotFound"
    seen = len(client.signals.states(machine))
    disk.mount()
    if policy == "restart":
        await until(lambda: client.signals.states(machine)[-1][1] == "running", "it runs with its disk")
    else:
        await asyncio.sleep(0.3)
        assert len(client.signals.states(machine)) == seen


async def test_autostart_waits_for_the_disk(vfsd: Vfsd, client: Client, disk: Disk) -> None:
    always = ("b", True)
    machine = await tiny_machine(
        client, disk.place.parent, shares=[disk.place], Autostart=always, Persistent=always
    )
    await client.call(machine, MACHINE, "Start")  # from here on it is known where the source lies
    await client.call(machine, MACHINE, "Kill")
    disk.umount()
    # as after a reboot
    vfsd.systemctl("stop", "vfsd.service")
    shutil.rmtree(vfsd.runtime)
    vfsd.systemctl("start", "vfsd.service")
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "failed", "it was tried")
    assert "is not mounted" in vfsd.get(machine, MACHINE, "Reason")
    disk.mount()
    wait_for(lambda: vfsd.get(machine, MACHINE, "State") == "running", "it runs with its disk")
    [path] = vfsd.get(machine, MACHINE, "Shares")
    assert serves(vfsd.get(path, SHARE, "MainPID"), disk.place)


class LoopDisk(Disk):
    """An ext2 file system on a loop device: a real block device, with a real UUID."""

    CONTROL = Path("/dev/loop-control")
    ADD, REMOVE = 0x4C80, 0x4C81
    """LOOP_CTL_ADD and LOOP_CTL_REMOVE of linux/loop.h."""

    def __init__(self, place: Path, owner: int, images: Path) -> None:
        super().__init__(place, owner)
        self.images = images
        if not self.CONTROL.exists():
            os.mknod(self.CONTROL, 0o600 | stat.S_IFCHR, os.makedev(10, 237))
        with self.CONTROL.open("rb") as control:
            # the numbers are those of the whole host, other labs among them
            self.number = fcntl.ioctl(control, self.ADD, random.randrange(1 << 10, 1 << 19))
        self.node = Path(f"/dev/loop{self.number}")
        os.mknod(self.node, 0o600 | stat.S_IFBLK, os.makedev(7, self.number))

    def insert(self, name: str) -> str:
        """Put a disk in, a new one if there was none of that name; returns its UUID."""
        image = self.images / name
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(1 << 20)
            subprocess.run(["busybox", "mke2fs", "-F", image], check=True, capture_output=True)
        subprocess.run(["losetup", self.node, image], check=True)
        subprocess.run(["udevadm", "settle", "--timeout=10"], check=True)
        uuid = image.read_bytes()[1024 + 104 : 1024 + 120].hex()  # s_uuid of the superblock
        return "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:]))

    def mount(self) -> None:
        self._mount(str(self.node))

    def pull(self) -> None:
        """Take the disk out."""
        subprocess.run(["losetup", "--detach", self.node], check=True)

    def close(self) -> None:
        super().close()
        with contextlib.suppress(subprocess.CalledProcessError):
            self.pull()
        with self.CONTROL.open("rb") as control:
            fcntl.ioctl(control, self.REMOVE, self.number)
        self.node.unlink()


@pytest.fixture
def udevd() -> Iterator[None]:
    """The real udevd, which a container does not start by itself because it may not write to /sys."""
    unit = "test-udevd.service"
    command = [
        "systemd-run",
        "--quiet",
        f"--unit={unit}",
        "--property=Type=notify",
        "/usr/lib/systemd/systemd-udevd",
    ]
    subprocess.run(command, check=True)
    yield
    subprocess.run(["systemctl", "stop", unit], check=True)


@pytest.fixture
def loop(vfsd: Vfsd, folder: Path, udevd: None) -> Iterator[LoopDisk]:
    place = folder / "disk"
    place.mkdir()
    made = LoopDisk(place, vfsd.owner_uid, folder)
    yield made
    made.close()


async def test_another_disk_in_its_place_is_not_its_disk(vfsd: Vfsd, client: Client, loop: LoopDisk) -> None:
    uuid = loop.insert("first")
    loop.mount()
    path = await client.create_share("src", loop.place, Persistent=("b", True))
    since = time.monotonic()
    loop.umount()
    reason = await becomes(client, path, "unavailable", since)
    assert f"its file system (device loop{loop.number}) is not mounted" in reason
    loop.pull()
    loop.insert("second")
    loop.mount()
    await until(lambda: "another file system" in vfsd.get(path, SHARE, "Reason"), "it is noticed")
    assert f"({uuid})" in await client.get(path, SHARE, "Reason")
    assert await client.get(path, SHARE, "State") == "unavailable"
    loop.umount()
    loop.pull()
    assert loop.insert("first") == uuid
    since = time.monotonic()
    loop.mount()
    await becomes(client, path, "listening", since)


@only_system
async def test_udev_tells_of_kvm(vfsd: Vfsd, udevd: None) -> None:
    """The event is a real one of the kernel's, asked for as udevadm trigger would if /sys could be written to."""
    vfsd.restart()  # libudev hears nothing for whoever began to listen when there was no udevd
    since = time.time()
    ask = (
        "mount -t sysfs none /mnt && mount -o remount,rw /mnt && "
        "echo change >/mnt/devices/virtual/misc/kvm/uevent"
    )
    message = f"MESSAGE_ID={MessageId.KVM_CHANGED}"

    def told() -> object:
        # once more each time: an event before udevd listens is lost
        subprocess.run(["unshare", "--mount", "sh", "-c", ask], check=True)
        return vfsd.journal(message, "MESSAGE=/dev/kvm: change", since=since)

    wait_for(told, "vfsd says so")
