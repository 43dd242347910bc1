"""Asks virtiofsd for what no kernel asks for: names with slashes, special files, numbers that it never gave.

Argument: the share.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable

from tests.integration.hostile.attack import tell
from tests.integration.hostile.device import Device

LOOKUP, GETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR = 1, 3, 5, 6, 8, 9, 10, 11
RENAME, LINK, OPEN, READ, WRITE, OPENDIR, CREATE, IOCTL, RENAME2 = 12, 13, 14, 15, 16, 27, 35, 39, 45
ROOT = 1
O_RDWR, O_CREAT = 2, 64

device = Device(sys.argv[1])


def ask(opcode: int, node: int, body: bytes = b"") -> str:
    """The error, or "done"."""
    return in_words(device.ask(opcode, node, body)[0])


def in_words(told: int) -> str:
    return errno.errorcode.get(told, str(told)) if told else "done"


def look(name: bytes, node: int = ROOT) -> tuple[str, int, int]:
    """The error or "done", the node's number, and the inode's on the host."""
    told, body = device.ask(LOOKUP, node, name + b"\0")
    if told:
        return errno.errorcode.get(told, str(told)), 0, 0
    return "done", struct.unpack_from("<Q", body)[0], struct.unpack_from("<Q", body, 40)[0]


def names() -> dict[str, object]:
    """What leads elsewhere, as a name for each operation that takes one."""
    tried = (
        b"..",
        b"../secret",
        b"../../outside/secret",
        b"/etc/passwd",
        b"folder/inside",
        b"folder/../..",
        b"",
    )
    found: dict[str, object] = {}
    for name in tried:
        told, _, inode = look(name)
        found[f"look {name.decode()}"] = inode if told == "done" else told
    calls: dict[str, Callable[[bytes], str]] = {
        "mkdir": lambda name: ask(MKDIR, ROOT, struct.pack("<II", 0o777, 0) + name),
        "mknod": lambda name: ask(MKNOD, ROOT, struct.pack("<IIII", 0o100777, 0, 0, 0) + name),
        "create": lambda name: ask(CREATE, ROOT, struct.pack("<IIII", O_RDWR | O_CREAT, 0o777, 0, 0) + name),
        "symlink": lambda name: ask(SYMLINK, ROOT, name + b"target\0"),
        "link": lambda name: ask(LINK, ROOT, struct.pack("<Q", look(b"hello")[1]) + name),
        "rename to": lambda name: ask(RENAME2, ROOT, struct.pack("<QII", ROOT, 0, 0) + b"hello\0" + name),
        "rename from": lambda name: ask(RENAME, ROOT, struct.pack("<Q", ROOT) + name + b"stolen\0"),
        "unlink": lambda name: ask(UNLINK, ROOT, name),
        "rmdir": lambda name: ask(RMDIR, ROOT, name),
    }
    for call, run in calls.items():
        for name in (b"../made", b"../secret", b"../../outside/folder"):
            found[f"{call} {name.decode()}"] = run(name + b"\0")
    return found


def files() -> dict[str, str]:
    """Files that nobody would send to a server to be opened."""
    found = {}
    for name in (b"out", b"relative", b"fifo", b"socket", b"null"):
        told, node, _ = look(name)
        if told != "done":
            continue
        found[f"open {name.decode()}"] = ask(OPEN, node, struct.pack("<II", O_RDWR, 0))
        found[f"list {name.decode()}"] = ask(OPENDIR, node, struct.pack("<II", 0, 0))
        found[f"below {name.decode()}"] = look(b"secret", node)[0]
        found[f"create below {name.decode()}"] = ask(
            CREATE, node, struct.pack("<IIII", O_RDWR | O_CREAT, 0o777, 0, 0) + b"made\0"
        )
    return found


def numbers() -> dict[str, str]:
    found = {}
    for node in (0, 12345, (1 << 64) - 1):
        found[f"node {node}"] = ask(GETATTR, node, bytes(16))
        found[f"below {node}"] = look(b"x", node)[0]
    node = look(b"hello")[1]
    for handle in (0, 3, 12345, (1 << 64) - 1):
        found[f"read {handle}"] = ask(READ, node, struct.pack("<QQIIQII", handle, 0, 100, 0, 0, 0, 0))
        found[f"write {handle}"] = ask(
            WRITE, node, struct.pack("<QQIIQII", handle, 0, 4, 0, 0, 0, 0) + b"data"
        )
    return found


def sizes() -> dict[str, str]:
    node = look(b"hello")[1]
    found = {
        "unknown": ask(9999, ROOT),
        "name of a page": look(b"n" * 4000)[0],
        "far": ask(READ, node, struct.pack("<QQI", 0, (1 << 63) - 1, 100) + bytes(20)),
        "huge read": ask(READ, node, struct.pack("<QQI", 0, 0, 0xFFFFFFFF) + bytes(20)),
        "huge write": ask(WRITE, node, struct.pack("<QQI", 0, 0, 0xFFFFFFFF) + bytes(20)),
        "ioctl": ask(IOCTL, node, struct.pack("<QIIQII", 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF)),
    }
    found["and then"] = look(b"hello")[0]
    return found


began = device.begin()
tell({"began": began, "names": names(), "files": files(), "numbers": numbers(), "sizes": sizes()})
