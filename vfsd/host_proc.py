"""The host's /proc, of which the system's vfsd sees only a part by itself.

ProtectProc= hides the processes of others from vfsd and from whatever it runs, such as a QEMU that is asked for its
version. For what vfsd has to know of them systemd passes it a descriptor, which its own children don't get.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

_NAME = "proc"
"""The descriptor's, in vfsd.service's OpenFile=."""
_FIRST = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


@functools.cache
def descriptor() -> int | None:
    """The one that was passed; None if none was."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or _NAME not in names:
        return None
    return _FIRST + names.index(_NAME)


def root() -> Path:
    """Where to look."""
    passed = descriptor()
    return Path("/proc") if passed is None else Path("/proc/self/fd") / str(passed)
