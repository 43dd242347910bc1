"""The two kinds of sockets of a console: vfsd's end of a reader's, and vfsd's own to QEMU. Nothing here waits."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from pathlib import Path

from vfsd.console.history import LIMIT

CHUNK = 4096
"""Bytes of input that are taken at once, and the most that vfsd holds for a guest that does not read."""
OUTPUT_CHUNK = 64 << 10
BACKLOG = 2 * LIMIT
"""Bytes that wait for a reader, besides those in its socket; what is more is lost to it."""
LINGER = 10.0
"""Seconds that a reader has, once the machine has ended, to take what waits for it."""
_DRAIN_MAX = 1 << 20
"""Bytes; more than a socket holds."""


class Reader:
    """One who opened the console."""

    def __init__(
        self, end: socket.socket, on_input: Callable[[bytes], None], on_gone: Callable[[Reader], None]
    ) -> None:
        """:param end: vfsd's end of the reader's socket."""
        end.setblocking(False)
        self._socket = end
        self._on_input = on_input
        self._on_gone = on_gone
        self._backlog = bytearray()
        self._taking = self._input_ended = self._finishing = False
        self._loop = asyncio.get_running_loop()
        self._linger: asyncio.TimerHandle | None = None

    def fileno(self) -> int:
        """The socket's descriptor; -1 once it is closed."""
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Pass output on, as far as there is room for it."""
        if not self._backlog:
            data = data[self._send(data) :]
        if data and self.fileno() >= 0:
            self._backlog += data[: BACKLOG - len(self._backlog)]
            self._loop.add_writer(self._socket, self._flush)

    def take_input(self, wanted: bool) -> None:
        """Begin or cease to take what the reader types."""
        wanted = wanted and not self._input_ended
        if wanted is not self._taking:
            self._taking = wanted
            if wanted:
                self._loop.add_reader(self._socket, self._read)
            else:
                self._loop.remove_reader(self._socket)

    def hung_up(self) -> None:
        """The reader closed its end: take what it typed last, as far as the guest takes it."""
        while self._taking and self._read():
            pass
        if self.fileno() >= 0:
            self._gone()

    def finish(self) -> None:
        """Close once the reader has taken what waits for it."""
        self.take_input(False)
        if not self._backlog:
            self.close()
        elif not self._finishing:
            self._finishing = True
            self._linger = self._loop.call_later(LINGER, self.close)

    def close(self) -> None:
        """Close at once."""
        if self.fileno() >= 0:
            self.take_input(False)
            self._loop.remove_writer(self._socket)
            self._backlog.clear()
            self._socket.close()
        if self._linger is not None:
            self._linger.cancel()

    def _flush(self) -> None:
        del self._backlog[: self._send(bytes(self._backlog[:OUTPUT_CHUNK]))]
        if not self._backlog and self.fileno() >= 0:
            self._loop.remove_writer(self._socket)
            if self._finishing:
                self.close()

    def _send(self, data: bytes) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._gone()
            return len(data)

    def _read(self) -> bool:
        """Returns whether there was something."""
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            self._gone()
            return False
        if data:
            self._on_input(data)
        else:  # it may read on
            self._input_ended = True
            self.take_input(False)
        return bool(data)

    def _gone(self) -> None:
        self.close()
        self._on_gone(self)


class Hangups:
    """Tells of readers that closed their end, also while nothing is read from them nor sent to them.

    asyncio can wait for input or room, and both may be there, unwanted, for hours. epoll tells of a closed socket
    whatever it is asked for, and can itself be waited for.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Reader] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)

    def __bool__(self) -> bool:
        """Whether there is anybody to be watched."""
        return bool(self._readers)

    def watch(self, reader: Reader) -> None:
        """Tell this reader when it has hung up."""
        self._readers[reader.fileno()] = reader
        self._epoll.register(reader.fileno(), 0)

    def forget(self, reader: Reader) -> None:
        """Watch it no longer; it may be closed already, which ends epoll's interest too."""
        for descriptor in [number for number, known in self._readers.items() if known is reader]:
            del self._readers[descriptor]
            if reader.fileno() >= 0:
                self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Watch nobody any longer."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _look(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            if descriptor in self._readers:
                self._readers[descriptor].hung_up()


class Tap:
    """vfsd's own connection to the console of one QEMU; made by open()."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._pending = b""
        self._armed = False
        self._loop = asyncio.get_running_loop()
        self._on_output: Callable[[bytes], None] = lambda _: None
        self._on_end: Callable[[], None] = lambda: None
        self._on_room: Callable[[], None] = lambda: None

    @classmethod
    async def open(cls, path: Path) -> Tap:
        """:raise OSError: nobody listens there."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, str(path))
        except BaseException:
            made.close()
            raise
        return cls(made)

    @property
    def blocked(self) -> bool:
        """Whether the guest has to read first before more may be written."""
        return bool(self._pending)

    def drain(self) -> bytes:
        """All that has arrived."""
        data = bytearray()
        while len(data) < _DRAIN_MAX:
            try:
                piece = self._socket.recv(OUTPUT_CHUNK)
            except OSError:
                break
            if not piece:
                break
            data += piece
        return bytes(data)

    def listen(
        self, on_output: Callable[[bytes], None], on_end: Callable[[], None], on_room: Callable[[], None]
    ) -> None:
        """From now on tell of output, of QEMU's end, and of room for input after it was blocked."""
        self._on_output, self._on_end, self._on_room = on_output, on_end, on_room
        self._loop.add_reader(self._socket, self._read)

    def write(self, data: bytes) -> None:
        """Type to the guest; not to be called while it is blocked."""
        self._pending += data
        self._flush()

    def close(self) -> None:
        """End the connection."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(OUTPUT_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_output(data)
        else:
            self._on_end()

    def _flush(self) -> None:
        try:
            self._pending = self._pending[self._socket.send(self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._pending = b""  # its end is told by _read()
        if self._pending and not self._armed:
            self._armed = True
            self._loop.add_writer(self._socket, self._flush)
        elif self._armed and not self._pending:
            self._armed = False
            self._loop.remove_writer(self._socket)
            self._on_room()
