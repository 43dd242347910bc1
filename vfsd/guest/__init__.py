"""What the guest is told, and the built-in small guest."""

from __future__ import annotations

from vfsd.guest.builtin import BuiltinGuest, GuestUnavailable, build, find_busybox, find_kernel
from vfsd.guest.command_line import Mount, kernel_arguments

__all__ = [
    "BuiltinGuest",
    "GuestUnavailable",
    "Mount",
    "build",
    "find_busybox",
    "find_kernel",
    "kernel_arguments",
]
