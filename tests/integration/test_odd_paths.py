"""Sources with odd names: shared, served, and served again after systemd read its unit files again.

virtiofsd's root is looked at: systemd parses transient units again at each daemon-reload, where an unescaped blank
would bind another directory. A decoy stands wherever a path that was cut or expanded would lead.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import only_system
from tests.integration.harness import SHARE, BusError, Client, Vfsd, wait_for
from tests.integration.sharing import connected, family, serves, wait_active, wait_state

ODD = [
    "a b",
    " leading",
    "trailing ",
    "a,b",
    "a,,b=c",
    "a%n",
    "%%",
    "%n%i%h",
    "${X}",
    "$X",
    "${HOME}",
    "a:b",
    "a:b:norbind",
    "a\\b",
    "a\\x20b",
    'a"b',
    "a'b",
    '"',
    "a\nb",
    "a\n[Service]\nExecStartPre=touch x",
    "\n",
    "a\tb",
    "ümlaut-日本",
    "-a",
    "@a",
    "!a",
    "+a",
    "#a",
    ";",
    "a;b",
    "*",
    "~",
    "x" * 200,
]


@pytest.fixture
def parent(vfsd: Vfsd, folder: Path) -> Iterator[Path]:
    """A folder full of decoys."""
    for decoy in ("a", "b", "X", "x", "trailing", "leading", "a\\", "HOME"):
        (folder / decoy).mkdir()
        (folder / decoy / "decoy").write_text("x")
    yield folder


def unit_texts(vfsd: Vfsd) -> str:
    """The transient unit files of all shares, as systemd will read them again."""
    base = "/run/systemd" if vfsd.scope == "system" else f"/run/user/{vfsd.owner_uid}/systemd"
    found = [path.read_text() for path in Path(base, "transient").rglob("vfsd-share-*") if path.is_file()]
    assert found
    return "\n".join(found)


def properties(vfsd: Vfsd, unit: str, *names: str) -> dict[str, Any]:
    """What systemd believes a unit to be, typed."""
    path = "/org/freedesktop/systemd1/unit/" + "".join(
        c if c.isascii() and c.isalnum() else f"_{ord(c):02x}" for c in unit
    )
    interface = f"org.freedesktop.systemd1.{unit.rpartition('.')[2].capitalize()}"
    command = [
        "busctl",
        vfsd.flag,
        "--json=short",
        "get-property",
        "org.freedesktop.systemd1",
        path,
        interface,
    ]
    out = vfsd.run(*command, *names).splitlines()
    return dict(zip(names, map(json.loads, out), strict=True))


async def test_each_right_directory_is_served(vfsd: Vfsd, client: Client, parent: Path) -> None:
    """Each share serves its own source, before and after a daemon-reload, and none that of another."""
    sources = {f"s{number}": parent / name for number, name in enumerate(ODD)}
    wanted = ["ExecStartEx", "LogExtraFields", *(["BindPaths"] if vfsd.scope == "system" else [])]
    paths, before = {}, {}
    for name, source in sources.items():
        await asyncio.to_thread(source.mkdir, exist_ok=True)
        path = paths[name] = await client.create_share(name, source, Persistent=("b", True))
        assert await client.get(path, SHARE, "Source") == str(source)
        before[name] = properties(vfsd, f"vfsd-share-{name}.service", *wanted)
    texts = unit_texts(vfsd)
    assert str(parent) not in texts
    assert str(parent) not in json.dumps(before)
    for _ in range(2):
        for name, source in sources.items():
            with connected(vfsd.runtime / f"share/{name}.sock"):
                pid = await asyncio.to_thread(wait_active, vfsd, paths[name])
                await asyncio.to_thread(wait_for, partial(serves, pid, source), f"{source!r} is served", 5)
        await asyncio.to_thread(vfsd.systemctl, "daemon-reload")
        for name in sources:
            assert properties(vfsd, f"vfsd-share-{name}.service", *wanted) == before[name]
    for path in paths.values():
        await asyncio.to_thread(wait_state, vfsd, path, "listening")
        assert await client.get(path, SHARE, "Restarts") == 0
    await asyncio.to_thread(vfsd.restart)
    listed = {row[0]: row[2] for row in await client.manager("ListShares")}
    assert listed == {name: str(source) for name, source in sources.items()}
    links = {name: os.readlink(vfsd.runtime / "source" / name) for name in sources}  # noqa: PTH115
    assert links == listed


async def test_a_link_to_a_directory_is_followed(vfsd: Vfsd, client: Client, folder: Path) -> None:
    target, link = folder / "target", folder / "link"
    await asyncio.to_thread(target.mkdir)
    await asyncio.to_thread(link.symlink_to, target)
    path = await client.create_share("src", link)
    with connected(vfsd.runtime / "share/src.sock"):
        pid = await asyncio.to_thread(wait_active, vfsd, path)
        await asyncio.to_thread(wait_for, lambda: serves(pid, target), "the target is served", 5)
    dangling = folder / "dangling"
    await asyncio.to_thread(dangling.symlink_to, folder / "nothing")
    with pytest.raises(BusError, match="does not exist") as caught:
        await client.create_share("other", dangling)
    assert caught.value.name == "SourceNotFound"


@pytest.mark.parametrize("base", ["/tmp", "/var/tmp", "/root", "/home/tester", "/dev/shm", "/run"])
async def test_sources_where_the_sandbox_hides_things(vfsd: Vfsd, client: Client, base: str) -> None:
    if vfsd.scope == "user" and base in ("/root", "/run"):
        base = "/run/user/1000"
    with tempfile.TemporaryDirectory(dir=base, prefix="vfsd-test-") as made:
        source = Path(made)
        os.chown(source, vfsd.owner_uid, vfsd.owner_uid)
        path = await client.create_share("src", source)
        with connected(vfsd.runtime / "share/src.sock"):
            pid = await asyncio.to_thread(wait_active, vfsd, path)
            await asyncio.to_thread(wait_for, lambda: serves(pid, source), f"{source} is served", 5)
        await asyncio.to_thread(wait_state, vfsd, path, "listening")
        await client.call(path, SHARE, "Remove")


@only_system
async def test_the_folder_of_another_user(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """A source below a directory that only its user may enter is found, and served."""
    closed, source = folder / "closed", folder / "closed/inner"
    await asyncio.to_thread(source.mkdir, parents=True)
    for path in (closed, source):
        os.chown(path, 1000, 1000)
        await asyncio.to_thread(path.chmod, 0o700)
    share = await client.create_share("src", source)
    with connected(vfsd.runtime / "share/src.sock"):
        pid = await asyncio.to_thread(wait_active, vfsd, share)
        await asyncio.to_thread(wait_for, lambda: serves(pid, source), "it is served", 5)


@only_system
@pytest.mark.parametrize(("read_only", "flag"), [(True, "ro"), (False, "rw")])
async def test_read_only_holds_on_the_host(
    vfsd: Vfsd, client: Client, folder: Path, read_only: bool, flag: str
) -> None:
    path = await client.create_share("src", folder, ReadOnly=("b", read_only), Sandbox=("s", "none"))
    with connected(vfsd.runtime / "share/src.sock"):
        pid = await asyncio.to_thread(wait_active, vfsd, path)
        assert mount_flag(family(pid)[-1], "/run/vfsd/mnt") == flag


def mount_flag(pid: int, mount_point: str) -> str:
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == mount_point:
            return fields[5].split(",")[0]
    raise AssertionError(f"{mount_point} is no mount point")
