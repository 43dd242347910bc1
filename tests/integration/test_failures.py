"""What goes wrong with machines: each failure is named, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd, until
from tests.integration.test_machines import refused
from tests.integration.test_shutdown import assert_clean
from tests.integration.tiny_guest import make_image, started, tiny_machine, walked


async def fails_to_start(vfsd: Vfsd, client: Client, path: str, error: str, *words: str) -> None:
    """Start is refused with this error, the machine is failed and says why, and nothing is left."""
    message = await refused(client.call(path, MACHINE, "Start"), error, *words)
    assert '"tiny' in message or error == "PrerequisiteMissing"
    assert "Traceback" not in message
    assert str(vfsd.runtime) not in message
    assert await client.get(path, MACHINE, "State") in ("failed", "stopped")
    assert walked(client.signals, path) in ([], ["starting", "failed"])
    assert await client.get(path, MACHINE, "MainPID") == 0
    assert_clean(vfsd)


async def test_a_kernel_that_is_none(vfsd: Vfsd, client: Client, folder: Path) -> None:
    empty = folder / "empty"
    empty.touch(mode=0o644)
    for kernel, error, words in (
        ("/no/such/kernel", "InvalidArgs", ["/no/such/kernel", "kernel"]),
        (str(folder), "InvalidArgs", [str(folder), "kernel"]),
        (str(empty), "UnitFailed", ["QEMU said", "kernel"]),
    ):
        client.signals.seen.clear()
        options = {"Kernel": ("s", kernel), "Memory": ("t", 64 << 20), "Accelerator": ("s", "tcg")}
        path = await client.create_machine("tiny", **options)
        await fails_to_start(vfsd, client, path, error, *words)
        assert kernel not in await client.get(path, MACHINE, "Reason")
        await client.call(path, MACHINE, "Remove")


async def test_an_image_that_is_none(vfsd: Vfsd, client: Client, folder: Path) -> None:
    broken = folder / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb" + b"\xff" * 600)
    broken.chmod(0o666)
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    images = [(folder / "none.img", "InvalidArgs", "image"), (broken, "InvalidArgs", "no sound qcow2 image")]
    if vfsd.scope == "user":
        images.append((make_image(closed / "disk.img"), "InvalidArgs", "image"))
    for image, error, word in images:
        client.signals.seen.clear()
        path = await tiny_machine(client, folder, Image=("s", str(image)))
        await fails_to_start(vfsd, client, path, error, word)
        await client.call(path, MACHINE, "Remove")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ExtraArguments": ("as", ["-device", "no-such-device"])}, "no-such-device"),
        ({"ExtraArguments": ("as", ["-no-such-option"])}, "no-such-option"),
        ({"ExtraArguments": ("as", ["-machine", "no,such=thing"])}, "QEMU said"),
        ({"Memory": ("t", 1 << 50)}, "memory"),
    ],
    ids=["device", "option", "machine", "memory"],
)
async def test_what_qemu_refuses(
    vfsd: Vfsd, client: Client, folder: Path, options: dict[str, Any], word: str
) -> None:
    path = await tiny_machine(client, folder, shares=[folder], **options)
    await fails_to_start(vfsd, client, path, "UnitFailed", word)
    assert word in await client.get(path, MACHINE, "Reason")
    # a machine that failed can be started once what was wrong is mended
    for name, signature, value in (
        ("ExtraArguments", "as", []),
        ("Memory", "t", 32 << 20),
        ("Network", "s", "none"),
    ):
        properties = "org.freedesktop.DBus.Properties"
        await client.call(path, properties, "Set", "ssv", MACHINE, name, Variant(signature, value))
    await client.call(path, MACHINE, "Start")
    assert await client.get(path, MACHINE, "Reason") == ""
    await client.call(path, MACHINE, "Kill")


async def test_what_qemu_said_reaches_a_busy_journald_late(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """journald asks what a process is when it gets to its line; of one that has ended it learns no unit."""
    journald = int(Vfsd("system").unit_property("systemd-journald.service", "MainPID"))
    for device in ("no-such-device", "nor-this-one"):  # what the first QEMU said is not the second one's
        path = await tiny_machine(client, folder, ExtraArguments=("as", ["-device", device]))
        os.kill(journald, signal.SIGSTOP)
        try:
            start = asyncio.ensure_future(client.call(path, MACHINE, "Start"))
            await asyncio.sleep(0.5)
        finally:
            os.kill(journald, signal.SIGCONT)
        with pytest.raises(BusError, match=f"QEMU said: -device {device}"):
            await start
        await client.call(path, MACHINE, "Remove")


async def test_a_port_that_is_taken(vfsd: Vfsd, client: Client, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options: dict[str, Any] = {"Network": ("s", "user"), "Forward": ("as", [f"tcp:127.0.0.1:{port}:22"])}
        path = await tiny_machine(client, folder, **options)
        await fails_to_start(vfsd, client, path, "UnitFailed", "QEMU said", str(port))


@pytest.fixture
def no_spice() -> Iterator[None]:
    """A host without QEMU's spice module. It can't be hidden otherwise: QEMU looks in more folders than it is told."""
    [module] = Path("/usr/lib").glob("*/qemu/ui-spice-core.so")
    away = module.rename(module.with_suffix(".away"))
    yield
    away.rename(module)


@pytest.mark.usefixtures("no_spice")
async def test_a_display_whose_module_is_missing(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder, Display=("s", "spice"))
    await fails_to_start(vfsd, client, path, "UnitFailed", "QEMU said", "spice")


async def test_kvm_that_can_not_run_guests(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder, Accelerator=("s", "auto"))
    await client.call(path, MACHINE, "Start")
    if await client.get(path, MACHINE, "AcceleratorInUse") == "kvm":
        pytest.skip("KVM works here")
    assert await client.get(path, MACHINE, "AcceleratorInUse") == "tcg"
    await client.call(path, MACHINE, "Kill")
    await client.call(path, MACHINE, "Remove")
    client.signals.seen.clear()
    path = await tiny_machine(client, folder, Accelerator=("s", "kvm"))
    await fails_to_start(vfsd, client, path, "PrerequisiteMissing", "KVM", "set Accelerator to tcg")


async def test_a_virtiofsd_that_can_not_start_is_blamed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    bad = [
        str(folder),
        "",
        {"Tag": Variant("s", "bad"), "XAttrMap": Variant("s", "no map"), "XAttr": Variant("b", True)},
    ]
    good = ["/srv", "", {"Tag": Variant("s", "good")}]
    path = await tiny_machine(client, folder, Shares=("a(ssa{sv})", [good, bad]))
    await fails_to_start(vfsd, client, path, "UnitFailed", '"tiny.bad"', "virtiofsd")
    assert '"tiny.bad"' in await client.get(path, MACHINE, "Reason")
    shares = await client.get(path, MACHINE, "Shares")
    assert [await client.get(share, SHARE, "State") for share in shares] == ["stopped", "stopped"]


async def test_a_source_that_went_away(vfsd: Vfsd, client: Client, folder: Path) -> None:
    source = folder / "gone"
    source.mkdir()
    path = await tiny_machine(client, folder, shares=[source])
    source.rmdir()
    await fails_to_start(vfsd, client, path, "SourceNotFound", str(source))


async def test_qemu_is_killed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    alone = await client.create_share("alone", folder)
    path = await tiny_machine(client, folder, shares=[folder])
    await client.call(path, MACHINE, "AttachShare", "sa{sv}", "alone", {})
    await client.call(path, MACHINE, "Start")
    os.kill(await client.get(path, MACHINE, "MainPID"), signal.SIGKILL)
    await until(lambda: walked(client.signals, path)[-1] == "failed", "the end is noticed")
    assert "SIGKILL" in client.signals.states(path)[-1][2]
    assert "SIGKILL" in await client.get(path, MACHINE, "Reason")
    assert await client.get(path, MACHINE, "MainPID") == 0
    await until(lambda: walked(client.signals, alone)[-1] == "listening", "the share listens again")
    assert not [unit for unit in vfsd.units() if "tiny" in unit]
    assert not vfsd.systemctl("list-units", "--failed", "--plain", "--no-legend", "vfsd*")
    await client.call(path, MACHINE, "Start")
    assert await client.get(path, MACHINE, "Reason") == ""
    # SIGTERM: QEMU ends by itself, which is no failure
    os.kill(await client.get(path, MACHINE, "MainPID"), signal.SIGTERM)
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the end is noticed")


@pytest.mark.parametrize(
    ("how", "end"), [("KILL", "Kill"), ("KILL", "Shutdown"), ("TERM", "Kill"), ("stop", "Kill")]
)
async def test_virtiofsd_ends_under_a_machine(
    vfsd: Vfsd, client: Client, folder: Path, how: str, end: str
) -> None:
    path = await started(client, folder, shares=[folder, Path("/srv")])
    share, other = await client.get(path, MACHINE, "Shares")
    if how == "stop":
        vfsd.systemctl("stop", await client.get(share, SHARE, "ServiceUnit"))
    else:
        os.kill(virtiofsd(await client.get(share, SHARE, "MainPID")), signal.Signals[f"SIG{how}"])
    await until(lambda: client.signals.changes(path, "Degraded")[-1:] == [True], "the machine is degraded")
    await until(lambda: walked(client.signals, share)[-1:] == ["failed"], "the share failed")
    reason = await client.get(share, SHARE, "Reason")
    assert "virtiofsd" in reason
    if how == "KILL":
        assert "SIGKILL" in reason
    assert await client.get(path, MACHINE, "Degraded") is True
    assert await client.get(path, MACHINE, "State") == "running"
    name = await client.get(share, SHARE, "Name")
    assert name in await client.get(path, MACHINE, "Reason")
    assert await client.get(other, SHARE, "State") == "active"
    assert await client.get(share, SHARE, "Restarts") == 1
    if end == "Kill":
        await client.call(path, MACHINE, "Kill")
    else:
        await client.call(path, MACHINE, "Shutdown", "t", 8_000_000)
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the machine is stopped")
    await until(lambda: walked(client.signals, share)[-1] == "stopped", "the share is stopped")
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)
    assert await client.get(path, MACHINE, "Degraded") is False
    assert client.signals.changes(path, "Degraded") == [True, False]


def virtiofsd(main_pid: int) -> int:
    """The process that serves: in its sandbox virtiofsd is a child of the one that systemd knows."""
    children = Path(f"/proc/{main_pid}/task/{main_pid}/children").read_text().split()
    return int(children[0]) if children else main_pid


async def test_a_refusal_is_one_entry_in_the_journal(vfsd: Vfsd, client: Client, folder: Path) -> None:
    begun = time.time()
    path = await tiny_machine(client, folder)
    with pytest.raises(BusError):
        await client.call(path, MACHINE, "Pause")
    await client.call(path, MACHINE, "Start")
    pid = await client.get(path, MACHINE, "MainPID")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: walked(client.signals, path)[-1] == "failed", "the end is noticed")
    match = [f"_PID={vfsd.main_pid()}", "VFSD_MACHINE=tiny"]
    entries = vfsd.journal(*match, since=begun)
    told = [(e.get("VFSD_OLD_STATE"), e.get("VFSD_NEW_STATE")) for e in entries if "VFSD_NEW_STATE" in e]
    assert told == [("stopped", "starting"), ("starting", "running"), ("running", "failed")]
    field = "OBJECT_SYSTEMD_UNIT" if vfsd.scope == "system" else "OBJECT_SYSTEMD_USER_UNIT"
    assert {e[field] for e in entries if "VFSD_NEW_STATE" in e} == {"vfsd-machine-tiny.service"}
    assert entries[-1]["PRIORITY"] == "4"
    assert "SIGKILL" in entries[-1]["VFSD_REASON"]
    assert len({e["MESSAGE_ID"] for e in entries}) >= 3
    [refusal] = [e for e in entries if "Pause" in e["MESSAGE"]]
    assert "stopped" in refusal["MESSAGE"]
