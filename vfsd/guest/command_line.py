"""Telling the built-in guest what to mount and run, on its kernel's command line.

One word for each share, `vfsd.mount=TAG[:MOUNT_POINT[:OPTIONS]]`, and at most one `vfsd.exec=COMMAND`. In
each field, bytes beyond `[A-Za-z0-9/._@+~=,-]` are `%XX`: no blank, quote or colon is left that the kernel or
the guest's shell could stumble over, nor a byte that the kernel takes for a blank (0xA0, lib/ctype.c). The
kernel ignores both words, for it takes a name with a dot for a parameter of some module.
"""

from __future__ import annotations

import platform
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

COMMAND_LINE_SIZE = 2048
"""Bytes with the terminating NUL: COMMAND_LINE_SIZE of x86 and arm64 (arch/*/include/asm/setup.h)."""

_COMMAND_LINE_SIZES = {"riscv64": 1024}
_CONSOLES = {"aarch64": "ttyAMA0", "ppc64le": "hvc0", "s390x": "ttysclp0"}
_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._@+~=,-")
# What the guest itself lives on
_RESERVED = ("/.vfsd", "/dev", "/proc", "/sys")


@dataclass(frozen=True, slots=True)
class Mount:
    """A share as the built-in guest is to mount it."""

    tag: str
    mount_point: str = ""
    """An absolute path; empty: /mnt/TAG."""
    read_only: bool = False
    options: str = ""
    """Mount options, separated by commas."""


def kernel_arguments(
    mounts: Sequence[Mount], *, command: str | None = None, append: str = "", machine: str | None = None
) -> list[str]:
    """The words of the kernel's command line for the built-in guest; they are joined with blanks.

    `cryptomgr.notests` keeps the kernel from testing its ciphers, which costs 0.7 of 3.6 s on TCG (Linux
    6.12); `arm64.nopauth` the same for the emulation of pointer authentication. Other parameters that are
    said to speed up booting (tsc=reliable, mitigations=off, lsm=, rodata=off, i8042.*) gave less than 0.1 s.
    `no_timer_check` keeps it from a panic ("IO-APIC + timer doesn't work") where the host is too busy to give QEMU's
    emulated timer its time as it boots; on KVM Linux sets it by itself (arch/x86/kernel/kvm.c).
    `panic=-1` resets the machine at once, which QEMU's `-no-reboot` makes an end.

    :param mounts: nested mount points may come in any order; the outer ones are mounted first. The guest
        makes a missing mount point, also within another share, and says so if it can't mount.
    :param command: run this with `sh -c` in place of the interactive shell, then power off.
    :param append: further arguments, as the user wrote them; they come last.
    :param machine: the guest's architecture as uname(2) has it; this host's by default.
    :raises ValueError: a mount point is not absolute or hides what the guest lives on, or all this is too
        long for the kernel. The message is a sentence.
    """
    machine = machine or platform.machine()
    words = [f"console={_CONSOLES.get(machine, 'ttyS0')}", "quiet", "panic=-1", "cryptomgr.notests"]
    if machine == "aarch64":
        words.append("arm64.nopauth")
    if machine in ("x86_64", "i686"):
        words.append("no_timer_check")
    words += _mount_words(mounts)
    if command is not None:
        words.append(f"vfsd.exec={escape(command)}")
    if append:
        words.append(append)
    limit = _COMMAND_LINE_SIZES.get(machine, COMMAND_LINE_SIZE) - 1
    length = len(" ".join(words).encode("utf-8", "surrogateescape"))
    if length > limit:
        raise ValueError(
            f"The shares' tags and mount points make a kernel command line of {length} bytes, and the kernel"
            f" takes {limit}; use fewer shares, or shorter mount points without unusual characters."
        )
    return words


def escape(text: str) -> str:
    """Encode one field as the module's text says; the guest's `decode` is the inverse.

    :raises ValueError: the text contains NUL, which no path and no argument can.
    """
    if "\0" in text:
        raise ValueError("NUL can't be part of a path or a command.")
    return "".join(
        chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape")
    )


def _mount_words(mounts: Iterable[Mount]) -> list[str]:
    points = sorted((_mount_point(mount), number, mount) for number, mount in enumerate(mounts))
    return [f"vfsd.mount={_fields(point, mount)}" for point, _, mount in points]


def _mount_point(mount: Mount) -> str:
    point = posixpath.normpath(mount.mount_point or f"/mnt/{mount.tag}").replace("//", "/")
    if not point.startswith("/"):
        raise ValueError(f'The mount point "{mount.mount_point}" is not an absolute path.')
    if point == "/" or any(point == path or point.startswith(f"{path}/") for path in _RESERVED):
        raise ValueError(
            f'The built-in guest lives on "{point}" itself and can\'t mount a share there;'
            " use another mount point."
        )
    return point


def _fields(point: str, mount: Mount) -> str:
    options = ",".join([*(["ro"] if mount.read_only else []), *([mount.options] if mount.options else [])])
    where = "" if point == f"/mnt/{mount.tag}" else point
    fields = [escape(field) for field in (mount.tag, where, options)]
    return ":".join(fields).rstrip(":")
