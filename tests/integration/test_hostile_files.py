"""A guest whose root attacks its shares: what comes of it in the guest, and that nothing does anywhere else.

One guest on each bus stands for all the tests. On the user's bus are those that could lead out of a share.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import kept_clean, only_system
from tests.integration.harness import MACHINE, Client, Vfsd, wait_for
from tests.integration.hostile_guest import (
    FILES_MAX,
    FULL_SIZE,
    GREETING,
    HostileGuest,
    contained,
    hostile_guest,
    snapshot,
    states,
)

FILES = int(os.environ.get("VFSD_TEST_FILES", "2000"))
"""How many the guest looks at. A million of them took 10 minutes on TCG, and passed."""
FILES_MADE = 500
"""How many it makes: that takes ten times as long."""
WRITERS = 1000
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@pytest.fixture(scope="module", params=["system", "user"])
def vfsd(request: pytest.FixtureRequest) -> Iterator[Vfsd]:
    """One for all tests of this file, in each scope."""
    with kept_clean(request.param) as service:
        yield service


@pytest.fixture(scope="module")
def made(vfsd: Vfsd) -> Iterator[HostileGuest]:
    with hostile_guest(vfsd) as guest:
        yield guest


@pytest.fixture
async def guest(made: HostileGuest) -> AsyncIterator[HostileGuest]:
    """The guest, which is as well afterwards as its neighbour, whatever it did."""
    async with contained(made):
        yield made
    assert states(made) == {"active"}
    assert made.vfsd.get(made.path, MACHINE, "State") == "running"
    assert made.vfsd.get(made.path, MACHINE, "Degraded") is False


async def test_no_name_leads_out(guest: HostileGuest, client: Client) -> None:
    found = await guest.attack(client, "escapes", guest.outside, 2)
    assert found["race"].pop("tries") > 10
    removed = found["descriptors"].pop("removed")
    assert removed in (GREETING, "ENOENT")
    as_it_is = found["links"].pop("the host's, as it is")
    assert as_it_is == "../../outside/secret"
    assert found == {
        "links": dict.fromkeys(found["links"], "ENOENT"),
        "descriptors": dict.fromkeys(found["descriptors"], "ENOENT"),
        "hard links": {
            "to another share": "EXDEV",
            "from the guest's own": "EXDEV",
            "of a symbolic link": "done",
            "what that is": "../../outside/secret",
            "to a folder": "EPERM",
            "rename to another share": "EXDEV",
            "rename the root": "EXDEV",
        },
        "names": {"mkdir ..": "EEXIST", "unlink ..": "ENOTEMPTY", "rename ..": "EBUSY"},
        "race": {"seen": ["ENOENT", "inside\n"]},
    }
    # a link that was made there is as dead here as any: nobody but who follows it is led anywhere
    assert (guest.source("rw") / "link-absolute").readlink() == guest.outside / "secret"


async def test_a_folder_that_the_host_exchanges(guest: HostileGuest, client: Client) -> None:
    """The host's own race: what was a folder a moment ago is a link to the outside when virtiofsd opens it."""
    source = guest.source("uncached")
    (source / "swapped").mkdir()
    (source / "swapped/secret").write_text("inside\n")
    (source / "other").symlink_to(guest.outside)
    attack = asyncio.create_task(guest.attack(client, "watcher", "uncached", 3))
    libc = ctypes.CDLL(None)
    while not attack.done():
        names = (bytes(source / "swapped"), bytes(source / "other"))
        assert libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0
        await asyncio.sleep(0.0005)
    found = attack.result()
    assert found["tries"] > 10
    assert set(found["seen"]) <= {"inside\n", "ENOENT", "ENOTDIR", "ELOOP", "EIO", "ESTALE"}
    assert "inside\n" in found["seen"]


