"""The bus layer: introspection, properties, object manager, activation and access, on both buses."""

from __future__ import annotations

import asyncio
import json
import random
import string
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant

import vfsd as package
from tests.integration.conftest import only_system
from tests.integration.harness import (
    MACHINE,
    MANAGER,
    ROOT,
    SHARE,
    TESTER,
    BusError,
    Client,
    CommandFailed,
    Vfsd,
    until,
    wait_for,
)
from tests.integration.sharing import connected, kill, quiet, wait_active
from vfsd import names

XML = Path(__file__).parents[2] / "dbus"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
PEER = "org.freedesktop.DBus.Peer"
CONST = {
    str(item.get("name"))
    for item in ET.parse(XML / f"{SHARE}.xml").iter("property")
    if any(note.get("value") == "const" for note in item.iter("annotation"))
}


def shape(node: ET.Element) -> Any:
    """An element without comments and white space."""
    return node.tag, sorted(node.attrib.items()), [shape(child) for child in node]


def described(name: str) -> Any:
    [found] = ET.parse(XML / f"{name}.xml").iter("interface")
    return shape(found)


async def introspect(client: Client, path: str) -> tuple[dict[str, Any], list[str]]:
    """Interfaces by name, and children."""
    root = ET.fromstring(await client.call(path, INTROSPECTABLE, "Introspect"))
    interfaces = {str(node.get("name")): shape(node) for node in root.findall("interface")}
    return interfaces, [str(node.get("name")) for node in root.findall("node")]


async def test_introspection_says_what_the_xml_says(vfsd: Vfsd, client: Client, folder: Path) -> None:
    share = await client.create_share("a-b", folder)
    machine = await client.create_machine("m")
    standard = {INTROSPECTABLE, PEER}
    expected = {
        "/": (standard, ["org"]),
        "/org": (standard, ["vfsd1"]),
        ROOT: ({MANAGER, PROPERTIES, OBJECT_MANAGER, *standard}, ["machine", "share"]),
        f"{ROOT}/share": (standard, ["a_2db"]),
        f"{ROOT}/machine": (standard, ["m"]),
        share: ({SHARE, PROPERTIES, *standard}, []),
        machine: ({MACHINE, PROPERTIES, *standard}, []),
    }
    for path, (wanted, children) in expected.items():
        interfaces, nodes = await introspect(client, path)
        assert (path, set(interfaces), nodes) == (path, wanted, children)
        for name in wanted & {MANAGER, SHARE, MACHINE}:
            assert interfaces[name] == described(name)
    await client.call(share, SHARE, "Remove")
    assert (await introspect(client, f"{ROOT}/share"))[1] == []
    with pytest.raises(BusError) as caught:
        await introspect(client, share)
    assert caught.value.name == "UnknownObject"


def test_busctl_shows_the_tree(vfsd: Vfsd, folder: Path) -> None:
    vfsd.manager("CreateShare", "ssa{sv}", "a-b", str(folder), "0")
    shown = vfsd.run("busctl", vfsd.flag, "--list", "tree", "org.vfsd1").split()
    assert shown == ["/", "/org", ROOT, f"{ROOT}/machine", f"{ROOT}/share", f"{ROOT}/share/a_2db"]
    members = vfsd.run("busctl", vfsd.flag, "introspect", "org.vfsd1", f"{ROOT}/share/a_2db")
    rows = {line.split()[0]: line for line in members.splitlines() if line.startswith(".")}
    assert "listening" in rows[".State"]
    assert "emits-change" in rows[".State"]
    assert "const" in rows[".Name"]
    assert "writable" in rows[".Tag"]


async def test_peer(vfsd: Vfsd, client: Client) -> None:
    for path in ("/", "/org", ROOT, f"{ROOT}/share"):
        assert await client.call(path, PEER, "Ping") is None
    assert await client.call(ROOT, PEER, "GetMachineId") == Path("/etc/machine-id").read_text().strip()


async def test_manager_properties(vfsd: Vfsd, client: Client) -> None:
    for _ in range(200):  # the versions are asked after vfsd came up
        told = await client.call(ROOT, PROPERTIES, "GetAll", "s", MANAGER)
        if told["VirtiofsdVersion"].value and told["QemuVersion"].value:
            break
        await asyncio.sleep(0.02)
    assert told["Scope"].value == vfsd.scope
    assert told["Version"].value == package.__version__
    assert "1.13" in told["VirtiofsdVersion"].value
    assert "10.0" in told["QemuVersion"].value


