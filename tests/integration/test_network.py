"""A guest on a tap device and on a bridge of the host: real interfaces, in the lab's own network namespace."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbus_next import Variant

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, Client, Vfsd, until
from tests.integration.test_failures import fails_to_start
from tests.integration.tiny_guest import started, tiny_machine
from vfsd import mac
from vfsd.guest.command_line import escape

TAP, BRIDGE = "vfsdtap0", "vfsdbr0"
HOST, GUEST = "198.18.7.1", "198.18.7.2"  # RFC 2544: for tests of networks alone
GUESTS = {"one": GUEST, "two": "198.18.7.3"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10)


@pytest.fixture
def tap() -> Iterator[Path]:
    """A tap device; yields its folder in sysfs."""
    ip("tuntap", "add", TAP, "mode", "tap")
    ip("link", "set", TAP, "up")
    yield Path("/sys/class/net") / TAP
    ip("tuntap", "del", TAP, "mode", "tap")


@pytest.fixture
def bridge() -> Iterator[None]:
    """A bridge with an address, which QEMU's helper may use."""
    # an address of its own: else it is that of one of its ports, and changes as they come and go
    ip("link", "add", BRIDGE, "address", "02:00:00:00:07:01", "type", "bridge")
    ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    rules = Path("/etc/qemu/bridge.conf")
    before = rules.read_text() if rules.exists() else None
    rules.parent.mkdir(exist_ok=True)
    rules.write_text(f"allow {BRIDGE}\n")
    yield
    if before is None:
        rules.unlink()
    else:
        rules.write_text(before)
    ip("link", "del", BRIDGE)


@pytest.mark.parametrize("network", ["tap:no-such-tap", "bridge:no-such-br"])
async def test_an_interface_that_does_not_exist(
    vfsd: Vfsd, client: Client, folder: Path, network: str
) -> None:
    path = await tiny_machine(client, folder, Network=("s", network))
    await fails_to_start(vfsd, client, path, "PrerequisiteMissing", network.partition(":")[2], "make the")


@only_system
async def test_a_tap_device(client: Client, folder: Path, tap: Path) -> None:
    assert (tap / "carrier").read_text().strip() == "0"
    path = await started(client, folder, Network=("s", f"tap:{TAP}"))
    assert (tap / "carrier").read_text().strip() == "1", "QEMU holds the other end"
    await client.call(path, MACHINE, "Kill")
    assert (tap / "carrier").read_text().strip() == "0"


def ended(client: Client, path: str) -> bool:
    return "stopped" in [new for _, new, _ in client.signals.states(path)]


@only_system
async def test_guests_on_a_bridge_reach_the_host_and_each_other(
    client: Client, folder: Path, bridge: None
) -> None:
    # with one MAC address, as QEMU gives to all, they would take each other's frames for their own
    guests = dict(zip(GUESTS, reversed(GUESTS), strict=True))
    paths = []
    for name, other in guests.items():
        command = (
            f"until ip link set eth0 up; do sleep 0.2; done; ip addr add {GUESTS[name]}/24 dev eth0; "
            f"cat /sys/class/net/eth0/address >/data/{name}.mac; "
            f"for i in 1 2 3 4 5 6; do ping -c 1 -W 1 {HOST} >/data/{name}.host && break; done; "
            f"for i in $(seq 40); do ping -c 1 -W 1 {GUESTS[other]} >/data/{name}.{other} && break; done; "
            f"touch /data/{name}.done; until [ -e /data/{other}.done ]; do sleep 0.2; done"
        )
        path = await client.create_machine(
            name,
            Builtin=("b", True),
            Memory=("t", 192 << 20),
            Accelerator=("s", "tcg"),
            Network=("s", f"bridge:{BRIDGE}"),
            Append=("s", f"vfsd.exec={escape(command)}"),
            Shares=("a(ssa{sv})", [[str(folder), "/data", {"Cache": Variant("s", "never")}]]),
        )
        await client.call(path, MACHINE, "Start")
        paths.append(path)
    await until(lambda: all(ended(client, path) for path in paths), "the guests end", 120)
    for name, other in guests.items():
        assert "1 packets received" in (folder / f"{name}.host").read_text()
        assert "1 packets received" in (folder / f"{name}.{other}").read_text()
        assert (folder / f"{name}.mac").read_text().strip() == mac.address(mac.host_id(), 0, name)
