"""The life of one machine: QEMU's unit from its start to its end, as systemd and QEMU tell it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable

from vfsd import blame, credentials, files, hotplug, names, outcome, ssh
from vfsd.boot import Launch, Predecessor, prepare
from vfsd.condition import Condition
from vfsd.context import Context
from vfsd.devices import Layout
from vfsd.errors import MonitorFailed, UnitFailed, VfsdError, WrongState
from vfsd.follower import Follower
from vfsd.inside import Inside
from vfsd.journal import INFO, MessageId, Pace
from vfsd.model import USEC_PER_SEC, MachineSpec, MachineState
from vfsd.names import FIRST
from vfsd.qmp import Monitor
from vfsd.readiness import Readiness
from vfsd.serving import Serving
from vfsd.supervisor import CLEANUP_TIMEOUT, SupervisorError, UnitStatus, start_units
from vfsd.turns import finish

TakeIn = Callable[[Monitor], Awaitable[None]]
START_TIMEOUT = 15.0
"""Seconds until the guest's processors must run; with what it takes to undo a start, under a client's 25."""
ASK_TIMEOUT = 1.0
"""Seconds in which a guest's agent must take the request to power off."""
END_TIMEOUT = 3.0
"""Seconds in which systemd should have forgotten the units of one that was killed."""
KILL_TIMEOUT = 10.0
"""Seconds until a QEMU that was killed must be gone."""
END_GRACE = 0.5
"""Seconds in which systemd must have seen the end of a QEMU whose monitor failed, if that is why."""
_KILLED = "killed on request"
_FORCED = "the guest did not power off in time and was ended by force"
_KVM_REMEDY = (
    "KVM on this host can't run this guest (QEMU: internal error); set Accelerator to tcg, or use a host whose "
    "KVM works"
)


