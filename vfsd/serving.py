"""What a share is at this moment, as its two units tell it."""

from __future__ import annotations

import asyncio
import dataclasses
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfsd import names, outcome
from vfsd.context import Context, now_usec
from vfsd.model import MachineState, ShareSpec, ShareState
from vfsd.store import Kind, Memory
from vfsd.supervisor import MISSING, UnitStatus
from vfsd.turns import Turns

if TYPE_CHECKING:
    from vfsd.machine import Machine

DISCONNECT_GRACE = 0.25
"""Seconds. A virtiofsd that ends normally while its machine still seems to run: QEMU closes its connections a little
before systemd sees it end, so the verdict waits this long."""

_SETTLES = (ShareState.ACTIVE, ShareState.STOPPING, ShareState.STOPPED)
"""States whose beginning ends what there was to complain of before."""
_TROUBLES = {ShareState.FAILED, ShareState.UNAVAILABLE}


class Serving(ABC):
    """A share's state, and what it suffered; what can be done with it is Share's business."""

    def __init__(self, context: Context, spec: ShareSpec, owner: int, machine: Machine | None = None) -> None:
        self._context = context
        self.spec = spec
        self.owner = owner
        self.owned = machine is not None
        """Whether it was made with its machine, and goes with it."""
        self.machine = machine
        self.suffix = names.FIRST
        """Which of the two sets of unit names it has: that of its machine while that runs."""
        self.memory = Memory() if self.owned else context.store.recall(Kind.SHARE, spec.name)
        self.state = ShareState.STOPPED
        self.reason = ""
        self.main_pid = 0
        self.open_files = 0
        """Of its virtiofsd, as it was looked at last."""
        self.invocation = ""
        """Of the virtiofsd that ran last, as the journal has it."""
        self.restarts = self.memory.restarts
        self.mounted_at = self.guest_options = ""
        """Where and how the guest has it mounted, as its agent told."""
        self.state_changed_usec = self.memory.since_usec or now_usec()
        self.configured = False
        """Whether a file in a configuration folder defines it."""
        self._turns = Turns(f'share "{spec.name}"')
        self._lost = ""
        """Why virtiofsd ended under a machine that still runs."""
        self.gone = ""
        """Why the source is not there, or not what virtiofsd serves."""
        self.pending: ShareSpec | None = None
        """Its definition as a file has it now, which a Refresh of its machine applies."""
        self.parting = False
        """Whether QEMU is about to close its connection, since the share is taken from it."""
        self._recovering = False
        """Whether that is being healed: a fresh virtiofsd serves nobody until the guest has mounted it."""
        self._trouble = ShareState.STOPPED
        self._begun = False
        self._incomplete = False
        """Whether systemd has the socket, but no service for it any more."""
        self._spent = False
        """Whether a machine's connection was served here: the socket that listens on is about to go with it."""

    # what the outside sees

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def socket_path(self) -> Path:
        return self._context.paths.share_socket(self.name, self.suffix)

    @property
    def socket_unit(self) -> str:
        return names.share_socket_unit(self.name, self.suffix)

    @property
    def service_unit(self) -> str:
        return names.share_service_unit(self.name, self.suffix)

    @property
    def recovering(self) -> bool:
        """Whether it is being healed."""
        return self._recovering

    @property
    def lost(self) -> bool:
        """Whether the running guest's connection is gone."""
        return bool(self._lost)

    @property
    def ails(self) -> bool:
        """Whether the running guest does not have what the share stands for."""
        return bool(self._lost or self.gone)

    @property
    def complaint(self) -> str:
        """What its machine says of it while it does not serve."""
        return f'share "{self.name}" does not serve: {self.gone or self.last_failure}'

    @property
    def last_failure(self) -> str:
        """Why virtiofsd failed last under the machine; "" if it did not."""
        return self._lost

    @property
    def unreachable(self) -> bool:
        """Whether it listens on its own, and nobody can be served: its socket's file is gone, or its service."""
        alone = not (self.owned or self.in_use)
        lost = self._incomplete or not self.socket_path.exists()
        return alone and lost and self.state is ShareState.LISTENING

    @property
    def in_use(self) -> bool:
        """Whether a machine uses it that is not idle."""
        return self.machine is not None and not self.machine.state.idle

    # whom it tells

    @abstractmethod
    def _changed(self) -> None:
        """Properties may have changed."""

    @abstractmethod
    def _state_changed(self, old: ShareState, new: ShareState, reason: str) -> None:
        """The state changed."""

    # what the guest's agent tells

    def mounted(self, where: str, options: str) -> None:
        """The guest has it mounted there, or nowhere ("")."""
        if (where, options) != (self.mounted_at, self.guest_options):
            self.mounted_at, self.guest_options = where, options
            self._changed()

    # what becomes of its source

    @property
    def _again(self) -> str:
        return f'"{self.spec.source}" is there again, but its client has what was there before'

    def stay_stale(self) -> None:
        """The source is there again, and the guest has what was there before."""
        machine = self.machine.name if self.machine else ""
        self.gone = "" if self._lost else f'{self._again}; refresh machine "{machine}" or start it again'
        self.refresh()

    # being healed

    def lose(self, problem: str) -> None:
        """The running guest has no use of what is served, although it is."""
        self._lost = problem
        self.refresh()

    def begin_recovery(self) -> None:
        """Stay failed, whatever its units do, until end_recovery()."""
        self._recovering = True

    def end_recovery(self, problem: str, reason: str) -> None:
        """Be served again, or, with a problem, not serve for good; `reason` says what there is to know."""
        self._recovering = False
        if self._lost or not problem:
            self._lost, self.gone = problem, ""
        else:
            self.gone = reason
        self.refresh(reason)

    # what systemd tells

    def unit_changed(self, unit: str, status: UnitStatus) -> None:
        """A unit of the share changed, or is gone."""
        if unit == self.service_unit:
            self._incomplete = status.sub == MISSING
            self._service_changed(status)
        if unit in (self.service_unit, self.socket_unit):
            self.refresh()

    def taken_over(self, suffix: str) -> None:
        """Another QEMU has the guest, and another virtiofsd serves it."""
        self.suffix = suffix
        status = self._context.supervisor.status(self.service_unit)
        self.main_pid, self.invocation = status.main_pid, status.invocation
        self._begun = self._spent = True
        if self.gone:
            self.gone = ""
            self.refresh()
        else:
            self._changed()

    def adopt(self) -> None:
        """Take over the state in which systemd has the units."""
        service = self._context.supervisor.status(self.service_unit)
        self._begun = service.active == "active"
        self.main_pid = service.main_pid if service.runs else 0
        if self.in_use and not service.runs:
            self._lost = outcome.virtiofsd_end(service, had_begun=True) or "virtiofsd ended"
            self.reason = self._lost
        self.state = self._observe()
        if self.state is ShareState.STOPPED and self.memory.failure:
            self.state, self.reason = ShareState.FAILED, self.memory.failure

    def refresh(self, reason: str | None = None) -> None:
        """Make state and reason what the units say."""
        state = self._observe()
        if reason is None:
            reason = self._why_failed() if state is ShareState.FAILED else self.gone or self.reason
            if state is not self.state and state in _SETTLES:
                reason = ""
        self._set_state(state, reason)

    # inner workings

    def _service_changed(self, status: UnitStatus) -> None:
        was_running, self.main_pid = self.main_pid, status.main_pid if status.runs else 0
        self.invocation = status.invocation or self.invocation
        if status.active == "active":
            self._begun = True
            self._spent = self.in_use
            if not self._recovering:
                self._lost = ""
        if status.runs or not (was_running or self._begun or status.active == "failed"):
            return
        problem = outcome.virtiofsd_end(status, had_begun=self._begun)
        self._begun = False
        if problem:
            self.restarts += 1
        if self.parting:
            return
        if self.in_use and self.machine is not None and self.machine.state is not MachineState.STOPPING:
            if problem:
                self._lost = problem
            else:
                self._context.spawn(self._judge_disconnect())
        elif problem:
            self.reason = f"{problem}; see {self._log_command()}"
            self._remember(restarts=self.restarts)

    async def _judge_disconnect(self) -> None:
        await asyncio.sleep(DISCONNECT_GRACE)
        running = self.machine is not None and self.machine.state in (
            MachineState.RUNNING,
            MachineState.PAUSED,
        )
        if running and not self._context.supervisor.status(self.service_unit).runs:
            self.restarts += 1
            self._lost = f"virtiofsd ended the connection; its log says why: {self._log_command()}"
            self.refresh()

    def _observe(self) -> ShareState:
        supervisor = self._context.supervisor
        socket, service = supervisor.status(self.socket_unit), supervisor.status(self.service_unit)
        # while virtiofsd's child goes after it, the socket takes nobody, and how it ended is not known yet
        ending = service.active == "deactivating" and socket.active == "active"
        if self._recovering:
            return ShareState.FAILED
        if self.gone:
            return ShareState.UNAVAILABLE
        if self._lost:
            return ShareState.FAILED
        if service.active in ("active", "activating") or ending:
            return ShareState.ACTIVE
        if socket.active == "active":
            return ShareState.STOPPING if self._spent else ShareState.LISTENING
        self._spent = False
        if "deactivating" in (socket.active, service.active):
            return ShareState.STOPPING
        if socket.active == "failed":
            return ShareState.FAILED
        return self._trouble

    def _set_state(self, state: ShareState, reason: str) -> None:
        old = self.state
        self.reason = reason
        if old is state:
            self._changed()
            return
        self.state = state
        self.state_changed_usec = now_usec()
        self._state_changed(old, state, reason)
        if self.machine is not None and not _TROUBLES.isdisjoint((old, state)):
            self.machine.share_changed(self)

    def _clear(self) -> None:
        self._incomplete = False
        self._lost = self.gone = ""
        self._recovering = self.parting = False
        self.mounted_at = self.guest_options = ""
        self._trouble = ShareState.STOPPED
        self.refresh("")

    def _remember(self, **changes: Any) -> None:
        if self.owned:
            return
        memory = dataclasses.replace(self.memory, **changes)
        if memory != self.memory:
            self.memory = memory
            self._context.remember(Kind.SHARE, self.name, memory)

    def _why_failed(self) -> str:
        if self._lost or self.state is ShareState.FAILED:
            return self._lost or self.reason
        status = self._context.scope.hint("systemctl", f"status {self.socket_unit}")
        return f"systemd gave its socket up; see {status}"

    def _log_command(self) -> str:
        return self._context.scope.hint("journalctl", f"-u {self.service_unit}")
