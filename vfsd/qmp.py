"""QEMU's monitor, through the qemu.qmp library (QMP: QEMU's docs/interop/qmp-spec)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vfsd.errors import MonitorFailed

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

CONNECT_TIMEOUT = 10.0
"""Seconds until QEMU must have greeted and told its status."""
EXECUTE_TIMEOUT = 10.0
"""Seconds until QEMU must have answered a command."""

EventHandler = Callable[[str, Mapping[str, Any], int], None]
"""Takes the name of an event, its data, and when it happened: µs since the epoch, by QEMU's clock."""


class AddedFd(NamedTuple):
    """A descriptor that QEMU was given."""

    number: int
    """Its own number in QEMU."""
    set: int
    """That of the set, for /dev/fdset."""


class Monitor:
    """A connection to one QEMU; made by open()."""

    def __init__(self, client: QMPClient, on_event: EventHandler) -> None:
        self._client = client
        self.on_event = on_event
        """Told of each event, in order; may be changed."""
        self._passing = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path, on_event: EventHandler) -> Monitor:
        """Connect and negotiate.

        :raise MonitorFailed: QEMU does not answer in time, or not in QMP.
        """
        from qemu.qmp import EventListener, Message, QMPClient, QMPError  # noqa: PLC0415

        class Tap(EventListener):
            def accept(self, event: Message) -> bool:
                data = event.get("data")
                monitor.on_event(
                    str(event["event"]),
                    data if isinstance(data, Mapping) else {},
                    _usec(event.get("timestamp")),
                )
                return False  # handled; nothing is to be queued

        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # it logs what is raised too
        client = QMPClient("vfsd")
        monitor = cls(client, on_event)
        client.register_listener(Tap())
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await client.connect(str(path))
        except TimeoutError:
            raise MonitorFailed("QEMU's monitor did not answer in time") from None
        except (QMPError, OSError, AssertionError) as error:
            # the library asserts that QEMU is there still when all is said
            await monitor.close()
            raise MonitorFailed(f"QEMU's monitor can't be reached: {str(error) or 'it was closed'}") from None
        return monitor

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return its answer. :raise MonitorFailed: QEMU refused, or does not answer."""
        from qemu.qmp import QMPError  # noqa: PLC0415

        try:
            async with asyncio.timeout(EXECUTE_TIMEOUT):
                return await self._client.execute(command, arguments or None)
        except TimeoutError:
            raise MonitorFailed(f"QEMU did not answer {command} in time") from None
        except (QMPError, OSError) as error:
            raise MonitorFailed(f"QEMU refused {command}: {error}") from None

    async def pass_fd(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor, under a name. :raise MonitorFailed."""
        await self._send_fd(fd, "getfd", fdname=name)

    async def add_fd(self, fd: int) -> AddedFd:
        """Give QEMU a copy of a descriptor, as a set of its own. :raise MonitorFailed."""
        answer = await self._send_fd(fd, "add-fd")
        return AddedFd(int(answer["fd"]), int(answer["fdset-id"]))

    async def _send_fd(self, fd: int, command: str, **arguments: object) -> Any:
        async with self._passing:  # QEMU takes the last one that came before the command
            try:
                self._client.send_fd_scm(fd)
            except OSError as error:
                raise MonitorFailed(f"QEMU took no descriptor: {error}") from None
            return await self.execute(command, **arguments)

    async def status(self) -> str:
        """QEMU's run state: running, paused, prelaunch, internal-error, guest-panicked, …"""
        answer = await self.execute("query-status")
        return str(answer.get("status", "")) if isinstance(answer, Mapping) else ""

    async def closed(self) -> None:
        """Wait until QEMU has closed the connection."""
        from qemu.qmp import Runstate  # noqa: PLC0415

        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """End the connection, whatever state it is in; to its end, even if this task is cancelled meanwhile."""
        await asyncio.shield(self._disconnect())

    async def _disconnect(self) -> None:
        with contextlib.suppress(Exception):  # what it failed with does not matter any more
            await self._client.disconnect()


def _usec(timestamp: Any) -> int:
    """An event's time; 0 if it makes no sense."""
    try:
        return int(timestamp["seconds"]) * 1_000_000 + int(timestamp["microseconds"])
    except (TypeError, KeyError, ValueError):
        return 0


def ignore(event: str, data: Mapping[str, Any], usec: int) -> None:
    """Hear no event."""
