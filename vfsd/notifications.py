"""Hears what guests' systemds say over vsock.

Guests are not trusted. Only those that are expected are heard, each within limits of size, time and number; everything
else is closed unread. It is closed at once, because the first process of a guest waits for that (systemd 257).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from collections.abc import Callable, Container, Coroutine, Iterable
from typing import Any

from vfsd import vsock
from vfsd.vsock import MESSAGE_MAX, Notice

MESSAGE_TIMEOUT = 5.0
"""Seconds in which a message must have come whole. systemd sends it in one piece."""
OPEN_MAX = 8
"""Connections of one guest at a time. systemd has one."""
MESSAGES_MAX, MESSAGES_WINDOW = 200, 10.0
"""Messages of one guest within so many seconds. A Debian 13 sends some 30 as it boots."""
BURST, BURST_PAUSE = 100, 0.1
"""After so many connections the others have so many seconds to themselves: guests can cost no more than that."""
_RETRY = 1.0
"""Seconds after which one tries again that could not accept, for want of descriptors."""

Hear = Callable[[Notice], None]


class _Guest:
    """One guest, and how much it has said."""

    def __init__(self, hear: Hear) -> None:
        self.hear = hear
        self.open = 0
        self._spoken: deque[float] = deque(maxlen=MESSAGES_MAX)

    def may_speak(self) -> bool:
        """Whether it has not said too much; counts."""
        now = time.monotonic()
        self._spoken.append(now)
        flood = len(self._spoken) == MESSAGES_MAX and now - self._spoken[0] < MESSAGES_WINDOW
        return self.open < OPEN_MAX and not flood


class Notifications:
    """One port of the host's for all machines of one vfsd."""

    def __init__(
        self,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        cid_of: Callable[[Any], int] = lambda address: int(address[0]),
    ) -> None:
        """:param cid_of: the CID in the address of a connection's other end."""
        self._spawn = spawn
        self._cid_of = cid_of
        self._listener: socket.socket | None = None
        self._begun = False
        self._guests: dict[int, _Guest] = {}
        self.on_listen: Callable[[int], object] = lambda _: None
        """Told the descriptor of a new listening socket, to be kept while vfsd is started anew."""

    @property
    def cids(self) -> Container[int]:
        """Those of the guests that are expected."""
        return self._guests

    def inherit(self, descriptors: Iterable[int]) -> None:
        """Take over what an earlier vfsd listened with. What guests said meanwhile waits in it."""
        for descriptor in descriptors:
            found = vsock.inherited(descriptor)
            if found is not None and self._listener is None:
                self._listener = found
            elif found is not None:
                found.close()

    def listen(self, wanted: int) -> int:
        """Listen, and return the port: the wanted one if that is possible. :raise OSError: there is no vsock."""
        if self._listener is None:
            self._listener = vsock.listen(wanted)
            self.on_listen(self._listener.fileno())
            if self._begun:
                self._spawn(self._accept(self._listener))
        return int(self._listener.getsockname()[1])

    def begin(self) -> None:
        """Begin to hear, once all guests are expected that run already."""
        self._begun = True
        if self._listener is not None:
            self._spawn(self._accept(self._listener))

    def expect(self, cid: int, hear: Hear) -> None:
        """Hear what a guest says."""
        self._guests[cid] = _Guest(hear)

    def forget(self, cid: int) -> None:
        """Hear that guest no longer."""
        self._guests.pop(cid, None)

    async def _accept(self, listener: socket.socket) -> None:
        count = 0
        with listener:
            while True:
                try:
                    connection, address = await asyncio.get_running_loop().sock_accept(listener)
                except OSError:
                    await asyncio.sleep(_RETRY)
                    continue
                self._greet(connection, self._cid_of(address))
                count += 1
                await asyncio.sleep(0 if count % BURST else BURST_PAUSE)

    def _greet(self, connection: socket.socket, cid: int) -> None:
        guest = self._guests.get(cid)
        if guest is None or not guest.may_speak():
            connection.close()
            return
        guest.open += 1
        self._spawn(self._hear(cid, guest, connection))

    async def _hear(self, cid: int, guest: _Guest, connection: socket.socket) -> None:
        message = b""
        try:
            with connection, contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(MESSAGE_TIMEOUT):
                    message = await _receive(connection)
        finally:
            guest.open -= 1
        if message and self._guests.get(cid) is guest:
            guest.hear(vsock.parse(message))


async def _receive(connection: socket.socket) -> bytes:
    """One message, to its end; b"" if it is too long."""
    received = bytearray()
    while len(received) <= MESSAGE_MAX:
        piece = await asyncio.get_running_loop().sock_recv(connection, MESSAGE_MAX + 1 - len(received))
        if not piece:
            return bytes(received)
        received += piece
        # sock_recv does not wait as long as there is something, so no time limit and nobody else would have a turn
        await asyncio.sleep(0)
    return b""