async def test_versions_are_announced_once_known(vfsd: Vfsd, client: Client) -> None:
    vfsd.restart()
    await until(lambda: client.signals.changes(ROOT, "VirtiofsdVersion"), "its version was told")
    await until(lambda: client.signals.changes(ROOT, "QemuVersion"), "QEMU's too")
    assert client.signals.changes(ROOT, "VirtiofsdVersion") == [
        await client.get(ROOT, MANAGER, "VirtiofsdVersion")
    ]
    assert client.signals.changes(ROOT, "Version") == []


async def test_get_get_all_and_managed_objects_agree(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share(
        "src", folder, TranslateUID=("as", ["map:0:1000:1", "squash-host:5:5:2"])
    )
    whole = await client.call(path, PROPERTIES, "GetAll", "s", SHARE)
    declared = {
        item.get("name"): item.get("type") for item in ET.parse(XML / f"{SHARE}.xml").iter("property")
    }
    assert {name: value.signature for name, value in whole.items()} == declared
    for name, value in whole.items():
        assert await client.get(path, SHARE, name) == value.value
    assert await client.objects() == {path: {SHARE: whole}}
    assert await client.call(path, PROPERTIES, "GetAll", "s", "") == whole
    assert await client.call(path, PROPERTIES, "GetAll", "s", PEER) == {}
    assert whole["TranslateUID"].value == ["map:0:1000:1", "squash-host:5:5:2"]


@pytest.mark.parametrize(
    ("member", "arguments", "error", "words"),
    [
        ("Get", ["org.vfsd1.Nothing", "State"], "UnknownInterface", "org.vfsd1.Nothing"),
        ("Get", [SHARE, "Nothing"], "UnknownProperty", "Nothing"),
        ("Get", [PEER, "State"], "UnknownProperty", "State"),
        ("Get", [MANAGER, "Version"], "UnknownInterface", MANAGER),
        ("GetAll", ["org.vfsd1.Nothing"], "UnknownInterface", "org.vfsd1.Nothing"),
        ("Set", [SHARE, "Name", Variant("s", "x")], "PropertyReadOnly", "Name"),
        ("Set", [SHARE, "State", Variant("s", "active")], "PropertyReadOnly", "State"),
        ("Set", [SHARE, "Persistent", Variant("b", True)], "PropertyReadOnly", "Persistent"),
        ("Set", [SHARE, "Nothing", Variant("s", "x")], "UnknownProperty", "Nothing"),
        ("Set", ["org.vfsd1.Nothing", "Tag", Variant("s", "x")], "UnknownInterface", "org.vfsd1.Nothing"),
        ("Set", [SHARE, "ReadOnly", Variant("s", "yes")], "InvalidArgs", "ReadOnly"),
        ("Set", [SHARE, "ThreadPoolSize", Variant("i", 1)], "InvalidArgs", "ThreadPoolSize"),
        ("Set", [SHARE, "UIDMap", Variant("s", "")], "InvalidArgs", "UIDMap"),
        ("Set", [SHARE, "Tag", Variant("v", Variant("s", "x"))], "InvalidArgs", "Tag"),
        ("Set", [SHARE, "Cache", Variant("s", "sometimes")], "InvalidArgs", "auto, always, metadata, never"),
        ("Set", [SHARE, "Tag", Variant("s", "x" * 37)], "InvalidArgs", "36 bytes"),
        ("Set", [SHARE, "MountPoint", Variant("s", "relative")], "InvalidArgs", "relative"),
    ],
)
async def test_properties_are_refused_by_name(
    vfsd: Vfsd, client: Client, folder: Path, member: str, arguments: list[Any], error: str, words: str
) -> None:
    path = await client.create_share("src", folder)
    await client.call(path, SHARE, "Stop")
    before = await client.objects()
    signature = {"Get": "ss", "GetAll": "s", "Set": "ssv"}[member]
    with pytest.raises(BusError) as caught:
        await client.call(path, PROPERTIES, member, signature, *arguments)
    assert (caught.value.name, words in caught.value.message) == (error, True), caught.value
    assert await client.objects() == before


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "body", "error"),
    [
        (f"{ROOT}/share/none", SHARE, "Start", "", [], "UnknownObject"),
        ("/nowhere", INTROSPECTABLE, "Introspect", "", [], "UnknownObject"),
        (ROOT, "org.vfsd1.Nothing", "Start", "", [], "UnknownInterface"),
        (f"{ROOT}/share", PROPERTIES, "GetAll", "s", [SHARE], "UnknownInterface"),
        ("/org", OBJECT_MANAGER, "GetManagedObjects", "", [], "UnknownInterface"),
        (ROOT, MANAGER, "Nothing", "", [], "UnknownMethod"),
        (ROOT, None, "Nothing", "", [], "UnknownMethod"),
        (ROOT, MANAGER, "GetShare", "i", [1], "InvalidArgs"),
        (ROOT, MANAGER, "GetShare", "", [], "InvalidArgs"),
        (ROOT, MANAGER, "ListShares", "s", ["x"], "InvalidArgs"),
        (ROOT, MANAGER, "CreateShare", "ssa{ss}", ["a", "/", {}], "InvalidArgs"),
        (ROOT, PROPERTIES, "Get", "s", [MANAGER], "InvalidArgs"),
        (ROOT, MANAGER, "GetShare", "s", ["none"], "NoSuchShare"),
        (ROOT, MANAGER, "GetMachine", "s", ["none"], "NoSuchMachine"),
        (ROOT, MANAGER, "RemoveShare", "s", ["none"], "NoSuchShare"),
        (ROOT, MANAGER, "RemoveMachine", "s", ["none"], "NoSuchMachine"),
        (ROOT, MANAGER, "StartMachine", "s", ["none"], "NoSuchMachine"),
        (ROOT, MANAGER, "ShutdownMachine", "s", ["none"], "NoSuchMachine"),
        (ROOT, MANAGER, "KillMachine", "s", ["none"], "NoSuchMachine"),
    ],
)
async def test_calls_are_refused_by_name(
    vfsd: Vfsd,
    client: Client,
    path: str,
    interface: str | None,
    member: str,
    signature: str,
    body: list[Any],
    error: str,
) -> None:
    with pytest.raises(BusError) as caught:
        await client.raw("org.vfsd1", path, interface, member, signature, body)
    assert caught.value.name == error
    assert "Traceback" not in caught.value.message
    assert vfsd.leftovers() == []


