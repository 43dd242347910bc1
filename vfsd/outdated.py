"""Whether a machine runs something else than it would if it were started now: what `Refresh` puts right.

systemd knows with which command it started a unit and when. A binary is another one than that which runs if it lies
elsewhere, or its file was put there after the start; a share is served otherwise if its virtiofsd would get other
arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vfsd import units, virtiofsd
from vfsd.context import Context
from vfsd.errors import VfsdError
from vfsd.supervisor import SupervisorError

if TYPE_CHECKING:
    from vfsd.machine import Machine
    from vfsd.share import Share


async def is_outdated(context: Context, machine: Machine) -> bool:
    """Whether a Refresh would change anything. What can't be found out counts as no."""
    try:
        qemu = await context.host.qemu()
        command = await context.supervisor.command(machine.unit)
        if _replaced(units.qemu_of(command.arguments), qemu.path, command.started_usec):
            return True
        for share in machine.shares:
            if await _share_is(context, share, units.Place(machine.name)):
                return True
    except (VfsdError, SupervisorError, OSError):
        return False
    return False


async def _share_is(context: Context, share: Share, place: units.Place) -> bool:
    if share.pending is not None:
        return True
    wanted = await virtiofsd.arguments(context, share.spec, place)
    command = await context.supervisor.command(share.service_unit)
    return wanted != command.arguments or _replaced(wanted[0], Path(wanted[0]), command.started_usec)


def _replaced(runs: str, found: Path, started_usec: int) -> bool:
    # the time of modification is that of the package
    return runs != str(found) or found.stat().st_ctime_ns // 1000 > started_usec
