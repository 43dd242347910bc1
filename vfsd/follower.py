"""Follows what QEMU tells on its monitor, for as long as the machine runs, however often the connection breaks."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vfsd import commands
from vfsd.context import Context
from vfsd.errors import MonitorFailed
from vfsd.model import MachineState
from vfsd.qmp import Monitor, ignore

PANICKED = "the guest panicked"
RECONNECT_DELAY = 1.0
"""Seconds between tries to reach the monitor of a QEMU that runs and does not answer."""
_RUN_STATES = {
    "running": MachineState.RUNNING,
    "paused": MachineState.PAUSED,
    "prelaunch": MachineState.PAUSED,
    "postmigrate": MachineState.PAUSED,
    "suspended": MachineState.RUNNING,
    "guest-panicked": MachineState.RUNNING,
    "shutdown": MachineState.STOPPING,
}
_BROKEN = "internal-error"
_OF_DEVICES = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
_PANIC = "guest-panic"
_ENDS = {
    "guest-shutdown": "the guest powered off",
    _PANIC: PANICKED,
    "host-qmp-quit": "QEMU was asked to quit",
    "host-signal": "QEMU was ended by a signal",
}
"""By QEMU's ShutdownCause."""
FIRMWARE_WINDOW = 10.0
"""Seconds in which a reset may be the firmware's, which it adds to each one (SeaBIOS: "attempting a hard reboot")."""
EVENTS, EVENTS_WINDOW = 1000, 1.0
"""Events that QEMU may send within so many seconds. A guest can cause many thousands, by writing to its devices; no
guest that means well causes a hundred."""


class Followed(Protocol):
    """The machine, as far as QEMU has something to tell it."""

    @property
    def live(self) -> bool:
        """Whether QEMU should be there to be followed."""

    def qemu_connected(self, state: MachineState | None) -> None:
        """The monitor answers, and this is the state; None: the guest can't go on."""

    def qemu_changed(self, state: MachineState) -> None:
        """The guest's processors were stopped or resumed."""

    async def qemu_broke(self) -> None:
        """The guest can't go on."""

    def qemu_ends(self, why: str, *, failed: bool) -> None:
        """QEMU is about to end; "" if it does not say why."""

    def qemu_reports(self, what: str) -> None:
        """Something happened that is worth an entry in the journal."""

    def qemu_opened_agent(self, *, is_open: bool) -> None:
        """The guest's agent opened its port, or closed it."""

    def guest_resets(self, *, by_itself: bool) -> None:
        """The guest begins to boot again, because it wanted to, or because it was asked for."""

    def qemu_unplugged(self, device: str) -> None:
        """The guest gave a device back without being waited for."""


