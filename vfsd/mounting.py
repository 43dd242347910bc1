"""How a guest is told to mount its shares: a line of fstab(5), an argument of its kernel, options for mount(8).

With nothing configured in the guest its systemd (254 and later) mounts what it is told by the kernel argument
`systemd.mount-extra=` or by the credential `fstab.extra` (systemd-fstab-generator(8)). Either way a unit file comes
of it, which has no escapes; so some odd paths can't be expressed (`complaint`).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from vfsd.errors import InvalidArgs
from vfsd.model import ShareSpec
from vfsd.names import UNIT_NAME_MAX, unit_escape

FILE_SYSTEM = "virtiofs"
FSTAB_CREDENTIAL = "fstab.extra"
MOUNT_ARGUMENT = "systemd.mount-extra"
BEFORE_LOCAL = "x-systemd.before=local-fs.target"
LENIENT = ("nofail", BEFORE_LOCAL)
"""A guest that can't mount a share comes up nevertheless, so that one can look why: by default systemd would stop in
emergency mode. What needs local file systems still waits for the mount, which nofail alone would not give."""
_OWN_WILL = ("nofail", "fail", "noauto", "x-systemd.automount")
"""Words with which the user says when it is mounted, and what its failure means; then LENIENT is left out."""

_FOR_SYSTEMD = ("nofail", "fail", "noauto", "auto", "_netdev", "defaults")
"""Words of fstab(5) that a service manager reads; mount(8) leaves them out or refuses them."""
_DEVICES = ("LABEL=", "UUID=", "PARTLABEL=", "PARTUUID=", "ID=", "/dev/", "/sys/")
"""Beginnings by which mount(8) and systemd take a source for a block device."""
_VARIABLE = re.compile(r"^\$|\$[{$]")
"""What systemd replaces in the arguments with which it calls mount(8), as in those of services: ${X}, $X alone, $$."""
_FSTAB_ESCAPED = " \t\n\\"
"""What getmntent(3) has escapes for."""
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._@+~=,-")


def guest_options(spec: ShareSpec) -> str:
    """The options with which mount(8), or busybox, mounts it."""
    return ",".join(["ro" if spec.read_only else "rw", *own_options(spec)])


def own_options(spec: ShareSpec) -> list[str]:
    """What of its MountOptions mount(8) understands, but for ro and rw, which ReadOnly decides."""
    words = [word for word in spec.mount_options.split(",") if word not in ("", "ro", "rw", *_FOR_SYSTEMD)]
    return [word for word in words if not word.startswith(("x-", "X-", "comment="))]


@dataclass(frozen=True, slots=True)
class Mount:
    """A share as the guest's fstab has it."""

    tag: str
    where: str
    """Absolute, without `..` and needless slashes."""
    options: tuple[str, ...]

    @classmethod
    def of(cls, tag: str, mount_point: str, mount_options: str, *, read_only: bool) -> Mount:
        """From what a share's properties say."""
        own = [word for word in mount_options.split(",") if word]
        lenient = () if set(own) & set(_OWN_WILL) else LENIENT
        kept = (word for word in own if word not in ("ro", "rw", "fail"))
        where = "/" + posixpath.normpath(mount_point).lstrip("/")
        return cls(tag, where, ("ro" if read_only else "rw", *kept, *lenient))

    @property
    def unit(self) -> str:
        """The name that systemd gives the mount's unit (systemd.unit(5), escaping of paths)."""
        escaped = unit_escape(self.where.strip("/")).replace(r"\x2f", "-")
        return f"{escaped or '-'}.mount"

    @property
    def complaint(self) -> str:
        """Why neither fstab nor a unit of the guest's can express it; "" if they can."""
        options = ",".join(self.options)
        for what, text in (("tag", self.tag), ("mount point", self.where), ("options", options)):
            if any(letter in text for letter in "\n\r"):
                return f"its {what} has a line break"
            if text != text.strip():
                return f"its {what} begins or ends with a blank"
            if text.endswith("\\"):
                return f"its {what} ends with a backslash"
            if _VARIABLE.search(text):
                return f"its {what} has a $ that systemd replaces"
        if self.where == "/":
            return "its mount point is the guest's root; use RootShare"
        if self.tag.startswith(_DEVICES):
            return "its tag looks like a block device"
        if len(self.unit.encode()) > UNIT_NAME_MAX:
            return "its mount point is too long for the name of a unit"
        return ""


def mounts_of(shares: Iterable[ShareSpec]) -> list[Mount]:
    """The mounts of those shares that have a mount point, outer ones first.

    :raise InvalidArgs: one can't be expressed, or two are at one place.
    """
    found: dict[str, ShareSpec] = {}
    mounts = []
    for spec in shares:
        if not spec.mount_point:
            continue
        mount = Mount.of(spec.tag, spec.mount_point, spec.mount_options, read_only=spec.read_only)
        if mount.complaint:
            raise InvalidArgs(
                f'no guest can be told to mount share "{spec.name}": {mount.complaint}; set another, or no MountPoint '
                "and mount it by hand"
            )
        if mount.where in found:
            raise InvalidArgs(
                f'shares "{found[mount.where].name}" and "{spec.name}" have the same MountPoint "{mount.where}"; '
                "set another one"
            )
        found[mount.where] = spec
        mounts.append(mount)
    return in_order(mounts)


def in_order(mounts: Iterable[Mount]) -> list[Mount]:
    """Outer mount points first."""
    return sorted(mounts, key=lambda mount: mount.where.split("/"))


def fits_fstab(mount: Mount) -> bool:
    """Whether a line of fstab can express it: there is no escape for a # at its beginning."""
    return not mount.tag.startswith("#")


def fstab_line(mount: Mount) -> str:
    """A line of fstab(5), without a newline. The two numbers: neither dump nor fsck knows virtio-fs."""
    fields = (mount.tag, mount.where, FILE_SYSTEM, ",".join(mount.options), "0", "0")
    return " ".join(_fstab_field(field) for field in fields)


def mount_argument(mount: Mount) -> str:
    """The kernel argument by which systemd mounts it.

    systemd splits the kernel's command line as a shell would, and the value at its colons, then undoes C's escapes.
    So whatever is odd is written `\\xNN`: no blank, quote, colon or backslash is left for anybody to stumble over.
    """
    options = ",".join(mount.options)
    fields = (mount.tag, mount.where, FILE_SYSTEM, options)
    return f"{MOUNT_ARGUMENT}=" + ":".join(_argument_field(field) for field in fields)


def _fstab_field(text: str) -> str:
    return "".join(f"\\{ord(letter):03o}" if letter in _FSTAB_ESCAPED else letter for letter in text)


def _argument_field(text: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in text.encode())
