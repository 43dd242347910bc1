"""A guest's console on this terminal: keys in, output out, and the terminal as it was at the end."""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

CONNECT_TRIES = 50
CONNECT_INTERVAL = 0.1
"""Seconds. The socket is announced a moment before or after it exists."""
ESCAPE = 0x1D
"""Ctrl-], three times within ESCAPE_WITHIN seconds: machinectl's and systemd-nspawn's way out."""
ESCAPE_TIMES = 3
ESCAPE_WITHIN = 1.0
_CHUNK = 4096
"""Bytes; what a pipe that is writable takes without blocking (PIPE_BUF)."""

Filter = Callable[[bytes], bytes]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class End(enum.Enum):
    """Why a console was left."""

    CLOSED = enum.auto()
    """The other side closed it."""
    ESCAPED = enum.auto()
    """The user pressed the escape key."""
    NO_OUTPUT = enum.auto()
    """Whoever read standard output has gone."""


class EscapeKey:
    """Looks for the escape key among what is typed."""

    def __init__(self) -> None:
        self._pressed = 0
        self._first = 0.0

    def seen(self, keys: bytes, now: float) -> bool:
        """Whether these keys, typed at `now` (seconds), complete the escape."""
        for key in keys:
            if key != ESCAPE:
                self._pressed = 0
                continue
            if self._pressed == 0 or now - self._first > ESCAPE_WITHIN:
                self._pressed, self._first = 0, now
            self._pressed += 1
            if self._pressed == ESCAPE_TIMES:
                return True
        return False


async def attach(streams: Streams, *, keys: bool, convert: Filter, ready: asyncio.Event) -> End:
    """Show a console until it ends, and close it.

    :param keys: whether standard input is forwarded.
    :param convert: what becomes of the output before it is written.
    :param ready: what comes from a pipe waits for this: a guest that still boots would lose it.
    """
    reader, writer = streams
    end: asyncio.Future[End] = asyncio.get_running_loop().create_future()
    tasks = [asyncio.create_task(_show(reader, convert, end))]
    if keys:
        tasks.append(asyncio.create_task(_type(writer, end, ready)))
    try:
        with _raw_terminal(keys):
            return await end
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def first(*awaited: Awaitable[Any]) -> None:
    """Return when one of these is done; none is cancelled."""
    await asyncio.wait({asyncio.ensure_future(it) for it in awaited}, return_when=asyncio.FIRST_COMPLETED)


async def connect(path: str) -> Streams:
    """The console at `path`. :raise OSError: it can't be reached."""
    for _ in range(CONNECT_TRIES - 1):
        try:
            return await asyncio.open_unix_connection(path)
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(CONNECT_INTERVAL)
    return await asyncio.open_unix_connection(path)


def _finish(end: asyncio.Future[End], why: End) -> None:
    if not end.done():
        end.set_result(why)


async def _show(reader: asyncio.StreamReader, convert: Filter, end: asyncio.Future[End]) -> None:
    """Output until there is no more."""
    try:
        while data := await reader.read(_CHUNK):
            await write_all(sys.stdout.fileno(), convert(data))
    except ConnectionResetError:
        pass
    except OSError:
        _finish(end, End.NO_OUTPUT)
        return
    _finish(end, End.CLOSED)


async def _type(writer: asyncio.StreamWriter, end: asyncio.Future[End], ready: asyncio.Event) -> None:
    """Input until there is no more; its end is not the console's."""
    fd = sys.stdin.fileno()
    is_terminal = os.isatty(fd)
    escape = EscapeKey()
    if not is_terminal:
        await ready.wait()
    with suppress(OSError):
        while data := await _read(fd):
            if is_terminal and escape.seen(data, time.monotonic()):
                _finish(end, End.ESCAPED)
                return
            writer.write(data)
            await writer.drain()


async def _read(fd: int) -> bytes:
    await _when(fd, asyncio.get_running_loop().add_reader, asyncio.get_running_loop().remove_reader)
    return os.read(fd, _CHUNK)


async def write_all(fd: int, data: bytes) -> None:
    """Write to a descriptor that may block, without blocking: signals must be served meanwhile."""
    while data:
        await _when(fd, asyncio.get_running_loop().add_writer, asyncio.get_running_loop().remove_writer)
        data = data[os.write(fd, data[:_CHUNK]) :]


async def _when(fd: int, add: Callable[..., None], remove: Callable[[int], object]) -> None:
    """Wait until a descriptor is ready. Files and /dev/null always are, and epoll refuses them."""
    is_ready = asyncio.get_running_loop().create_future()
    try:
        add(fd, lambda: None if is_ready.done() else is_ready.set_result(None))
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        # Other tasks must have their turn all the same.
        await asyncio.sleep(0)
        return
    try:
        await is_ready
    finally:
        remove(fd)


@contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too, if standard input is a terminal; restored at the end."""
    fd = sys.stdin.fileno() if sys.stdin else -1
    if not wanted or fd < 0 or not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    loop = asyncio.get_running_loop()
    try:
        tty.setraw(fd)
        # The shell that continued a stopped vfsctl has set the terminal for itself.
        loop.add_signal_handler(signal.SIGCONT, tty.setraw, fd)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGCONT)
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
