"""Configuration folders and stored definitions: what is read, what wins, and what a damaged file does."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, ROOT, SHARE, Client, CommandFailed, Vfsd, until, wait_for
from tests.integration.sharing import connected, told_of, wait_active, wait_state
from vfsd.journal import MessageId

SRC = f"{ROOT}/share/src"


class Folders:
    """The configuration of one scope, most important folder first."""

    def __init__(self, vfsd: Vfsd) -> None:
        self._vfsd = vfsd
        self.all = [vfsd.config]
        if vfsd.scope == "system":
            self.all += [Path("/run/vfsd/config"), Path("/usr/lib/vfsd")]
        self._made: list[Path] = []

    def write(self, name: str, text: str | bytes, folder: int = 0) -> Path:
        path = self.all[folder] / name
        self._vfsd.run("mkdir", "-p", str(path.parent))
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self._made.append(path)
        if self._vfsd.scope == "user":
            shutil.chown(path, self._vfsd.owner_uid)
        return path

    def clear(self) -> None:
        for path in self._made:
            path.unlink(missing_ok=True)


@pytest.fixture
def folders(vfsd: Vfsd) -> Iterator[Folders]:
    made = Folders(vfsd)
    yield made
    made.clear()
    for _, state, _, path in vfsd.manager("ListShares"):
        if state in ("listening", "active"):
            vfsd.call(path, SHARE, "Stop")
    vfsd.manager("Reload")


def shares(vfsd: Vfsd) -> dict[str, str]:
    return {name: state for name, state, _, _ in vfsd.manager("ListShares")}


def bad_files(vfsd: Vfsd, since: float) -> list[dict[str, Any]]:
    """Entries about files that can't be used, of this scope."""
    field = "_SYSTEMD_UNIT" if vfsd.scope == "system" else "_SYSTEMD_USER_UNIT"
    return vfsd.journal(f"MESSAGE_ID={MessageId.BAD_FILE.value}", f"{field}=vfsd.service", since=since)


def test_a_share_from_a_file(vfsd: Vfsd, folders: Folders, folder: Path) -> None:
    folders.write(
        "shares/src.toml",
        f'source = "{folder}"\nread_only = true\ntag = "data"\nuid_map = []\nthread_pool_size = 2\n'
        'posix_acl = false\ndirect_io = true\nlimit_nofile = 4096\ntranslate_uid = ["map:0:1000:1"]\n',
    )
    vfsd.manager("Reload")
    assert shares(vfsd) == {"src": "listening"}
    wanted = {"ReadOnly": True, "Tag": "data", "ThreadPoolSize": 2, "DirectIO": True, "LimitNOFILE": 4096,
              "TranslateUID": ["map:0:1000:1"], "Persistent": True, "Owner": vfsd.owner_uid}  # fmt: skip
    assert {name: vfsd.get(SRC, SHARE, name) for name in wanted} == wanted
    with connected(vfsd.runtime / "share/src.sock"):
        wait_active(vfsd, SRC)
    vfsd.restart()
    wait_for(lambda: shares(vfsd) == {"src": "listening"}, "it is there after a restart")
    with pytest.raises(CommandFailed, match="defined by a file; remove that"):
        vfsd.manager("RemoveShare", "s", "src")


def test_a_machine_from_a_file(vfsd: Vfsd, folders: Folders, folder: Path) -> None:
    folders.write(
        "machines/dev.toml",
        f'memory = "2G"\ncpus = 2\nbuiltin = true\nshutdown_timeout_usec = 5000000\n'
        f'forward = ["tcp:127.0.0.1:2222:22"]\n'
        f'[[shares]]\nsource = "{folder}"\nmount_point = "/data"\n[[shares]]\nsource = "/srv"\ntag = "srv"\n',
    )
    vfsd.manager("Reload")
    path = f"{ROOT}/machine/dev"
    assert vfsd.manager("ListMachines") == [["dev", "stopped", path]]
    wanted = {"Memory": 2 << 30, "CPUs": 2, "Builtin": True, "ShutdownTimeoutUSec": 5_000_000,
              "Forward": ["tcp:127.0.0.1:2222:22"]}  # fmt: skip
    assert {name: vfsd.get(path, MACHINE, name) for name in wanted} == wanted
    own = vfsd.get(path, MACHINE, "Shares")
    assert [vfsd.get(share, SHARE, "MountPoint") for share in own] == ["/data", ""]
    assert [vfsd.get(share, SHARE, "Tag") for share in own][1] == "srv"
    assert shares(vfsd) == {vfsd.get(share, SHARE, "Name"): "stopped" for share in own}