class Follower:
    """The connection to one machine's QEMU."""

    def __init__(self, context: Context, path: Callable[[], Path], machine: Followed) -> None:
        self._context = context
        self._path = path
        self._machine = machine
        self._monitor: Monitor | None = None
        self._watch: asyncio.Task[None] | None = None
        self._expected: list[tuple[tuple[str, ...], str, asyncio.Future[str]]] = []
        self._run_changes = 0
        """How often QEMU stopped or resumed the processors."""
        self._events: deque[float] = deque(maxlen=EVENTS)
        self._last_reset = -FIRMWARE_WINDOW
        """When the last reset was that the firmware may double."""

    async def connect(self, take_in: Callable[[Monitor], Awaitable[None]] | None = None) -> None:
        """Reach the monitor and tell the machine QEMU's state; follow() comes next. :raise MonitorFailed.

        :param take_in: what is to be done first.
        """
        self._monitor = await Monitor.open(self._path(), self._on_event)
        if take_in is not None:
            await take_in(self._monitor)
        status = await self._monitor.status()
        broken = status == _BROKEN
        self._machine.qemu_connected(None if broken else _RUN_STATES.get(status, MachineState.RUNNING))

    def follow(self) -> None:
        """Begin to watch the connection that connect() made, and make it anew whenever it breaks."""
        self._watch = self._context.spawn(self._until_closed())

    async def find(self, timeout: float) -> None:
        """Connect and follow a QEMU that runs already; goes on trying in the background after the timeout."""
        self._watch = self._context.spawn(self._reconnect())
        await asyncio.wait({self._watch}, timeout=timeout)

    @property
    def monitor(self) -> Monitor:
        """The connection. :raise MonitorFailed: there is none at the moment."""
        if self._monitor is None:
            raise MonitorFailed("QEMU does not answer")
        return self._monitor

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return its answer. :raise MonitorFailed: QEMU does not answer, or refuses."""
        return await self.monitor.execute(command, **arguments)

    def expect(self, events: tuple[str, ...], device: str) -> asyncio.Future[str]:
        """The name of the next of these events that is about a device; to be cancelled when it is not wanted."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._expected = [entry for entry in self._expected if not entry[2].done()]
        self._expected.append((events, device, future))
        return future

    def go_over(self, monitor: Monitor) -> Monitor:
        """Follow another QEMU, which has the guest now; returns the connection to the one before.

        :raise MonitorFailed: there was none.
        """
        before = self.monitor
        if self._watch is not None:
            self._watch.cancel()
        before.on_event = ignore
        self._monitor = monitor
        monitor.on_event = self._on_event
        self.follow()
        return before

    def leave(self) -> None:
        """Follow no longer."""
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()
        self._watch = None
        self._context.spawn(self._drop())

    async def _until_closed(self) -> None:
        if self._monitor is None:
            return
        await self._monitor.closed()
        await self._drop()
        if self._machine.live:
            # QEMU ends, or it closed its monitor and lives on
            await asyncio.sleep(RECONNECT_DELAY)
            await self._reconnect()

    async def _reconnect(self) -> None:
        while self._machine.live:
            try:
                await self.connect()
            except MonitorFailed:
                await asyncio.sleep(RECONNECT_DELAY)
            else:
                self.follow()
                return

    async def _drop(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            await monitor.close()

    def _on_event(self, event: str, data: Mapping[str, Any], usec: int) -> None:  # noqa: ARG002
        if self._is_flood():
            if self._monitor is not None:
                self._machine.qemu_reports("QEMU tells too many events; vfsd does not listen for a while")
                self._context.spawn(self._drop())
            return
        if event in ("STOP", "RESUME"):
            self._run_changes += 1
        if event == "STOP" and self._machine.live:
            self._context.spawn(self._why_stopped(self._run_changes))
        elif event == "RESUME":
            self._machine.qemu_changed(MachineState.RUNNING)
        elif event == "SHUTDOWN":
            reason = str(data.get("reason"))
            self._machine.qemu_ends(_ENDS.get(reason, ""), failed=reason == _PANIC)
        elif event == "VSERPORT_CHANGE" and data.get("id") == commands.AGENT:
            self._machine.qemu_opened_agent(is_open=data.get("open") is True)
        elif event in _OF_DEVICES and "device" in data:
            self._device_event(event, str(data["device"]))
        elif event == "RESET":
            self._reset(by_guest=data.get("reason") == "guest-reset")
        elif event == "GUEST_CRASHLOADED":
            self._machine.qemu_reports("the guest panicked and runs the kernel that it keeps for this case")
        elif event == "GUEST_PANICKED":
            self._machine.qemu_reports(PANICKED)

    def _is_flood(self) -> bool:
        """Whether QEMU talks more than vfsd may be made to listen to."""
        now = time.monotonic()
        self._events.append(now)
        return len(self._events) == EVENTS and now - self._events[0] < EVENTS_WINDOW

    def _reset(self, *, by_guest: bool) -> None:
        now = time.monotonic()
        if by_guest and now - self._last_reset < FIRMWARE_WINDOW:
            self._last_reset = -FIRMWARE_WINDOW
            return
        self._last_reset = now
        self._machine.guest_resets(by_itself=by_guest)

    def _device_event(self, event: str, device: str) -> None:
        for events, wanted, future in self._expected:
            if event in events and wanted == device and not future.done():
                future.set_result(event)
                return
        if event == "DEVICE_DELETED":
            self._machine.qemu_unplugged(device)

    async def _why_stopped(self, change: int) -> None:
        """QEMU stopped the processors: on request, or because the guest can't go on.

        :param change: number of the event; an answer that a later event has overtaken tells nothing.
        """
        try:
            status = await self._monitor.status() if self._monitor else ""
        except MonitorFailed:
            return
        if status == _BROKEN:
            await self._machine.qemu_broke()
        elif status in _RUN_STATES and change == self._run_changes:
            self._machine.qemu_changed(_RUN_STATES[status])
