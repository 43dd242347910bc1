"""Which mount holds a path."""

from __future__ import annotations

import pytest

from vfsd.mounts import MountTable

TABLE = r"""
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:5 / /proc rw shared:2 - proc proc rw
30 22 8:17 / /mnt/usb rw shared:3 - ext4 /dev/sdb1 rw
31 30 0:50 / /mnt/usb/net rw shared:4 master:1 - nfs4 server:/export rw
32 30 8:33 / /mnt/usb rw - xfs /dev/sdc1 rw
40 22 8:49 / /srv/a\040b\134c rw - vfat /dev/sdd1 rw
50 22 0:60 / /auto rw - autofs systemd-1 rw
51 50 8:65 / /auto rw - ext4 /dev/sde1 rw
60 22 8:81 / /over/deep rw - ext4 /dev/sdf1 rw
61 22 8:97 / /over rw - ext4 /dev/sdg1 rw
70 22 0:70 / /lazy rw - autofs systemd-1 rw
80 22 0:71 / /ssh rw - fuse.sshfs me@there: rw
90 22 0:72 /@home /home rw - btrfs /dev/sdh1 rw
"""


def above(path: str) -> list[str]:
    return [mount.source for mount in MountTable.parse(TABLE.strip()).above(path)]


@pytest.mark.parametrize(
    ("path", "sources"),
    [
        ("/", ["/dev/vda1"]),
        ("/srv/x", ["/dev/vda1"]),
        ("/proc/1", ["/dev/vda1", "proc"]),
        ("/mnt/usb2", ["/dev/vda1"]),
        # what was mounted last at one place hides what was there, and what was mounted in it
        ("/mnt/usb/net/x", ["/dev/vda1", "/dev/sdc1"]),
        ("/srv/a b\\c/d", ["/dev/vda1", "/dev/sdd1"]),
        ("/auto/x", ["/dev/vda1", "/dev/sde1"]),
        # a mount that came later on the way
        ("/home/x", ["/dev/vda1", "/dev/sdh1"]),
    ],
)
def test_the_way_to_a_path(path: str, sources: list[str]) -> None:
    assert above(path) == sources


def test_what_hangs_and_what_has_a_device() -> None:
    table = MountTable.parse(TABLE.strip())
    asked = {path: table.above(path)[-1] for path in ("/", "/lazy", "/ssh", "/home", "/proc")}
    assert [path for path, mount in asked.items() if mount.may_hang] == ["/lazy", "/ssh"]
    assert [path for path, mount in asked.items() if mount.has_device] == ["/"]


def test_a_table_without_a_root() -> None:
    [mount] = MountTable.parse("").above("/srv")
    assert (mount.place, mount.has_device) == ("/", False)