@only_system
def test_the_first_folder_that_has_a_name_wins(vfsd: Vfsd, folders: Folders, folder: Path) -> None:
    for number in range(3):
        folders.write("shares/src.toml", f'source = "{folder}"\ntag = "t{number}"\n', number)
    folders.write("shares/low.toml", f'source = "{folder}"\n', 2)
    folders.write("shares/hidden.toml", f'source = "{folder}"\n', 2)
    folders.write("shares/hidden.toml", "", 1)
    vfsd.manager("Reload")
    assert shares(vfsd) == {"low": "listening", "src": "listening"}
    assert vfsd.get(SRC, SHARE, "Tag") == "t0"


BAD: dict[str, tuple[str | bytes, int, str]] = {
    "syntax": ("source = \n", 1, "Invalid value"),
    "string": ('source = "/srv"\ntag = "x\n', 2, "Illegal character"),
    "cut": ('source = "/srv"\n[[sha', 2, ""),
    "key": ('source = "/srv"\nread_onyl = true\n', 2, '"read_onyl" is no key'),
    "type": ('\nsource = "/srv"\nread_only = "yes"\n', 3, "read_only must be true or false"),
    "number": ('source = "/srv"\nthread_pool_size = -1\n', 2, "thread_pool_size must be a whole number"),
    "huge": (
        'source = "/srv"\nthread_pool_size = 4294967296\n',
        2,
        "thread_pool_size must be a whole number",
    ),
    "boolean": ('source = "/srv"\nthread_pool_size = true\n', 2, "thread_pool_size must be a whole number"),
    "list": ('source = "/srv"\nuid_map = [1]\n', 2, "uid_map must be a list of texts"),
    "date": ('source = "/srv"\ntag = 2026-11-22\n', 2, "tag must be a text"),
    "choice": ('source = "/srv"\ncache = "sometimes"\n', 2, "must be one of auto, always, metadata, never"),
    "nosource": ("tag = 'x'\n", 0, "a share needs source"),
    "relative": ('source = "srv"\n', 1, "not an absolute path"),
    "name of it": ('source = "/srv"\n', 0, "can't name a share"),
    "n" * 100: ('source = "/srv"\n', 0, "too long for the path of a socket"),
    "latin": (b'source = "/srv/\xfc"\n', 0, "can't decode"),
    "binary": (bytes(range(256)), 0, ""),
    "deep": ("source = " + "[" * 20_000, 0, ""),
}


def test_bad_files_are_told_and_the_others_loaded(vfsd: Vfsd, folders: Folders, folder: Path) -> None:
    paths = {name: folders.write(f"shares/{name}.toml", text) for name, (text, _, _) in BAD.items()}
    paths["memory"] = folders.write("machines/memory.toml", 'cpus = 1\nmemory = "2 gigabytes"\n')
    paths["tables"] = folders.write("machines/tables.toml", 'shares = "/srv"\n')
    folders.write("shares/good.toml", f'source = "{folder}"\n')
    folders.write("shares/.#editor.toml", "rubbish")
    expected = {**BAD, "memory": ("", 2, 'such as "2G"'), "tables": ("", 1, "[[shares]] tables")}
    for act in (lambda: vfsd.manager("Reload"), vfsd.restart):
        since = time.time()
        act()
        wait_for(lambda: shares(vfsd) == {"good": "listening"}, "the good one was loaded")
        told = {entry["VFSD_FILE"]: entry for entry in bad_files(vfsd, since)}
        assert set(told) == {str(path) for path in paths.values()}
        assert len(bad_files(vfsd, since)) == len(paths), "one entry for each"
        for name, (_, line, words) in expected.items():
            message = told[str(paths[name])]["MESSAGE"]
            assert message.startswith(f"{paths[name]} can't be used: "), message
            assert words in message, message
            assert told[str(paths[name])]["VFSD_REASON"] in message
            if line:
                assert f"line {line}" in message, message
            assert "Traceback" not in message


