"""Files that are more than content: devices, setuid, attributes, FIFOs, sockets. Argument: the share."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from pathlib import Path

from tests.integration.hostile.attack import SHARES, outcome, tell

SHARE = SHARES / sys.argv[1]
NULL, DISK = os.makedev(1, 3), os.makedev(7, 0)  # Documentation/admin-guide/devices.txt
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (1, 7, 0xFFFFFFFF),
        (2, 7, 1234),
        (4, 5, 0xFFFFFFFF),
        (16, 7, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    )
)
"""linux/posix_acl_xattr.h: version 2; the owner, the user 1234, the group, the mask, others."""
CAPABILITY = struct.pack("<5I", 0x02000000, 1 << 21, 0, 0, 0)
"""linux/capability.h: vfs_cap_data, revision 2, CAP_SYS_ADMIN permitted."""


def devices() -> dict[str, str]:
    found = {
        "character": outcome(os.mknod, SHARE / "null", stat.S_IFCHR | 0o666, NULL),
        "block": outcome(os.mknod, SHARE / "disk", stat.S_IFBLK | 0o666, DISK),
    }
    for name in ("null", "disk"):
        if (SHARE / name).exists():
            found[f"open {name}"] = outcome((SHARE / name).write_bytes, b"x")
    return found


def setuid() -> dict[str, str]:
    found = {}
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2755), ("sticky", 0o1755)):
        path = SHARE / name
        path.write_text("#!/bin/sh\n")
        found[f"chmod {name}"] = outcome(path.chmod, mode)
        found[f"{name} is"] = oct(path.stat().st_mode & 0o7777)
        made = SHARE / f"made-{name}"
        found[f"create {name}"] = outcome(os.open, made, os.O_CREAT | os.O_WRONLY, mode)
        found[f"made-{name} is"] = oct(made.stat().st_mode & 0o7777) if made.exists() else ""
    found["chmod folder setgid"] = outcome(os.chmod, SHARE, 0o2755)
    return found


def attributes() -> dict[str, str]:
    path = SHARE / "attributes"
    path.write_text("")
    values = {
        "user.small": b"x",
        "user.64k": b"x" * 65536,
        "user.65k": b"x" * 65537,
        f"user.{'n' * 250}": b"x",
        f"user.{'n' * 251}": b"x",
        "user.": b"x",
        "trusted.x": b"x",
        "trusted.overlay.opaque": b"y",
        "security.capability": CAPABILITY,
        "security.selinux": b"x",
        "security.ima": b"\x01" * 20,
        "system.posix_acl_access": ACL,
        "system.nothing": b"x",
        "nothing": b"x",
    }
    found = {
        (name if len(name) < 50 else f"user.n{len(name) - 5}"): outcome(os.setxattr, path, name, value)
        for name, value in values.items()
    }
    found["many"] = many(path)
    return found


def many(path: Path) -> str:
    """Until the list of names is longer than what a kernel takes (XATTR_LIST_MAX)."""
    for number in range(300):
        if (told := outcome(os.setxattr, path, f"user.{number:0250}", b"")) != "done":
            return told
    return outcome(os.listxattr, path)


def talking() -> dict[str, str]:
    found = {"fifo": outcome(os.mkfifo, SHARE / "fifo")}
    with socket.socket(socket.AF_UNIX) as made:
        found["socket"] = outcome(made.bind, str(SHARE / "socket"))
    found["open fifo"] = outcome(os.open, SHARE / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    return found


tell({"devices": devices(), "setuid": setuid(), "attributes": attributes(), "talking": talking()})