async def test_a_call_without_interface_finds_the_member(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder)
    assert await client.raw("org.vfsd1", ROOT, None, "GetShare", "s", ["src"]) == [path]
    assert await client.raw("org.vfsd1", path, None, "Stop", "", []) == []
    set_tag = [SHARE, "Tag", Variant("s", "t")]
    assert await client.raw("org.vfsd1", path, None, "Set", "ssv", set_tag) == []
    assert await client.get(path, SHARE, "Tag") == "t"


async def test_a_call_that_wants_no_reply_gets_none(vfsd: Vfsd, client: Client, folder: Path) -> None:
    replies: list[int] = []

    def note(message: Message) -> bool:
        if message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            replies.append(message.reply_serial)
        return False

    client.bus.add_message_handler(note)
    serials = []
    for member, body in (("CreateShare", ["src", str(folder), {}]), ("CreateShare", ["/", "", {}])):
        message = Message(
            destination="org.vfsd1",
            path=ROOT,
            interface=MANAGER,
            member=member,
            signature="ssa{sv}",
            body=body,
            flags=MessageFlag.NO_REPLY_EXPECTED,
            serial=client.bus.next_serial(),
        )
        serials.append(message.serial)
        client.bus.send(message)
    await until(lambda: "InterfacesAdded" in client.signals.members(), "the share was made")
    await client.call(ROOT, PEER, "Ping")
    assert not set(serials) & set(replies)


def hidden(vfsd: Vfsd) -> set[str]:
    """Properties of a share that signals tell nothing of: on the system bus everybody hears them."""
    return {"Source", "SocketPath"} if vfsd.scope == "system" else set()


async def test_objects_come_and_go_from_the_root(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder)
    whole = await client.objects()
    await client.call(path, SHARE, "Remove")
    await until(lambda: "InterfacesRemoved" in client.signals.members(), "its end was told")
    added = [m for m in client.signals.seen if m.member == "InterfacesAdded"]
    for name in hidden(vfsd):
        del whole[path][SHARE][name]
    assert [(m.path, m.body) for m in added] == [(ROOT, [path, whole[path]])]
    removed = [m for m in client.signals.seen if m.member == "InterfacesRemoved"]
    assert [(m.path, m.body) for m in removed] == [(ROOT, [path, [SHARE]])]
    assert client.signals.seen[0] is added[0]
    assert client.signals.seen[-1] is removed[0]