async def test_reload_adds_changes_and_removes(
    vfsd: Vfsd, client: Client, folders: Folders, folder: Path
) -> None:
    kept = folders.write("shares/src.toml", f'source = "{folder}"\ntag = "one"\n')
    folders.write("shares/gone.toml", f'source = "{folder}"\n')
    await client.manager("Reload")
    with connected(vfsd.runtime / "share/src.sock"):
        await until(lambda: client.signals.states(SRC)[-1:] == [("listening", "active", "")], "active")
        pid = await client.get(SRC, SHARE, "MainPID")
        kept.write_text(f'source = "{folder}"\ntag = "two"\n')
        (vfsd.config / "shares/gone.toml").unlink()
        client.signals.seen.clear()
        await client.manager("Reload")
        assert [m.member for m in client.signals.seen] == [], "what runs is not touched"
        assert await client.get(SRC, SHARE, "MainPID") == pid
        assert await client.get(SRC, SHARE, "Tag") == "one"
    await until(lambda: client.signals.states(SRC) == [("active", "listening", "")], "listening")
    assert [row[:2] for row in await client.manager("ListShares")] == [
        ["gone", "listening"],
        ["src", "listening"],
    ]
    await client.call(f"{ROOT}/share/gone", SHARE, "Stop")
    await client.call(SRC, SHARE, "Stop")
    client.signals.seen.clear()
    await client.manager("Reload")
    assert [row[:2] for row in await client.manager("ListShares")] == [["src", "stopped"]]
    assert client.signals.changes(SRC, "Tag") == ["two"]
    assert [m.body[0] for m in client.signals.seen if m.member == "InterfacesRemoved"] == [
        f"{ROOT}/share/gone"
    ]
    await client.call(SRC, SHARE, "Start")


async def test_another_source_is_another_share(
    vfsd: Vfsd, client: Client, folders: Folders, folder: Path
) -> None:
    """Source is constant on the bus, so a client must see the object go and come."""
    path = folders.write("shares/src.toml", f'source = "{folder}"\n')
    await client.manager("Reload")
    await client.call(SRC, SHARE, "Stop")
    path.write_text('source = "/srv"\n')
    client.signals.seen.clear()
    await client.manager("Reload")
    assert await client.get(SRC, SHARE, "Source") == "/srv"
    assert await client.get(SRC, SHARE, "State") == "stopped"
    assert client.signals.members() == ["InterfacesRemoved", "InterfacesAdded"]
    await client.call(SRC, SHARE, "Start")
    assert await client.get(SRC, SHARE, "State") == "listening"


def test_a_name_that_was_given_over_the_bus_is_told(vfsd: Vfsd, folders: Folders, folder: Path) -> None:
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "1", "Tag", "s", "bus")
    vfsd.manager("CreateShare", "ssa{sv}", "dev.data", str(folder), "0")
    share = folders.write("shares/src.toml", f'source = "{folder}"\ntag = "file"\n')
    machine = folders.write("machines/dev.toml", f'[[shares]]\nsource = "{folder}"\ntag = "data"\n')
    since = time.time()
    vfsd.manager("Reload")
    assert vfsd.get(SRC, SHARE, "Tag") == "bus"
    assert vfsd.get(f"{ROOT}/share/dev_2edata", SHARE, "Machine") == "/"
    assert shares(vfsd) == {"dev.data": "listening", "src": "listening"}
    assert vfsd.manager("ListMachines") == []
    told = {entry["VFSD_FILE"]: entry["MESSAGE"] for entry in bad_files(vfsd, since)}
    assert set(told) == {str(share), str(machine)}
    assert 'there is a share "src" already' in told[str(share)]
    assert 'there is a share "dev.data" already' in told[str(machine)]


def test_persistent_definitions_survive(vfsd: Vfsd, folder: Path) -> None:
    for name, persistent in (("src", "true"), ("short", "false")):
        options = ["3", "Persistent", "b", persistent, "Cache", "s", "never", "UIDMap", "as", "0"]
        vfsd.manager("CreateShare", "ssa{sv}", name, str(folder), *options)
    before = {name: vfsd.get(SRC, SHARE, name) for name in ("Cache", "Owner", "Persistent", "Source", "Tag")}
    assert [path.name for path in (vfsd.state / "definitions").iterdir()] == ["share-src.json"]
    vfsd.systemctl("stop", "vfsd.service")
    # as after a reboot: nothing runs, and the runtime folder is empty
    vfsd.systemctl("stop", "vfsd-share-src.socket", "vfsd-share-short.socket")
    for path in (*(vfsd.runtime / "definitions").iterdir(), *(vfsd.runtime / "source").iterdir()):
        path.unlink()
    vfsd.systemctl("start", "vfsd.service")
    wait_state(vfsd, SRC, "listening")
    assert shares(vfsd) == {"src": "listening"}
    assert {name: vfsd.get(SRC, SHARE, name) for name in before} == before
    with connected(vfsd.runtime / "share/src.sock"):
        wait_active(vfsd, SRC)


