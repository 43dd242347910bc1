"""Shares by themselves: made, started, connected to, killed, stopped and removed, on both buses."""

from __future__ import annotations

import asyncio
import grp
import itertools
import os
import pwd
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.conftest import only_system, only_user
from tests.integration.harness import (
    MANAGER,
    ROOT,
    SHARE,
    TESTER,
    BusError,
    Client,
    CommandFailed,
    Vfsd,
    process_exists,
    reconfigured,
    until,
    wait_for,
)
from tests.integration.sharing import (
    closed,
    command_line,
    connected,
    family,
    kill,
    message_of,
    quiet,
    serves,
    told_of,
    wait_active,
    wait_state,
)

SOCKET, SERVICE = "vfsd-share-src.socket", "vfsd-share-src.service"
PATH = f"{ROOT}/share/src"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def namespace(pid: int) -> str:
    """A process's mount namespace; "" if it is gone again."""
    try:
        return str(Path(f"/proc/{pid}/ns/mnt").readlink())
    except FileNotFoundError:
        return ""


def create(vfsd: Vfsd, source: Path, *options: str, name: str = "src") -> str:
    """Through busctl; the options as busctl takes an a{sv}, its count left out."""
    count = sum(1 for word in options if word[:1].isupper())
    return str(vfsd.manager("CreateShare", "ssa{sv}", name, str(source), str(count), *options))


def test_create_makes_a_listening_socket_with_the_right_modes(vfsd: Vfsd, folder: Path) -> None:
    assert create(vfsd, folder) == PATH
    show = {
        name: vfsd.unit_property(SOCKET, name)
        for name in ("ActiveState", "SocketMode", "RemoveOnStop", "Slice")
    }
    assert show == {
        "ActiveState": "active",
        "SocketMode": "0600",
        "RemoveOnStop": "yes",
        "Slice": "vfsd.slice",
    }
    assert vfsd.unit_property(SERVICE, "ActiveState") == "inactive"
    assert vfsd.unit_property(SERVICE, "Slice") == "vfsd.slice"
    socket = vfsd.runtime / "share/src.sock"
    assert vfsd.get(PATH, SHARE, "SocketPath") == str(socket)
    assert stat.S_ISSOCK(socket.lstat().st_mode)
    assert (mode(socket), socket.lstat().st_uid) == (0o600, vfsd.owner_uid)
    assert mode(vfsd.runtime) == 0o711
    assert mode(vfsd.runtime / "definitions") == 0o700
    assert mode(vfsd.state / "definitions") == 0o700
    vfsd.manager("RemoveShare", "s", "src")
    assert not socket.exists()
    assert vfsd.units() == []


def test_socket_group_may_connect(vfsd: Vfsd, folder: Path) -> None:
    create(vfsd, folder, "SocketGroup", "s", "kvm")
    socket = vfsd.runtime / "share/src.sock"
    assert mode(socket) == 0o660
    assert socket.stat().st_gid == grp.getgrnam("kvm").gr_gid
    assert vfsd.unit_property(SOCKET, "SocketMode") == "0660"


def test_properties_of_a_new_share(vfsd: Vfsd, folder: Path) -> None:
    before = time.time_ns() // 1000
    create(vfsd, folder, "ReadOnly", "b", "true", "Tag", "s", "data", "ThreadPoolSize", "u", "2")
    told = {
        name: vfsd.get(PATH, SHARE, name)
        for name in (
            "Name",
            "State",
            "Reason",
            "Source",
            "SocketUnit",
            "ServiceUnit",
            "Machine",
            "Owner",
            "MainPID",
            "Restarts",
            "Persistent",
            "ReadOnly",
            "Tag",
            "ThreadPoolSize",
            "Cache",
            "Sandbox",
        )
    }
    assert told == {
        "Name": "src",
        "State": "listening",
        "Reason": "",
        "Source": str(folder),
        "SocketUnit": SOCKET,
        "ServiceUnit": SERVICE,
        "Machine": "/",
        "Owner": vfsd.owner_uid,
        "MainPID": 0,
        "Restarts": 0,
        "Persistent": False,
        "ReadOnly": True,
        "Tag": "data",
        "ThreadPoolSize": 2,
        "Cache": "auto",
        "Sandbox": "chroot" if vfsd.scope == "system" else "namespace",
    }
    assert before <= vfsd.get(PATH, SHARE, "StateChangedUSec") <= time.time_ns() // 1000


