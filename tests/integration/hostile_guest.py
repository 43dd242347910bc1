"""A guest whose root attacks what it was given, a neighbour that must not notice, and what may not change outside.

It is the built-in guest, which is up in seconds, with the lab's tree as a share to have Python in it: the attacks are
programs of the package `hostile`, run by the agent in a chroot of that tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbus_next import Variant

from tests.integration.debian_guest import TREE
from tests.integration.harness import MACHINE, SHARE, Client, Vfsd, until
from tests.integration.test_debian import memory

PROJECT = Path(__file__).parents[2]
ATTACKS = "tests.integration.hostile"
BOOT_TIMEOUT = 240
"""Seconds, on a host with many others; a quiet one takes 4."""
UNSHARED = "what no guest may read\n"
GREETING = "from the neighbour's share\n"
FULL_SIZE = 8 << 20
"""Bytes of the file system that the guest fills."""
FILES_MAX = 1000
"""Descriptors of the virtiofsd that the guest drains; it starts with no less than 610."""

GET_MAX = 2.0
"""Seconds that 99 of 100 questions to vfsd may take while the guest attacks, on a host with many others."""
READ_MAX = 60.0
"""The same for a file in the neighbour, read through the agent of a guest on TCG that has half a processor."""
MEMORY_MAX = 32 << 10
"""KiB by which vfsd may grow over an attack."""

_OPTIONS: dict[str, dict[str, tuple[str, Any]]] = {
    "rw": {},
    "uncached": {"Cache": ("s", "never"), "DirectIO": ("b", True)},
    "ro": {"ReadOnly": ("b", True), "XAttr": ("b", True)},
    "xattr": {"XAttr": ("b", True), "PosixACL": ("b", True)},
    "raw": {},
    "broken": {},
    "none": {"Sandbox": ("s", "none")},
}
_OPTIONS_OF_ROOT: dict[str, dict[str, tuple[str, Any]]] = {
    "full": {"DirectIO": ("b", True)},
    "namespace": {"Sandbox": ("s", "namespace")},
    "few": {"LimitNOFILE": ("t", FILES_MAX)},
    "nodes": {"AllowDeviceNodes": ("b", True), "XAttr": ("b", True)},
    "setuid": {"AllowSetuid": ("b", True), "XAttr": ("b", True)},
}


@dataclass
class HostileGuest:
    """Its machine, and the neighbour."""

    vfsd: Vfsd
    base: Path
    """Above all sources: `shares/TAG`, and beside them `outside`, which nobody shares."""
    path: str = "/org/vfsd1/machine/hostile"
    neighbour: str = "/org/vfsd1/machine/neighbour"

    @property
    def outside(self) -> Path:
        return self.base / "outside"

    def source(self, tag: str) -> Path:
        return self.base / "shares" / tag

    def share(self, tag: str) -> str:
        return str(self.vfsd.manager("GetShare", "s", f"hostile.{tag}"))

    async def attack(self, client: Client, program: str, *arguments: object, seconds: float = 300) -> Any:
        """Run one of the attacks to its end; returns what it says in JSON."""
        python = ("chroot", "/tree", "env", "PYTHONPATH=/opt", "python3", "-S", "-m", f"{ATTACKS}.{program}")
        return json.loads(await self.run(client, *python, *map(str, arguments), seconds=seconds))

    async def run(self, client: Client, *words: str, seconds: float = 300) -> str:
        """Run a program in the guest, which succeeds; returns what it writes."""
        status, output, errors = await _execute(client, self.path, words, seconds)
        assert status == 0, (words, output[-2000:], errors[-4000:])
        return output

    async def tried(self, client: Client, *words: str, seconds: float = 300) -> tuple[int, str]:
        """Run a program in the guest; returns its exit code and what it writes."""
        status, output, _ = await _execute(client, self.path, words, seconds)
        return status, output


async def _execute(
    client: Client, machine: str, words: tuple[str, ...], seconds: float
) -> tuple[int, str, str]:
    options = {"TimeoutUSec": Variant("t", int(seconds * 1_000_000))}
    call = ("org.vfsd1", machine, MACHINE, "Execute", "asa{sv}", [list(words), options])
    status, output, errors = await client.raw(*call)
    return status, str(output, errors="replace"), str(errors, errors="replace")


@contextlib.contextmanager
def hostile_guest(vfsd: Vfsd, *, shares: bool = True) -> Iterator[HostileGuest]:
    """Both machines, up; they are killed and their folders removed at the end.

    :param shares: whether there is anything to be attacked but the machine itself.
    """
    with contextlib.ExitStack() as stack:
        base = Path(tempfile.mkdtemp(prefix="vfsd-test-hostile-", dir="/srv"))
        stack.callback(_remove, base)
        base.chmod(0o755)
        options = {**_OPTIONS, **(_OPTIONS_OF_ROOT if vfsd.scope == "system" else {})} if shares else {}
        _make_folders(base, [*options, "neighbour"])
        if shares:
            _make_traps(base)
        if "full" in options:
            full = base / "shares/full"
            _call("mount", "-t", "tmpfs", "-o", f"size={FULL_SIZE}", "test", str(full))
            stack.callback(_call, "umount", "--lazy", str(full))
        _call("chown", "-R", f"{vfsd.owner_uid}:{vfsd.owner_uid}", str(base))
        guest = HostileGuest(vfsd, base)
        apart(_start(guest, options))
        yield guest
        for name in ("hostile", "neighbour"):
            machine = f"/org/vfsd1/machine/{name}"
            if vfsd.get(machine, MACHINE, "State") not in ("stopped", "failed"):
                vfsd.call(machine, MACHINE, "Kill")


def apart(work: Coroutine[Any, Any, None]) -> None:
    """Run it in an event loop of its own, from outside of any."""
    with ThreadPoolExecutor(
        1
    ) as pool:  # asyncio.run() forgets the loop that is its thread's, which pytest keeps
        pool.submit(asyncio.run, work).result()


def _remove(base: Path) -> None:
    """shutil's own would recurse as deep as the guest went."""
    _call("rm", "-rf", str(base))


