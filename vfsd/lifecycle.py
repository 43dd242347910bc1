"""The life of one machine: QEMU's unit from its start to its end, as systemd and QEMU tell it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from abc import ABC, abstractmethod
from typing import Any

from vfsd import blame, names, outcome
from vfsd.boot import Launch, prepare
from vfsd.context import Context, now_usec
from vfsd.devices import Layout
from vfsd.errors import MonitorFailed, UnitFailed, VfsdError, WrongState
from vfsd.follower import Follower
from vfsd.journal import INFO, MessageId, exit_of
from vfsd.model import USEC_PER_SEC, MachineSpec, MachineState
from vfsd.share import Share
from vfsd.store import Kind
from vfsd.supervisor import CLEANUP_TIMEOUT, SupervisorError, UnitStatus, start_units
from vfsd.turns import Turns, finish

START_TIMEOUT = 15.0
"""Seconds until the guest's processors must run; with what it takes to undo a start, under a client's 25."""
KILL_TIMEOUT = 10.0
"""Seconds until a QEMU that was killed must be gone."""
ADOPT_TIMEOUT = 1.0
"""Seconds that coming up waits for a QEMU to tell whether it is paused."""
END_GRACE = 0.5
"""Seconds in which systemd must have seen the end of a QEMU whose monitor failed, if that is why."""
_KILLED = "killed on request"
_FORCED = "the guest did not power off in time and was ended by force"
_KVM_REMEDY = (
    "KVM on this host can't run this guest (QEMU: internal error); set Accelerator to tcg, or use a host whose "
    "KVM works"
)
_EXIT_CODES = {"exited": 1, "killed": 2, "dumped": 3}
"""CLD_EXITED and so on, by systemd's names."""


