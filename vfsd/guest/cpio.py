"""Writing initramfs archives: the cpio "newc" format, byte for byte the same whenever the content is.

The format is that of the kernel's ``Documentation/driver-api/early-userspace/buffer-format.rst``: each
entry is a 110-byte header of ASCII hexadecimal fields, the name with its NUL, and the data, name and data
each padded to four bytes. What would differ from one run to the next (inode numbers, owners, times) is
fixed here, so that an archive can be cached under a hash of what went in.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of an archive.

    ``name`` is relative to the root, without a leading slash. ``mode`` holds the type and the permission
    bits, as in ``st_mode``. ``device`` is the (major, minor) pair of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """A directory. It must come before what lies in it: the kernel makes no parents."""
    return Entry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | permissions, data)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """Return the newc archive of *entries*, in their order, owned by root, dated 1970-01-01."""
    parts: list[bytes] = []
    for number, entry in enumerate(entries, start=1):
        parts += _record(entry, number)
    parts += _record(Entry(_TRAILER, 0), 0)
    return b"".join(parts)


def _record(entry: Entry, inode: int) -> list[bytes]:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08x" % field for field in fields)
    return [header, name, bytes(-(len(header) + len(name)) % 4), entry.data, bytes(-len(entry.data) % 4)]
