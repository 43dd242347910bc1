"""Machines over the bus: every member, states and signals in order, shares, calls at once."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.harness import (
    MACHINE,
    MANAGER,
    ROOT,
    SHARE,
    BusError,
    Client,
    Vfsd,
    process_exists,
    until,
    wait_for,
)
from tests.integration.tiny_guest import make_image, started, tiny_machine, walked
from vfsd.limits import LIMITS


def machine_path(name: str) -> str:
    return f"{ROOT}/machine/{name}"


async def refused(call: Any, name: str, *words: str) -> str:
    """Assert that a call is refused with this error, and that its message has these words."""
    with pytest.raises(BusError) as caught:
        await call
    assert caught.value.name == name, caught.value
    for word in words:
        assert word in caught.value.message
    return caught.value.message


# every member, as a person types it


def test_all_of_a_machine_with_busctl(vfsd: Vfsd, folder: Path) -> None:
    image = make_image(folder / "disk.img")
    create = ["tiny", "6", "Image", "s", str(image), "Memory", "t", "33554432", "Network", "s", "none"]
    create += ["Accelerator", "s", "tcg", "CPUs", "u", "2"]
    create += ["Shares", "a(ssa{sv})", "1", str(folder), "/data", "1", "ReadOnly", "b", "true"]
    path = vfsd.manager("CreateMachine", "sa{sv}", *create)
    assert path == machine_path("tiny")
    assert vfsd.manager("GetMachine", "s", "tiny") == path
    assert vfsd.manager("ListMachines") == [["tiny", "stopped", path]]
    [[share_name, share_state, source, share]] = vfsd.manager("ListShares")
    assert (share_name, share_state, source) == (f"tiny.{folder.name}", "stopped", str(folder))

    get = {name: vfsd.get(path, MACHINE, name) for name in properties(vfsd, path)}
    assert get == {
        "Name": "tiny",
        "State": "stopped",
        "Reason": "",
        "Owner": vfsd.owner_uid,
        "MainPID": 0,
        "Unit": "vfsd-machine-tiny.service",
        "Slice": "vfsd-tiny.slice",
        "Shares": [share],
        "Degraded": False,
        "GuestReady": False,
        "GuestSystem": "",
        "ConsolePath": "",
        "DisplayPath": "",
        "AcceleratorInUse": "",
        "StateChangedUSec": get["StateChangedUSec"],
        "Persistent": False,
        "Memory": 33554432,
        "CPUs": 2,
        "Kernel": "",
        "Initrd": "",
        "Append": "",
        "RootShare": "",
        "Image": str(image),
        "Firmware": "bios",
        "Accelerator": "tcg",
        "Builtin": False,
        "Network": "none",
        "Forward": [],
        "Display": "none",
        "OnShareFailure": "signal",
        "Autostart": False,
        "ExtraArguments": [],
        **dict.fromkeys(LIMITS, 0),
        "ShutdownTimeoutUSec": 90_000_000,
        "RootOverlay": False,
        "Credentials": {},
        "CredentialFiles": {},
        "SSH": False,
        "SparePorts": 8,
        "NeedsRefresh": False,
        "RefreshDowntimeUSec": 0,
        "Suspended": False,
        "SSHAddress": "",
    }
    assert vfsd.get(share, SHARE, "ReadOnly") is True
    assert vfsd.get(share, SHARE, "MountPoint") == "/data"
    assert vfsd.get(share, SHARE, "Machine") == path

    vfsd.manager("StartMachine", "s", "tiny")
    assert vfsd.get(path, MACHINE, "State") == "running"
    assert vfsd.get(path, MACHINE, "AcceleratorInUse") == "tcg"
    pid = vfsd.get(path, MACHINE, "MainPID")
    assert b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert str(pid) == vfsd.unit_property("vfsd-machine-tiny.service", "MainPID")
    assert Path(vfsd.get(path, MACHINE, "ConsolePath")).is_socket()
    assert vfsd.get(share, SHARE, "State") == "active"
    for member, state in (("Pause", "paused"), ("Resume", "running"), ("Reset", "running")):
        assert vfsd.call(path, MACHINE, member) == []
        assert vfsd.get(path, MACHINE, "State") == state
    vfsd.manager("KillMachine", "s", "tiny")
    assert vfsd.get(path, MACHINE, "State") == "stopped"
    assert vfsd.units() == []
    vfsd.call(path, MACHINE, "Start")
    vfsd.manager("ShutdownMachine", "s", "tiny")
    wait_for(lambda: vfsd.get(path, MACHINE, "State") == "stopped", "the guest powers off")
    vfsd.call(path, MACHINE, "Start")
    vfsd.call(path, MACHINE, "Shutdown", "t", "1000000")
    wait_for(lambda: vfsd.get(path, MACHINE, "State") == "stopped", "the guest powers off")
    vfsd.call(path, MACHINE, "Remove")
    assert vfsd.manager("ListMachines") == []
    assert vfsd.manager("ListShares") == []
    assert vfsd.leftovers() == []


def properties(vfsd: Vfsd, path: str) -> list[str]:
    out = vfsd.run("busctl", vfsd.flag, "--json=short", "introspect", "org.vfsd1", path, MACHINE)
    return [line.split()[0][1:] for line in table(out) if line.split()[1] == "property"]


def table(out: str) -> list[str]:
    if out.startswith("["):
        return [f".{m['name']} {m['type']}" for m in json.loads(out)]
    return [line for line in out.splitlines()[1:] if line.startswith(".")]


async def test_a_machine_that_is_removed_through_the_manager(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    path = await tiny_machine(client, folder, shares=[folder], Persistent=("b", True))
    assert await client.get(path, MACHINE, "Persistent") is True
    assert list((vfsd.state / "definitions").glob("machine-tiny*"))
    await client.manager("RemoveMachine", "s", "tiny")
    removed = [m.body for m in client.signals.seen if m.member == "InterfacesRemoved"]
    assert [body[0] for body in removed] == [f"{ROOT}/share/{escaped('tiny.' + folder.name)}", path]
    assert all(m.path == ROOT for m in client.signals.seen if m.member.startswith("Interfaces"))
    assert vfsd.leftovers() == []
    await refused(client.manager("GetMachine", "s", "tiny"), "NoSuchMachine", "tiny")
    await refused(client.call(path, MACHINE, "Start"), "UnknownObject")
    for member in ("StartMachine", "ShutdownMachine", "KillMachine", "RemoveMachine"):
        await refused(client.manager(member, "s", "tiny"), "NoSuchMachine", "tiny")


def escaped(name: str) -> str:
    return "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in name)


# states and signals


async def test_states_and_signals_come_in_order(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder, shares=[folder])
    [share] = await client.get(path, MACHINE, "Shares")
    await client.call(path, MACHINE, "Start")
    await client.call(path, MACHINE, "Pause")
    await client.call(path, MACHINE, "Resume")
    await client.call(path, MACHINE, "Reset")
    await client.call(path, MACHINE, "Pause")
    await client.call(path, MACHINE, "Kill")
    assert walked(client.signals, path) == ["starting", "running", "paused", "running", "paused", "stopped"]
    await until(lambda: walked(client.signals, share)[-1:] == ["stopped"], "the share is stopped")
    assert walked(client.signals, share)[:1] == ["listening"] or walked(client.signals, share)[:1] == [
        "active"
    ]
    assert_told_before_signalled(client, path)
    assert_told_before_signalled(client, share)
    assert client.signals.states(path)[-1][2] == "killed on request"
    # each value is told once: a change that is none is not announced
    for name in ("State", "MainPID", "AcceleratorInUse", "ConsolePath"):
        values = client.signals.changes(path, name)
        assert all(a != b for a, b in itertools.pairwise(values)), (name, values)
    assert client.signals.changes(path, "AcceleratorInUse") == ["tcg", ""]
    assert client.signals.changes(path, "MainPID")[-1] == 0
    await client.call(path, MACHINE, "Remove")


def assert_told_before_signalled(client: Client, path: str) -> None:
    """PropertiesChanged with the new State comes before each StateChanged, and StateChangedUSec with it."""
    told = ""
    for message in client.signals.seen:
        if message.path != path:
            continue
        if message.member == "PropertiesChanged" and "State" in message.body[1]:
            told = message.body[1]["State"].value
            assert "StateChangedUSec" in message.body[1]
        if message.member == "StateChanged":
            assert message.body[1] == told, message.body


async def test_what_is_asked_in_the_wrong_state_is_refused(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder)
    await refused(client.call(path, MACHINE, "Shutdown", "t", 0), "WrongState", '"tiny"', "stopped")
    for member in ("Kill", "Pause", "Resume", "Reset"):
        await refused(client.call(path, MACHINE, member), "WrongState", '"tiny"', "stopped")
    await client.call(path, MACHINE, "Start")
    for member in ("Start", "Resume", "Remove"):
        await refused(client.call(path, MACHINE, member), "WrongState", '"tiny"', "running")
    await refused(client.manager("RemoveMachine", "s", "tiny"), "WrongState", "running")
    await refused(set_property(client, path, "Memory", Variant("t", 1 << 30)), "WrongState", "running")
    await client.call(path, MACHINE, "Pause")
    await refused(client.call(path, MACHINE, "Pause"), "WrongState", "paused")
    await refused(client.call(path, MACHINE, "Start"), "WrongState", "paused")
    await client.call(path, MACHINE, "Reset")
    assert await client.get(path, MACHINE, "State") == "paused"
    await client.call(path, MACHINE, "Kill")
    await refused(client.call(path, MACHINE, "Kill"), "WrongState", "stopped")
    assert await client.get(path, MACHINE, "State") == "stopped"


async def set_property(
    client: Client, path: str, name: str, value: Variant, interface: str = MACHINE
) -> None:
    await client.call(path, "org.freedesktop.DBus.Properties", "Set", "ssv", interface, name, value)


async def test_options_are_set_while_stopped(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder)
    wanted = {
        "Memory": Variant("t", 64 << 20),
        "CPUs": Variant("u", 2),
        "Append": Variant("s", "quiet"),
        "Autostart": Variant("b", True),
        "ExtraArguments": Variant("as", ["-rtc", "base=utc"]),
        "ShutdownTimeoutUSec": Variant("t", 5_000_000),
        "Network": Variant("s", "user"),
        "Forward": Variant("as", ["tcp:127.0.0.1:42222:22"]),
        "Display": Variant("s", "vnc"),
        "Firmware": Variant("s", "uefi"),
    }
    for name, value in wanted.items():
        await set_property(client, path, name, value)
        assert await client.get(path, MACHINE, name) == value.value
        hidden = vfsd.scope == "system" and name in ("Append", "ExtraArguments")
        assert client.signals.changes(path, name) == ([] if hidden else [value.value])
        assert client.signals.invalidations(path).count(name) == hidden
    vfsd.restart()
    for name, value in wanted.items():
        assert await client.get(path, MACHINE, name) == value.value
    assert await client.get(path, MACHINE, "State") == "stopped"  # Autostart is for boots
    await refused(set_property(client, path, "Memory", Variant("t", 5)), "InvalidArgs")
    await refused(set_property(client, path, "Memory", Variant("s", "1G")), "InvalidArgs")
    await refused(
        set_property(client, path, "Firmware", Variant("s", "coreboot")), "InvalidArgs", "bios, uefi"
    )
    await refused(set_property(client, path, "Builtin", Variant("b", True)), "InvalidArgs", "Image")
    await refused(set_property(client, path, "State", Variant("s", "running")), "PropertyReadOnly")
    await refused(set_property(client, path, "Persistent", Variant("b", True)), "PropertyReadOnly")
    await refused(set_property(client, path, "Nothing", Variant("b", True)), "UnknownProperty")
    assert await client.get(path, MACHINE, "Memory") == 64 << 20


# bad input


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"Nothing": ("b", True)}, "InvalidArgs", "Nothing"),
        ({"Memory": ("u", 1 << 30)}, "InvalidArgs", "Memory"),
        ({"Memory": ("t", 1)}, "InvalidArgs", "16777216"),
        ({"CPUs": ("u", 0)}, "InvalidArgs", "processors"),
        ({"Kernel": ("s", "boot/vmlinuz")}, "InvalidArgs", "absolute"),
        ({"Initrd": ("s", "/initrd")}, "InvalidArgs", "Kernel"),
        ({"Builtin": ("b", True), "Kernel": ("s", "/vmlinuz")}, "InvalidArgs", "Builtin"),
        ({"Network": ("s", "token-ring")}, "InvalidArgs", "token-ring"),
        ({"Network": ("s", "bridge:br0,x=y")}, "InvalidArgs", "br0"),
        ({"Network": ("s", "none"), "Forward": ("as", ["tcp::1:1"])}, "InvalidArgs", "Network user"),
        ({"Forward": ("as", ["tcp:127.0.0.1:22"])}, "InvalidArgs", "tcp:127.0.0.1:2222:22"),
        ({"Forward": ("as", ["tcp:127.0.0.1:99999:22"])}, "InvalidArgs", "99999"),
        ({"Forward": ("as", ["tcp:1.2.3.4,x=y:22:22"])}, "InvalidArgs", "form"),
        ({"Display": ("s", "sdl")}, "InvalidArgs", "none, spice, vnc"),
        ({"Accelerator": ("s", "hax")}, "InvalidArgs", "auto, kvm, tcg"),
        ({"ShutdownTimeoutUSec": ("t", 0)}, "InvalidArgs", "no time"),
        ({"Shares": ("as", [])}, "InvalidArgs", "a(ssa{sv})"),
        ({"Shares": ("a(ssa{sv})", [["srv", "", {}]])}, "InvalidArgs", "absolute"),
        ({"Shares": ("a(ssa{sv})", [["/no/such", "", {}]])}, "SourceNotFound", "/no/such"),
        ({"Shares": ("a(ssa{sv})", [["/etc/hostname", "", {}]])}, "InvalidArgs", "no directory"),
        ({"Shares": ("a(ssa{sv})", [["/srv", "data", {}]])}, "InvalidArgs", "absolute"),
        (
            {"Shares": ("a(ssa{sv})", [["/srv", "", {"Persistent": Variant("b", True)}]])},
            "InvalidArgs",
            "Persistent",
        ),
        ({"Shares": ("a(ssa{sv})", [["/srv", "", {"Cache": Variant("b", True)}]])}, "InvalidArgs", "Cache"),
        (
            {"Shares": ("a(ssa{sv})", [["/srv", "", {"Tag": Variant("s", "x" * 37)}]])},
            "InvalidArgs",
            "36 bytes",
        ),
        (
            {"Shares": ("a(ssa{sv})", [[p, "", {"Tag": Variant("s", "x")}] for p in ("/srv", "/usr")])},
            "InvalidArgs",
            "one tag",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:20],
)
async def test_a_bad_machine_is_refused_and_leaves_nothing(
    vfsd: Vfsd, client: Client, options: dict[str, Any], error: str, word: str
) -> None:
    await refused(client.create_machine("bad", **options), error, word)
    assert await client.manager("ListMachines") == []
    assert await client.manager("ListShares") == []
    assert vfsd.leftovers() == []
    assert client.signals.seen == []


@pytest.mark.parametrize(
    "name", ["", ".hidden", "-option", "a/b", "..", "a b", "ä", "x" * 65, 'a"b', "a\nb", "-" * 64]
)
async def test_a_bad_name_is_refused(vfsd: Vfsd, client: Client, name: str) -> None:
    await refused(client.create_machine(name, Builtin=("b", True)), "InvalidArgs")
    assert vfsd.leftovers() == []


@pytest.mark.parametrize("name", ["a-b_c.d", "0", "x" * 64, "share", "_"])
async def test_a_good_name_works(vfsd: Vfsd, client: Client, folder: Path, name: str) -> None:
    shares = ("a(ssa{sv})", [[str(folder), "", {"Tag": Variant("s", "s")}]])
    path = await started(client, folder, name, Shares=shares)
    assert vfsd.manager("GetMachine", "s", name) == path
    units = vfsd.units()
    assert await client.get(path, MACHINE, "Unit") in units
    assert await client.get(path, MACHINE, "Slice") in units
    await client.call(path, MACHINE, "Kill")
    assert vfsd.units() == []


async def test_a_name_that_is_taken(vfsd: Vfsd, client: Client, folder: Path) -> None:
    await client.create_share("tiny.data", folder)
    await tiny_machine(client, folder)
    await refused(tiny_machine(client, folder), "MachineExists", '"tiny"')
    await client.manager("RemoveMachine", "s", "tiny")
    shares = ("a(ssa{sv})", [[str(folder), "", {"Tag": Variant("s", "data")}]])
    await refused(client.create_machine("tiny", Shares=shares), "ShareExists", '"tiny.data"')
    assert await client.manager("ListMachines") == []


async def test_a_machine_with_nothing_to_boot(vfsd: Vfsd, client: Client, folder: Path) -> None:
    shares = ("a(ssa{sv})", [[str(folder), "", {"Tag": Variant("s", "root")}]])
    path = await client.create_machine("empty", Shares=shares)
    await refused(client.call(path, MACHINE, "Start"), "InvalidArgs", "Kernel, Image or Builtin")
    await set_property(client, path, "RootShare", Variant("s", "root"))
    await refused(client.call(path, MACHINE, "Start"), "InvalidArgs", "Kernel")
    assert vfsd.units() == []


# shares of its own


async def test_own_shares_are_named_after_machine_and_tag(vfsd: Vfsd, client: Client, folder: Path) -> None:
    sources = [
        folder / "data",
        folder / "b/data",
        folder / "c/data",
        folder / ("long" * 20),
        folder / "ä b,c",
    ]
    for source in sources:
        source.mkdir(parents=True)
    wanted = [[str(source), "", {}] for source in sources]
    wanted.append([str(folder), "", {"Tag": Variant("s", "my tag,%")}])
    wanted.append(["/", "", {"ReadOnly": Variant("b", True)}])
    path = await client.create_machine("m", Shares=("a(ssa{sv})", wanted))
    shares = await client.get(path, MACHINE, "Shares")
    names = [await client.get(share, SHARE, "Name") for share in shares]
    tags = [await client.get(share, SHARE, "Tag") for share in shares]
    assert names[:3] == ["m.data", "m.data-2", "m.data-3"]
    assert tags[:3] == ["data", "data-2", "data-3"]
    assert tags[5:] == ["my tag,%", "root"]
    assert names[5] == "m.my_tag__"
    cut = tags[3]
    assert len(cut.encode()) == 36
    assert cut.startswith("longlonglong")
    assert cut.rpartition("-")[2] != "longlong"
    assert len(set(tags)) == len(tags)
    assert len(set(names)) == len(names)
    assert all(name.startswith("m.") for name in names)
    for share in shares:
        assert await client.get(share, SHARE, "State") == "stopped"
        assert await client.get(share, SHARE, "Machine") == path
        await refused(client.call(share, SHARE, "Start"), "WrongState", '"m"')
        await refused(client.call(share, SHARE, "Remove"), "ShareBusy", '"m"')
    await refused(
        set_property(client, shares[0], "Tag", Variant("s", "data-2"), SHARE), "InvalidArgs", '"data-2"'
    )
    await set_property(client, shares[0], "Tag", Variant("s", "other"), SHARE)
    vfsd.restart()
    assert await client.get(shares[0], SHARE, "Tag") == "other"
    await client.call(path, MACHINE, "DetachShare", "s", "m.data")
    assert await client.get(path, MACHINE, "Shares") == shares[1:]
    await refused(client.manager("GetShare", "s", "m.data"), "NoSuchShare")
    vfsd.restart()
    assert await client.get(path, MACHINE, "Shares") == shares[1:]


async def test_everything_of_a_machine_is_in_its_slice(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await started(client, folder, shares=[folder])
    [share] = await client.get(path, MACHINE, "Shares")
    units = [await client.get(path, MACHINE, "Unit")]
    units += [await client.get(share, SHARE, f"{kind}Unit") for kind in ("Socket", "Service")]
    for unit in units:
        assert vfsd.unit_property(unit, "Slice") == "vfsd-tiny.slice"
    assert vfsd.unit_property("vfsd-tiny.slice", "Slice") == "vfsd.slice"
    for unit in (units[0], units[2]):
        group = Path(f"/proc/{vfsd.unit_property(unit, 'MainPID')}/cgroup").read_text()
        assert f"vfsd.slice/vfsd-tiny.slice/{unit}" in group
    sockets = [
        Path(await client.get(path, MACHINE, "ConsolePath")),
        Path(await client.get(share, SHARE, "SocketPath")),
    ]
    assert [socket.stat().st_mode & 0o777 for socket in sockets] == [0o600, 0o600]
    await client.call(path, MACHINE, "Kill")
    assert [socket.exists() for socket in sockets] == [False, False]


async def test_kill_returns_when_all_is_gone(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await started(client, folder, shares=[folder, Path("/srv")])
    shares = await client.get(path, MACHINE, "Shares")
    pids = [await client.get(path, MACHINE, "MainPID")]
    pids += [await client.get(share, SHARE, "MainPID") for share in shares]
    assert all(process_exists(pid) for pid in pids), pids
    folders = (vfsd.runtime / "share", vfsd.runtime / "machine/tiny")
    await client.call(path, MACHINE, "Kill")
    assert vfsd.units() == []
    assert not any(process_exists(pid) for pid in pids)
    assert not any(p.is_socket() or p.is_fifo() for folder in folders for p in folder.iterdir())
    assert await client.get(path, MACHINE, "MainPID") == 0
    assert [await client.get(share, SHARE, "State") for share in shares] == ["stopped", "stopped"]
    assert await client.get(path, MACHINE, "State") == "stopped"
    await client.call(path, MACHINE, "Start")  # at once, on the same unit names
    await client.call(path, MACHINE, "Kill")


# shares attached


async def test_an_attached_share_moves_into_the_machine_and_back(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    share = await client.create_share("alone", folder)
    path = await tiny_machine(client, folder, shares=[Path("/srv")])
    socket = await client.get(share, SHARE, "SocketPath")
    options = {"MountPoint": Variant("s", "/data")}
    await client.call(path, MACHINE, "AttachShare", "sa{sv}", "alone", options)
    assert (await client.get(path, MACHINE, "Shares"))[-1] == share
    assert client.signals.changes(path, "Shares")[-1][-1] == share
    assert client.signals.changes(share, "Machine") == [path]
    assert await client.get(share, SHARE, "MountPoint") == "/data"
    assert await client.get(share, SHARE, "State") == "listening"
    service = await client.get(share, SHARE, "ServiceUnit")
    unit = await client.get(share, SHARE, "SocketUnit")
    assert vfsd.unit_property(unit, "Slice") == "vfsd.slice"
    await refused(client.call(share, SHARE, "Remove"), "ShareBusy", '"tiny"')
    await refused(client.manager("RemoveShare", "s", "alone"), "ShareBusy", '"tiny"')
    await refused(client.call(path, MACHINE, "AttachShare", "sa{sv}", "alone", {}), "ShareBusy", '"tiny"')

    for _ in range(2):  # the second time all of it is done with the same names
        await client.call(path, MACHINE, "Start")
        assert await client.get(share, SHARE, "State") == "active"
        assert await client.get(share, SHARE, "SocketPath") == socket
        assert vfsd.unit_property(unit, "Slice") == "vfsd-tiny.slice"
        assert vfsd.unit_property(service, "Slice") == "vfsd-tiny.slice"
        for member in ("Stop", "Start", "Remove"):
            await refused(client.call(share, SHARE, member), "ShareBusy", '"tiny"')
        await client.call(path, MACHINE, "Kill")
        await until(lambda: client.signals.states(share)[-1][1] == "listening", "the share listens again")
        assert vfsd.unit_property(unit, "Slice") == "vfsd.slice"
        assert Path(socket).is_socket()
        assert vfsd.units() == [service, unit]
    walked(client.signals, share)

    await client.call(path, MACHINE, "DetachShare", "s", "alone")
    assert await client.get(share, SHARE, "Machine") == "/"
    assert await client.get(share, SHARE, "State") == "listening"
    await refused(client.call(path, MACHINE, "DetachShare", "s", "alone"), "NoSuchShare", "alone")
    await client.call(share, SHARE, "Remove")
    await refused(client.call(path, MACHINE, "AttachShare", "sa{sv}", "alone", {}), "NoSuchShare", "alone")


async def test_what_can_not_be_attached(vfsd: Vfsd, client: Client, folder: Path) -> None:
    await client.create_share("first", folder, Tag=("s", "data"))
    await client.create_share("second", folder, Tag=("s", "data"))
    own = ("a(ssa{sv})", [[str(folder), "", {"Tag": Variant("s", "own")}]])
    one = await tiny_machine(client, folder, "one", Shares=own)
    two = await tiny_machine(client, folder, "two")
    await client.call(one, MACHINE, "AttachShare", "sa{sv}", "first", {})
    attach = ("AttachShare", "sa{sv}")
    await refused(client.call(two, MACHINE, *attach, "first", {}), "ShareBusy", '"one"')
    await refused(client.call(two, MACHINE, *attach, "one.own", {}), "ShareBusy", '"one"')
    await refused(client.call(one, MACHINE, *attach, "second", {}), "InvalidArgs", '"data"', "first")
    await refused(
        client.call(two, MACHINE, *attach, "second", {"Cache": Variant("s", "auto")}), "InvalidArgs", "Cache"
    )
    await refused(
        client.call(two, MACHINE, *attach, "second", {"MountPoint": Variant("s", "x")}), "InvalidArgs"
    )
    await refused(
        client.call(two, MACHINE, *attach, "second", {"MountPoint": Variant("u", 1)}), "InvalidArgs"
    )
    assert await client.get(two, MACHINE, "Shares") == []
    await client.call(one, MACHINE, "Remove")
    [state] = [state for name, state, *_ in await client.manager("ListShares") if name == "first"]
    assert state == "listening"
    await client.call(two, MACHINE, *attach, "first", {})


async def test_a_share_with_another_client_is_busy(vfsd: Vfsd, client: Client, folder: Path) -> None:
    share = await client.create_share("alone", folder)
    path = await tiny_machine(client, folder)
    await client.call(path, MACHINE, "AttachShare", "sa{sv}", "alone", {})
    _, writer = await asyncio.open_unix_connection(await client.get(share, SHARE, "SocketPath"))
    await until(lambda: walked(client.signals, share)[-1:] == ["active"], "the client is served")
    await refused(client.call(path, MACHINE, "Start"), "ShareBusy", '"alone"', "client")
    assert await client.get(path, MACHINE, "State") == "failed"
    assert '"alone"' in await client.get(path, MACHINE, "Reason")
    assert await client.get(share, SHARE, "State") == "active"
    writer.close()
    await writer.wait_closed()
    await until(lambda: walked(client.signals, share)[-1] == "listening", "the client is gone")
    await client.call(path, MACHINE, "Start")
    await client.call(path, MACHINE, "Kill")


async def test_the_root_share_must_be_one_of_the_machines(vfsd: Vfsd, client: Client, folder: Path) -> None:
    await client.create_share("alone", folder, Tag=("s", "root"))
    [kernel] = Path("/boot").glob("vmlinuz-*")
    path = await client.create_machine("m", Kernel=("s", str(kernel)), RootShare=("s", "alone"))
    await refused(client.call(path, MACHINE, "Start"), "InvalidArgs", '"alone"', "attach")
    assert vfsd.units() == ["vfsd-share-alone.service", "vfsd-share-alone.socket"]
    assert await client.get(f"{ROOT}/share/alone", SHARE, "State") == "listening"
    await client.call(path, MACHINE, "AttachShare", "sa{sv}", "alone", {})
    await refused(client.call(path, MACHINE, "DetachShare", "s", "alone"), "InvalidArgs", "RootShare")
    await set_property(client, path, "RootShare", Variant("s", "root"))
    await refused(client.call(path, MACHINE, "DetachShare", "s", "alone"), "InvalidArgs", "RootShare")
    await set_property(client, path, "RootShare", Variant("s", ""))
    await client.call(path, MACHINE, "DetachShare", "s", "alone")


# calls at once


async def test_calls_on_one_machine_are_served_one_after_the_other(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    path = await tiny_machine(client, folder, shares=[folder])
    members = ("Start", "Pause", "Resume", "Start", "Pause", "Reset", "Resume")
    calls = [client.call(path, MACHINE, member) for member in members]
    results = await asyncio.gather(*calls, return_exceptions=True)
    names = [result.name if isinstance(result, BusError) else result for result in results]
    assert names == [None, None, None, "WrongState", None, None, None]
    assert walked(client.signals, path) == ["starting", "running", "paused", "running", "paused", "running"]
    await client.call(path, MACHINE, "Kill")


@pytest.mark.parametrize("delay", [0, 0.03, 0.1, 0.2, 0.4])
async def test_kill_overtakes_a_start(vfsd: Vfsd, client: Client, folder: Path, delay: float) -> None:
    path = await tiny_machine(client, folder, shares=[folder])
    start = asyncio.ensure_future(client.call(path, MACHINE, "Start"))
    waiting = asyncio.ensure_future(client.call(path, MACHINE, "Pause"))
    await until(lambda: walked(client.signals, path), "the machine starts")
    await asyncio.sleep(delay)
    await client.call(path, MACHINE, "Kill")
    results: tuple[Any, Any] = await asyncio.gather(start, waiting, return_exceptions=True)
    if "running" in walked(client.signals, path) and delay:  # the start was over first: no overtaking
        assert results[0] is None
    else:
        assert walked(client.signals, path) == ["starting", "stopped"]
        for result in results:
            assert isinstance(result, BusError)
            assert result.name == "WrongState"
            assert "killed meanwhile" in result.message
    assert await client.get(path, MACHINE, "State") == "stopped"
    assert client.signals.states(path)[-1][2] == "killed on request"
    assert vfsd.units() == []
    assert not [p for p in processes() if b"guest=tiny" in p]
    await client.call(path, MACHINE, "Start")
    await client.call(path, MACHINE, "Kill")


def processes() -> list[bytes]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                found.append((entry / "cmdline").read_bytes())
        except OSError:
            continue
    return found


async def test_a_machine_is_one_of_the_managed_objects(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder, shares=[folder])
    [share] = await client.get(path, MACHINE, "Shares")
    added = [m.body[0] for m in client.signals.seen if m.member == "InterfacesAdded"]
    assert added == [share, path]
    objects = await client.objects()
    assert set(objects) >= {path, share}
    everything = await client.call(path, "org.freedesktop.DBus.Properties", "GetAll", "s", MACHINE)
    shown = objects[path][MACHINE]
    assert {key: value.value for key, value in shown.items()} == {k: v.value for k, v in everything.items()}
    assert MANAGER not in objects[path]