class Lifecycle(ABC):
    """What a machine is at this moment, and how it comes up and goes down; its definition is Machine's business."""

    def __init__(self, context: Context, spec: MachineSpec, owner: int) -> None:
        self._context = context
        self.spec = spec
        self.owner = owner
        self.memory = context.store.recall(Kind.MACHINE, spec.name)
        self.own_shares: list[Share] = []
        self.attached: list[Share] = []
        self.state = MachineState.STOPPED
        self.reason = ""
        self.main_pid = 0
        self.accelerator = ""
        self.console_path = ""
        self.guest_ready = False
        self.guest_system = ""
        self.needs_refresh = self.suspended = False
        self.refresh_downtime_usec = 0
        self.ssh_address = ""
        self.layout = Layout()
        """Where the shares' devices stand while QEMU runs."""
        self.state_changed_usec = self.memory.since_usec or now_usec()
        self._turns = Turns(f'machine "{spec.name}"')
        self._qemu = Follower(context, context.paths.machine(spec.name).monitor, self)
        self._force: asyncio.Task[None] | None = None
        self._starting = False
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
        return names.machine_unit(self.name)

    @property
    def slice(self) -> str:
        return names.machine_slice(self.name)

    @property
    def shares(self) -> list[Share]:
        """Those made with it first."""
        return [*self.own_shares, *self.attached]

    @property
    def degraded(self) -> bool:
        """Whether a share that the running guest uses does not serve."""
        return self.live and any(share.lost for share in self.shares)

    @property
    def display_path(self) -> str:
        wanted = self.spec.display != "none" and not self.state.idle
        return str(self._context.paths.machine(self.name).display) if wanted else ""

    @property
    def live(self) -> bool:
        """Whether QEMU runs and is not about to end."""
        return self.state in (MachineState.RUNNING, MachineState.PAUSED)

    @property
    def _units(self) -> list[str]:
        # those of an attached share come back by themselves when the machine is gone
        shares = (unit for share in self.own_shares for unit in (share.socket_unit, share.service_unit))
        return [self.unit, names.machine_socket_unit(self.name), *shares, self.slice]

    # whom it tells

    @abstractmethod
    def _changed(self) -> None:
        """Properties may have changed."""

    @abstractmethod
    def _state_changed(self, old: MachineState, new: MachineState, reason: str) -> None:
        """The state changed."""

    # operations

    async def start(self) -> None:
        """Start and return when the guest's processors run. :raise VfsdError: see the interface."""
        async with self._turns.take():
            if not self.state.idle:
                raise WrongState(
                    f'machine "{self.name}" is {self.state}; it can be started once it is stopped'
                )
            self._end = self._failure = ""
            self._last_status = UnitStatus()
            self._starting = True
            self._set_state(MachineState.STARTING, "")
            try:
                async with asyncio.timeout(START_TIMEOUT):
                    await self._start()
            except BaseException as error:
                failure = await finish(self._undo_start(error))
                if isinstance(error, VfsdError | TimeoutError):
                    raise failure from None
                raise
            finally:
                self._starting = False

    async def shutdown(self, timeout_usec: int) -> None:
        """Ask the guest to power off and return; it ends by force at the timeout. :raise WrongState."""
        async with self._turns.take():
            self._require_live("shut down")
            timeout = timeout_usec or self.spec.shutdown_timeout_usec
            deadline = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 + timeout
            paths = self._context.paths.machine(self.name)
            paths.deadline.write_text(str(deadline))
            self._set_state(MachineState.STOPPING, "asked the guest to power off")
            try:
                await self._context.supervisor.begin_stop(self.unit)
            except SupervisorError as error:
                if not error.no_such_unit:
                    raise UnitFailed(f'machine "{self.name}" could not be stopped: {error}') from None
            self._force = self._context.spawn(self._kill_at(deadline))

    async def kill(self) -> None:
        """End QEMU at once and return when it is gone. :raise WrongState, UnitFailed."""
        if self.state.idle and not self._context.supervisor.status(self.unit).runs:
            raise WrongState(f'machine "{self.name}" is {self.state}; there is nothing to kill')
        self._end = _KILLED
        async with self._turns.overtake():
            if not self.state.idle or self._context.supervisor.status(self.unit).runs:
                self._remember(end=_KILLED)
                await self._kill()

    # what its shares tell

    def share_changed(self, share: Share) -> None:
        """A share of the machine began or ceased to fail."""
        if self.live:
            self.reason = share.complaint if share.lost else ""
        self._changed()

    # what systemd tells

    def unit_changed(self, status: UnitStatus) -> None:
        """The machine's unit changed, or is gone."""
        self.main_pid = status.main_pid if status.runs else 0
        self._invocation = status.invocation or self._invocation
        self._last_status = status
        if self._starting:
            self._changed()
        elif status.active == "deactivating" and status.main_pid and self.live:
            self._set_state(MachineState.STOPPING, "systemd stops the unit")
        elif not status.runs and not self.state.idle:
            self._ended(status)
        else:
            self._changed()

    async def adopt(self) -> None:
        """Take over the state in which systemd and QEMU have the machine. Does not wait long for QEMU."""
        known = self.memory
        status = self._context.supervisor.status(self.unit)
        if status.runs:
            await self._adopt_running(status)
        elif known.invocation:
            await self._adopt_end()
        elif known.failure:
            self.state, self.reason = MachineState.FAILED, known.failure
        since = known.since_usec if self.state.value == known.state else 0
        self.state_changed_usec = since or self.state_changed_usec
        self._remember(state=self.state.value, since_usec=self.state_changed_usec)

    async def _adopt_running(self, status: UnitStatus) -> None:
        self.main_pid = status.main_pid
        self._invocation = self.memory.invocation
        self.accelerator = self.memory.accelerator
        self.console_path = self._console_path() if self.memory.console else ""
        self.layout = Layout.read(self.memory.layout)
        self.state = MachineState.STOPPING if status.active == "deactivating" else MachineState.RUNNING
        for share in self.shares:
            share.adopt()
            if share.lost:
                self.reason = share.complaint
        if self.state is MachineState.STOPPING:
            deadline = self._context.paths.machine(self.name).read_deadline()
            if deadline:
                self._force = self._context.spawn(self._kill_at(deadline))
        else:
            await self._qemu.find(ADOPT_TIMEOUT)  # only QEMU knows whether it is paused

    async def _adopt_end(self) -> None:
        """Tell how QEMU ended while vfsd was away."""
        code, number = await exit_of(self._context.scope, self.memory.invocation)
        status = UnitStatus(exit_code=_EXIT_CODES.get(code, 0), exit_status=number)
        problem = outcome.qemu_end(status) if code else ""
        by_force = self._context.paths.machine(self.name).deadline
        if problem and not self.memory.end and not by_force.exists():
            self.state, self.reason = MachineState.FAILED, problem
        else:
            self.reason = self.memory.end or "ended while vfsd was not running"
        by_force.unlink(missing_ok=True)
        failure = problem if self.state is MachineState.FAILED else ""
        self.state_changed_usec = now_usec()
        self._remember(failure=failure, accelerator="", invocation="", end="", layout="")

    # what QEMU tells

    def qemu_connected(self, state: MachineState | None) -> None:
        """The monitor answers, and this is the state; None: the guest can't go on."""
        if state is None:
            self._failure = _KVM_REMEDY
        else:
            self._set_state(state, self.reason)

    def qemu_changed(self, state: MachineState) -> None:
        """The guest's processors were stopped or resumed."""
        self._set_live_state(state)

    async def qemu_broke(self) -> None:
        """The guest can't go on."""
        self._failure = _KVM_REMEDY if self.accelerator == "kvm" else "QEMU reports an internal error"
        await self._context.supervisor.kill(self.unit, signal.SIGKILL)

    def qemu_ends(self, why: str) -> None:
        """QEMU is about to end; "" if it does not say why."""
        self._end = self._end or why

    def qemu_reports(self, event: str) -> None:
        """Something happened that is worth an entry in the journal."""
        told = f'machine "{self.name}": QEMU reports {event}'
        self._context.journal.write(MessageId.GUEST_EVENT, INFO, told, unit=self.unit, machine=self.name)

    # inner workings

    async def _start(self) -> None:
        launch = await prepare(self._context, self)
        for share in self.attached:
            await share.hand_over()
        await self._start_unit(launch)
        self.accelerator = launch.accelerator
        self.layout = launch.layout
        self.console_path = self._console_path() if launch.console else ""
        self._remember(
            accelerator=launch.accelerator,
            console=launch.console,
            layout=launch.layout.write(),
            invocation=self._invocation,
            failure="",
            end="",
        )
        self._changed()  # who wants to see the guest's first words can connect to the console now
        await self._qemu.connect()
        if self._failure:
            raise UnitFailed(f'machine "{self.name}" could not be started: {self._failure}')
        self._qemu.follow()

    async def _start_unit(self, launch: Launch) -> None:
        try:
            await start_units(self._context.supervisor, launch.unit, launch.aux, self._units)
        except SupervisorError as error:
            raise UnitFailed(f'machine "{self.name}" could not be started: {error}') from None

    async def _undo_start(self, error: BaseException) -> VfsdError:
        """Take down what a start has made so far, and say why it failed."""
        supervisor = self._context.supervisor
        if isinstance(error, MonitorFailed):
            await supervisor.wait_gone([self.unit], END_GRACE)
        problem = "" if supervisor.status(self.unit).runs else outcome.qemu_end(self._last_status)
        with contextlib.suppress(SupervisorError):
            await supervisor.kill(self.unit, signal.SIGKILL)
            await supervisor.stop(self.unit)
        await supervisor.wait_gone(self._units, CLEANUP_TIMEOUT)
        failure = await self._why_start_failed(problem, error)
        self._starting = False
        if self._end == _KILLED:
            self._become_idle(MachineState.STOPPED, _KILLED)
        else:
            self._become_idle(MachineState.FAILED, blame.without_paths(self.spec, str(failure)))
        return failure

    async def _why_start_failed(self, problem: str, error: BaseException) -> VfsdError:
        if self._failure and isinstance(error, VfsdError):
            return error
        return await blame.failed_start(
            self._context, self.spec, self.shares, self._invocation, problem, error
        )

    async def _kill_at(self, deadline_usec: int) -> None:
        left = deadline_usec - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        await asyncio.sleep(max(left, 0) / USEC_PER_SEC)
        if self.state is MachineState.STOPPING:
            self._end = _FORCED
            self._remember(end=_FORCED)
            self._force = None
            await self._context.supervisor.kill(self.unit, signal.SIGKILL)

    async def _kill(self) -> None:
        supervisor = self._context.supervisor
        try:
            await supervisor.kill(self.unit, signal.SIGKILL)
        except SupervisorError as error:
            raise UnitFailed(f'machine "{self.name}" could not be killed: {error}') from None
        if not await supervisor.wait_gone(self._units, KILL_TIMEOUT):
            raise UnitFailed(
                f'machine "{self.name}" was killed and is not gone; see systemctl status {self.unit}'
            )

    def _ended(self, status: UnitStatus) -> None:
        problem = "" if self._end else outcome.qemu_end(status)
        failure = self._failure or problem
        if failure:
            self._become_idle(MachineState.FAILED, failure)
        else:
            self._become_idle(MachineState.STOPPED, self._end or "QEMU ended")

    def _become_idle(self, state: MachineState, reason: str) -> None:
        if self._force is not None and self._force is not asyncio.current_task():
            self._force.cancel()
        self._force = None
        self._qemu.leave()
        self._context.paths.machine(self.name).deadline.unlink(missing_ok=True)
        self.main_pid = 0
        self.accelerator = self.console_path = ""
        self.layout = Layout()
        self._end = self._failure = ""
        self._set_state(state, reason)
        failure = reason if state is MachineState.FAILED else ""
        self._remember(failure=failure, accelerator="", invocation="", end="", layout="")
        for share in self.shares:
            share.machine_ended()

    def _set_live_state(self, state: MachineState) -> None:
        if self.live:
            self._set_state(state, self.reason)

    def _set_state(self, state: MachineState, reason: str) -> None:
        old, self.reason = self.state, reason
        if old is state:
            self._changed()
            return
        self.state = state
        self.state_changed_usec = now_usec()
        self._remember(state=state.value, since_usec=self.state_changed_usec)
        self._state_changed(old, state, reason)

    def _console_path(self) -> str:
        return str(self._context.paths.machine(self.name).console)

    def _remember(self, **changes: Any) -> None:
        memory = dataclasses.replace(self.memory, **changes)
        if memory != self.memory:
            self.memory = memory
            self._context.store.remember(Kind.MACHINE, self.name, memory)

    def _require_live(self, what: str) -> None:
        if not self.live:
            raise WrongState(f'machine "{self.name}" is {self.state}; only one that runs can be {what}')
