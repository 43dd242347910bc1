"""What can't be done is refused by name, says what to do, and leaves nothing behind. On both buses."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd
from tests.integration.sharing import connected, wait_active, wait_state


async def refused(client: Client, member: str, signature: str, *body: Any) -> BusError:
    with pytest.raises(BusError) as caught:
        await client.manager(member, signature, *body)
    error = caught.value
    assert error.message.strip()
    for internal in ("Traceback", "/run/vfsd", "/usr/lib", "/var/lib", 'File "'):
        assert internal not in error.message
    return error


def nothing_left(vfsd: Vfsd) -> None:
    assert vfsd.leftovers() == []
    assert vfsd.manager("ListShares") == []
    assert vfsd.manager("ListMachines") == []


BAD_NAMES = [
    "",
    "/",
    "a/b",
    "..",
    ".",
    ".x",
    "-x",
    "-",
    "a b",
    " a",
    "a ",
    'a"b',
    "a'b",
    "a\\b",
    "a\\x2db",
    "ümlaut",
    "日本",
    "a\nb",
    "a\n",
    "a\tb",
    "a%n",
    "${X}",
    "a:b",
    "a@b",
    "a,b",
    "x" * 129,
    "x" * 10_000,
    "a" + "-" * 60,
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:20])
async def test_bad_names(vfsd: Vfsd, client: Client, folder: Path, name: str) -> None:
    error = await refused(client, "CreateShare", "ssa{sv}", name, str(folder), {})
    assert error.name == "InvalidArgs"
    assert f'"{name}"' in error.message
    assert "use" in error.message
    if len(name) != 61:  # its escaped unit is too long as a share's only
        error = await refused(client, "CreateMachine", "sa{sv}", name, {})
        assert error.name == "InvalidArgs"
    for member in ("GetShare", "RemoveShare"):
        assert (await refused(client, member, "s", name)).name == "NoSuchShare"
    nothing_left(vfsd)


async def test_the_longest_names(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """As long as the unit name and the socket's path allow, and one more."""
    room = 107 - len(f"{vfsd.runtime}/share/.sock")
    good = "n" * min(room, 128)
    path = await client.create_share(good, folder)
    with connected(vfsd.runtime / f"share/{good}.sock"):
        await asyncio.to_thread(wait_active, vfsd, path)
    await asyncio.to_thread(wait_state, vfsd, path, "listening")
    await client.call(path, SHARE, "Remove")
    error = await refused(client, "CreateShare", "ssa{sv}", good + "n", str(folder), {})
    assert error.name == "InvalidArgs"
    assert "too long for the path of a socket" in error.message
    dashes = "a" + "-" * ((255 - len("vfsd-share-a.service")) // 4)
    path = await client.create_share(dashes, folder)
    await client.call(path, SHARE, "Remove")
    error = await refused(client, "CreateShare", "ssa{sv}", dashes + "-", str(folder), {})
    assert error.name == "InvalidArgs"
    assert "too long for a unit name" in error.message
    error = await refused(client, "CreateMachine", "sa{sv}", "m" * 65, {})
    assert error.name == "InvalidArgs"
    nothing_left(vfsd)


@pytest.mark.parametrize("name", ["a", "0", "_", "A.b", "a-b_c.d", "9-", "a..b", "x-.socket", "con", "share"])
async def test_good_names(vfsd: Vfsd, client: Client, folder: Path, name: str) -> None:
    path = await client.create_share(name, folder)
    assert await client.get(path, SHARE, "Name") == name
    assert await client.manager("GetShare", "s", name) == path
    assert vfsd.unit_property(await client.get(path, SHARE, "SocketUnit"), "ActiveState") == "active"
    await client.call(path, SHARE, "Remove")
    nothing_left(vfsd)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("", "InvalidArgs", "absolute"),
        ("relative", "InvalidArgs", "absolute"),
        ("./x", "InvalidArgs", "absolute"),
        (" /srv", "InvalidArgs", "absolute"),
        ("~/x", "InvalidArgs", "absolute"),
        ("/no/such/folder", "SourceNotFound", "create it"),
        ("/no/such\nfolder ${X} %n", "SourceNotFound", "create it"),
        ("/etc/hostname", "InvalidArgs", "no directory"),
        ("/etc/hostname/x", "SourceNotFound", "create it"),
        ("/dev/null", "InvalidArgs", "no directory"),
        ("/" + "x" * 300, "SourceNotFound", "create it"),
        ("/" + "x/" * 3000, "SourceNotFound", "create it"),
    ],
)
async def test_bad_sources(vfsd: Vfsd, client: Client, source: str, error: str, words: str) -> None:
    told = await refused(client, "CreateShare", "ssa{sv}", "src", source, {})
    assert (told.name, f'"{source}"' in told.message) == (error, True)
    assert words in told.message
    told = await refused(
        client, "CreateMachine", "sa{sv}", "m", {"Shares": Variant("a(ssa{sv})", [[source, "", {}]])}
    )
    assert told.name == error
    nothing_left(vfsd)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"Nothing": Variant("s", "x")}, '"Nothing" is no option of a share'),
        ({"tag": Variant("s", "x")}, '"tag" is no option of a share'),
        ({"Name": Variant("s", "x")}, '"Name" is no option of a share'),
        ({"State": Variant("s", "x")}, '"State" is no option of a share'),
        ({"": Variant("s", "x")}, '"" is no option of a share'),
        ({"Shares": Variant("a(ssa{sv})", [])}, '"Shares" is no option of a share'),
        ({"ReadOnly": Variant("s", "yes")}, 'ReadOnly has type "s", it must be "b"'),
        ({"ReadOnly": Variant("a{sv}", {"x": Variant("b", True)})}, 'ReadOnly has type "a{sv}"'),
        ({"ReadOnly": Variant("v", Variant("b", True))}, 'ReadOnly has type "v"'),
        ({"ThreadPoolSize": Variant("i", 4)}, 'ThreadPoolSize has type "i", it must be "u"'),
        ({"LimitNOFILE": Variant("u", 4)}, 'LimitNOFILE has type "u", it must be "t"'),
        ({"UIDMap": Variant("s", "x")}, 'UIDMap has type "s", it must be "as"'),
        ({"UIDMap": Variant("aas", [["x"]])}, 'UIDMap has type "aas"'),
        ({"Persistent": Variant("s", "yes")}, 'Persistent has type "s", it must be "b"'),
        ({"Cache": Variant("s", "sometimes")}, "it must be one of auto, always, metadata, never"),
        ({"Cache": Variant("s", "")}, "it must be one of auto, always, metadata, never"),
        ({"Sandbox": Variant("s", "Namespace")}, "it must be one of namespace, chroot, none"),
        ({"LogLevel": Variant("s", "loud")}, "it must be one of off, error, warn, info, debug, trace"),
        ({"InodeFileHandles": Variant("s", "x")}, "it must be one of never, prefer, mandatory"),
        ({"Tag": Variant("s", "x" * 37)}, "more than 36 bytes"),
        ({"Tag": Variant("s", "ü" * 19)}, "more than 36 bytes"),
        ({"MountPoint": Variant("s", "mnt")}, "not an absolute path"),
        ({"PosixACL": Variant("b", True), "TranslateUID": Variant("as", ["x"])}, "only one of the two"),
        ({"UIDMap": Variant("as", [":0:1:1:"]), "Sandbox": Variant("s", "none")}, "need Sandbox namespace"),
        ({"SocketGroup": Variant("s", "no-such-group")}, 'group "no-such-group"'),
        ({"SocketGroup": Variant("s", "kvm\nroot %n")}, "does not exist"),
    ],
)
async def test_bad_options(
    vfsd: Vfsd, client: Client, folder: Path, options: dict[str, Variant], words: str
) -> None:
    error = await refused(client, "CreateShare", "ssa{sv}", "src", str(folder), options)
    assert (error.name, words in error.message) == ("InvalidArgs", True), error.message
    shares = Variant("a(ssa{sv})", [[str(folder), "", options]])
    error = await refused(client, "CreateMachine", "sa{sv}", "m", {"Shares": shares})
    assert error.name == "InvalidArgs"
    nothing_left(vfsd)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"Nothing": Variant("s", "x")}, '"Nothing" is no option of a machine'),
        ({"Memory": Variant("u", 1 << 30)}, 'Memory has type "u", it must be "t"'),
        ({"Memory": Variant("s", "2G")}, 'Memory has type "s", it must be "t"'),
        ({"Memory": Variant("t", 1)}, "at least"),
        ({"CPUs": Variant("u", 0)}, "1 to 4096"),
        ({"Kernel": Variant("s", "vmlinuz")}, "not an absolute path"),
        ({"Shares": Variant("as", ["/srv"])}, 'Shares has type "as"'),
        ({"Forward": Variant("as", ["tcp:localhost:1:2"])}, "not of the form"),
        ({"Forward": Variant("as", ["tcp:::1%a,b=c:1:2"])}, "not of the form"),
        ({"Forward": Variant("as", ["tcp:127.0.0.1:70000:22"])}, "not of the form"),
        ({"Network": Variant("s", "bridge:a,b")}, "must be user, none, bridge"),
        ({"Network": Variant("s", "wlan")}, "must be user, none, bridge"),
        ({"Accelerator": Variant("s", "hvf")}, "it must be one of auto, kvm, tcg"),
    ],
)
async def test_bad_machines(vfsd: Vfsd, client: Client, options: dict[str, Variant], words: str) -> None:
    error = await refused(client, "CreateMachine", "sa{sv}", "m", options)
    assert (error.name, words in error.message) == ("InvalidArgs", True), error.message
    nothing_left(vfsd)


