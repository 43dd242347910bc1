"""Every bus name, object path and unit name, and the escapes between them, in one place.

Two escapes are used, both systemd's: the bus label escape for object paths (`bus_label_escape()`: everything
but letters and digits becomes `_xx`, a leading digit too, and the empty label is `_`), and the unit name escape
for unit names (`unit_name_escape()`: everything but letters, digits, `:`, `_` and `.` becomes `\\xNN`).
"""

from __future__ import annotations

import os
import re
from enum import StrEnum

BUS_NAME = "org.vfsd1"
ROOT_PATH = "/org/vfsd1"
SHARE_ROOT = f"{ROOT_PATH}/share"
MACHINE_ROOT = f"{ROOT_PATH}/machine"

MANAGER_INTERFACE = "org.vfsd1.Manager"
SHARE_INTERFACE = "org.vfsd1.Share"
MACHINE_INTERFACE = "org.vfsd1.Machine"
ERROR_PREFIX = "org.vfsd1.Error."

ROOT_SLICE = "vfsd.slice"
SHARE_UNIT_PREFIX = "vfsd-share-"
MACHINE_UNIT_PREFIX = "vfsd-machine-"
SUFFIXES = FIRST, SECOND = "", "-2"
"""What unit names end in. A machine that runs has one of two sets of units, and a Refresh brings up the other. No name
ends like this by itself: where it has a -, that is escaped."""

UNIT_NAME_MAX = 255
"""Bytes in a unit name (systemd's UNIT_NAME_MAX is 256 with the terminating NUL)."""
SOCKET_PATH_MAX = 107
"""Bytes in the path of a Unix socket (`sun_path` is 108 with the terminating NUL)."""
TAG_MAX = 36
"""Bytes in a virtio-fs tag (virtio specification 1.2, section 5.11.4)."""

_UNIT_SAFE = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:_.")
_SHARE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MACHINE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


class Scope(StrEnum):
    """Whose service manager vfsd works for."""

    USER = "user"
    SYSTEM = "system"

    def hint(self, program: str, arguments: str) -> str:
        """A command of systemd's that a person can type to look at this scope."""
        return f"{program} --user {arguments}" if self is Scope.USER else f"{program} {arguments}"


def label_escape(name: str) -> str:
    """Escape a name into one element of an object path, as systemd's bus_label_escape()."""
    if not name:
        return "_"
    escaped = []
    for index, byte in enumerate(name.encode()):
        char = chr(byte)
        plain = char.isascii() and (char.isalpha() or (char.isdigit() and index > 0))
        escaped.append(char if plain else f"_{byte:02x}")
    return "".join(escaped)


def label_unescape(label: str) -> str:
    """Turn an element of an object path back into the name that it stands for."""
    if label == "_":
        return ""
    raw = re.sub(rb"_([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), label.encode())
    return raw.decode(errors="replace")


def unit_escape(name: str) -> str:
    """Escape a name into a part of a unit name, as `systemd-escape`."""
    return _escape(name.encode(), first=True)


def _escape(name: bytes, *, first: bool) -> str:
    return "".join(
        chr(byte)
        if chr(byte) in _UNIT_SAFE and not (first and index == 0 and byte == ord("."))
        else f"\\x{byte:02x}"
        for index, byte in enumerate(name)
    )


def unit_unescape(escaped: str) -> str:
    """Turn a part of a unit name back into the name that it stands for."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), escaped.encode())
    return raw.decode(errors="replace")


def mount_unit(path: str) -> str:
    """systemd's unit of what is mounted at an absolute path; "" if the name would be too long for one."""
    parts = [part for part in path.split("/") if part]
    name = f"{'-'.join(_escape(os.fsencode(part), first=not number) for number, part in enumerate(parts)) or '-'}.mount"
    return name if len(name) <= UNIT_NAME_MAX else ""


def is_share_name(name: str) -> bool:
    """1 to 128 of `a-z A-Z 0-9 . _ -`, not beginning with `.` or `-`."""
    return _SHARE_NAME.fullmatch(name) is not None


def is_machine_name(name: str) -> bool:
    """1 to 64 of `a-z A-Z 0-9 . _ -`, not beginning with `.` or `-`."""
    return _MACHINE_NAME.fullmatch(name) is not None


def make_name(text: str) -> str:
    """Turn any text into something that can stand in a name: what may not is replaced by `_`."""
    return _NOT_IN_NAMES.sub("_", text)


def share_path(name: str) -> str:
    """Object path of a share."""
    return f"{SHARE_ROOT}/{label_escape(name)}"


def machine_path(name: str) -> str:
    """Object path of a machine."""
    return f"{MACHINE_ROOT}/{label_escape(name)}"


def share_socket_unit(name: str, suffix: str = FIRST) -> str:
    """The socket unit that listens for a share's one client."""
    return f"{SHARE_UNIT_PREFIX}{unit_escape(name)}{suffix}.socket"


def share_service_unit(name: str, suffix: str = FIRST) -> str:
    """The service unit of a share's virtiofsd."""
    return f"{SHARE_UNIT_PREFIX}{unit_escape(name)}{suffix}.service"


def machine_unit(name: str, suffix: str = FIRST) -> str:
    """The service unit of a machine's QEMU."""
    return f"{MACHINE_UNIT_PREFIX}{unit_escape(name)}{suffix}.service"


def machine_socket_unit(name: str, suffix: str = FIRST) -> str:
    """The socket unit that holds a machine's monitor and console sockets from before QEMU starts."""
    return f"{MACHINE_UNIT_PREFIX}{unit_escape(name)}{suffix}.socket"


def other(suffix: str) -> str:
    """The other one of the two."""
    return SECOND if suffix == FIRST else FIRST


def share_units(name: str) -> list[str]:
    """All units that a share may have."""
    makers = (share_socket_unit, share_service_unit)
    return [make(name, suffix) for suffix in SUFFIXES for make in makers]


def machine_units(name: str) -> list[str]:
    """All units that a machine's QEMU may have."""
    return [machine_unit(name, suffix) for suffix in SUFFIXES]


def machine_slice(name: str) -> str:
    """The slice that holds a machine's QEMU and its virtiofsds."""
    return f"vfsd-{unit_escape(name)}.slice"


def unit_object_path(unit: str) -> str:
    """systemd's object path of a unit."""
    return f"/org/freedesktop/systemd1/unit/{label_escape(unit)}"


def unit_from_object_path(path: str) -> str:
    """The unit that an object path of systemd's stands for."""
    return label_unescape(path.rsplit("/", 1)[1])
