"""One share: its state as systemd's units tell it, and the operations on it."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfsd import names, outcome, virtiofsd
from vfsd.context import Context, now_usec
from vfsd.errors import (
    NoSuchShare,
    ShareBusy,
    SourceNotFound,
    UnitFailed,
    VfsdError,
    WrongState,
)
from vfsd.journal import last_words
from vfsd.model import MachineState, ShareSpec, ShareState
from vfsd.store import Definition, Kind, Memory
from vfsd.supervisor import CLEANUP_TIMEOUT, SupervisorError, UnitStatus
from vfsd.turns import Turns
from vfsd.units import Unit

if TYPE_CHECKING:
    from vfsd.machine import Machine

DISCONNECT_GRACE = 0.25
"""Seconds. A virtiofsd that ends normally while its machine still seems to run: QEMU closes its connections a little
before systemd sees it end, so the verdict waits this long."""

_SETTLES = (ShareState.ACTIVE, ShareState.STOPPING, ShareState.STOPPED)
"""States whose beginning ends what there was to complain of before."""


class Share:
    """A share, of a machine or on its own."""

    def __init__(self, context: Context, spec: ShareSpec, owner: int, machine: Machine | None = None) -> None:
        self._context = context
        self.spec = spec
        self.owner = owner
        self.owned = machine is not None
        """Whether it was made with its machine, and goes with it."""
        self.machine = machine
        self.memory = Memory() if self.owned else context.store.recall(Kind.SHARE, spec.name)
        self.state = ShareState.STOPPED
        self.reason = ""
        self.main_pid = 0
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
        self._trouble = ShareState.STOPPED
        self._begun = False
        self._spent = False
        """Whether a machine's connection was served here: the socket that listens on is about to go with it."""

    # what the outside sees

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def socket_path(self) -> Path:
        return self._context.paths.share_socket(self.name)

    @property
    def socket_unit(self) -> str:
        return names.share_socket_unit(self.name)

    @property
    def service_unit(self) -> str:
        return names.share_service_unit(self.name)

    @property
    def lost(self) -> bool:
        """Whether the running guest's connection is gone."""
        return bool(self._lost)

    @property
    def complaint(self) -> str:
        """What its machine says of it while it does not serve."""
        return f'share "{self.name}" does not serve: {self.last_failure}'

    @property
    def last_failure(self) -> str:
        """Why virtiofsd failed last under the machine; "" if it did not."""
        return self._lost

    # operations

    async def start(self) -> None:
        """Start listening. :raise VfsdError: see the interface."""
        async with self._turns.take():
            if self.owned and self.machine is not None:
                raise WrongState(
                    f'share "{self.name}" belongs to machine "{self.machine.name}"; start the machine'
                )
            if self.in_use:
                raise self._busy("it is started again with the machine")
            if self.state.serves or self.state is ShareState.STOPPING:
                raise WrongState(f'share "{self.name}" is {self.state} already')
            self._remember(stopped=False)
            await self._listen()

    async def listen_again(self) -> None:
        """Listen if that is wanted and the source is there; what fails is told by state and reason."""
        async with self._turns.take():
            if self.memory.stopped or self.state.serves or self.in_use:
                return
            try:
                await self._listen()
            except VfsdError:
                return  # state and journal say it

    async def stop(self) -> None:
        """Stop listening and end virtiofsd. :raise VfsdError: see the interface."""
        async with self._turns.take():
            if self.in_use:
                raise self._busy("shut the machine down first")
            if self.state in (ShareState.STOPPED, ShareState.FAILED, ShareState.UNAVAILABLE):
                raise WrongState(f'share "{self.name}" is {self.state} already')
            self._remember(stopped=True)
            await self.release()

    async def remove(self) -> None:
        """Stop, and forget the definition. The registry forgets the object. :raise VfsdError: see the interface."""
        async with self._turns.take():
            if self.machine is not None:
                raise self._busy("detach it, or remove the machine" if self.owned else "detach it first")
            if self.state is ShareState.ACTIVE:
                raise ShareBusy(f'share "{self.name}" has a client; end the client, or stop the share, first')
            self._remember(removing=True)
            await self.release()
            self.unlink()
            # last: what was begun before is ended after a kill
            self._context.store.remove(Kind.SHARE, self.name)
            self._turns.close(NoSuchShare(f'share "{self.name}" was removed meanwhile'))

    async def retire(self) -> bool:
        """Be gone, since the configuration does not define it any more, unless it runs; whether it is gone."""
        async with self._turns.take():
            if self._occupied:
                return False
            self.unlink()
            self._turns.close(NoSuchShare(f'share "{self.name}" was removed meanwhile'))
            return True

    def configure(self, spec: ShareSpec) -> None:
        """Take a changed definition, unless it runs."""
        if not self._occupied:
            self.spec = spec
            self._context.changed(self)

    async def set_option(self, dbus_name: str, signature: str, value: Any) -> None:
        """Change an option. :raise VfsdError: malformed, or the share is not stopped."""
        async with self._turns.take():
            if self._occupied:
                raise WrongState(f'share "{self.name}" is in use or {self.state}; stop it to set {dbus_name}')
            spec = self.spec.with_option(dbus_name, signature, value)
            if self.machine is not None:
                self.machine.check_tag(spec.tag, besides=self.name)
            before, self.spec = self.spec, spec
            try:
                self.save()
            except OSError:
                self.spec = before
                raise
            self._context.changed(self)

    async def space(self) -> list[int]:
        """Size and free space of the source's file system in bytes. :raise VfsdError: see the interface."""
        return list(await virtiofsd.space(self.spec))

    # for the machine that uses it

    @property
    def in_use(self) -> bool:
        """Whether a machine uses it that is not idle."""
        return self.machine is not None and not self.machine.state.idle

    @property
    def _occupied(self) -> bool:
        """Whether its definition must stay as it is: units run by it, or are about to."""
        return self.in_use or self.state.serves or self.state is ShareState.STOPPING

    def attach(self, machine: Machine | None) -> None:
        """Belong to a machine, or to none."""
        self.machine = machine
        self._context.changed(self)

    async def check(self) -> None:
        """Whether it could be served as it is defined. :raise VfsdError: see virtiofsd.units()."""
        await virtiofsd.arguments(self._context, self.spec)

    async def units(self, machine: str = "") -> tuple[Unit, Unit]:
        """Socket and service, with the link that they name made. :raise VfsdError: see virtiofsd.units()."""
        return await virtiofsd.units(self._context, self.spec, machine)

    async def hand_over(self) -> None:
        """Stop listening, so that a machine that starts can take the units over. :raise UnitFailed, ShareBusy."""
        async with self._turns.take():
            if self.state is ShareState.ACTIVE:
                raise ShareBusy(f'share "{self.name}" has another client; end that one first')
            await self.release()

    async def release(self) -> None:
        """Stop the units and wait until their names are free. :raise UnitFailed: systemd could not."""
        supervisor = self._context.supervisor
        try:
            for unit in (self.socket_unit, self.service_unit):
                if supervisor.status(unit).runs:
                    await supervisor.stop(unit)
        except SupervisorError as error:
            raise UnitFailed(f'share "{self.name}" could not be stopped: {error}') from None
        await supervisor.wait_gone([self.socket_unit, self.service_unit], CLEANUP_TIMEOUT)
        self._clear()

    def machine_ended(self) -> None:
        """The machine does not run any more: forget what it suffered, and listen again if on its own."""
        self._clear()
        if not self.owned:
            self._context.spawn(self._listen_after_machine())

    # what systemd tells

    def unit_changed(self, unit: str, status: UnitStatus) -> None:
        """A unit of the share changed, or is gone."""
        if unit == self.service_unit:
            self._service_changed(status)
        self.refresh()

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
            reason = self._why_failed() if state is ShareState.FAILED else self.reason
            if state is not self.state and state in _SETTLES:
                reason = ""
        self._set_state(state, reason)

    def save(self) -> None:
        """Write the definition. :raise OSError: it can't be written."""
        if self.owned and self.machine is not None:
            self.machine.own_share_changed(self.spec)
        elif not self.configured:
            self._context.store.save(Definition(self.spec, self.owner))

    def unlink(self) -> None:
        """Take the link to the source away."""
        self._context.paths.source_link(self.name).unlink(missing_ok=True)

    # inner workings

    def _service_changed(self, status: UnitStatus) -> None:
        was_running, self.main_pid = self.main_pid, status.main_pid if status.runs else 0
        self.invocation = status.invocation or self.invocation
        if status.active == "active":
            self._begun = True
            self._spent = self.in_use
            self._lost = ""
        if status.runs or not (was_running or self._begun or status.active == "failed"):
            return
        problem = outcome.virtiofsd_end(status, had_begun=self._begun)
        self._begun = False
        if problem:
            self.restarts += 1
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
        if service.active in ("active", "activating") or ending:
            return ShareState.ACTIVE
        if self._lost:
            return ShareState.FAILED
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
            self._context.changed(self)
            return
        self.state = state
        self.state_changed_usec = now_usec()
        self._context.state_changed(self, old, state, reason)
        if self.machine is not None and ShareState.FAILED in (old, state):
            self.machine.share_changed(self)

    def _clear(self) -> None:
        self._lost = ""
        self._trouble = ShareState.STOPPED
        self.refresh("")

    async def _listen_after_machine(self) -> None:
        await self._context.supervisor.wait_gone([self.socket_unit, self.service_unit], CLEANUP_TIMEOUT)
        await self.listen_again()

    async def _listen(self) -> None:
        self._trouble = ShareState.STOPPED
        try:
            socket, service = await self.units()
            await virtiofsd.listen(self._context, self.spec, socket, service)
        except (VfsdError, asyncio.CancelledError) as error:
            gone = isinstance(error, SourceNotFound)
            self._trouble = ShareState.UNAVAILABLE if gone else ShareState.FAILED
            self.refresh(str(error))
            if not gone:
                self._remember(failure=str(error))
            raise
        self._remember(failure="")
        self.refresh("")

    def _remember(self, **changes: Any) -> None:
        if self.owned:
            return
        memory = dataclasses.replace(self.memory, **changes)
        if memory != self.memory:
            self.memory = memory
            self._context.store.remember(Kind.SHARE, self.name, memory)

    def _why_failed(self) -> str:
        if self._lost or self.state is ShareState.FAILED:
            return self._lost or self.reason
        status = self._context.scope.hint("systemctl", f"status {self.socket_unit}")
        return f"systemd gave its socket up; see {status}"

    def _log_command(self) -> str:
        return self._context.scope.hint("journalctl", f"-u {self.service_unit}")

    def _busy(self, remedy: str) -> ShareBusy:
        machine = self.machine.name if self.machine else ""
        return ShareBusy(f'share "{self.name}" is used by machine "{machine}"; {remedy}')


async def why_virtiofsd_failed(share: Share) -> str:
    """What the failed virtiofsd of a share said last, added to how it ended."""
    words = await last_words(share.invocation, "virtiofsd")
    return f"{share.last_failure}: {words}" if words else share.last_failure