async def test_names_are_given_once(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder, Tag=("s", "first"))
    error = await refused(
        client, "CreateShare", "ssa{sv}", "src", str(folder), {"Tag": Variant("s", "second")}
    )
    assert (error.name, '"src"' in error.message) == ("ShareExists", True)
    assert await client.get(path, SHARE, "Tag") == "first"
    machine = await client.create_machine("src")  # machines have names of their own
    error = await refused(client, "CreateMachine", "sa{sv}", "src", {})
    assert error.name == "MachineExists"
    await client.create_share("m.data", folder)
    shares = Variant("a(ssa{sv})", [[str(folder), "", {"Tag": Variant("s", "data")}]])
    assert (await refused(client, "CreateMachine", "sa{sv}", "m", {"Shares": shares})).name == "ShareExists"
    assert [row[0] for row in await client.manager("ListMachines")] == ["src"]
    await client.call(machine, MACHINE, "Remove")
    assert [row[0] for row in await client.manager("ListShares")] == ["m.data", "src"]


async def test_two_at_once_make_one(vfsd: Vfsd, client: Client, folder: Path) -> None:
    made = await asyncio.gather(
        *(client.create_share("src", folder, Tag=("s", f"t{n}")) for n in range(10)), return_exceptions=True
    )
    assert [item for item in made if isinstance(item, str)] == [made[0]]
    errors = [item for item in made if isinstance(item, BusError)]
    assert {error.name for error in errors} == {"ShareExists"}
    assert len(errors) == 9
    assert await client.get(str(made[0]), SHARE, "Tag") == "t0"


