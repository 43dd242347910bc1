"""Machines on a host without vsock, or with one that doesn't work: they run as they always did.

What vsock does where it works takes a guest in a guest to see; HACKING.md says what was seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

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
