"""polkit's agent for a terminal: where no desktop asks who somebody is, it does, as with systemctl."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator

from vfsd.names import Scope

_PROGRAM = "pkttyagent"
_READY_TIMEOUT, _END_TIMEOUT = 5.0, 2.0
"""Seconds until it has told polkit of itself, and until it ends."""


def wanted(scope: Scope, ask: bool) -> bool:
    """Whether somebody may be asked: root, and the user on the user's own bus, never are."""
    return ask and scope is Scope.SYSTEM and os.geteuid() != 0 and sys.stdin.isatty()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Have pkttyagent(1) ask on this terminal for this process, unless the session has an agent of its own.

    Where there is no pkttyagent, or it does not start, nobody is asked, and vfsd's error says so.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        yield
        return
    ready, told = os.pipe()
    try:
        # it asks on the terminal itself; what it writes to standard error is that there is an agent already
        command = [program, "--fallback", "--notify-fd", str(told)]
        process = subprocess.Popen(command, pass_fds=[told], stderr=subprocess.DEVNULL)
        os.close(told)
        select.select([ready], [], [], _READY_TIMEOUT)
    finally:
        os.close(ready)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
