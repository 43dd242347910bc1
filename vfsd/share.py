"""One share: its definition, and the operations on it; its state is Serving's."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vfsd import virtiofsd
from vfsd.errors import (
    NoSuchShare,
    ShareBusy,
    SourceNotFound,
    UnitFailed,
    VfsdError,
    WrongState,
)
from vfsd.journal import WARNING, MessageId, last_words
from vfsd.limits import LIMITS
from vfsd.model import ShareSpec, ShareState
from vfsd.names import FIRST
from vfsd.serving import Serving
from vfsd.store import Definition, Kind, Origin
from vfsd.supervisor import CLEANUP_TIMEOUT, SupervisorError, UnitStatus
from vfsd.units import ALONE, Place, Unit

if TYPE_CHECKING:
    from vfsd.machine import Machine

_LOOK_INTERVAL = 0.02
"""Seconds between looks whether a virtiofsd that is about to end has ended."""


class Share(Serving):
    """A share, of a machine or on its own."""

    _is_absent = False
    """Whether the source was not there when it was looked at last."""

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
            if self._has_client:
                raise ShareBusy(f'share "{self.name}" still has the client from before; end that one first')
            await self._take_down()
            await self._listen()

    async def listen_again(self) -> None:
        """Listen if that is wanted and the source is there; what fails is told by state and reason."""
        with contextlib.suppress(VfsdError):  # state and journal say it, or the share was removed meanwhile
            async with self._turns.take():
                if self.memory.stopped or self.state.serves or self.in_use or self._has_client:
                    return
                await self._take_down()
                await self._listen()

    async def renew(self) -> bool:
        """Listen anew if the socket's file was taken away; whether it was. :raise VfsdError: it listens no more."""
        async with self._turns.take():
            # systemd takes the file away itself when it stops the socket, a little before it says so
            if not self.unreachable or not await self._context.supervisor.is_active(self.socket_unit):
                return False
            await self.release()
            await self._listen()
            self.refresh("its socket or service was taken away, and is made again")
            return True

    async def follow_virtiofsd(self) -> None:
        """Listen anew if the next client would get another virtiofsd than is found now: Nix may take that one away."""
        with contextlib.suppress(VfsdError):  # state and journal say it; without a virtiofsd nothing changes
            async with self._turns.take():
                waits = self.state is ShareState.LISTENING and not (self.owned or self.in_use)
                if waits and self.memory.virtiofsd != await virtiofsd.program(self._context):
                    await self.release()
                    await self._listen()

    async def stop(self) -> None:
        """Stop listening and end virtiofsd. :raise VfsdError: see the interface."""
        async with self._turns.take():
            if self.in_use:
                raise self._busy("shut the machine down first")
            if self.state in (ShareState.STOPPED, ShareState.FAILED):
                raise WrongState(f'share "{self.name}" is {self.state} already')
            self._remember(stopped=True)
            if self.state is ShareState.UNAVAILABLE:
                self._context.sources.forget(self.name)
            await self.release()

    async def remove(self) -> None:
        """Stop, and forget the definition. The registry forgets the object. :raise VfsdError: see the interface."""
        async with self._turns.take():
            if self.machine is not None:
                raise self._busy("detach it, or remove the machine" if self.owned else "detach it first")
            if self.state is ShareState.ACTIVE:
                raise ShareBusy(f'share "{self.name}" has a client; end the client, or stop the share, first')
            self._context.store.check_removable(Kind.SHARE, self.name)
            self._remember(removing=True)
            await self.release()
            self.unlink()
            # last: what was begun before is ended after a kill
            self._context.forget(Kind.SHARE, self.name)
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
        """Take a changed definition: at once, or with the next Refresh if a machine that runs uses it."""
        if not self._occupied:
            self.spec = spec
            self._context.changed(self)
        elif self.in_use and spec.source == self.spec.source:
            # the device in the guest stays what it is
            device = {name: getattr(self.spec, name) for name in ("tag", "mount_point", "mount_options")}
            wanted = dataclasses.replace(spec, **device)
            self.pending = wanted if wanted != self.spec else None

    async def set_option(self, dbus_name: str, signature: str, value: Any) -> None:
        """Change an option; unless it is stopped, a limit only. :raise VfsdError: malformed, or not stopped."""
        async with self._turns.take():
            if self._occupied and dbus_name not in LIMITS:
                raise WrongState(f'share "{self.name}" is in use or {self.state}; stop it to set {dbus_name}')
            spec = self.spec.with_option(dbus_name, signature, value)
            if self.machine is not None:
                self.machine.check_tag(spec.tag, besides=self.name)
            if self._occupied:
                await self._limit(dbus_name, spec)
            before, self.spec = self.spec, spec
            try:
                self.save()
            except VfsdError:
                self.spec = before
                raise
            self._context.changed(self)

    async def _limit(self, option: str, spec: ShareSpec) -> None:
        """Tell the service of a limit, once it runs. :raise UnitFailed: systemd refused.

        For a service that does not run systemd makes a control group too, and leaves it behind when the unit goes.
        """
        if self.owned or self._has_client:
            await self._context.limit(self.service_unit, option, spec, f'share "{self.name}"')
        else:
            wait = {*self.memory.limits_wait.split(), option}
            self._remember(limits_wait=" ".join(sorted(wait)))

    def _limit_what_runs(self) -> None:
        if self.memory.limits_wait and self._has_client:
            self._context.spawn(self._limit_later(self.memory.limits_wait.split()))
            self._remember(limits_wait="")

    async def _limit_later(self, options: Sequence[str]) -> None:
        try:
            for option in options:
                await self._limit(option, self.spec)
        except VfsdError as error:
            self._context.journal.write(
                MessageId.REFUSED, WARNING, str(error), unit=self.service_unit, share=self.name
            )

    async def space(self) -> list[int]:
        """Size and free space of the source's file system in bytes. :raise VfsdError: see the interface."""
        return list(await virtiofsd.space(self.spec))

    # what becomes of its source, and of its units

    def adopt(self) -> None:
        """Take over the state in which systemd has the units."""
        super().adopt()
        self._limit_what_runs()

    def unit_changed(self, unit: str, status: UnitStatus) -> None:
        """A unit of the share changed, or is gone."""
        if unit == self.socket_unit and status.active != "active" and self.state.serves and not self.in_use:
            # systemd stops it with what is unmounted, and is faster
            problem = self._context.sources.glance(self.spec).problem
            if problem:
                self._source_vanished(problem)
        super().unit_changed(unit, status)
        self._limit_what_runs()
        if unit == self.service_unit and not (status.runs or self.in_use):
            # the last client, of what is gone or of a virtiofsd that was replaced, may have left
            self._context.spawn(self.listen_again() if self.gone else self.follow_virtiofsd())

    def source_looked_at(self, problem: str, origin: Origin | None, *, same: bool) -> None:
        """Take note of how the source is; see vfsd.sources.Follower."""
        was_absent, self._is_absent = self._is_absent, origin is None
        sources = self._context.sources
        if origin is None:
            self._source_vanished(problem)
        elif self.gone or (self._has_client and not same):
            self._source_is_back(same=same)
        elif self.state is ShareState.LISTENING or (
            self._has_client and not sources.origin(self.name).identity
        ):
            sources.remember(self.name, origin)  # the next client gets it from there
        elif was_absent and self.machine is not None:
            self.machine.source_is_back(self)

    def _source_vanished(self, problem: str) -> None:
        if not self.in_use and (self.owned or self.memory.stopped):
            return
        self.gone = problem
        if not self.in_use:
            # what lies below a mount point must not be served to the next client, not even before the socket is gone
            virtiofsd.remove_links(self._context, self.name)
            self._context.spawn(self.listen_again())
        self.refresh()

    def _source_is_back(self, *, same: bool) -> None:
        if self._has_client and same and not self.lost:
            # it was there all the time: virtiofsd has kept it
            virtiofsd.make_links(self._context, self.spec)
            self.gone = ""
            self.refresh("")
        elif self.machine is not None and self.in_use:
            self.machine.source_is_back(self)
        elif self._has_client:
            self.gone = f"{self._again}; end the client, and it is served again"
            self.refresh()
        else:
            self._context.spawn(self.listen_again())

    @property
    def _has_client(self) -> bool:
        return self._context.supervisor.status(self.service_unit).runs

    # for the machine that uses it

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

    async def units(self, place: Place = ALONE) -> tuple[Unit, Unit]:
        """Socket and service, with the link that they name made. :raise VfsdError: see virtiofsd.units()."""
        made = await virtiofsd.units(self._context, self.spec, place)
        self._remember(limits_wait="", virtiofsd=await virtiofsd.program(self._context))
        return made

    async def hand_over(self) -> None:
        """Stop listening, so that a machine that starts can take the units over. :raise UnitFailed, ShareBusy."""
        async with self._turns.take():
            if self.state is ShareState.ACTIVE:
                raise ShareBusy(f'share "{self.name}" has another client; end that one first')
            await self.release()

    async def listen_for(self, place: Place) -> None:
        """Listen as a part of a machine that runs. :raise VfsdError: it does not listen at all then."""
        async with self._turns.take():
            if self.state is ShareState.ACTIVE:
                raise ShareBusy(f'share "{self.name}" has another client; end that one first')
            await self.release()
            await self._listen_for(place)

    async def listen_anew(self, place: Place) -> None:
        """Take a second connection of the machine, once the virtiofsd of the first is gone. :raise VfsdError."""
        supervisor = self._context.supervisor
        for _ in range(round(CLEANUP_TIMEOUT / _LOOK_INTERVAL)):
            # its socket keeps the unit loaded
            if not supervisor.status(self.service_unit).runs:
                break
            await asyncio.sleep(_LOOK_INTERVAL)
        else:
            raise UnitFailed("its virtiofsd did not end")
        if supervisor.status(self.socket_unit).active == "active" and not self.socket_path.exists():
            await supervisor.stop(self.socket_unit)  # nobody can reach it
        if supervisor.status(self.socket_unit).active != "active":
            await supervisor.wait_gone([self.socket_unit], CLEANUP_TIMEOUT)
            await self._listen_for(place)
        else:
            virtiofsd.locate(self._context, self.spec)

    async def _listen_for(self, place: Place) -> None:
        self.suffix = place.suffix
        socket, service = await self.units(place)
        await virtiofsd.listen(self._context, self.spec, socket, service)

    async def release(self) -> None:
        """Stop the units and wait until their names are free. :raise UnitFailed: systemd could not."""
        await self._take_down()
        self.suffix = FIRST
        self._clear()

    async def end_virtiofsd(self) -> None:
        """End the virtiofsd of a running guest, which is about to get another one. :raise UnitFailed."""
        self.parting = True
        self._lost = self.gone
        try:
            await self._context.supervisor.stop(self.service_unit)
        except SupervisorError as error:
            raise UnitFailed(f"its virtiofsd could not be ended: {error}") from None
        finally:
            self.parting = False

    async def _take_down(self) -> None:
        supervisor = self._context.supervisor
        try:
            for unit in (self.socket_unit, self.service_unit):
                if supervisor.status(unit).runs:
                    await supervisor.stop(unit)
        except SupervisorError as error:
            raise UnitFailed(f'share "{self.name}" could not be stopped: {error}') from None
        await supervisor.wait_gone([self.socket_unit, self.service_unit], CLEANUP_TIMEOUT)
        self._unlink_socket()

    def machine_ended(self) -> None:
        """The machine does not run any more: forget what it suffered, and listen again if on its own."""
        self.suffix = FIRST
        self.pending = None
        self._clear()
        if not self.owned:
            self._context.spawn(self._listen_after_machine())

    def save(self) -> None:
        """Write the definition. :raise NotWritten."""
        if self.owned and self.machine is not None:
            self.machine.own_share_changed(self.spec)
        elif not self.configured:
            self._context.store.save(Definition(self.spec, self.owner))

    def unlink(self) -> None:
        """Take away what leads to the source, and what systemd may have left of the socket; forget where it lay."""
        self._unlink_socket()
        virtiofsd.remove_links(self._context, self.name)
        self._context.sources.forget(self.name)

    # inner workings

    def _unlink_socket(self) -> None:
        # a socket unit whose file was taken away has no RemoveOnStop= any more
        if not self._context.supervisor.status(self.socket_unit).runs:
            self.socket_path.unlink(missing_ok=True)

    def _changed(self) -> None:
        self._context.changed(self)

    def _state_changed(self, old: ShareState, new: ShareState, reason: str) -> None:
        self._context.state_changed(self, old, new, reason)

    async def _listen_after_machine(self) -> None:
        await self._context.supervisor.wait_gone([self.socket_unit, self.service_unit], CLEANUP_TIMEOUT)
        await self.listen_again()

    async def _listen(self) -> None:
        self._trouble = ShareState.STOPPED
        try:
            socket, service = await self.units()
            await virtiofsd.listen(self._context, self.spec, socket, service)
        except (VfsdError, asyncio.CancelledError) as error:
            self.gone = str(error) if isinstance(error, SourceNotFound) else ""
            self._trouble = ShareState.STOPPED if self.gone else ShareState.FAILED
            self.refresh(str(error))
            if not self.gone:
                self._remember(failure=str(error))
            raise
        self.gone = ""
        self._remember(failure="")
        self.refresh("")

    def _busy(self, remedy: str) -> ShareBusy:
        machine = self.machine.name if self.machine else ""
        return ShareBusy(f'share "{self.name}" is used by machine "{machine}"; {remedy}')


async def why_virtiofsd_failed(share: Share) -> str:
    """What the failed virtiofsd of a share said last, added to how it ended."""
    words = await last_words(share.invocation, "virtiofsd")
    return f"{share.last_failure}: {words}" if words else share.last_failure