def test_list_get_and_remove(vfsd: Vfsd, folder: Path) -> None:
    create(vfsd, folder, name="b-2")
    create(vfsd, folder, name="a.1")
    wanted = [
        ["a.1", "listening", str(folder), f"{ROOT}/share/a_2e1"],
        ["b-2", "listening", str(folder), f"{ROOT}/share/b_2d2"],
    ]
    assert vfsd.manager("ListShares") == wanted
    assert vfsd.manager("GetShare", "s", "b-2") == f"{ROOT}/share/b_2d2"
    vfsd.manager("RemoveShare", "s", "a.1")
    assert vfsd.manager("ListShares") == wanted[1:]
    vfsd.call(f"{ROOT}/share/b_2d2", SHARE, "Remove")
    assert vfsd.manager("ListShares") == []
    with pytest.raises(CommandFailed, match='no share "b-2"'):
        vfsd.manager("GetShare", "s", "b-2")


def test_everything_works_through_gdbus(vfsd: Vfsd, folder: Path) -> None:
    bus = "--system" if vfsd.scope == "system" else "--session"

    def call(path: str, member: str, *arguments: str) -> str:
        command = ["gdbus", "call", bus, "--dest", "org.vfsd1", "--object-path", path, "--method", member]
        return vfsd.run(*command, *arguments).strip()

    made = call(
        ROOT, f"{MANAGER}.CreateShare", "src", str(folder), "{'Cache': <'never'>, 'UIDMap': <@as []>}"
    )
    assert made == f"(objectpath '{PATH}',)"
    assert call(PATH, "org.freedesktop.DBus.Properties.Get", SHARE, "Cache") == "(<'never'>,)"
    call(PATH, f"{SHARE}.Stop")
    call(PATH, "org.freedesktop.DBus.Properties.Set", SHARE, "Cache", "<'always'>")
    assert call(ROOT, f"{MANAGER}.ListShares") == f"([('src', 'stopped', '{folder}', objectpath '{PATH}')],)"
    call(PATH, f"{SHARE}.Start")
    assert f"'{PATH}': {{'{SHARE}'" in call(ROOT, "org.freedesktop.DBus.ObjectManager.GetManagedObjects")
    call(PATH, f"{SHARE}.Remove")
    assert call(ROOT, f"{MANAGER}.ListShares") == "(@a(ssso) [],)"


