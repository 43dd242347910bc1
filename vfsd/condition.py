"""What a machine is at this moment: its state, and what is known of its QEMU and its guest."""

from __future__ import annotations

import asyncio
import dataclasses
from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any

from vfsd import names
from vfsd.context import Context, now_usec
from vfsd.devices import Layout, Plug
from vfsd.errors import WrongState
from vfsd.model import MachineSpec, MachineState
from vfsd.opened import Openings
from vfsd.paths import MachinePaths
from vfsd.share import Share
from vfsd.store import Kind
from vfsd.supervisor import UnitStatus
from vfsd.turns import Turns
from vfsd.units import Place


class Condition(ABC):
    """What the outside sees of a machine; how it comes up and goes down is the Lifecycle's business."""

    def __init__(self, context: Context, spec: MachineSpec, owner: int) -> None:
        self._context = context
        self.spec = spec
        self.owner = owner
        self.suffix = names.FIRST
        """Which of the two sets of unit names it has while it runs: a Refresh changes over to the other."""
        self.memory = context.store.recall(Kind.MACHINE, spec.name)
        self.own_shares: list[Share] = []
        self.attached: list[Share] = []
        self.state = MachineState.STOPPED
        self.reason = ""
        self.main_pid = 0
        self.accelerator = ""
        self.console_path = ""
        self.needs_refresh = self.suspended = False
        self.refresh_downtime_usec = 0
        self.ssh_address = ""
        self.layout = Layout()
        """Where the shares' devices stand while QEMU runs."""
        self.state_changed_usec = self.memory.since_usec or now_usec()
        self._turns = Turns(f'machine "{spec.name}"')
        self.frozen = False
        """Whether vfsd itself has stopped the processors for a moment."""
        self._force: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._starting = False
        self._openings = Openings(0, opens=False)
        """What the QEMU that was started last got opened."""
        self._invocation = ""
        self._last_status = UnitStatus()
        self._end = ""
        """Why the machine will have ended, when it is known before it has."""
        self._failure = ""
        """The same, where that end is a failure."""

    # what the outside sees

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def unit(self) -> str:
        return names.machine_unit(self.name, self.suffix)

    @property
    def paths(self) -> MachinePaths:
        """Its runtime files, those of the QEMU that runs."""
        return self._context.paths.machine(self.name, self.suffix)

    @property
    def place(self) -> Place:
        """Where the units of a share belong that comes to it while it runs."""
        return Place(self.name, self.unit, self.suffix)

    @property
    def slice(self) -> str:
        return names.machine_slice(self.name)

    @property
    def shares(self) -> list[Share]:
        """Those made with it first."""
        return [*self.own_shares, *self.attached]

    @property
    def orphans(self) -> list[Plug]:
        """Devices in the running QEMU whose shares are not the machine's any more: the guest did not give them back."""
        known = {share.name for share in self.shares}
        return [plug for plug in self.layout.plugs if plug.share not in known]

    @property
    def degraded(self) -> bool:
        """Whether a share that the running guest uses does not serve."""
        return self.live and any(share.ails for share in self.shares)

    @property
    def display_path(self) -> str:
        wanted = self.spec.display != "none" and not self.state.idle
        return str(self.paths.display) if wanted else ""

    @property
    def live(self) -> bool:
        """Whether QEMU runs and is not about to end."""
        return self.state in (MachineState.RUNNING, MachineState.PAUSED)

    @property
    def _units(self) -> list[str]:
        # those of an attached share come back by themselves when the machine is gone
        shares = (unit for share in self.own_shares for unit in (share.socket_unit, share.service_unit))
        return [self.unit, names.machine_socket_unit(self.name, self.suffix), *shares, self.slice]

    # whom it tells

    @abstractmethod
    def _changed(self) -> None:
        """Properties may have changed."""

    @abstractmethod
    def _state_changed(self, old: MachineState, new: MachineState, reason: str) -> None:
        """The state changed."""

    # for those who work on it

    def changed(self) -> None:
        """Tell that properties may have changed."""
        self._changed()

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Its turn among the operations on this machine. :raise WrongState: it was overtaken."""
        return self._turns.take()

    async def wait_idle(self) -> None:
        """Wait until no QEMU runs."""
        await self._idle.wait()

    def set_layout(self, layout: Layout) -> None:
        """Other devices stand in the running QEMU."""
        self.layout = layout
        self._remember(layout=layout.write())

    def remember(self, **changes: Any) -> None:
        """Remember something until the next reboot: fields of vfsd.store.Memory."""
        self._remember(**changes)

    # inner workings

    def _set_live_state(self, state: MachineState) -> None:
        if self.live:
            self._set_state(state, self.reason)

    def _set_state(self, state: MachineState, reason: str) -> None:
        old, self.reason = self.state, reason
        if old is state:
            self._changed()
            return
        self.state = state
        (self._idle.set if state.idle else self._idle.clear)()
        self.state_changed_usec = now_usec()
        self._remember(state=state.value, since_usec=self.state_changed_usec)
        self._state_changed(old, state, reason)

    def _console_path(self) -> str:
        return str(self.paths.console)

    def _remember(self, **changes: Any) -> None:
        memory = dataclasses.replace(self.memory, **changes)
        if memory != self.memory:
            self.memory = memory
            self._context.remember(Kind.MACHINE, self.name, memory)

    def _require_live(self, what: str) -> None:
        if not self.live:
            raise WrongState(f'machine "{self.name}" is {self.state}; only one that runs can be {what}')
