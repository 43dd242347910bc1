"""Taking over a machine whose QEMU a vfsd before this one started, or saw running last."""

from __future__ import annotations

import contextlib
import signal

from vfsd import blame, credentials, migration, outcome, saved
from vfsd.context import now_usec
from vfsd.devices import Layout
from vfsd.errors import MonitorFailed
from vfsd.follower import PANICKED
from vfsd.journal import exit_of
from vfsd.model import MachineState
from vfsd.sleep import Sleep
from vfsd.supervisor import UnitStatus

ADOPT_TIMEOUT = 1.0
"""Seconds that coming up waits for a QEMU to tell whether it is paused."""
_EXIT_CODES = {"exited": 1, "killed": 2, "dumped": 3}
"""CLD_EXITED and so on, by systemd's names."""


class Adoption(Sleep):
    """How vfsd finds a machine again."""

    async def adopt(self) -> None:
        """Take over the state in which systemd and QEMU have the machine. Does not wait long for QEMU."""
        known = self.memory
        status = self._context.supervisor.status(self.unit)
        is_saved = saved.read(self._context.paths.machine_state(self.name)) is not None
        self.suspended = is_saved and (known.saving or not status.runs)
        if not status.runs:  # a vfsd that was killed as it started the machine has left them
            credentials.remove(self.paths.private)
        if status.runs:
            await self._adopt_running(status)
        elif self.suspended:
            self.reason = saved.SUSPENDED
            self._remember(accelerator="", invocation="", end="", layout="", healing="", saving=False)
        elif known.invocation:
            await self._adopt_end()
        elif known.failure:
            self.state, self.reason = MachineState.FAILED, known.failure
        since = known.since_usec if self.state.value == known.state else 0
        self.state_changed_usec = since or self.state_changed_usec
        self._remember(state=self.state.value, since_usec=self.state_changed_usec)

    async def _end_saving(self, *, ran: bool) -> None:
        """End what a vfsd that was killed had begun: the guest is saved, or goes on.

        :param ran: whether it ran before.
        """
        if self.suspended:
            self._end = saved.SUSPENDED
            self._remember(end=saved.SUSPENDED)
            await self._context.supervisor.kill(self.unit, signal.SIGKILL)
        else:
            with contextlib.suppress(MonitorFailed):
                await migration.give_up(self.qemu.monitor)
                if ran:
                    await self.qemu.execute("cont")
            saved.forget(self._context.paths.machine_state(self.name))
        self._remember(saving=False)

    async def _adopt_running(self, status: UnitStatus) -> None:
        self.main_pid = status.main_pid
        self._invocation = self.memory.invocation
        self.accelerator = self.memory.accelerator
        self.console_path = self._console_path() if self.memory.console else ""
        self.ssh_address = self.memory.ssh
        self.readiness.adopt()
        self.layout = Layout.read(self.memory.layout)
        self.refresh_downtime_usec = self.memory.downtime_usec
        self.state = MachineState.STOPPING if status.active == "deactivating" else MachineState.RUNNING
        self._context.registrar.register(self.name, self.unit)
        for share in self.shares:
            share.suffix = self.suffix
            share.adopt()
            if share.ails:
                self.reason = share.complaint
        if self.state is MachineState.STOPPING:
            deadline = self.paths.read_deadline()
            if deadline:
                self._force = self._context.spawn(self._kill_at(deadline))
        else:
            ran = self.memory.state == MachineState.RUNNING
            await self.qemu.find(ADOPT_TIMEOUT)  # only QEMU knows whether it is paused
            if self.memory.saving:
                await self._end_saving(ran=ran)

    async def _adopt_end(self) -> None:
        """Tell how QEMU ended while vfsd was away."""
        code, number = await exit_of(self._context.scope, self.memory.invocation)
        status = UnitStatus(exit_code=_EXIT_CODES.get(code, 0), exit_status=number)
        problem = outcome.qemu_end(status) if code else ""
        if await blame.guest_panicked(self.spec, self.memory.invocation, status):
            problem = PANICKED
        by_force = self.paths.deadline
        if problem and not self.memory.end and not by_force.exists():
            self.state, self.reason = MachineState.FAILED, problem
        else:
            self.reason = self.memory.end or "ended while vfsd was not running"
        by_force.unlink(missing_ok=True)
        failure = problem if self.state is MachineState.FAILED else ""
        self.state_changed_usec = now_usec()
        self._remember(failure=failure, accelerator="", invocation="", end="", layout="", healing="")
