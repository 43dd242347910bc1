"""What a guest is told as it boots: which shares to mount, and its credentials."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vfsd import commands, credentials
from vfsd.commands import MachineArchitecture
from vfsd.credentials import Passed
from vfsd.errors import InvalidArgs
from vfsd.model import Firmware, MachineSpec, ShareSpec
from vfsd.mounting import FSTAB_CREDENTIAL, Mount, fits_fstab, fstab_line, mount_argument, mounts_of
from vfsd.options import require
from vfsd.vsock import CREDENTIAL, Address

KEYS_CREDENTIAL = "ssh.authorized_keys.root"
"""Lines for root's authorized_keys (systemd.system-credentials(7); systemd's tmpfiles.d/provision.conf)."""


@dataclass(frozen=True, slots=True)
class Told:
    """Where the guest finds it."""

    arguments: str = ""
    """Those of its kernel."""
    fstab: Sequence[str] = ()
    """Lines for the credential, for what the arguments don't hold."""


def tell(
    spec: MachineSpec, shares: Iterable[ShareSpec], root: ShareSpec | None, architecture: MachineArchitecture
) -> Told:
    """What to tell a guest with a systemd of its own about these shares, the root among them.

    A kernel that is booted directly is told on its command line, if there is room; others by credential.

    :raise InvalidArgs: a mount can't be expressed.
    """
    mounts = mounts_of(share for share in shares if share is not root)
    if not spec.kernel:
        return Told("", _lines(spec, mounts))
    line = _kernel_line(spec, root, architecture, mounts)
    if len(line.encode()) < architecture.command_line_size:
        return Told(line)
    only = [mount for mount in mounts if not fits_fstab(mount)]
    rest = [mount for mount in mounts if fits_fstab(mount)]
    line = _kernel_line(spec, root, architecture, only)
    size, most = len(line.encode()), architecture.command_line_size - 1
    require(
        size <= most,
        f'the kernel of machine "{spec.name}" would get {size} bytes of arguments, and takes {most}; shorten Append',
    )
    return Told(line, _lines(spec, rest))


def _kernel_line(
    spec: MachineSpec, root: ShareSpec | None, architecture: MachineArchitecture, mounts: Iterable[Mount]
) -> str:
    return commands.kernel_arguments(
        spec,
        architecture.console,
        root.tag if root else "",
        root_read_only=bool(root and root.read_only and not spec.root_overlay),
        mounts=[mount_argument(mount) for mount in mounts],
    )


def _lines(spec: MachineSpec, mounts: Iterable[Mount]) -> list[str]:
    for mount in mounts:
        if not fits_fstab(mount):
            raise InvalidArgs(
                f'the guest of machine "{spec.name}" can\'t be told to mount tag "{mount.tag}": in fstab it would be '
                "a comment; set another Tag"
            )
    return [fstab_line(mount) for mount in mounts]


async def pass_credentials(
    spec: MachineSpec,
    told: Told,
    keys: Sequence[str],
    vsock: Address | None,
    architecture: MachineArchitecture,
    folder: Path,
) -> Passed:
    """Write the files by which QEMU gets the credentials: the user's, with vfsd's own lines after them.

    :param keys: public keys that may log in as the guest's root.
    :param vsock: where the guest's systemd is to say that it is ready, unless the user's tell it another place.
    :raise InvalidArgs: a file can't be used, or all this is too large.
    """
    who = f'machine "{spec.name}"'
    values = {name: value.encode() for name, value in spec.credentials}
    if spec.credential_files:
        values |= await asyncio.to_thread(credentials.read_files, who, spec.credential_files)
    for name, lines in ((FSTAB_CREDENTIAL, told.fstab), (KEYS_CREDENTIAL, keys)):
        if lines:
            values[name] = _with_lines(values.get(name, b""), lines)
    if vsock:
        values.setdefault(CREDENTIAL, vsock.credential.encode())
    smbios = architecture.smbios or spec.firmware is Firmware.UEFI
    return await asyncio.to_thread(credentials.write, who, values, folder, smbios=smbios)


def _with_lines(value: bytes, lines: Sequence[str]) -> bytes:
    before = value if not value or value.endswith(b"\n") else value + b"\n"
    return before + "".join(f"{line}\n" for line in lines).encode()
