"""What there is to know of a machine when something is wrong with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.qmp import Qmp
from tests.integration.harness import BusError, Vfsd
from tests.soak.caller import Caller

_PROPERTIES = ("State", "Reason", "Unit", "MainPID", "Degraded", "GuestReady", "Suspended")
_LINES = 12
"""Of the journal."""
_LOOKS = 3
"""At the processor, which stands still, goes in a circle, or is busy."""


async def facts(caller: Caller, machine: str) -> str:
    """What the bus says of the machine at that path and its shares."""
    try:
        found = [f"{name}={await caller.get(machine, name)!r}" for name in _PROPERTIES]
        for share in await caller.get(machine, "Shares"):
            values = [await caller.get(share, name) for name in ("State", "Reason", "MountedAt")]
            found.append(f"{share.rpartition('/')[2]}={values}")
    except BusError as error:
        return f"    {error}"
    return f"    {' '.join(found)}"


def look_inside(vfsd: Vfsd, name: str) -> Iterator[str]:
    """The last lines of the journal about a machine, and what its processor does."""
    entries = vfsd.journal(f"VFSD_MACHINE={name}", f"-n{_LINES}")
    yield from (f"    {entry.get('MESSAGE', '')}" for entry in entries)
    for path in (vfsd.runtime / "machine" / name).glob("qmp-stop*"):
        with contextlib.suppress(OSError, EOFError, RuntimeError):
            yield from _registers(path)


def _registers(path: Path) -> Iterator[str]:
    monitor = Qmp.open(path)
    try:
        for _ in range(_LOOKS):
            told = monitor.execute("human-monitor-command", **{"command-line": "info registers"})
            yield from (f"    {line}" for line in str(told).splitlines() if "IP=" in line)
            time.sleep(0.3)
    finally:
        monitor.close()
