"""Replacing QEMU and every virtiofsd of a machine under its running guest, by a migration within this host.

A second QEMU, on the machine's other set of unit names and with virtiofsds of its own, waits for the guest of the
first. Once it has everything it still stands still; to let it go on is the one step that can't be taken back, and
before it every failure ends with the second taken down and the first going on. Which of the two has the guest is
therefore known to the QEMUs, whatever becomes of vfsd meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vfsd import blame, commands, credentials, migration, names, ssh
from vfsd.boot import OPEN_FILE_SINCE, Launch, Predecessor, prepare
from vfsd.context import Context
from vfsd.errors import MonitorFailed, NotSupported, UnitFailed, VfsdError, WrongState
from vfsd.journal import NOTICE, WARNING, MessageId
from vfsd.limits import MEMORY_OVERHEAD
from vfsd.meeting import Meeting
from vfsd.migration import Channels
from vfsd.model import MachineState
from vfsd.opened import Openings
from vfsd.qmp import Monitor, ignore
from vfsd.supervisor import CLEANUP_TIMEOUT, SupervisorError, UnitStatus, start_units
from vfsd.turns import finish

if TYPE_CHECKING:
    from vfsd.condition import Condition
    from vfsd.machine import Machine

TIMEOUT = 15.0
"""Seconds until the other QEMU must have the guest, where its memory is not copied; with what it takes to undo it,
under a client's 25."""
COPY_RATE = 100 << 20
"""Bytes of memory that are copied at least in a second, where they must be; some GiB on today's machines."""
AGENT_TIMEOUT = 1.0
"""Seconds for which an answer of the guest's agent that is under way is waited for."""
KEEP_TIMEOUT = 1.0
"""Seconds for which the guest may stand still so that what it wrote on its console is kept."""
SETTLE_TIMEOUT = 1.0
"""Seconds in which a QEMU must tell whether it has the guest; one that waits for it may not answer at all."""

_Result = TypeVar("_Result")


async def refresh(context: Context, machine: Machine) -> None:
    """Replace QEMU and every virtiofsd under the running guest.

    :raise VfsdError: it could not be done, and the machine goes on as it was.
    """
    _check(context, machine)
    await _Refresh(context, machine).run()


def _check(context: Context, machine: Machine) -> None:
    """:raise NotSupported: something of the machine can't be moved."""
    who = f'machine "{machine.name}"'
    kind, _, interface = machine.spec.network.partition(":")
    if kind == "tap":
        raise NotSupported(
            f"{who} can't be refreshed: network interface {interface} takes one QEMU at a time; use a bridge, or shut "
            "it down and start it again"
        )
    if context.supervisor.version < OPEN_FILE_SINCE:
        raise NotSupported(f"{who} can't be refreshed: that takes systemd {OPEN_FILE_SINCE} or later")
    check_shares(machine, "refreshed")
    suffix = names.other(machine.suffix)
    paths = [context.paths.machine(machine.name, suffix).stop_monitor]
    paths += [context.paths.share_socket(share.name, suffix) for share in machine.shares]
    if any(len(str(path).encode()) > names.SOCKET_PATH_MAX for path in paths) or any(
        len(unit) > names.UNIT_NAME_MAX for unit in _units(machine, suffix)
    ):
        raise NotSupported(
            f"{who} can't be refreshed: its name or that of a share is too long for a second set of units; "
            "shut it down and start it again"
        )


def check_shares(machine: Condition, what: str) -> None:
    """:param what: what is to be done with the machine. :raise NotSupported: a share's device can't be moved."""
    begin = f'machine "{machine.name}" can\'t be {what}'
    dead = next((share for share in machine.shares if share.lost), None)
    if dead is not None:
        raise NotSupported(
            f'{begin}: share "{dead.name}" does not serve; shut the machine down and start it again'
        )
    healed = [plug for plug in machine.layout.plugs if plug != machine.layout.of(plug.share)]
    for plug in (*healed, *machine.orphans):
        raise NotSupported(
            f'{begin}: a device with the tag "{plug.tag}", whose virtiofsd ended, is there still; reset the machine '
            "first, or reboot its guest"
        )