def _call(*words: str) -> None:
    subprocess.run(words, check=True)


def _make_folders(base: Path, tags: list[str]) -> None:
    for tag in tags:
        (base / "shares" / tag).mkdir(parents=True)
        (base / "shares" / tag / "hello").write_text(GREETING)
    outside = base / "outside"
    outside.mkdir()
    (outside / "secret").write_text(UNSHARED)
    (outside / "folder").mkdir()
    (base / "above").write_text(UNSHARED)
    (base / "shares/secret").write_text(UNSHARED)


def _make_traps(base: Path) -> None:
    """What leads out of a share, or is no content, and what a read-only one is to keep."""
    for share in (base / "shares").iterdir():
        if share.is_dir():
            (share / "out").symlink_to(base / "outside")
            (share / "relative").symlink_to("../../outside/secret")
    for name in ("raw", "namespace"):
        _make_special(base / "shares" / name)
    (base / "shares/ro/tree").mkdir()
    (base / "shares/ro/tree/file").write_text("as it was\n")
    (base / "shares/ro/empty").mkdir()
    (base / "shares/ro/link").symlink_to("hello")


def _make_special(share: Path) -> None:
    share.mkdir(exist_ok=True)
    (share / "folder").mkdir()
    os.mkfifo(share / "fifo")
    os.mknod(share / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(share / "socket"))


async def _start(guest: HostileGuest, options: dict[str, dict[str, tuple[str, Any]]]) -> None:
    read_only = {"ReadOnly": Variant("b", True), "Cache": Variant("s", "always")}
    shares: list[Any] = [
        [str(TREE), "/tree", {**read_only, "Tag": Variant("s", "tree")}],
        [str(PROJECT), "/scripts", {**read_only, "Tag": Variant("s", "scripts")}],
    ]
    for tag, given in options.items():
        wanted = {name: Variant(*value) for name, value in given.items()}
        shares.append([str(guest.source(tag)), f"/mnt/{tag}", {"Tag": Variant("s", tag), **wanted}])
    beside: list[Any] = [[str(guest.source("neighbour")), "/mnt", {}]]
    client = await Client.connect(guest.vfsd, listen=False)
    try:
        for name, of_machine, memory_size in (("hostile", shares, 1024), ("neighbour", beside, 192)):
            path = await client.create_machine(
                name,
                Builtin=("b", True),
                Memory=("t", memory_size << 20),
                Network=("s", "none"),
                Accelerator=("s", "tcg"),
                Shares=("a(ssa{sv})", of_machine),
            )
            await client.call(path, MACHINE, "Start")
        for path in (guest.path, guest.neighbour):
            await until(
                lambda path=path: guest.vfsd.get(path, MACHINE, "GuestReady"),  # type: ignore[misc]
                "the guest is ready",
                BOOT_TIMEOUT,
            )
        binds = "for f in mnt proc sys dev; do mount -o rbind /$f /tree/$f; done; mount -o bind /scripts /tree/opt"
        await guest.run(client, "sh", "-c", binds)
    finally:
        await client.close()


