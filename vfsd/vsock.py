"""Sockets between this host and its guests (vsock(7)), and what systemd says over them (sd_notify(3)).

A guest is known by its context id (CID), which the kernel vouches for: nobody else on this host can have it, and the
guest can't speak under another one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

DEVICE = Path("/dev/vhost-vsock")
CREDENTIAL = "vmm.notify_socket"
"""Where a guest's systemd (254 and later) finds out whom to tell (systemd.system-credentials(7))."""
MESSAGE_MAX = 4096
"""Bytes of one message; systemd's have some hundred."""
_SET_GUEST_CID = 0x4008AF60
"""VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h, on architectures with the usual numbers."""
_CIDS = range(1 << 16, 1 << 31)
"""Where CIDs are taken from, at random. Others count from 3 on (libvirt), so these are seldom in use."""
_TRIES = 16
_BACKLOG = 128
_BUFFER = 8 << 10
"""Bytes that the kernel keeps of one connection which nobody has read yet, in place of 256 KiB."""
_SSH_TARGET = b"ssh-access.target"
"""Active when a guest's systemd-ssh-generator has made it listen (systemd.special(7), since 256)."""


@dataclass(frozen=True, slots=True)
class Address:
    """Under which a guest speaks, and to which port of the host it does."""

    cid: int
    port: int

    @property
    def credential(self) -> str:
        """What the guest is told. A stream, because not every vhost-vsock has the packets that `vsock:` means."""
        return f"vsock-stream:{socket.VMADDR_CID_HOST}:{self.port}"


@dataclass(frozen=True, slots=True)
class Notice:
    """What a guest's systemd says of itself; None where it says nothing."""

    ready: bool | None = None
    ssh: bool | None = None
    """Whether one can log in by SSH, over vsock too."""


def parse(message: bytes) -> Notice:
    """Read one message: lines of KEY=VALUE, of which the last one counts."""
    ready = ssh = None
    for line in message.split(b"\n"):
        key, _, value = line.partition(b"=")
        if line == b"READY=1":
            ready = True
        elif line == b"STOPPING=1" or key == b"X_SYSTEMD_SHUTDOWN":
            ready = ssh = False
        elif value == _SSH_TARGET and key in (b"X_SYSTEMD_UNIT_ACTIVE", b"X_SYSTEMD_UNIT_INACTIVE"):
            ssh = key == b"X_SYSTEMD_UNIT_ACTIVE"
    return Notice(ready, ssh)


def choose_cid(wanted: int, taken: Container[int] = ()) -> int:
    """A CID that no guest on this host has, the wanted one if it is free; blocks.

    It isn't held: QEMU takes it a moment later.

    :param wanted: 0 for any.
    :raise OSError: this host has no vsock, or this user may not use it.
    """
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        for number in range(_TRIES):
            drawn = wanted if wanted and not number else _CIDS[secrets.randbelow(len(_CIDS))]
            if drawn not in taken and _is_free(device, drawn):
                return drawn
    finally:
        os.close(device)
    raise OSError(errno.EADDRINUSE, "no context id is free")


def _is_free(device: int, cid: int) -> bool:
    try:
        fcntl.ioctl(device, _SET_GUEST_CID, struct.pack("Q", cid))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def listen(wanted: int) -> socket.socket:
    """A socket at which guests can speak, at the wanted port if that is free.

    :param wanted: 0 for any.
    :raise OSError: this host has no vsock.
    """
    made = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        try:
            made.bind((socket.VMADDR_CID_ANY, wanted or socket.VMADDR_PORT_ANY))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES) or not wanted:
                raise
            made.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        # accepted connections have their listener's
        with contextlib.suppress(OSError):
            made.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, _BUFFER)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def inherited(descriptor: int) -> socket.socket | None:
    """Such a socket that an earlier vfsd left with systemd; None, and closed, if it is something else."""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        return None
    if found.family != socket.AF_VSOCK or found.type != socket.SOCK_STREAM:
        found.close()
        return None
    found.setblocking(False)
    return found