DAMAGES = {
    "empty": b"",
    "truncated": b'{"format": 1, "owner": 0, "source": "/srv", "opti',
    "garbage": bytes(range(256)),
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "deep": b"[" * 100_000,
    "format": b'{"format": 99, "owner": 0, "source": "/srv", "options": {}}',
    "nokeys": b'{"format": 1}',
    "badsource": b'{"format": 1, "owner": 0, "source": 5, "options": {}}',
    "relative": b'{"format": 1, "owner": 0, "source": "srv", "options": {}}',
    "surrogate": b'{"format": 1, "owner": 0, "source": "/\\ud800", "options": {}}',
    "nul": b'{"format": 1, "owner": 0, "source": "/\\u0000", "options": {}}',
    "owner": b'{"format": 1, "owner": 99999999999999999999, "source": "/srv", "options": {}}',
    "ownertext": b'{"format": 1, "owner": "me", "source": "/srv", "options": {}}',
    "option": b'{"format": 1, "owner": 0, "source": "/srv", "options": {"Nothing": 1}}',
    "boolean": b'{"format": 1, "owner": 0, "source": "/srv", "options": {"ReadOnly": "yes"}}',
    "text": b'{"format": 1, "owner": 0, "source": "/srv", "options": {"XAttrMap": 5}}',
    "listtext": b'{"format": 1, "owner": 0, "source": "/srv", "options": {"UIDMap": "abc"}}',
    "listitems": b'{"format": 1, "owner": 0, "source": "/srv", "options": {"TranslateUID": [1, null]}}',
    "unsigned": b'{"format": 1, "owner": 0, "source": "/srv", "options": {"ThreadPoolSize": -1}}',
    "toobig": b'{"format": 1, "owner": 0, "source": "/srv", "options": {"ThreadPoolSize": 4294967296}}',
    "float": b'{"format": 1, "owner": 0, "source": "/srv", "options": {"LimitNOFILE": 1.5}}',
    "bad name": b'{"format": 1, "owner": 0, "source": "/srv", "options": {}}',
}


def test_damaged_definitions_do_no_harm(vfsd: Vfsd, folder: Path) -> None:
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "1", "Persistent", "b", "true")
    vfsd.manager("CreateMachine", "sa{sv}", "dev", "0")
    vfsd.systemctl("stop", "vfsd.service")
    stored, runtime = vfsd.state / "definitions", vfsd.runtime / "definitions"
    good = json.loads((stored / "share-src.json").read_text())
    machine = json.loads((runtime / "machine-dev.json").read_text())
    damaged = [stored / f"share-{name}.json" for name in DAMAGES]
    for path, text in zip(damaged, DAMAGES.values(), strict=True):
        path.write_bytes(text)
    broken = {
        "memory": {**machine, "options": {**machine["options"], "Memory": "much"}},
        "shares": {**machine, "shares": [{"name": "x"}]},
        "attached": {**machine, "attached": 5},
        "attached2": {**machine, "attached": [5]},
    }
    for name, document in broken.items():
        damaged.append(runtime / f"machine-{name}.json")
        damaged[-1].write_text(json.dumps(document))
    (runtime / "share-src.memory").write_bytes(b'{"restarts": "many", "since_usec": -5, "failure": 7}')
    since = time.time()
    vfsd.systemctl("start", "vfsd.service")
    assert shares(vfsd) == {"src": "listening"}
    assert [row[:2] for row in vfsd.manager("ListMachines")] == [["dev", "stopped"]]
    assert vfsd.get(SRC, SHARE, "Source") == good["source"]
    assert vfsd.get(SRC, SHARE, "Restarts") == 0
    told = [entry["VFSD_FILE"] for entry in bad_files(vfsd, since)]
    assert sorted(told) == sorted(map(str, damaged))
    for path in damaged:
        path.unlink()


def test_a_share_without_its_source_waits_for_it(vfsd: Vfsd, folders: Folders, folder: Path) -> None:
    folders.write("shares/src.toml", f'source = "{folder}/later"\n')
    vfsd.manager("Reload")
    assert shares(vfsd) == {"src": "unavailable"}
    assert told_of(vfsd, folder / "later") in vfsd.get(SRC, SHARE, "Reason")
    (folder / "later").mkdir()
    wait_for(lambda: shares(vfsd) == {"src": "listening"}, "it listens by itself")


async def test_a_share_that_is_removed_meanwhile_is_no_error_of_reload(client: Client, folder: Path) -> None:
    """Nor does it keep a vfsd that has come up from what it starts after the shares."""
    for _ in range(5):
        await client.create_share("short", folder)
        await asyncio.gather(client.manager("RemoveShare", "s", "short"), client.manager("Reload"))
