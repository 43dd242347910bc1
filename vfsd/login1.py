"""The host's shutdown, as systemd-logind tells of it (org.freedesktop.login1(5)): a lock that delays it.

The lock is a descriptor, which ends with vfsd. It comes over a connection of its own, made when it is first wanted:
logind is on the system bus, where a user's vfsd is not, and the other connections take no descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from vfsd.bus.connection import BUS, CallError, Connection
from vfsd.bus.incoming import Incoming
from vfsd.context import Context
from vfsd.journal import INFO, MessageId
from vfsd.names import Scope

_NAME = "org.freedesktop.login1"
_MANAGER = (_NAME, "/org/freedesktop/login1", f"{_NAME}.Manager")
_SIGNAL = "PrepareForShutdown"
_APPEARS = "NameOwnerChanged"
RECONNECT_DELAY = 1.0
"""Seconds between tries to reach a system bus that went away; it may have been restarted under a user's vfsd."""
_LOCK = ["shutdown", "vfsd", "virtual machines are asked to power off", "delay"]
"""What, who, why, and that it delays only: for as long as logind.conf(5) has it (InhibitDelayMaxSec=, 5 s)."""


class Login1:
    """Holds the lock; an Inhibitor."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._connection: Connection | None = None
        self._wanted = self._closed = False
        self._lock: int | None = None
        self._taking: asyncio.Task[None] | None = None
        self._told = ""
        """Why there was no lock last."""
        self.on_shutdown: Callable[[], None] | None = None

    def want(self, wanted: bool) -> None:
        """Hold the lock, or let it go; see Inhibitor."""
        self._wanted = wanted
        if wanted and self._lock is None and self._taking is None:
            self._taking = self._context.spawn(self._take())
        elif not wanted and self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def close(self) -> None:
        """Let everything go."""
        self._closed = True
        self.want(False)
        if self._connection is not None:
            self._connection.disconnect()

    async def _take(self) -> None:
        try:
            connection = await self._connected()
            lock = await connection.call_for_descriptor(*_MANAGER, "Inhibit", "ssss", _LOCK)
        except (CallError, OSError, EOFError) as error:
            self._tell(str(error))
            return
        finally:
            self._taking = None
        self._told = ""
        if self._wanted:
            self._lock = lock
        else:
            os.close(lock)

    async def _connected(self) -> Connection:
        if self._connection is None:
            connection = Connection(Scope.SYSTEM, takes_descriptors=True)
            await connection.connect()
            connection.on_signal(self._on_signal)
            for rule in (
                f"type='signal',sender='{_NAME}',interface='{_MANAGER[2]}',member='{_SIGNAL}'",
                f"type='signal',sender='{BUS[0]}',interface='{BUS[2]}',member='{_APPEARS}',arg0='{_NAME}'",
            ):
                await connection.add_match(rule)
            self._connection = connection
            self._context.spawn(self._until_gone(connection))
        return self._connection

    async def _until_gone(self, connection: Connection) -> None:
        try:
            await connection.wait_for_disconnect()
        except (OSError, EOFError):
            pass
        finally:
            self._connection = None
        while not self._closed and self._connection is None:
            await asyncio.sleep(RECONNECT_DELAY)
            with contextlib.suppress(CallError, OSError, EOFError):
                await self._connected()

    def _on_signal(self, message: Incoming) -> None:
        if message.sender == BUS[0] and message.member == _APPEARS and message.body[2]:
            self.want(self._wanted)  # logind comes late to a bus that was restarted
        if message.member == _SIGNAL and message.signature == "b" and message.body[0]:
            self._context.spawn(self._prepare(message.sender))

    async def _prepare(self, sender: str) -> None:
        if self._connection is None or self.on_shutdown is None:
            return
        try:
            [owner] = await self._connection.call_bus("GetNameOwner", "s", _NAME)
        except CallError:
            return
        if sender == owner:  # anybody may send a signal to us alone
            self.on_shutdown()

    def _tell(self, why: str) -> None:
        if why != self._told:
            self._told = why
            text = f"The host's shutdown does not wait for machines of vfsd before it begins: {why}"
            self._context.journal.write(MessageId.NO_SHUTDOWN_LOCK, INFO, text, reason=why)
