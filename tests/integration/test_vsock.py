"""Machines on a host without vsock, or with one that doesn't work: they run as they always did.

What vsock does where it works takes a guest in a guest to see; HACKING.md says what was seen.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, Client, Vfsd
from tests.integration.tiny_guest import started
from vfsd.vsock import DEVICE


@contextlib.contextmanager
def instead_of_the_device() -> Iterator[None]:
    """A file that can be opened and is no vhost device: what a broken driver is like."""
    if DEVICE.exists():
        pytest.skip("this host has vsock")
    DEVICE.touch()
    DEVICE.chmod(0o666)
    try:
        yield
    finally:
        DEVICE.unlink()


@pytest.mark.parametrize("broken", [False, True])
async def test_a_machine_without_vsock(vfsd: Vfsd, client: Client, folder: Path, broken: bool) -> None:
    if not broken and DEVICE.exists():
        pytest.skip("this host has vsock")
    with instead_of_the_device() if broken else contextlib.nullcontext():
        machine = await started(client, folder, SSH=("b", True), Network=("s", "user"))
    assert await client.get(machine, MACHINE, "State") == "running"
    assert not await client.get(machine, MACHINE, "GuestReady")
    assert (await client.get(machine, MACHINE, "SSHAddress")).startswith("127.0.0.1:")
    pid = await client.get(machine, MACHINE, "MainPID")
    assert "vsock" not in Path(f"/proc/{pid}/cmdline").read_text()
    assert "vsock" not in vfsd.unit_property("vfsd-machine-tiny.service", "OpenFile")
    vfsd.restart()
    assert (await client.get(machine, MACHINE, "SSHAddress")).startswith("127.0.0.1:")
    assert not await client.get(machine, MACHINE, "GuestReady")


@only_system
def test_systemd_listens_for_the_systems_vfsd(vfsd: Vfsd) -> None:
    assert not shared_with_systemd(vfsd), "there is no vsock in a lab"
    folder = Path("/run/systemd/system/vfsd-vsock.socket.d")
    folder.mkdir(parents=True)
    (folder / "here.conf").write_text("[Unit]\nConditionPathExists=\n")
    try:
        vfsd.systemctl("daemon-reload")
        vfsd.restart()
        assert vfsd.unit_property("vfsd-vsock.socket", "ActiveState") == "active"
        assert len(shared_with_systemd(vfsd)) == 1
    finally:
        shutil.rmtree(folder)
        vfsd.systemctl("daemon-reload")
        vfsd.systemctl("stop", "vfsd-vsock.socket")
        vfsd.restart()
    assert not shared_with_systemd(vfsd)


def shared_with_systemd(vfsd: Vfsd) -> set[str]:
    """Sockets that the first process has too: those which it listens at for vfsd."""

    def sockets(pid: int) -> set[str]:
        found = set()
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(str(descriptor.readlink()))
        return {name for name in found if name.startswith("socket:")}

    return sockets(1) & sockets(vfsd.main_pid())
