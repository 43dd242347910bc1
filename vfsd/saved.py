"""A guest on disk: saved while its machine does not run, and what must be known to go on with it.

Two files in the machine's state folder: what QEMU wrote, and a small one beside it, whose presence says that the
guest is suspended. It is written when the first is complete, and removed before the guest goes on: what it does then
is not in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfsd import blame, files, migration, store
from vfsd.boot import Predecessor
from vfsd.context import Context
from vfsd.devices import Layout
from vfsd.errors import MonitorFailed, UnitFailed, VfsdError, WrongState
from vfsd.model import MachineState
from vfsd.qmp import Monitor
from vfsd.refresh import check_shares
from vfsd.turns import finish

if TYPE_CHECKING:
    from vfsd.sleep import Sleep

SUSPENDED = "suspended to disk"
"""The Reason of a machine whose guest is saved."""
TIMEOUT = 15.0
"""Seconds besides those for its memory in which a guest must be saved."""
RATE = 50 << 20
"""Bytes of memory that are written at least in a second."""
_FULL = "No space left on device"
_GUEST, _KNOWN = "guest", "guest.json"
_LINK = "saved"


@dataclass(frozen=True, slots=True)
class Saved:
    """What must be known of the QEMU that wrote the guest."""

    machine_type: str
    accelerator: str
    layout: Layout
    vsock: bool
    """Whether it has a vsock device."""
    persistent: bool
    """Whether the machine's definition survives a reboot, as this does."""

    @property
    def document(self) -> dict[str, str | bool]:
        """What read() makes this of."""
        return {
            "machine_type": self.machine_type,
            "accelerator": self.accelerator,
            "layout": self.layout.write(),
            "vsock": self.vsock,
            "persistent": self.persistent,
        }

    def predecessor(self, link: Path) -> Predecessor:
        """As a start has it that goes on with the guest."""
        return Predecessor(self.machine_type, link, self.layout, self.accelerator, vsock=self.vsock)


def read(folder: Path) -> Saved | None:
    """What is saved in a machine's state folder; None if nothing is, or it is damaged."""
    try:
        known = json.loads(files.read_text(folder / _KNOWN))
        return Saved(
            str(known["machine_type"]),
            str(known["accelerator"]),
            Layout.read(str(known["layout"])),
            bool(known["vsock"]),
            bool(known["persistent"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def link(context: Context, machine: Sleep) -> Path:
    """What QEMU reads, under a name that units may hold."""
    return files.link(machine.paths.link(_LINK), context.paths.machine_state(machine.name) / _GUEST)


def prepare(folder: Path) -> None:
    """Make the folder, with nothing saved in it. :raise OSError: it can't be made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    forget(folder)


def forget(folder: Path) -> None:
    """Take away what is saved."""
    for name in (_KNOWN, _GUEST):
        (folder / name).unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Take away what was saved of a machine that does not exist any more, unless its definition may come back."""
    found = read(folder)
    if found is not None and not found.persistent:
        shutil.rmtree(folder, ignore_errors=True)


async def suspend(context: Context, machine: Sleep) -> None:
    """Save the running guest and end QEMU. :raise VfsdError: it could not be, and the guest goes on."""
    check_shares(machine, "suspended")
    monitor, folder = machine.qemu.monitor, context.paths.machine_state(machine.name)
    runs = machine.state is MachineState.RUNNING
    machine.frozen = True
    machine.remember(saving=True)
    try:
        async with asyncio.timeout(TIMEOUT + machine.spec.memory / RATE):
            known = await _write(machine, monitor, folder)
    except BaseException as error:
        why = await finish(_go_on(machine, monitor, folder, error, runs=runs))
        if isinstance(error, VfsdError | TimeoutError | OSError):
            raise why from None
        raise
    finally:
        machine.frozen = False
    await finish(_complete(machine, monitor, folder, known))


async def _write(machine: Sleep, monitor: Monitor, folder: Path) -> Saved:
    prepare(folder)
    kind = await migration.machine_type(monitor)
    begun = time.time()
    await monitor.execute("stop")
    file = os.open(folder / _GUEST, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        await migration.save(monitor, file)
    finally:
        os.close(file)
    await migration.wait(monitor)
    for share in machine.shares:  # QEMU does not tell; only going on with the guest would fail
        lost = await blame.deleted_file(share, begun)
        if lost:
            raise UnitFailed(f'share "{share.name}": {lost}')
    return Saved(
        machine_type=kind,
        accelerator=machine.accelerator,
        layout=machine.layout,
        vsock=machine.readiness.has_address,
        persistent=machine.spec.persistent,
    )


async def _complete(machine: Sleep, monitor: Monitor, folder: Path, known: Saved) -> None:
    store.replace(folder / _KNOWN, known.document, sync=True)
    await machine.end_suspended(SUSPENDED, monitor)
    machine.remember(saving=False)


async def _go_on(
    machine: Sleep, monitor: Monitor, folder: Path, error: BaseException, *, runs: bool
) -> VfsdError:
    """Let the guest go on, and say why it could not be saved."""
    with contextlib.suppress(MonitorFailed):
        await migration.give_up(monitor)
        if runs:
            await monitor.execute("cont")
    forget(folder)
    machine.remember(saving=False)
    who = f'machine "{machine.name}"'
    if not machine.live:
        return WrongState(f"{who} ended meanwhile")
    begin = f"{who} could not be suspended, and goes on"
    if isinstance(error, TimeoutError):
        return MonitorFailed(f"{begin}: its guest could not be written in time")
    if isinstance(error, OSError) or _FULL in str(error):
        return VfsdError(f"{begin}: vfsd's state folder can't take it: {_words(error)}; make room there")
    return type(error)(f"{begin}: {error}") if isinstance(error, VfsdError) else VfsdError(begin)


def _words(error: BaseException) -> str:
    return str(error.strerror if isinstance(error, OSError) else _FULL)