def _units(machine: Machine, suffix: str) -> list[str]:
    """One of the two sets, QEMU's service first; without the slice, which is the same for both."""
    return [
        names.machine_unit(machine.name, suffix),
        names.machine_socket_unit(machine.name, suffix),
        *(names.share_socket_unit(share.name, suffix) for share in machine.shares),
        *(names.share_service_unit(share.name, suffix) for share in machine.shares),
    ]


class _Refresh:
    """One replacement: from the check to the end of the QEMU that was replaced."""

    def __init__(self, context: Context, machine: Machine) -> None:
        self._context = context
        self._machine = machine
        self._old = machine.qemu.monitor
        self._heard = self._old.on_event
        self._new: Monitor | None = None
        self._old_suffix, self._suffix = machine.suffix, names.other(machine.suffix)
        self._runs = machine.state is MachineState.RUNNING
        self._begun, self._begun_at = time.monotonic(), time.time()
        self._stopped_at = self._resumed_at = 0
        """When the one QEMU let the guest stand still and the other one let it go on, by their clocks."""
        self._done = False
        self._openings = Openings(0, opens=False)

    @property
    def _who(self) -> str:
        return f'machine "{self._machine.name}"'

    @property
    def _unit(self) -> str:
        return names.machine_unit(self._machine.name, self._suffix)

    async def run(self) -> None:
        """:raise VfsdError: it could not be done, and the machine goes on as it was."""
        machine = self._machine
        machine.frozen = True
        self._old.on_event = self._from_old
        before = {share: share.spec for share in machine.shares}
        try:
            for share in machine.shares:
                share.spec = share.pending or share.spec
            async with asyncio.timeout(None) as limit:
                shared = await migration.shares_ram(self._old)
                self._check_memory(shared=shared)
                copied = 0 if shared else machine.spec.memory / COPY_RATE
                limit.reschedule(asyncio.get_running_loop().time() + TIMEOUT + copied)
                with Meeting(machine.paths.meeting) as meeting:
                    launch = await self._bring_up(meeting, shared=shared)
                    async with machine.inside.silence(AGENT_TIMEOUT):
                        monitor = await self._move(meeting, shared=shared)
                        limit.reschedule(None)
                        await finish(self._change_over(launch, monitor))
        except BaseException as error:
            if self._done:
                raise
            for share, spec in before.items():
                share.spec = spec
            why = await finish(self._undo(error))
            if isinstance(error, VfsdError | TimeoutError):
                raise why from None
            raise
        finally:
            machine.frozen = False
            credentials.remove(machine.paths.private)  # the second QEMU has read them, or never will

    # before the one step

    def _check_memory(self, *, shared: bool) -> None:
        """:raise NotSupported: there is no room for the guest's memory twice, and it has to be copied."""
        spec = self._machine.spec
        needed = 2 * (spec.memory + MEMORY_OVERHEAD)
        if not shared and 0 < spec.memory_max < needed:
            raise NotSupported(
                f"{self._who} can't be refreshed: its QEMU can't hand the memory over, and MemoryMax {spec.memory_max} "
                f"has no room for a copy; set MemoryMax to {needed}"
            )

    async def _bring_up(self, meeting: Meeting, *, shared: bool) -> Launch:
        """Start the second QEMU, and the virtiofsds to which it connects."""
        machine = self._machine
        before = Predecessor(
            await migration.machine_type(self._old),
            meeting.folder,
            machine.layout,
            machine.accelerator,
            self._suffix,
            vsock=machine.readiness.has_address,
            lives=True,
            shared=shared,
        )
        launch = await prepare(self._context, machine, before)
        self._openings = launch.openings
        aux = [unit for unit in launch.aux if unit.name != machine.slice]
        try:
            await start_units(self._context.supervisor, launch.unit, aux, _units(machine, self._suffix))
        except SupervisorError as error:
            raise UnitFailed(f"the second QEMU could not be started: {error}") from None
        return launch

    async def _move(self, meeting: Meeting, *, shared: bool) -> Monitor:
        """Move the guest; afterwards it stands still in both."""
        if not shared:  # else it answers only once it has been given the memory
            await self._meet()
        channels = Channels.below(await meeting.invite(self._old), shared=shared)
        await self._watched(migration.send(self._old, channels))
        monitor = await self._meet()
        await self._watched(migration.wait(self._old))
        await migration.arrived(monitor)
        return monitor

    async def _meet(self) -> Monitor:
        if self._new is None:
            path = self._context.paths.machine(self._machine.name, self._suffix).monitor
            self._new = await self._watched(Monitor.open(path, self._from_new))
        return self._new

    async def _watched(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Await work, but not if the second QEMU ends. :raise UnitFailed: it did."""
        supervisor = self._context.supervisor
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(supervisor.wait_gone([self._unit], math.inf))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise UnitFailed("the second QEMU ended")
            return task.result()
        finally:
            for one in (task, gone):
                one.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    def _from_old(self, event: str, data: Mapping[str, Any], usec: int) -> None:
        if event == "STOP":
            self._stopped_at = usec
        else:
            self._heard(event, data, usec)

    def _from_new(self, event: str, data: Mapping[str, Any], usec: int) -> None:  # noqa: ARG002
        if event == "RESUME":
            self._resumed_at = usec

    # the one step, and what comes after it

    async def _change_over(self, launch: Launch, monitor: Monitor) -> None:
        """Let the guest go on in the second QEMU, and end the first."""
        machine = self._machine
        await self._keep_console()
        if not machine.live:
            raise WrongState(f"{self._who} is {machine.state}")
        if self._runs:
            await monitor.execute("cont")
        self._done = True
        downtime = self._resumed_at - self._stopped_at if self._runs and self._stopped_at else 0
        old = machine.taken_over(launch, self._suffix, monitor, downtime)
        for share in machine.shares:
            if share.pending is not None:
                share.pending = None
                share.save()
        await self._end_old(old)
        await self._forward(monitor)
        self._tell(downtime)

    async def _keep_console(self) -> None:
        """What the guest wrote on its console is lost at worst."""
        with contextlib.suppress(VfsdError, TimeoutError):
            async with asyncio.timeout(KEEP_TIMEOUT):
                await self._machine.console.keep()

    async def _end_old(self, old: Monitor) -> None:
        supervisor, units = self._context.supervisor, _units(self._machine, self._old_suffix)
        await migration.end_sender(supervisor, old, units)
        await old.close()
        self._context.paths.machine(self._machine.name, self._old_suffix).leader_input.unlink(missing_ok=True)

    async def _forward(self, monitor: Monitor) -> None:
        """Forward ports of the host as the first QEMU did, which has let go of them."""
        machine = self._machine
        for forward in (*machine.spec.forward, *ssh.own_forward(machine.spec, machine.ssh_address)):
            rule = f"hostfwd_add {commands.NETWORK} {commands.forward_rule(forward)}"
            try:
                said = await monitor.execute("human-monitor-command", **{"command-line": rule})
            except MonitorFailed as error:
                said = str(error)
            if said:
                self._write(f"port {forward} is not forwarded any more: {str(said).strip()}", WARNING)

    def _tell(self, downtime: int) -> None:
        took = time.monotonic() - self._begun
        still = f"; the guest stood still for {downtime / 1000:.1f} ms" if self._runs else ""
        self._write(
            f"QEMU and {len(self._machine.shares)} virtiofsd replaced in {took:.2f} s{still}",
            NOTICE,
            downtime_usec=downtime,
        )

    def _write(self, text: str, priority: int, **fields: Any) -> None:
        machine = self._machine
        self._context.journal.write(
            MessageId.REFRESHED,
            priority,
            f"{self._who}: {text}",
            unit=machine.unit,
            machine=machine.name,
            **fields,
        )

    # taking it back

    async def _undo(self, error: BaseException) -> VfsdError:
        """Take the second QEMU down, let the guest go on in the first, and say what went wrong."""
        supervisor, units = self._context.supervisor, _units(self._machine, self._suffix)
        last = {unit: supervisor.status(unit) for unit in units}
        if self._new is not None:
            await self._new.close()
        with contextlib.suppress(SupervisorError):
            await supervisor.kill(units[0], signal.SIGKILL)
            await supervisor.stop(units[0])
        self._old.on_event = self._heard
        with contextlib.suppress(MonitorFailed):
            await migration.give_up(self._old)
            # never before the other one is gone: they have the same memory
            if await supervisor.wait_gone(units[:1], CLEANUP_TIMEOUT) and self._runs:
                await self._old.execute("cont")
        await supervisor.wait_gone(units, CLEANUP_TIMEOUT)
        self._context.paths.machine(self._machine.name, self._suffix).leader_input.unlink(missing_ok=True)
        if not self._machine.live:
            return WrongState(f"{self._who} ended meanwhile")
        return await self._explain(error, last)

    async def _explain(self, error: BaseException, last: Mapping[str, UnitStatus]) -> VfsdError:
        begin = f"{self._who} could not be refreshed, and goes on as it was"
        if isinstance(error, TimeoutError):
            return MonitorFailed(f"{begin}: the guest could not be moved in time")
        if not isinstance(error, UnitFailed | MonitorFailed):
            return error if isinstance(error, VfsdError) else UnitFailed(f"{begin}: it was interrupted")
        context, machine = self._context, self._machine
        for share in machine.shares:
            status = last[names.share_service_unit(share.name, self._suffix)]
            problem = await blame.failed_move(share, status, self._begun_at)
            if problem:
                return UnitFailed(f'{begin}: share "{share.name}": {problem}')
        invocation = last[self._unit].invocation
        words = await blame.qemus_words(context, machine.spec, invocation, self._openings, self._begun_at)
        return type(error)(f"{begin}: {error}{f'; the second QEMU said: {words}' if words else ''}")


async def settle(context: Context, machine: Machine) -> str:
    """Which of the two sets of units has a machine's guest, by its suffix, after a vfsd that may have been killed in
    the middle of a Refresh; the other one is ended. The first, if neither runs.
    """
    known, further = machine.memory.suffix, names.other(machine.memory.suffix)
    running = {
        suffix
        for suffix in names.SUFFIXES
        if context.supervisor.status(names.machine_unit(machine.name, suffix)).runs
    }
    if further not in running:
        return known if known in running else names.FIRST
    if await _status(context, machine, further) == "running":
        await _end(context, machine, known)
        return further
    await _end(context, machine, further)
    if machine.memory.state == MachineState.RUNNING:
        await _status(context, machine, known, let_run=True)
    return known


async def _status(context: Context, machine: Machine, suffix: str, *, let_run: bool = False) -> str:
    """What one of the two QEMUs says of itself; "" if it does not answer."""
    try:
        async with asyncio.timeout(SETTLE_TIMEOUT):
            monitor = await Monitor.open(context.paths.machine(machine.name, suffix).monitor, ignore)
            try:
                if let_run:
                    await monitor.execute("cont")
                return await monitor.status()
            finally:
                await monitor.close()
    except (MonitorFailed, TimeoutError):
        return ""


async def _end(context: Context, machine: Machine, suffix: str) -> None:
    units = _units(machine, suffix)
    with contextlib.suppress(SupervisorError):
        await context.supervisor.kill(units[0], signal.SIGKILL)
    await context.supervisor.wait_gone(units, CLEANUP_TIMEOUT)
