"""What vfsctl ssh needs of vfsd: a key of its own, and a port of this host that leads to the guest's port 22."""

from __future__ import annotations

import errno
import ipaddress
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from vfsd.errors import PrerequisiteMissing
from vfsd.forward import Forward
from vfsd.model import MachineSpec

GUEST_PORT = 22
LOOPBACK = "127.0.0.1"
_TIMEOUT = 10.0
"""Seconds in which ssh-keygen must have made a key; it takes 5 ms."""


def public_key(private: Path) -> str:
    """The public half of vfsd's own key, which is made if there is none; blocks.

    :raise PrerequisiteMissing: there is no ssh-keygen, or it fails.
    """
    public = private.with_name(f"{private.name}.pub")
    if not (private.exists() and public.exists()):
        private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=private.parent) as folder:
            made = Path(folder) / private.name
            _generate(made)
            # the public half first: a private one alone would be taken for a whole key
            made.with_name(public.name).replace(public)
            made.replace(private)
    return public.read_text(encoding="ascii").strip()


def _generate(path: Path) -> None:
    program = shutil.which("ssh-keygen")
    remedy = "install OpenSSH's client (Debian: openssh-client), or set SSH to false"
    if program is None:
        raise PrerequisiteMissing(
            f"ssh-keygen, which makes the key for vfsctl ssh, is not installed; {remedy}"
        )
    command = [program, "-q", "-t", "ed25519", "-N", "", "-C", "vfsd", "-f", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=_TIMEOUT)
    except (OSError, subprocess.SubprocessError) as error:
        raise PrerequisiteMissing(
            f"ssh-keygen could not make the key for vfsctl ssh ({type(error).__name__}); {remedy}"
        ) from None


def forwarded(spec: MachineSpec) -> str:
    """HOST:PORT that leads to the guest's port 22 by the machine's own Forward; "" if none does."""
    for forward in map(Forward.parse, spec.forward):
        if forward.protocol == "tcp" and forward.guest_port == GUEST_PORT:
            address = forward.host_address
            everywhere = not address or ipaddress.ip_address(address.strip("[]")).is_unspecified
            return f"{LOOPBACK if everywhere else address}:{forward.host_port}"
    return ""


def own_forward(spec: MachineSpec, address: str) -> list[str]:
    """The forward, as Forward has them, that vfsd adds so that an address leads to the guest's port 22."""
    own = spec.ssh and spec.network == "user" and address and address != forwarded(spec)
    return [f"tcp:{address}:{GUEST_PORT}"] if own else []


def reserve_port(wanted: int) -> socket.socket:
    """A socket that keeps a port of 127.0.0.1 from others until QEMU listens there, the wanted one if it is free.

    It doesn't listen; so QEMU, which binds with SO_REUSEADDR as this does, may take the same port.

    :param wanted: 0 for any.
    :raise OSError: no port is free.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((LOOPBACK, wanted))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES) or not wanted:
                raise
            held.bind((LOOPBACK, 0))
    except BaseException:
        held.close()
        raise
    return held
