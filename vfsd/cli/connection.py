"""vfsctl's connections: the D-Bus library's, with what it lacks when the other end goes, and where the buses listen."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dbus_next.aio.message_bus import MessageBus

from vfsd.names import Scope

_SYSTEM_BUS_SOCKET = "/run/dbus/system_bus_socket"


class Bus(MessageBus):
    """A connection whose end is told by wait_for_disconnect() alone."""

    def send(self, msg: Any) -> asyncio.Future[None]:
        """The library's call() leaves this future alone, and asyncio prints the error that nobody asked for."""
        sent: asyncio.Future[None] = super().send(msg)
        sent.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        return sent


class BridgedBus(Bus):
    """A bus at the other end of a socket that is connected already."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        super().__init__(bus_address="unix:path=/bridged")

    def _setup_socket(self) -> None:
        self._sock = self._connection
        self._sock.setblocking(False)
        self._stream = self._sock.makefile("rwb")
        self._fd = self._sock.fileno()

    async def _auth_readline(self) -> str:
        """The library's waits for ever for a line from somebody who has gone."""
        line = b""
        while not line.endswith(b"\r\n"):
            data = await asyncio.get_running_loop().sock_recv(self._sock, 1)
            if not data:
                raise EOFError
            line += data
        return line.decode()


def address(scope: Scope) -> str:
    """Where the bus listens, by sd-bus' rules: the library's own know neither XDG_RUNTIME_DIR nor `/run`."""
    if scope is Scope.SYSTEM:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or f"unix:path={_SYSTEM_BUS_SOCKET}"
    given = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    if given:
        return given
    folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return f"unix:path={quote(str(Path(folder, 'bus')), safe='/')}"
