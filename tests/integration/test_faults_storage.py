"""Disks that are full or read-only, files that are none, and files that somebody takes away."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import census
from tests.integration.census import counted  # noqa: F401  # a fixture
from tests.integration.harness import MACHINE, SHARE, CommandFailed, Vfsd, clean, wait_for
from tests.integration.sharing import connected, message_of
from tests.integration.test_configuration import Folders, bad_files, folders, shares  # noqa: F401
from vfsd.journal import MessageId

pytestmark = pytest.mark.usefixtures("counted")


@contextlib.contextmanager
def mounted(vfsd: Vfsd, where: Path, *options: str) -> Iterator[Path]:
    """Another file system there while the test runs; vfsd's own view of it comes along."""
    owner = f"uid={vfsd.owner_uid},gid={vfsd.owner_uid},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", ",".join((owner, *options)), "tmpfs", str(where)]
    subprocess.run(command, check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def fill(folder: Path) -> Path:
    """Leave no room on a file system."""
    filler = folder / "filler"
    with filler.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(OSError, match="No space left"):
        (folder / "more").write_bytes(b"x")
    (folder / "more").unlink(missing_ok=True)
    return filler


def create(vfsd: Vfsd, name: str, folder: Path, *, persistent: bool) -> str:
    return str(
        vfsd.manager("CreateShare", "ssa{sv}", name, str(folder), "1", "Persistent", "b", str(persistent))
    )


def refused(words: str, call: Any, *arguments: Any) -> None:
    """A call ends with an error that says this, and nothing of vfsd's inside."""
    with pytest.raises(CommandFailed) as caught:
        call(*arguments)
    assert words in message_of(caught.value)
    assert "/definitions" not in message_of(caught.value)


def told(vfsd: Vfsd, message: MessageId, since: float) -> list[str]:
    """What the journal has of one kind, of this scope."""
    field = "_SYSTEMD_UNIT" if vfsd.scope == "system" else "_SYSTEMD_USER_UNIT"
    entries = vfsd.journal(f"MESSAGE_ID={message.value}", f"{field}=vfsd.service", since=since)
    return [entry["MESSAGE"] for entry in entries]


def test_no_room_for_what_persists(vfsd: Vfsd, folder: Path) -> None:
    with mounted(vfsd, vfsd.state / "definitions", "size=16k") as small:
        kept = create(vfsd, "kept", folder, persistent=True)
        vfsd.call(kept, SHARE, "Stop")
        filler = fill(small)
        before = census.take(vfsd)
        refused("No space left", lambda: create(vfsd, "more", folder, persistent=True))
        machine = ("CreateMachine", "sa{sv}", "m", "1", "Persistent", "b", "true")
        refused("No space left", lambda: vfsd.manager(*machine))
        refused(
            "No space left",
            lambda: vfsd.run(
                "busctl", vfsd.flag, "set-property", "org.vfsd1", kept, SHARE, "Cache", "s", "never"
            ),
        )
        census.unchanged(vfsd, before)
        assert vfsd.get(kept, SHARE, "Cache") == "auto"
        create(vfsd, "passing", folder, persistent=False)
        vfsd.manager("RemoveShare", "s", "passing")
        vfsd.crash()
        census.unchanged(vfsd, before)
        filler.unlink()
        create(vfsd, "more", folder, persistent=True)
        for name in ("kept", "more"):
            vfsd.manager("RemoveShare", "s", name)


def test_no_room_for_what_is_remembered(vfsd: Vfsd, folder: Path) -> None:
    """A machine starts and ends all the same; once there is room, a vfsd that is started anew knows it."""
    with census.scene(vfsd, folder) as made:
        vfsd.call(made.machine, MACHINE, "Kill")
        since = time.time()
        runtime = vfsd.runtime / "definitions"
        kept = {path.name: path.read_bytes() for path in runtime.iterdir()}
        with mounted(vfsd, runtime, f"size={4 * (len(kept) + 1)}k"):
            for name, content in kept.items():
                (runtime / name).write_bytes(content)
                shutil.chown(runtime / name, vfsd.owner_uid)
            filler = fill(runtime)
            refused("No space left", lambda: create(vfsd, "more", folder, persistent=False))
            vfsd.call(made.machine, MACHINE, "Start")
            vfsd.call(made.listening, SHARE, "Stop")
            assert vfsd.get(made.machine, MACHINE, "State") == "running"
            assert vfsd.get(made.listening, SHARE, "State") == "stopped"
            wait_for(lambda: told(vfsd, MessageId.NOT_WRITTEN, since), "the journal has it")
            assert "No space left" in told(vfsd, MessageId.NOT_WRITTEN, since)[0]
            filler.unlink()
            vfsd.call(made.machine, MACHINE, "Pause")  # writes what could not be written before
            vfsd.crash()
            assert vfsd.get(made.machine, MACHINE, "AcceleratorInUse") == "tcg"
            assert vfsd.get(made.listening, SHARE, "State") == "stopped"
            vfsd.call(made.machine, MACHINE, "Kill")
            clean(vfsd)
        take_away([runtime / name for name in kept])  # they were underneath


def test_a_state_folder_that_is_read_only(vfsd: Vfsd, folder: Path) -> None:
    kept = create(vfsd, "kept", folder, persistent=True)
    since = time.time()
    where = vfsd.state / "definitions"
    subprocess.run(["mount", "--bind", where, where], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", where], check=True)
    try:
        vfsd.restart()
        wait_for(lambda: told(vfsd, MessageId.NOT_WRITTEN, since), "the journal has it")
        before = census.take(vfsd)
        refused("Read-only file system", lambda: create(vfsd, "more", folder, persistent=True))
        refused("Read-only file system", lambda: vfsd.manager("RemoveShare", "s", "kept"))
        census.unchanged(vfsd, before)
        assert vfsd.get(kept, SHARE, "State") == "listening"
        create(vfsd, "passing", folder, persistent=False)
        vfsd.manager("RemoveShare", "s", "passing")
        vfsd.crash()
        census.unchanged(vfsd, before)
    finally:
        subprocess.run(["umount", "-l", where], check=True)
    vfsd.restart()
    census.unchanged(vfsd, before)
    vfsd.manager("RemoveShare", "s", "kept")


def test_a_state_folder_that_can_not_be_made(vfsd: Vfsd, folder: Path) -> None:
    with mounted(vfsd, vfsd.state, "ro"):
        vfsd.restart()
        create(vfsd, "passing", folder, persistent=False)
        refused("No such file", lambda: create(vfsd, "more", folder, persistent=True))
        vfsd.manager("RemoveShare", "s", "passing")
    vfsd.restart()


def odd(folder: Path, prefix: str, suffix: str, vfsd: Vfsd) -> list[Path]:
    """Everything that may stand where a file is expected, in vain."""
    made = {
        kind: folder / f"{prefix}{kind}{suffix}"
        for kind in ("folder", "fifo", "loop", "zero", "huge", "gone")
    }
    commands = {
        "folder": ["mkdir", "-p", f"{made['folder']}/inner"],
        "fifo": ["mkfifo", f"{made['fifo']}"],
        "loop": ["ln", "-s", f"{made['loop']}", f"{made['loop']}"],
        "zero": ["ln", "-s", "/dev/zero", f"{made['zero']}"],
        "huge": ["truncate", "-s", "100G", f"{made['huge']}"],
        "gone": ["ln", "-s", "/no/such/file", f"{made['gone']}"],
    }
    if vfsd.scope == "user":
        made["closed"] = folder / f"{prefix}closed{suffix}"
        commands["closed"] = ["sh", "-c", 'echo x >"$0" && chmod 0 "$0"', f"{made['closed']}"]
    vfsd.run("mkdir", "-p", str(folder))
    for command in commands.values():
        vfsd.run(*command)
    return list(made.values())


def take_away(paths: list[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def test_files_that_are_none(vfsd: Vfsd, folders: Folders, folder: Path) -> None:  # noqa: F811
    create(vfsd, "kept", folder, persistent=True)
    create(vfsd, "passing", folder, persistent=False)
    good = folders.write("shares/good.toml", f'source = "{folder}"\n')
    vfsd.systemctl("stop", "vfsd.service")
    stored, runtime = vfsd.state / "definitions", vfsd.runtime / "definitions"
    bad = [
        *odd(stored, "share-", ".json", vfsd),
        *odd(stored, "machine-", ".json", vfsd),
        *odd(runtime, "machine-s-", ".json", vfsd),
        *odd(good.parent, "", ".toml", vfsd),
    ]
    silent = [
        *odd(runtime, "share-", ".memory", vfsd),
        *odd(stored, ".", ".new", vfsd),
        *odd(vfsd.runtime / "source", "", "", vfsd),
        *odd(vfsd.runtime / "machine", "", "", vfsd),
        *odd(vfsd.state / "machine", "", "", vfsd),
    ]
    begun = vfsd.runtime / "begun"
    begun.unlink()
    vfsd.run("mkfifo", str(begun))
    since = time.time()
    try:
        vfsd.systemctl("start", "vfsd.service")
        expected = {"kept": "listening", "passing": "listening", "good": "listening"}
        wait_for(lambda: shares(vfsd) == expected, "the good ones are there")
        assert vfsd.manager("ListMachines") == []
        files = [entry["VFSD_FILE"] for entry in bad_files(vfsd, since)]
        assert sorted(files) == sorted(map(str, bad))
    finally:
        take_away([*bad, *silent, begun])
        vfsd.restart()
        vfsd.run("rm", "-f", str(good))


def test_a_socket_that_is_taken_away(vfsd: Vfsd, folder: Path) -> None:
    with census.scene(vfsd, folder) as made:
        sockets = [vfsd.runtime / "share" / f"{name}.sock" for name in ("listens", "serves")]
        before = census.take(vfsd)
        since = time.time()
        for path in sockets:
            path.unlink()
        census.told_within(census.TRUTH, sockets[0].exists, "it is made again")
        wait_for(lambda: "taken away" in vfsd.get(made.listening, SHARE, "Reason"), "the bus says why")
        with connected(sockets[0]):
            wait_for(lambda: vfsd.get(made.listening, SHARE, "State") == "active", "it serves")
        assert vfsd.get(made.served, SHARE, "State") == "active", "who is connected is not disturbed"
        assert not sockets[1].exists()
        made.connection.close()
        census.told_within(census.TRUTH, sockets[1].exists, "it is made again when the client is gone")
        wait_for(lambda: len(told(vfsd, MessageId.PUT_BACK, since)) == 2, "the journal has both")
        # nor is what an administrator stops started again
        vfsd.systemctl("stop", vfsd.get(made.listening, SHARE, "SocketUnit"))
        time.sleep(0.5)
        assert vfsd.get(made.listening, SHARE, "State") == "stopped"
        vfsd.call(made.listening, SHARE, "Start")
        assert before.files == census.take(vfsd).files
        # while vfsd is away
        vfsd.systemctl("stop", "vfsd.service")
        sockets[0].unlink()
        vfsd.systemctl("start", "vfsd.service")
        census.told_within(census.TRUTH, sockets[0].exists, "it is made again at the next start")


def test_a_runtime_folder_that_is_emptied(vfsd: Vfsd, folder: Path) -> None:
    with census.scene(vfsd, folder) as made:
        before = census.take(vfsd)
        for path in vfsd.runtime.iterdir():
            if path.name == "config":  # an administrator's
                continue
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                path.unlink()
        socket = vfsd.runtime / "share" / "listens.sock"
        census.told_within(census.TRUTH, socket.exists, "the socket is made again")
        vfsd.crash()
        assert census.take(vfsd).states == before.states
        vfsd.call(made.machine, MACHINE, "Kill")
        assert vfsd.get(made.machine, MACHINE, "State") == "stopped"
        vfsd.call(made.machine, MACHINE, "Start")
        vfsd.call(made.machine, MACHINE, "Pause")
