"""Whether a source is where it was served last."""

from __future__ import annotations

from pathlib import Path

import pytest

from vfsd.errors import InvalidArgs, SourceNotFound
from vfsd.model import ShareSpec
from vfsd.mounts import MountTable
from vfsd.names import Scope
from vfsd.sources import Surroundings, glance, look
from vfsd.store import Origin
from vfsd.watch import FolderWatch, _ways

ROOT = "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n"
_DISK = "{number} 22 {device} / {place} rw - {kind} {source} rw\n"


def share(source: Path) -> ShareSpec:
    return ShareSpec.from_options("src", str(source), Scope.SYSTEM, {})


def around(
    folder: Path, *, device: str = "8:17", kind: str = "ext4", source: str = "/dev/sdb1", removed: str = ""
) -> Surroundings:
    """A host whose only disk is mounted at the folder; its /sys is a folder beside it."""
    devices = folder.parent / "sys"
    devices.mkdir(exist_ok=True)
    line = _DISK.format(number=30, device=device, place=folder, kind=kind, source=source)
    return Surroundings(MountTable.parse(ROOT + line), frozenset({removed}), devices)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "disk" / "inner"
    made.mkdir(parents=True)
    return made


def test_on_the_root_file_system_the_directory_counts(source: Path) -> None:
    host = Surroundings(MountTable.parse(ROOT))
    found = look(share(source), Origin(), host)
    inode = source.stat()
    assert found == Origin("/", "", "", f"{inode.st_dev}:{inode.st_ino}")
    (source / "file").touch()
    with pytest.raises(InvalidArgs, match="is no directory"):
        look(share(source / "file"), Origin(), host)
    source.joinpath("file").unlink()
    source.rmdir()
    with pytest.raises(SourceNotFound, match="does not exist; create it"):
        look(share(source), Origin(), host)


def test_what_lies_below_the_mount_point_is_not_it(source: Path) -> None:
    known = Origin(str(source.parent), device="sdb1")
    with pytest.raises(SourceNotFound, match=r"\(device sdb1\) is not mounted") as caught:
        look(share(source), known, Surroundings(MountTable.parse(ROOT)))
    assert str(source.parent) not in caught.value.args[0].replace(str(source), "")


def test_a_device_that_is_gone(source: Path) -> None:
    """No lab can take a device away under a mount: its loop devices refuse. So this is /sys in a folder."""
    host = around(source.parent)
    with pytest.raises(SourceNotFound, match="device sdb1 is gone; plug it in again"):
        look(share(source), Origin(), host)
    target = host.block_devices / "block" / "sdb1"
    target.mkdir(parents=True)
    (host.block_devices / "8:17").symlink_to(target)
    assert look(share(source), Origin(), host).device == "sdb1"


def test_btrfs_has_no_device_number(source: Path) -> None:
    look(share(source), Origin(), around(source.parent, device="0:50", kind="btrfs"))
    host = around(source.parent, device="0:50", kind="btrfs", removed="/dev/sdb1")
    with pytest.raises(SourceNotFound, match="device sdb1 is gone"):
        look(share(source), Origin(), host)


def test_a_file_system_that_comes_further_down_is_no_loss(source: Path) -> None:
    host = around(source, device="0:50", kind="tmpfs", source="tmpfs")
    found = look(share(source), Origin(), host)
    assert found.place == str(source)
    with pytest.raises(SourceNotFound, match="is not mounted"):
        look(share(source), found, around(source.parent, device="0:51", kind="tmpfs", source="tmpfs"))


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "autofs"])
def test_what_may_hang_is_not_touched(source: Path, kind: str) -> None:
    """Only the mount counts then; the directory below is not even there."""
    host = around(source.parent, device="0:50", kind=kind, source="there:/export")
    sight = glance(share(source / "missing"), Origin(), host)
    assert (sight.problem, sight.origin) == ("", Origin(str(source.parent)))


def test_a_link_leads_to_the_disk(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    host = around(source.parent, device="0:50", kind="tmpfs", source="tmpfs")
    sight = glance(share(link), Origin(), host)
    assert sight.path == str(source)
    assert sight.origin is not None
    assert sight.origin.place == str(source.parent)
    away = glance(share(link), sight.origin, Surroundings(MountTable.parse(ROOT)))
    assert "is not mounted" in away.problem
    assert away.origin is None


async def test_the_root_directory_may_be_watched_too() -> None:
    """It has no folder above it, and nothing becomes of it."""
    watch = FolderWatch(lambda _paths: None)
    watch.watch("/")
    watch.unwatch("/")


def test_the_folders_that_are_watched() -> None:
    assert [folder for folder, _ in _ways(Path("/usr/none"))] == [Path("/usr"), Path("/")]