@pytest.mark.parametrize(
    ("state", "member", "error"),
    [
        ("listening", "Start", "WrongState"),
        ("stopped", "Stop", "WrongState"),
        ("active", "Start", "WrongState"),
        ("active", "Remove", "ShareBusy"),
        ("unavailable", "Start", "SourceNotFound"),
    ],
)
async def test_calls_in_the_wrong_state(
    vfsd: Vfsd, client: Client, folder: Path, state: str, member: str, error: str
) -> None:
    source = folder / "inner"
    await asyncio.to_thread(source.mkdir)
    path = await client.create_share("src", source)
    if state in ("stopped", "unavailable"):
        await client.call(path, SHARE, "Stop")
    if state == "unavailable":
        await asyncio.to_thread(source.rmdir)
        with pytest.raises(BusError, match="does not exist"):
            await client.call(path, SHARE, "Start")
    async with asyncio.timeout(20):
        if state == "active":
            with connected(vfsd.runtime / "share/src.sock"):
                await asyncio.to_thread(wait_active, vfsd, path)
                with pytest.raises(BusError) as caught:
                    await client.call(path, SHARE, member)
            await asyncio.to_thread(wait_state, vfsd, path, "listening")
        else:
            with pytest.raises(BusError) as caught:
                await client.call(path, SHARE, member)
            assert await client.get(path, SHARE, "State") == state
    assert (caught.value.name, '"src"' in caught.value.message) == (error, True)


async def test_a_machines_own_share_is_the_machines(vfsd: Vfsd, client: Client, folder: Path) -> None:
    shares = ("a(ssa{sv})", [[str(folder), "", {"Tag": Variant("s", "data")}]])
    machine = await client.create_machine("m", Shares=shares)
    path = await client.manager("GetShare", "s", "m.data")
    assert await client.get(path, SHARE, "Machine") == machine
    assert await client.get(path, SHARE, "State") == "stopped"
    for member, error in (("Start", "WrongState"), ("Stop", "WrongState"), ("Remove", "ShareBusy")):
        with pytest.raises(BusError, match=r"m\.data") as caught:
            await client.call(path, SHARE, member)
        assert caught.value.name == error
    assert (await refused(client, "RemoveShare", "s", "m.data")).name == "ShareBusy"
    await client.call(machine, MACHINE, "Remove")
    nothing_left(vfsd)


async def test_a_virtiofsd_option_out_of_range_is_told(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder, LimitNOFILE=("t", (1 << 64) - 1))
    with connected(vfsd.runtime / "share/src.sock"):
        for _ in range(500):
            if reason := await client.get(path, SHARE, "Reason"):
                break
            await asyncio.sleep(0.02)
    assert reason.startswith("virtiofsd ")
    assert await client.get(path, SHARE, "State") == "listening"
    await client.call(path, SHARE, "Remove")
    nothing_left(vfsd)