class Lifecycle(Condition):
    """How a machine comes up and goes down; its definition is Machine's business."""

    def __init__(self, context: Context, spec: MachineSpec, owner: int) -> None:
        super().__init__(context, spec, owner)
        self.qemu = Follower(context, lambda: self.paths.monitor, self)
        self.inside = Inside(context, self)
        self.readiness = Readiness(context, self)
        self._reports = Pace()

    @property
    def guest_ready(self) -> bool:
        """Whether the guest is up: its agent answers, or its systemd said so."""
        return self.inside.ready or self.readiness.ready

    @property
    def ssh_reached_at(self) -> str:
        """Where the guest's SSH server can be reached; "" if nowhere."""
        return self.readiness.ssh_address or self.ssh_address

    # operations

    async def start(self) -> None:
        """Start and return when the guest's processors run. :raise VfsdError: see the interface."""
        async with self._turns.take():
            if not self.state.idle:
                raise WrongState(
                    f'machine "{self.name}" is {self.state}; it can be started once it is stopped'
                )
            if self.suspended:
                raise WrongState(
                    f'machine "{self.name}" is suspended; Thaw goes on with its guest, and Kill forgets it'
                )
            await self._come_up()

    async def _come_up(
        self, before: Predecessor | None = None, take_in: TakeIn | None = None, more_time: float = 0
    ) -> None:
        """:param before: whose guest it goes on with; without, it boots.
        :param take_in: what QEMU has to do first then.
        :param more_time: seconds that this may take.
        """
        self._end = self._failure = self._invocation = ""
        self._last_status = UnitStatus()
        self._starting = True
        self._set_state(MachineState.STARTING, "")
        try:
            async with asyncio.timeout(START_TIMEOUT + more_time):
                await self._start(before, take_in)
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
            with contextlib.suppress(OSError):  # full: ExecStop= takes the machine's usual time then
                files.replace(self.paths.deadline, str(deadline), sync=False)
            answers = self.state is MachineState.RUNNING and self.inside.ready
            self._set_state(MachineState.STOPPING, "asked the guest to power off")
            if answers:
                await self._ask_guest()
            try:
                await self._context.supervisor.begin_stop(self.unit)
            except SupervisorError as error:
                if not error.no_such_unit:
                    raise UnitFailed(f'machine "{self.name}" could not be stopped: {error}') from None
            if self.state is MachineState.STOPPING:  # else it was quick
                self._force = self._context.spawn(self._kill_at(deadline))

    async def shut_down_because(self, why: str, *, again: bool) -> None:
        """Shut down for a reason that will be the machine's. :raise WrongState.

        :param again: it is to be started again; if vfsd does not live to do so, the next one does.
        """
        self._require_live("shut down")
        self._end = why
        self._remember(end=why, restart=again)
        await self.shutdown(0)

    async def kill(self) -> None:
        """End QEMU at once and return when it is gone. :raise WrongState, UnitFailed."""
        if self.state.idle and not self._context.supervisor.status(self.unit).runs:
            raise WrongState(f'machine "{self.name}" is {self.state}; there is nothing to kill')
        self._end = _KILLED
        async with self._turns.overtake():
            if not self.state.idle or self._context.supervisor.status(self.unit).runs:
                self._remember(end=_KILLED, restart=False)
                await self._kill()

    # what its shares tell

    def share_changed(self, share: Serving) -> None:
        """A share of the machine began or ceased to fail."""
        if self.live:
            self.reason = share.complaint if share.ails else ""
        self._changed()

    # what systemd tells

    def unit_changed(self, unit: str, status: UnitStatus) -> None:
        """A unit of the machine's changed, or is gone."""
        if unit != self.unit:
            return
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

    def taken_over(self, launch: Launch, suffix: str, monitor: Monitor, downtime_usec: int) -> Monitor:
        """Another QEMU has the guest now; returns the connection to the one that had it."""
        status = self._context.supervisor.status(names.machine_unit(self.name, suffix))
        self.suffix = suffix
        for share in self.shares:
            share.taken_over(suffix)
        if launch.vsock is not None:
            self.readiness.move(launch.vsock)
        before = self.qemu.go_over(monitor)
        self._invocation = status.invocation
        self.console_path = self._console_path() if launch.console else ""
        self.refresh_downtime_usec = downtime_usec
        self._remember(
            suffix=suffix, invocation=status.invocation, console=launch.console, downtime_usec=downtime_usec
        )
        self.inside.moved()
        self._context.registrar.register(self.name, self.unit)
        self.unit_changed(self.unit, status)
        return before

    # what QEMU tells

    def qemu_connected(self, state: MachineState | None) -> None:
        """The monitor answers, and this is the state; None: the guest can't go on."""
        credentials.remove(self.paths.private)  # QEMU has read them
        if state is None:
            self._failure = _KVM_REMEDY
        else:
            self._set_state(state, self.reason)
        if not self._starting:
            self._context.spawn(self._find_agent())

    def qemu_changed(self, state: MachineState) -> None:
        """The guest's processors were stopped or resumed."""
        if self.frozen:
            return
        self._set_live_state(state)

    async def qemu_broke(self) -> None:
        """The guest can't go on."""
        self._failure = _KVM_REMEDY if self.accelerator == "kvm" else "QEMU reports an internal error"
        await self._context.supervisor.kill(self.unit, signal.SIGKILL)

    def qemu_ends(self, why: str, *, failed: bool) -> None:
        """QEMU is about to end; "" if it does not say why."""
        if failed and not self._end:
            self._failure = self._failure or why
        self._end = self._end or why

    def qemu_opened_agent(self, *, is_open: bool) -> None:
        """The guest's agent opened its port, or closed it."""
        self.inside.port_changed(is_open=is_open)

    @abstractmethod
    def guest_resets(self, *, by_itself: bool) -> None:
        """The guest begins to boot again, because it wanted to, or because it was asked for."""

    def qemu_unplugged(self, device: str) -> None:
        """The guest gave a device back without being waited for."""
        plugged = self.layout.at(device)
        if plugged is not None:
            self._context.spawn(hotplug.forget(self, plugged))

    def qemu_reports(self, what: str) -> None:
        """Something happened that is worth an entry in the journal."""
        told = self._reports.pace(f'machine "{self.name}": {what}')
        if not told:
            return
        self._context.journal.write(MessageId.GUEST_EVENT, INFO, told, unit=self.unit, machine=self.name)

    # inner workings

    async def _start(self, before: Predecessor | None, take_in: TakeIn | None) -> None:
        launch = await prepare(self._context, self, before)
        self._openings = launch.openings
        for share in self.attached:
            await share.hand_over()
        self.readiness.begin(launch.vsock)
        # before it runs: a vfsd that is killed now could ask nobody for them
        self._remember(
            accelerator=launch.accelerator, console=launch.console, layout=launch.layout.write(), suffix=FIRST
        )
        await self._start_unit(launch)
        self.accelerator = launch.accelerator
        self.layout = launch.layout
        self.console_path = self._console_path() if launch.console else ""
        self._remember(restart=False, invocation=self._invocation, failure="", end="", downtime_usec=0)
        self._changed()  # who wants to see the guest's first words can connect to the console now
        await self.qemu.connect(take_in)
        if self._failure:
            raise UnitFailed(f'machine "{self.name}" could not be started: {self._failure}')
        self.qemu.follow()
        self.ssh_address = ssh.forwarded(self.spec)
        if ssh.port_wanted(self.spec):
            self.ssh_address = await ssh.open_port(self.qemu.monitor, self.memory.ssh)
        self._remember(ssh=self.ssh_address)
        self._changed()
        self._context.registrar.register(self.name, self.unit)

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
            self._context,
            self.spec,
            self.shares,
            self._invocation,
            problem,
            error,
            self._openings,
            begun=self.state_changed_usec / 1_000_000,
            thawing=self.suspended,
        )

    async def _find_agent(self) -> None:
        with contextlib.suppress(MonitorFailed):
            await self.inside.find()

    async def _ask_guest(self) -> None:
        """Ask the agent, if there is one, for what the power button asks for; that is pressed in any case."""
        with contextlib.suppress(VfsdError):
            await self.inside.shut_down(ASK_TIMEOUT)

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
        if not await supervisor.wait_gone(self._units, END_TIMEOUT):
            await supervisor.discard(self._units)
        if not await supervisor.wait_gone(self._units, KILL_TIMEOUT - END_TIMEOUT):
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
        self.qemu.leave()
        self.inside.forget()
        self.readiness.end()
        self._context.registrar.forget(self.name)
        self.paths.deadline.unlink(missing_ok=True)
        self.paths.leader_input.unlink(missing_ok=True)
        credentials.remove(self.paths.private)
        self.main_pid = self.refresh_downtime_usec = 0
        self.suffix = FIRST
        self.needs_refresh = False
        self.accelerator = self.console_path = self.ssh_address = ""
        self.layout = Layout()
        self._end = self._failure = ""
        self._set_state(state, reason)
        failure = reason if state is MachineState.FAILED else ""
        self._remember(failure=failure, accelerator="", invocation="", end="", layout="", healing="")
        for share in self.shares:
            share.machine_ended()