async def test_who_follows_the_signals_knows_all(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """From InterfacesAdded and PropertiesChanged alone a client has at each moment what Get would say."""
    path = await client.create_share("src", folder)
    for number in range(2):
        with connected(vfsd.runtime / "share/src.sock"):
            pid = await asyncio.to_thread(wait_active, vfsd, path)
            assert (await client.call(path, PROPERTIES, "GetAll", "s", SHARE))["MainPID"].value == pid
            if number:
                kill(pid)
                await until(lambda: client.signals.changes(path, "Restarts"), "it was noticed")
        await until(lambda: client.signals.changes(path, "State")[-1] == "listening", "listening")
    await client.call(path, SHARE, "Stop")
    for name, value in (
        ("XAttr", Variant("b", True)),
        ("Tag", Variant("s", "x")),
        ("UIDMap", Variant("as", [])),
    ):
        await client.call(path, PROPERTIES, "Set", "ssv", SHARE, name, value)
    await client.call(path, SHARE, "Start")
    await quiet(client)
    known: dict[str, Variant] = {}
    state = ""
    for message in client.signals.seen:
        if message.member == "InterfacesAdded":
            known |= message.body[1][SHARE]
            state = known["State"].value
        elif message.member == "PropertiesChanged":
            interface, changed, invalidated = message.body
            assert interface == SHARE
            assert set(invalidated) <= hidden(vfsd)
            assert changed or invalidated
            assert not CONST & set(changed), "constants never change"
            assert all(known[name] != value for name, value in changed.items()), "told without a change"
            known |= changed
        elif message.member == "StateChanged":
            old, new, reason = message.body
            assert old == state, "no change was lost"
            assert (known["State"].value, known["Reason"].value) == (new, reason), "properties come first"
            state = new
    whole = await client.call(path, PROPERTIES, "GetAll", "s", SHARE)
    assert known == {name: value for name, value in whole.items() if name not in hidden(vfsd)}
    assert sorted(CONST) == ["Name", "Owner", "Persistent", "Source"]


def test_the_bus_starts_vfsd(vfsd: Vfsd) -> None:
    vfsd.systemctl("stop", "vfsd.service")
    assert vfsd.unit_property("vfsd.service", "ActiveState") == "inactive"
    assert vfsd.manager("ListShares") == []
    assert vfsd.unit_property("vfsd.service", "ActiveState") == "active"
    owner = json.loads(vfsd.run(
        "busctl", vfsd.flag, "--json=short", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus",
        "GetConnectionUnixProcessID", "s", "org.vfsd1",
    ))  # fmt: skip
    assert owner["data"] == [vfsd.main_pid()]


async def test_many_callers_at_once_start_one_vfsd(vfsd: Vfsd, client: Client) -> None:
    vfsd.systemctl("stop", "vfsd.service")
    assert await asyncio.gather(*(client.manager("ListShares") for _ in range(20))) == [[]] * 20


def test_a_second_vfsd_says_that_there_is_one(vfsd: Vfsd, folder: Path) -> None:
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "0")
    pid = vfsd.main_pid()
    with pytest.raises(CommandFailed) as caught:
        vfsd.run("/usr/bin/vfsd", vfsd.flag)
    assert f": 4\n\nvfsd: another vfsd serves the {vfsd.scope} bus" in str(caught.value)
    assert vfsd.main_pid() == pid
    assert [row[1] for row in vfsd.manager("ListShares")] == ["listening"]


@only_system
def test_the_system_bus_lets_only_root_have_the_name(vfsd: Vfsd) -> None:
    user = ["setpriv", f"--reuid={TESTER}", "--regid=tester", "--init-groups"]
    with pytest.raises(CommandFailed, match=r"Access denied|AccessDenied|not allowed|security policies"):
        vfsd.run(
            *user, "busctl", "--system", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus",
            "RequestName", "su", "org.vfsd1", "0",
        )  # fmt: skip
    with pytest.raises(CommandFailed, match="vfsd: "):
        vfsd.run(*user, "/usr/bin/vfsd", "--system")


def test_escapes_are_those_of_systemd(vfsd: Vfsd) -> None:
    """The unit escape against systemd-escape, the label escape against the object path that systemd gives a unit."""
    chance = random.Random(7)
    alphabet = string.ascii_letters + string.digits + "._-"
    samples = ["a", "a-b", "0", "_", "a.b", "A_1-", "z.", "9-9"]
    samples += ["".join(chance.choices(alphabet, k=chance.randint(1, 30))) for _ in range(30)]
    samples = [sample if sample[0] not in ".-" else f"x{sample}" for sample in samples]
    escaped = vfsd.run("systemd-escape", "--", *samples).split()
    assert [names.unit_escape(sample) for sample in samples] == escaped
    assert [names.unit_unescape(word) for word in escaped] == samples
    for sample in samples[:12]:
        unit = names.share_service_unit(sample)
        found = vfsd.run(
            "busctl", vfsd.flag, "--json=short", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager", "LoadUnit", "s", unit,
        )  # fmt: skip
        path = json.loads(found)["data"][0]
        assert path == names.unit_object_path(unit)
        assert names.unit_from_object_path(path) == unit
    wait_for(lambda: vfsd.units() == [], "systemd forgot them")
