"""Who is behind a connection of the bus, and whether it is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from vfsd.bus.connection import BUS, CallError, Connection
from vfsd.bus.incoming import Incoming

T = TypeVar("T")

_KNOWN_MAX = 1024
"""Callers that are remembered."""
_GONE = "org.freedesktop.DBus.Error.NameHasNoOwner"
_ENDS = "type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg2=''"
"""The ends of all connections: one rule, since a connection may have but 512."""


class Caller(NamedTuple):
    """Who calls."""

    name: str
    """Of the connection."""
    uid: int
    pid: int
    """0 if the bus does not know."""


class CallerGone(Exception):
    """Nobody waits for the answer any more."""


class Callers:
    """The clients of one bus."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, Caller] = {}
        self._waiting: dict[str, set[asyncio.Task[Any]]] = {}
        connection.on_signal(self._on_signal)

    def known(self, name: str) -> Caller | None:
        """Who a connection is, if that was asked already."""
        return self._known.get(name)

    async def find(self, name: str) -> Caller:
        """Who a connection is. :raise CallerGone: it has ended."""
        caller = self._known.get(name)
        if caller is not None:
            return caller
        try:
            [told] = await self._connection.call_bus("GetConnectionCredentials", "s", name)
        except CallError as error:
            if error.name == _GONE:
                raise CallerGone from None
            raise
        # a connection's name is never given to another one
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        pid = told["ProcessID"].value if "ProcessID" in told else 0
        caller = self._known[name] = Caller(name, told["UnixUserID"].value, pid)
        return caller

    async def while_there(self, caller: Caller, work: Coroutine[Any, Any, T]) -> T:
        """Await work that is cancelled when the caller's connection ends. :raise CallerGone: it did."""
        task = asyncio.get_running_loop().create_task(work)
        if not self._waiting:
            self._connection.tell(*BUS, "AddMatch", "s", _ENDS)
        self._waiting.setdefault(caller.name, set()).add(task)
        try:
            return await task
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is not None and own.cancelling():
                raise
            raise CallerGone from None
        finally:
            waiting = self._waiting[caller.name]
            waiting.discard(task)
            if not waiting:
                del self._waiting[caller.name]
            if not self._waiting:
                self._connection.tell(*BUS, "RemoveMatch", "s", _ENDS)

    def _on_signal(self, message: Incoming) -> None:
        if self._waiting and message.member == "NameOwnerChanged" and message.sender == BUS[0]:
            name, _, owner = message.body
            if not owner:
                for task in self._waiting.get(name, ()):
                    task.cancel()