# what may not change, and who must not notice


def snapshot(*roots: Path, without: tuple[Path, ...] = ()) -> dict[str, tuple[Any, ...]]:
    """All that can be seen of trees but the times of reading: what is in them, byte for byte, and when it changed."""
    found: dict[str, tuple[Any, ...]] = {}
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if Path(folder, name) not in without]
            for path in (Path(folder), *(Path(folder, name) for name in (*files, *folders))):
                if path not in without:
                    found[str(path)] = _seen(path)
    return found


def _seen(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    content = ""
    if path.is_symlink():
        content = str(path.readlink())
    elif path.is_file():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, *times, content, attributes)


def surroundings(guest: HostileGuest) -> dict[str, tuple[Any, ...]]:
    """What no attack may change: all around the sources of the shares, the host's /etc, and what vfsd keeps."""
    writable = tuple(
        path for path in (guest.base / "shares").iterdir() if path.name not in ("ro", "neighbour")
    )
    # the folder above them has their times in it only when one comes or goes, which counts
    around = snapshot(guest.base, Path("/etc"), without=writable)
    kept = {str(path): ("there",) for path in guest.vfsd.runtime.rglob("*")}
    return {**around, **kept}


@dataclass
class Watched:
    """How vfsd and the neighbour answered meanwhile, in seconds."""

    asked: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)

    def slow(self) -> float:
        """What 99 of 100 questions took at most."""
        return sorted(self.asked)[(len(self.asked) * 99) // 100]


@contextlib.asynccontextmanager
async def contained(guest: HostileGuest) -> AsyncIterator[Watched]:
    """While the guest attacks: nothing changes outside, vfsd answers, the neighbour reads, nobody dies of it."""
    before, pid, since, size = (
        surroundings(guest),
        guest.vfsd.main_pid(),
        time.time(),
        memory(guest.vfsd.main_pid()),
    )
    watched = Watched()
    client = await Client.connect(guest.vfsd, listen=False)
    ended = asyncio.Event()
    tasks = [asyncio.create_task(work(guest, client, watched, ended)) for work in (_ask, _read)]
    try:
        yield watched
    finally:
        ended.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
    assert [error for error in done if error is not None] == []
    print(
        f"asked {len(watched.asked)} times: {watched.slow() * 1000:.0f} ms, "
        f"at most {max(watched.asked) * 1000:.0f} ms; "
        f"read {len(watched.read)} times: at most {max(watched.read):.2f} s"
    )
    assert watched.slow() < GET_MAX
    assert max(watched.read) < READ_MAX
    after = surroundings(guest)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert not changed, {name: (before.get(name), after.get(name)) for name in sorted(changed)}
    assert guest.vfsd.main_pid() == pid
    assert memory(pid) - size < MEMORY_MAX
    unit = "_SYSTEMD_UNIT=vfsd.service" if guest.vfsd.scope == "system" else "_SYSTEMD_USER_UNIT=vfsd.service"
    said = [str(entry.get("MESSAGE")) for entry in guest.vfsd.journal(unit, since=since)]
    assert [text for text in said if "Traceback" in text or "internal error" in text] == []
    assert guest.vfsd.get(guest.neighbour, MACHINE, "State") == "running"
    assert guest.vfsd.get(guest.neighbour, MACHINE, "Degraded") is False


async def _ask(guest: HostileGuest, client: Client, watched: Watched, ended: asyncio.Event) -> None:
    while not (ended.is_set() and watched.asked):
        begun = time.monotonic()
        await client.get(guest.neighbour, MACHINE, "State")
        watched.asked.append(time.monotonic() - begun)
        await asyncio.sleep(0.02)


async def _read(guest: HostileGuest, client: Client, watched: Watched, ended: asyncio.Event) -> None:
    while not (ended.is_set() and watched.read):
        begun = time.monotonic()
        assert await _execute(client, guest.neighbour, ("cat", "/mnt/hello"), READ_MAX) == (0, GREETING, "")
        watched.read.append(time.monotonic() - begun)
        await asyncio.sleep(0.2)


def states(guest: HostileGuest) -> set[str]:
    """Of the shares that the guest has."""
    paths = guest.vfsd.get(guest.path, MACHINE, "Shares")
    return {guest.vfsd.get(path, SHARE, "State") for path in paths}
