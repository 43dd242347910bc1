"""What tests of shares have in common: a client on the socket, and what virtiofsd really serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tests.integration.harness import SHARE, Client, Vfsd, wait_for


@contextlib.contextmanager
def connected(path: str | Path) -> Iterator[socket.socket]:
    """A client on a share's socket, which says nothing."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        yield client


def told_of(vfsd: Vfsd, source: Path) -> str:
    """How a Reason names the source of a share: on the system bus everybody reads it."""
    return f'"{source}"' if vfsd.scope == "user" else "the source of share"


def closed(connection: socket.socket) -> bool:
    """Wait for the other side's end of a connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:  # it had not read all
        return True


def family(pid: int) -> list[int]:
    """A process and its children: virtiofsd's namespace sandbox is a child."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def shared_dir(pid: int) -> str:
    """What virtiofsd was told to share."""
    arguments = command_line(pid)
    return next(a.partition("=")[2] for a in arguments if a.startswith("--shared-dir="))


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")


def serves(pid: int, source: Path, *, confined: bool = True) -> bool:
    """Whether virtiofsd has the source as its root, or without a sandbox as the folder it was told to share."""
    wanted = source.stat()
    for process in family(pid):
        root = Path(f"/proc/{process}/root")
        place = root if confined else root / shared_dir(pid).lstrip("/")
        with contextlib.suppress(OSError):
            found = place.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


def wait_active(vfsd: Vfsd, path: str) -> int:
    """Wait until a share is active; returns virtiofsd's process id."""
    wait_for(lambda: vfsd.get(path, SHARE, "State") == "active", "the share is active")
    pid = int(vfsd.get(path, SHARE, "MainPID"))
    # the share is active from the moment that systemd begins to start it
    wait_for(lambda: Path(f"/proc/{pid}/exe").resolve().name == "virtiofsd", "virtiofsd runs")
    return pid


def wait_state(vfsd: Vfsd, path: str, state: str) -> None:
    wait_for(lambda: vfsd.get(path, SHARE, "State") == state, f"the share is {state}")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def message_of(failure: AssertionError) -> str:
    """What a failed busctl said."""
    return str(failure).strip().splitlines()[-1]


async def quiet(client: Client, seconds: float = 0.3) -> int:
    """Wait until no signal came for a while; returns how many came in all."""
    seen, since = len(client.signals.seen), time.monotonic()
    while time.monotonic() - since < seconds:
        await asyncio.sleep(0.02)
        if len(client.signals.seen) != seen:
            seen, since = len(client.signals.seen), time.monotonic()
    return seen
