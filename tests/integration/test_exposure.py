"""What systemd-analyze(1) thinks of the sandboxes of vfsd and of what it starts, while all of it works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.conftest import only_system, only_user
from tests.integration.harness import Client, Vfsd
from tests.integration.tiny_guest import started

MACHINE_UNIT, SHARE_UNIT = "vfsd-machine-tiny.service", "vfsd-share-tiny.data.service"


def exposure(vfsd: Vfsd, unit: str) -> float:
    """From 0, as little as can be, to 10."""
    said = vfsd.run("systemd-analyze", vfsd.flag, "security", "--no-pager", unit)
    found = re.search(r"Overall exposure level for .*: ([0-9.]+) ", said)
    assert found, said
    return float(found[1])


async def with_share(client: Client, folder: Path, **options: tuple[str, Any]) -> None:
    """Start a machine with one share, whose virtiofsd runs."""
    data = folder / "data"
    data.mkdir()
    share = [str(data), "", {name: Variant(*value) for name, value in options.items()}]
    await started(client, folder, Shares=("a(ssa{sv})", [share]))


@only_system
def test_the_daemons(vfsd: Vfsd) -> None:
    assert exposure(vfsd, "vfsd.service") <= 2.0


@only_system
@pytest.mark.parametrize(
    ("network", "most"),
    [("user", 1.3), ("none", 0.5)],
)
async def test_a_qemus(vfsd: Vfsd, client: Client, folder: Path, network: str, most: float) -> None:
    await started(client, folder, Network=("s", network))
    assert exposure(vfsd, MACHINE_UNIT) <= most


@only_system
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 2.0),
        ({"ReadOnly": ("b", True)}, 2.0),
        ({"Sandbox": ("s", "none")}, 2.0),
        ({"AllowSetuid": ("b", True)}, 2.2),
        ({"AllowDeviceNodes": ("b", True)}, 2.6),  # PrivateDevices= and ProtectClock= take CAP_MKNOD away
        ({"Sandbox": ("s", "namespace")}, 3.0),  # CAP_SYS_ADMIN, mount(2) and namespaces of its own
    ],
)
async def test_a_virtiofsds(
    vfsd: Vfsd, client: Client, folder: Path, options: dict[str, Any], most: float
) -> None:
    await with_share(client, folder, **options)
    assert exposure(vfsd, SHARE_UNIT) <= most


@only_user
async def test_those_of_a_user(vfsd: Vfsd, client: Client, folder: Path) -> None:
    await with_share(client, folder)
    assert exposure(vfsd, SHARE_UNIT) <= 4.5
    for unit in (MACHINE_UNIT, "vfsd.service"):
        print(f"{unit} of a user: {exposure(vfsd, unit)}")  # a user namespace would cost them too much
