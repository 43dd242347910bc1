"""What vfsctl ssh needs of vfsd: a key of its own, and a port of this host that leads to the guest's port 22."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from vfsd import commands
from vfsd.errors import MonitorFailed, PrerequisiteMissing
from vfsd.forward import Forward
from vfsd.model import MachineSpec
from vfsd.qmp import Monitor

GUEST_PORT = 22
LOOPBACK = "127.0.0.1"
_FORWARDED = re.compile(rf"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+{GUEST_PORT}\s")
"""A line of `info usernet`: state, descriptor, address and port here, address and port in the guest."""
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


def port_wanted(spec: MachineSpec) -> bool:
    """Whether vfsd has to see to a port that leads to the guest's port 22."""
    return spec.ssh and spec.network == "user" and not forwarded(spec)


async def open_port(monitor: Monitor, before: str) -> str:
    """Have QEMU open a port of 127.0.0.1 that leads to the guest's port 22; returns HOST:PORT.

    QEMU chooses it: whatever else looked for a free one, another process could take it first.

    :param before: the address of an earlier start, whose port is taken if it is free; "" if there was none.
    :raise MonitorFailed: there is none.
    """
    said = ""
    for port in dict.fromkeys((before.rpartition(":")[2] or "0", "0")):
        rule = f"tcp:{LOOPBACK}:{port}-:{GUEST_PORT}"
        said = await _human(monitor, f"hostfwd_add {commands.NETWORK} {rule}")
        if not said:
            break
    told = _FORWARDED.search(await _human(monitor, "info usernet"))
    if told is None:
        raise MonitorFailed(
            f"QEMU opened no port for SSH: {said or 'it tells of none'}; set SSH to false, or try again"
        )
    return f"{LOOPBACK}:{told[1]}"


async def _human(monitor: Monitor, line: str) -> str:
    return str(await monitor.execute("human-monitor-command", **{"command-line": line})).strip()