FORBIDDEN = {
    **{f"{how} {what}": "EPERM" for how in ("chmod", "create") for what in ("setuid", "setgid")},
    **{f"made-{what} is": "" for what in ("setuid", "setgid")},
    **{f"{what} is": "0o644" for what in ("setuid", "setgid")},
    "chmod folder setgid": "EPERM",
    "chmod sticky": "done",
    "sticky is": "0o1755",
    "create sticky": "done",
    "made-sticky is": "0o1755",
}
ALLOWED = {
    **{f"{how} {what}": "done" for how in ("chmod", "create") for what in ("setuid", "setgid", "sticky")},
    **{f"{made}setuid is": "0o4755" for made in ("", "made-")},
    **{f"{made}setgid is": "0o2755" for made in ("", "made-")},
    **{f"{made}sticky is": "0o1755" for made in ("", "made-")},
    "chmod folder setgid": "done",
}
NO_DEVICES = {"character": "EPERM", "block": "EPERM"}
TALKING = {"fifo": "done", "socket": "done", "open fifo": "ENXIO"}


async def test_devices_setuid_and_attributes(guest: HostileGuest, client: Client) -> None:
    found = await guest.attack(client, "special", "rw")
    too_long = {"user.65k": "E2BIG", "user.n251": "ERANGE"}
    attributes = {**dict.fromkeys(found["attributes"], "ENOTSUP"), **too_long}
    wanted = {"devices": NO_DEVICES, "setuid": FORBIDDEN, "talking": TALKING, "attributes": attributes}
    assert found == wanted
    source = guest.source("rw")
    assert stat.S_ISFIFO((source / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((source / "socket").stat().st_mode)
    assert dangerous(source) == []


async def test_attributes_where_they_are_allowed(guest: HostileGuest, client: Client) -> None:
    found = await guest.attack(client, "special", "xattr")
    assert (found["devices"], found["setuid"]) == (NO_DEVICES, FORBIDDEN)
    # a matter of the host's security modules, which decide on it as on any other process's
    found["attributes"].pop("security.selinux")
    root = guest.vfsd.scope == "system"
    assert found["attributes"] == {
        "user.small": "done",
        "user.64k": "done",
        "user.65k": "E2BIG",
        "user.n250": "done",
        "user.n251": "ERANGE",
        "user.": "EINVAL",
        "trusted.x": "EPERM",
        "trusted.overlay.opaque": "EPERM",
        # in a user's namespace there is nobody of the number 1234
        "system.posix_acl_access": "done" if root else "EINVAL",
        "security.capability": "EPERM" if root else "EINVAL",
        "security.ima": "EPERM",
        "system.nothing": "ENOTSUP",
        "nothing": "ENOTSUP",
        "many": "E2BIG",
    }
    assert dangerous(guest.source("xattr")) == []


@only_system
async def test_each_permission_gives_what_it_says(guest: HostileGuest, client: Client) -> None:
    nodes = await guest.attack(client, "special", "nodes")
    # whose they are is the guest's kernel's business: it has a null device, and no loop device
    assert nodes["devices"] == {
        "character": "done",
        "block": "done",
        "open null": "done",
        "open disk": "ENXIO",
    }
    assert nodes["setuid"] == FORBIDDEN
    assert dangerous(guest.source("nodes")) == ["disk", "null"]
    setuid = await guest.attack(client, "special", "setuid")
    assert (setuid["devices"], setuid["setuid"]) == (NO_DEVICES, ALLOWED)
    assert setuid["attributes"]["security.capability"] == "done"
    names = ["attributes", "made-setgid", "made-setuid", "setgid", "setuid"]
    assert dangerous(guest.source("setuid")) == names


def dangerous(source: Path) -> list[str]:
    """What raises whoever runs it, or is a device."""
    found = []
    for path in source.iterdir():
        mode = path.lstat().st_mode
        special = stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or mode & (stat.S_ISUID | stat.S_ISGID)
        if special or has_capabilities(path):
            found.append(path.name)
    return sorted(found)


def has_capabilities(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability", follow_symlinks=False))
    except OSError as error:
        assert error.errno == errno.ENODATA
        return False


async def test_a_read_only_share_stays_as_it_is(guest: HostileGuest, client: Client) -> None:
    source = guest.source("ro")
    before = snapshot(source)
    found = await guest.attack(client, "writing")
    # whoever opened a file for reading
    opened = {"write": "EBADF", "ftruncate": "EINVAL", "fallocate": "EBADF", "mmap": "EACCES"}
    assert found["as mounted"] == {**dict.fromkeys(found["as mounted"], "EROFS"), **opened}
    # in the guest it can be made writable; on the host nobody heeds that
    assert found["remount"] == {"remount": "done", "again": "done", "options": "rw,relatime"}
    other = {**opened, "open O_RDONLY|O_TRUNC": "EINVAL", "tmpfile": "ENOTSUP"}
    assert found["writable for the guest"] == {**dict.fromkeys(found["as mounted"], "EROFS"), **other}
    assert snapshot(source) == before


@only_system
async def test_names_crowds_and_depth(guest: HostileGuest, client: Client) -> None:
    crowd = guest.source("rw") / "crowd"
    crowd.mkdir()
    for number in range(FILES):
        (crowd / f"{number:x}").touch()
    (crowd / "one").write_text("byte" * 10)
    found = await guest.attack(client, "names", FILES_MADE, seconds=3000)
    many = found["many"]
    print(f"{FILES_MADE} made, {FILES} looked at: {many}")
    odd = found["odd"]
    assert odd == {**dict.fromkeys(odd, "done"), "256 bytes": "ENAMETOOLONG", "listed": "all"}
    assert (many["sizes"], many["forgotten"] == 0) == (40, FILES < 10_000)
    assert found["deep"] == {"absolute": "ENAMETOOLONG", "getcwd": "done", "relative": "done"}
    # what is in a file of an odd name is that name: nothing was lost on the way
    files = list((guest.source("rw") / "odd").iterdir())
    assert len(files) == len(odd) - 2
    assert [file.read_bytes() for file in files] == [os.fsencode(file.name) for file in files]
    assert len(list((guest.source("rw") / "many").iterdir())) == FILES_MADE


@only_system
async def test_a_disk_that_is_full(guest: HostileGuest, client: Client) -> None:
    found = await guest.attack(client, "full")
    assert found.pop("after") == ["room\n", FULL_SIZE]
    assert {name: told for name, (told, _) in found.items()} == dict.fromkeys(found, "ENOSPC")
    assert found["write"][1] > FULL_SIZE // 2
    assert {path.name for path in guest.source("full").iterdir()} == {"after"}


@only_system
async def test_descriptors_run_out(guest: HostileGuest, client: Client) -> None:
    found = await guest.attack(client, "exhaust", FILES_MAX)
    assert 20 < found.pop("opened") < FILES_MAX
    assert found == {
        **dict.fromkeys(("told", "another", "listing", "mkdir"), "ENFILE"),
        **dict.fromkeys(("what is open", "closed", "forgotten"), "done"),
        "read": GREETING,
    }


@only_system
async def test_writers_locks_and_a_storm(guest: HostileGuest, client: Client) -> None:
    found = await guest.attack(client, "writers", WRITERS, 2, seconds=600)
    assert found["writers"] == {"writers": WRITERS, "failed": 0}
    lines = (guest.source("rw") / "appended").read_bytes().splitlines(keepends=True)
    assert {len(line) for line in lines} == {64}
    assert sorted(int(line) for line in lines) == list(range(WRITERS))
    whole = {"aligned": "done", "unaligned": "done", "size": "8292"}
    assert found["direct"] == {"rw": whole, "uncached": whole}
    assert (guest.source("uncached") / "direct").read_bytes() == b"D" * 8192 + b"u" * 100
    assert found["mapped"] == {"rw": "parentchild", "uncached": "No such device"}
    assert (guest.source("rw") / "mapped").read_bytes()[4096:4101] == b"child"
    assert found["locks"] == dict.fromkeys(("flock", "fcntl", "OFD"), "done, EAGAIN")
    assert found["storm"]["failed"] == 0


@only_system
async def test_locks_end_at_the_guest(guest: HostileGuest, client: Client) -> None:
    """virtiofsd passes no locks on: the host and the guest don't see each other's."""
    (guest.source("rw") / "both").touch()
    script = "exec 9>/mnt/rw/both; flock -n 9 && touch /mnt/rw/held && exec sleep 600"
    hold = f"({script}) </dev/null >/dev/null 2>&1 & until [ -e /mnt/rw/held ]; do sleep 0.1; done"
    await guest.run(client, "chroot", "/tree", "sh", "-c", hold, seconds=60)
    with (guest.source("rw") / "both").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    status, found = await guest.tried(client, "chroot", "/tree", "flock", "-n", "/mnt/rw/both", "true")
    assert (status, found) == (1, "")


# past the guest's kernel, with a driver of the guest's own


async def test_no_request_leads_out(guest: HostileGuest, client: Client) -> None:
    """virtiofsd takes names with slashes. What holds is its root: above that there is nothing.

    On the system bus that is chroot's, on a user's that of a namespace.
    """
    await nothing_leads_out(guest, client, "raw")


@only_system
async def test_no_request_leads_out_of_a_namespace(guest: HostileGuest, client: Client) -> None:
    await nothing_leads_out(guest, client, "namespace")


async def test_no_request_leads_far_without_a_sandbox(guest: HostileGuest, client: Client) -> None:
    """virtiofsd's root is that of its unit then, in which there is nothing of the host's but programs."""
    source = guest.source("none")
    before = {path.name for path in source.iterdir()}
    found = (await guest.attack(client, "protocol", "none"))["names"]
    nowhere = ("../secret", "../../outside/secret", "/etc/passwd", "folder/inside", "folder/../..", "")
    assert {found[f"look {name}"] for name in nowhere} == {"ENOENT"}
    assert {told for name, told in found.items() if name.startswith("rename")} == {"EXDEV", "ENOENT"}
    assert {path.name for path in source.iterdir()} == before


async def nothing_leads_out(guest: HostileGuest, client: Client, tag: str) -> None:
    source = guest.source(tag)
    found = await guest.attack(client, "protocol", tag)
    assert found["began"] == 0
    root = source.stat().st_ino
    ups = {"look ..": root, "look folder/../..": root}
    looked = {name: told for name, told in found["names"].items() if name.startswith("look ")}
    assert looked == {**dict.fromkeys(looked, "ENOENT"), **ups}
    outside = {told for name, told in found["names"].items() if name.endswith("../../outside/folder")}
    assert outside == {"ENOENT"}
    # and what is made beside the root is made in it
    assert found["names"]["mkdir ../made"] == "done"
    assert {path.name for path in source.iterdir()} > {"stolen", "folder", "hello"}
    # links, FIFOs, sockets and devices, the host's own among them
    wanted = {"open": "EBADF", "list": "EBADF", "below": "ENOTDIR", "create": "ENOTDIR"}
    assert {name: wanted[name.split()[0]] for name in found["files"]} == found["files"]
    assert {name.split()[-1] for name in found["files"]} == {"out", "relative", "fifo", "socket", "null"}
    assert set(found["numbers"].values()) == {"EBADF"}
    refused = {**dict.fromkeys(found["sizes"], "EBADF"), "unknown": "ENOSYS", "ioctl": "ENOSYS"}
    assert found["sizes"] == {**refused, "name of a page": "ENAMETOOLONG", "and then": "done"}


async def test_messages_that_are_none(made: HostileGuest, client: Client) -> None:
    """They may end the guest's own virtiofsd, which is told, and nothing else. The last one: its share is lost."""
    async with contained(made):
        found = await made.attack(client, "rings")
    assert set(found.values()) <= {"taken", "not answered"} | {str(number) for number in range(200)}
    wait_for(
        lambda: made.vfsd.get(made.path, MACHINE, "Degraded") is (states(made) == {"active", "failed"}),
        "both say the same",
    )
    assert made.vfsd.get(made.path, MACHINE, "State") == "running"
    assert (await made.run(client, "cat", "/mnt/rw/hello")) == GREETING