async def test_a_connection_starts_virtiofsd_and_its_end_ends_it(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    path = await client.create_share("src", folder)
    client.signals.seen.clear()
    with connected(vfsd.runtime / "share/src.sock"):
        await until(lambda: client.signals.changes(path, "MainPID"), "virtiofsd runs")
        await until(lambda: client.signals.states(path), "the share is active")
        pid = await client.get(path, SHARE, "MainPID")
        await until(lambda: Path(f"/proc/{pid}/exe").resolve().name == "virtiofsd", "virtiofsd runs")
        assert pid == int(vfsd.unit_property(SERVICE, "MainPID"))
        assert await client.get(path, SHARE, "State") == "active"
        assert owner_of(pid) == vfsd.owner_uid
    await until(lambda: len(client.signals.states(path)) == 2, "the share listens again")
    assert client.signals.states(path) == [("listening", "active", ""), ("active", "listening", "")]
    assert await client.get(path, SHARE, "MainPID") == 0
    assert await client.get(path, SHARE, "Restarts") == 0
    assert not process_exists(pid)
    with connected(vfsd.runtime / "share/src.sock"):  # and once more
        await until(lambda: len(client.signals.states(path)) == 3, "active again")
    await until(lambda: len(client.signals.states(path)) == 4, "listening again")


async def test_a_killed_virtiofsd_is_told_and_listens_again(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder)
    with connected(vfsd.runtime / "share/src.sock") as connection:
        await until(lambda: client.signals.states(path), "the share is active")
        pid = await client.get(path, SHARE, "MainPID")
        client.signals.seen.clear()
        kill(pid)
        await until(lambda: client.signals.states(path), "its end was noticed")
        assert closed(connection)
    await quiet(client)
    [(old, new, reason)] = client.signals.states(path)
    assert (old, new) == ("active", "listening")
    assert "virtiofsd was killed by SIGKILL" in reason
    assert await client.get(path, SHARE, "Restarts") == 1
    assert client.signals.changes(path, "Restarts") == [1]
    assert await client.get(path, SHARE, "Reason") == reason
    with connected(vfsd.runtime / "share/src.sock"):  # it serves again, and then has nothing to complain of
        await until(lambda: len(client.signals.states(path)) == 2, "active again")
        assert await client.get(path, SHARE, "Reason") == ""
        assert await client.get(path, SHARE, "Restarts") == 1
    await until(lambda: len(client.signals.states(path)) == 3, "listening again")


def test_clients_that_come_and_go_quickly_do_no_harm(vfsd: Vfsd, folder: Path) -> None:
    """systemd's limits on how often a socket may start its service are not for a service that ends normally."""
    path = create(vfsd, folder)
    socket = vfsd.runtime / "share/src.sock"
    for _ in range(60):
        with connected(socket):
            time.sleep(0.04)
    wait_state(vfsd, path, "listening")
    with connected(socket):
        wait_active(vfsd, path)
    wait_state(vfsd, path, "listening")
    assert vfsd.get(path, SHARE, "Reason") == ""
    assert vfsd.get(path, SHARE, "Restarts") == 0


@pytest.mark.parametrize("sandbox", ["namespace", "chroot", "none"])
def test_each_sandbox_serves_the_source(vfsd: Vfsd, folder: Path, sandbox: str) -> None:
    (folder / "here").write_text("x")
    path = create(vfsd, folder, "Sandbox", "s", sandbox)
    if vfsd.scope == "user" and sandbox == "chroot":
        with connected(vfsd.runtime / "share/src.sock") as connection:
            assert closed(connection)  # virtiofsd refuses: chroot needs root
        wait_for(lambda: vfsd.get(path, SHARE, "Reason"), "the reason is told")
        assert "virtiofsd ended with exit code 1" in vfsd.get(path, SHARE, "Reason")
        assert vfsd.get(path, SHARE, "State") == "listening"
        return
    with connected(vfsd.runtime / "share/src.sock"):
        pid = wait_active(vfsd, path)
        confined = sandbox != "none"
        wait_for(lambda: serves(pid, folder, confined=confined), "virtiofsd has the source", 5)
        assert f"--sandbox={sandbox}" in command_line(pid)
        assert namespace(1) not in {namespace(process) for process in family(pid)}
    wait_state(vfsd, path, "listening")
    assert vfsd.get(path, SHARE, "Restarts") == 0


async def test_a_virtiofsd_that_cannot_start_does_not_loop(vfsd: Vfsd, client: Client, folder: Path) -> None:
    began = time.time()
    path = await client.create_share("src", folder, XAttr=("b", True), XAttrMap=("s", "rubbish"))
    await quiet(client)
    client.signals.seen.clear()
    with connected(vfsd.runtime / "share/src.sock") as connection:
        assert closed(connection)
    await until(
        lambda: [new for _, new, _ in client.signals.states(path)][-1:] == ["listening"],
        "its end was noticed",
    )
    await quiet(client, 1)
    reason = await client.get(path, SHARE, "Reason")
    assert reason.startswith("virtiofsd ended with exit code 2")
    assert f"-u {SERVICE}" in reason
    assert await client.get(path, SHARE, "Restarts") == 1
    assert [new for _, new, _ in client.signals.states(path)] == ["active", "listening"]
    assert (vfsd.runtime / "share/src.sock").exists()
    assert vfsd.unit_property(SOCKET, "ActiveState") == "active"
    command = reason.partition("; see ")[2]
    assert command == f"journalctl {'--user ' if vfsd.scope == 'user' else ''}-u {SERVICE}"
    # the lab keeps its journal in memory, where a user can't read it; root can
    unit_field = "_SYSTEMD_USER_UNIT" if vfsd.scope == "user" else "_SYSTEMD_UNIT"
    told = [str(entry["MESSAGE"]) for entry in vfsd.journal(f"{unit_field}={SERVICE}", since=began)]
    assert any("xattr" in line.lower() for line in told), told


@pytest.fixture
def elsewhere(vfsd: Vfsd) -> Iterator[Path]:
    """A folder where somebody may have put a program: an administrator, or a user."""
    base = Path("/opt" if vfsd.scope == "system" else pwd.getpwnam(TESTER).pw_dir)
    with tempfile.TemporaryDirectory(dir=base) as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def c_virtiofsd(vfsd: Vfsd, elsewhere: Path) -> Iterator[Vfsd]:
    """vfsd with a virtiofsd that says what QEMU 7's C one says."""
    script = elsewhere / "virtiofsd"
    script.write_text(
        "#!/bin/sh\necho 'virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)'\n"
        "echo 'using FUSE kernel interface version 7.36'\n"
    )
    script.chmod(0o755)
    with reconfigured(vfsd, f"Environment=VFSD_VIRTIOFSD={script}\n"):
        yield vfsd


async def test_a_virtiofsd_may_lie_anywhere(
    vfsd: Vfsd, client: Client, folder: Path, elsewhere: Path
) -> None:
    """Also in a home, although virtiofsd sees nothing else of that."""
    program = Path(shutil.copy2("/usr/libexec/virtiofsd", elsewhere))
    with reconfigured(vfsd, f"Environment=VFSD_VIRTIOFSD={program}\n"):
        path = await client.create_share("src", folder)
        with connected(vfsd.runtime / "share/src.sock"):
            await until(lambda: client.signals.states(path), "the share is active")
            pid = await client.get(path, SHARE, "MainPID")
            await until(lambda: serves(pid, folder), "virtiofsd serves")
            assert command_line(pid)[0] == str(program)


async def test_a_c_virtiofsd_is_refused(c_virtiofsd: Vfsd, client: Client, folder: Path) -> None:
    with pytest.raises(BusError) as caught:
        await client.create_share("src", folder)
    assert caught.value.name == "PrerequisiteMissing"
    assert "C virtiofsd" in caught.value.message
    assert "Rust" in caught.value.message
    assert c_virtiofsd.leftovers() == []
    assert await client.get(ROOT, MANAGER, "VirtiofsdVersion") == ""


async def test_systemctl_stop_behind_our_back(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder)
    with connected(vfsd.runtime / "share/src.sock"):
        await until(lambda: client.signals.states(path), "the share is active")
        vfsd.systemctl("stop", SERVICE)
        await until(lambda: len(client.signals.states(path)) >= 2, "its end was noticed")
        await until(lambda: client.signals.states(path)[-1][1] == "listening", "it listens again")
    assert await client.get(path, SHARE, "Restarts") == 0, "a stop on request is no failure"
    vfsd.systemctl("stop", SOCKET)
    await until(lambda: client.signals.states(path)[-1][1] == "stopped", "its stop was noticed")
    assert not (vfsd.runtime / "share/src.sock").exists()
    await client.call(path, SHARE, "Start")
    assert await client.get(path, SHARE, "State") == "listening"
    assert (vfsd.runtime / "share/src.sock").exists()


@pytest.mark.parametrize("verb", ["daemon-reload", "daemon-reexec"])
async def test_reloads_of_systemd_change_nothing(vfsd: Vfsd, client: Client, folder: Path, verb: str) -> None:
    busy, idle = await client.create_share("src", folder), await client.create_share("idle", folder)
    with connected(vfsd.runtime / "share/src.sock"):
        await until(lambda: client.signals.states(busy), "the share is active")
        pid = await client.get(busy, SHARE, "MainPID")
        await quiet(client)
        client.signals.seen.clear()
        for _ in range(3):
            vfsd.systemctl(verb)
        await quiet(client, 0.6)
        assert [(m.path, m.member, m.body) for m in client.signals.seen] == []
        assert await client.get(busy, SHARE, "State") == "active"
        assert await client.get(busy, SHARE, "MainPID") == pid
        assert await client.get(idle, SHARE, "State") == "listening"
    # and what happens is still followed
    await until(lambda: client.signals.states(busy) == [("active", "listening", "")], "listening again")
    with connected(vfsd.runtime / "share/idle.sock"):
        await until(lambda: client.signals.states(idle), "active")
    await until(lambda: len(client.signals.states(idle)) == 2, "listening")
    await client.call(idle, SHARE, "Stop")
    assert await client.get(idle, SHARE, "State") == "stopped"


async def test_a_reload_while_clients_come_and_go_loses_nothing(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    paths = [await client.create_share(f"s{n}", folder) for n in range(4)]
    for _ in range(3):
        reload = await asyncio.create_subprocess_exec(*vfsd.argv(["systemctl", vfsd.flag, "daemon-reload"]))
        for n in range(4):
            with connected(vfsd.runtime / f"share/s{n}.sock"):
                await asyncio.sleep(0.05)
        assert await reload.wait() == 0
    for path in paths:
        await until(
            lambda path=path: (client.signals.states(path) or [("", "", "")])[-1][1] == "listening",  # type: ignore[misc]
            "listening in the end",
        )
    await quiet(client)
    for path in paths:
        told = client.signals.states(path)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(told)), told
        assert await client.get(path, SHARE, "State") == "listening"
        assert await client.get(path, SHARE, "MainPID") == 0


def test_a_masked_unit_name_is_a_failure_that_says_so(vfsd: Vfsd, folder: Path) -> None:
    vfsd.systemctl("mask", "--runtime", SOCKET)
    try:
        with pytest.raises(CommandFailed) as caught:
            create(vfsd, folder)
        assert f"{SOCKET} is masked, unmask it" in message_of(caught.value)
        assert vfsd.manager("ListShares") == []
    finally:
        vfsd.systemctl("unmask", "--runtime", SOCKET)
    assert vfsd.leftovers() == []
    assert create(vfsd, folder) == PATH


def test_options_reach_virtiofsd(vfsd: Vfsd, folder: Path) -> None:
    map_text = ":prefix:all::user.x %n ${X} $X '\"\\.: :"
    path = create(
        vfsd,
        folder,
        *("ReadOnly", "b", "true"),
        *("Cache", "s", "metadata"),
        *("ThreadPoolSize", "u", "3"),
        *("AnnounceSubmounts", "b", "false"),
        *("LogLevel", "s", "debug"),
        *("XAttr", "b", "true"),
        *("LimitNOFILE", "t", "2048"),
    )
    with connected(vfsd.runtime / "share/src.sock"):
        arguments = command_line(wait_active(vfsd, path))
    wanted = {
        "--readonly",
        "--cache=metadata",
        "--thread-pool-size=3",
        "--no-announce-submounts",
        "--log-level=debug",
        "--xattr",
        "--rlimit-nofile=2048",
        "--fd=3",
    }
    assert wanted <= set(arguments)
    assert not any(str(folder) in argument for argument in arguments), "no path of the user's in a unit"
    wait_state(vfsd, path, "listening")
    vfsd.manager("RemoveShare", "s", "src")
    # texts of the user's that do stand in a unit come through as they are, after a daemon-reload too
    path = create(vfsd, folder, "XAttr", "b", "true", "XAttrMap", "s", map_text)
    for _ in range(2):
        assert f"--xattrmap={map_text}" in vfsd.run(
            "busctl",
            vfsd.flag,
            "--json=short",
            "get-property",
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1/unit/vfsd_2dshare_2dsrc_2eservice",
            "org.freedesktop.systemd1.Service",
            "ExecStartEx",
        ).encode().decode("unicode_escape")
        vfsd.systemctl("daemon-reload")


async def test_set_while_stopped_takes_effect_at_the_next_start(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    path = await client.create_share("src", folder)
    properties = "org.freedesktop.DBus.Properties"
    with pytest.raises(BusError, match="stop it to set ReadOnly") as caught:
        await client.call(path, properties, "Set", "ssv", SHARE, "ReadOnly", Variant("b", True))
    assert caught.value.name == "WrongState"
    await client.call(path, SHARE, "Stop")
    client.signals.seen.clear()
    await client.call(path, properties, "Set", "ssv", SHARE, "ReadOnly", Variant("b", True))
    await client.call(path, properties, "Set", "ssv", SHARE, "Tag", Variant("s", "other"))
    await client.call(
        path, properties, "Set", "ssv", SHARE, "Tag", Variant("s", "other")
    )  # no change, no signal
    await quiet(client)
    assert [list(m.body[1]) for m in client.signals.seen] == [["ReadOnly"], ["Tag"]]
    vfsd.restart()
    assert await client.get(path, SHARE, "Tag") == "other"
    assert await client.get(path, SHARE, "State") == "stopped", "a share that was stopped stays so"
    await client.call(path, SHARE, "Start")
    with connected(vfsd.runtime / "share/src.sock"):
        pid = await asyncio.to_thread(wait_active, vfsd, path)
        assert "--readonly" in command_line(pid)


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_shares_outlive_vfsd(vfsd: Vfsd, client: Client, folder: Path, how: str) -> None:
    busy = await client.create_share("src", folder, Cache=("s", "never"))
    idle = await client.create_share("idle", folder, Persistent=("b", True), MountPoint=("s", "/mnt/ x"))
    with connected(vfsd.runtime / "share/src.sock"):
        await until(lambda: client.signals.states(busy), "the share is active")
        before = await client.objects()
        pid = before[busy][SHARE]["MainPID"].value
        if how == "restart":
            vfsd.restart()
        else:
            old = vfsd.main_pid()
            kill(old)
            wait_for(lambda: vfsd.main_pid() not in (0, old), "systemd started vfsd again")
        after = await client.objects()
        for objects in (before, after):
            for path in (busy, idle):
                del objects[path][SHARE]["StateChangedUSec"], objects[path][SHARE]["OpenFiles"]
        assert after == before
        assert process_exists(pid)
        client.signals.seen.clear()
    await until(lambda: client.signals.states(busy) == [("active", "listening", "")], "still followed")


async def test_the_end_of_virtiofsd_while_vfsd_was_away(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder)
    with connected(vfsd.runtime / "share/src.sock"):
        await until(lambda: client.signals.states(path), "the share is active")
        vfsd.systemctl("stop", "vfsd.service")
    wait_for(lambda: vfsd.unit_property(SERVICE, "ActiveState") == "inactive", "virtiofsd ended")
    vfsd.systemctl("start", "vfsd.service")
    assert vfsd.get(path, SHARE, "State") == "listening"
    assert vfsd.get(path, SHARE, "MainPID") == 0


async def test_a_source_that_went_away(vfsd: Vfsd, client: Client, folder: Path) -> None:
    source = folder / "disk"
    source.mkdir()
    shutil.chown(source, vfsd.owner_uid)
    path = await client.create_share("src", source, Persistent=("b", True))
    await client.call(path, SHARE, "Stop")
    source.rmdir()
    with pytest.raises(BusError, match=f'"{source}", the source of share "src", does not exist') as caught:
        await client.call(path, SHARE, "Start")
    assert caught.value.name == "SourceNotFound"
    assert await client.get(path, SHARE, "State") == "unavailable"
    assert told_of(vfsd, source) in await client.get(path, SHARE, "Reason")
    vfsd.restart()
    wait_state(vfsd, path, "unavailable")
    source.mkdir()
    wait_state(vfsd, path, "listening")  # by itself, since that was asked for
    assert await client.get(path, SHARE, "Reason") == ""
    # and while it listens, faster than vfsd can see it
    os.kill(vfsd.main_pid(), signal.SIGSTOP)
    try:
        source.rmdir()
        with connected(vfsd.runtime / "share/src.sock") as connection:
            assert closed(connection)
    finally:
        os.kill(vfsd.main_pid(), signal.SIGCONT)
    wait_state(vfsd, path, "unavailable")
    assert await client.get(path, SHARE, "Restarts") == 1


async def test_a_share_with_a_client_is_busy(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder)
    with connected(vfsd.runtime / "share/src.sock") as connection:
        await until(lambda: client.signals.states(path), "the share is active")
        for call in (client.call(path, SHARE, "Remove"), client.manager("RemoveShare", "s", "src")):
            with pytest.raises(BusError, match='share "src" has a client') as caught:
                await call
            assert caught.value.name == "ShareBusy"
        with pytest.raises(BusError, match="active already") as caught:
            await client.call(path, SHARE, "Start")
        assert caught.value.name == "WrongState"
        await client.call(path, SHARE, "Stop")
        assert closed(connection)
    assert await client.get(path, SHARE, "State") == "stopped"
    assert await client.get(path, SHARE, "Restarts") == 0
    with pytest.raises(BusError, match="stopped already") as caught:
        await client.call(path, SHARE, "Stop")
    assert caught.value.name == "WrongState"
    await client.call(path, SHARE, "Remove")
    assert vfsd.leftovers() == []


@pytest.mark.parametrize("after", ["Start", "Stop", "Remove", "Set"])
async def test_a_call_that_waited_for_a_removal_finds_no_share(
    vfsd: Vfsd, client: Client, folder: Path, after: str
) -> None:
    path = await client.create_share("src", folder)
    first = asyncio.create_task(client.call(path, SHARE, "Remove"))
    arguments: tuple[Any, ...] = (SHARE, after)
    if after == "Set":
        arguments = ("org.freedesktop.DBus.Properties", "Set", "ssv", SHARE, "Tag", Variant("s", "t"))
    second = asyncio.create_task(client.call(path, *arguments))
    await first
    with pytest.raises(BusError) as caught:
        await second
    assert caught.value.name in ("NoSuchShare", "UnknownObject")
    assert vfsd.leftovers() == []
    assert await client.create_share("src", folder) == path


@only_system
def test_system_shares_are_confined(vfsd: Vfsd, folder: Path) -> None:
    create(vfsd, folder)
    wanted = {
        "NoNewPrivileges": "yes",
        "PrivateNetwork": "yes",
        "ProtectSystem": "yes",
        "ProtectHome": "tmpfs",
        "MemoryDenyWriteExecute": "yes",
        "RestrictSUIDSGID": "yes",
    }
    assert {name: vfsd.unit_property(SERVICE, name) for name in wanted} == wanted
    shown = vfsd.run("systemd-analyze", "security", "--no-pager", SERVICE)
    line = next(line for line in shown.splitlines() if "Overall exposure level" in line)
    assert float(line.partition(": ")[2].split()[0]) <= 2.0


def test_virtiofsd_sees_nothing_of_the_host_but_programs(vfsd: Vfsd, folder: Path) -> None:
    path = create(vfsd, folder, "Sandbox", "s", "none")
    with connected(vfsd.runtime / "share/src.sock"):
        root = Path(f"/proc/{wait_active(vfsd, path)}/root")
        assert [file.name for file in (root / "etc").iterdir()] == ["ld.so.cache"]
        assert not (root / folder.relative_to("/")).exists()
        assert list((root / "home").iterdir()) == list((root / "root").iterdir()) == []
        assert not (root / vfsd.state.relative_to("/")).exists()


@only_user
def test_a_user_may_map_ids(vfsd: Vfsd, folder: Path) -> None:
    folder.chmod(0o755)
    path = create(
        vfsd, folder, "UIDMap", "as", "1", ":0:100000:65536:", "GIDMap", "as", "1", ":0:100000:65536:"
    )
    with connected(vfsd.runtime / "share/src.sock"):
        pid = wait_active(vfsd, path)
        wait_for(
            lambda: any("100000" in uid_map(process) for process in family(pid)), "the ids are mapped", 5
        )


def uid_map(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/uid_map").read_text()
    except OSError:  # newuidmap is gone again
        return ""
