"""Sends messages in order, many at a time, and tells when no more should be taken on."""

from __future__ import annotations

import array
import asyncio
import itertools
import os
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dbus_next import Message

if TYPE_CHECKING:
    from vfsd.bus.connection import Connection

HIGH_WATER = 4 << 20
"""Bytes that may wait to be sent before no more calls are read."""
LOW_WATER = 1 << 20
READY_WATER, SEND_BUFFER = 16 << 10, 32 << 10
"""Bytes that may wait to be sent, here and in the kernel, before no more calls are answered. All replies go one way:
what waits for one caller, others wait behind, and a bus that is flooded takes 2 KiB at a time, with long waits."""
_BUFFERS = 64
"""Messages in one send; the kernel takes up to 1024 (UIO_MAXIOV)."""


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody will get."""
    for descriptor in descriptors:
        os.close(descriptor)


class _Waiting(NamedTuple):
    """What is still to be sent of a message."""

    raw: memoryview
    descriptors: Sequence[int]
    """They go with its first byte, and are closed then."""


class PacedWriter:
    """Sends messages in order, many at a time, and waits where the socket takes no more."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._waiting: deque[_Waiting] = deque()
        self.waiting_bytes = 0
        self._armed = False
        self._scheduled = False

    def schedule_write(self, message: Message | None = None, _future: object = None) -> None:
        """Send with what else is said in this turn of the event loop: each send wakes the bus up.

        dbus-next calls it without a message once the bus is joined.
        """
        if message is not None:
            raw = memoryview(message._marshall())
            self._waiting.append(_Waiting(raw, message.unix_fds))
            self.waiting_bytes += len(raw)
        if self._bus.unique_name and not (self._armed or self._scheduled):
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        self._scheduled = False
        try:
            while self._waiting:
                self._send_some()
        except BlockingIOError:
            self._arm()
        except OSError as error:
            self._bus.fail(error)
        else:
            self._disarm()
        if self.waiting_bytes > HIGH_WATER:
            self._bus.pause_reading()
        elif self.waiting_bytes < LOW_WATER:
            self._bus.resume_reading()
        if self.waiting_bytes <= READY_WATER:
            self._bus.tell_ready()

    def drop(self) -> None:
        """Forget what waits: the connection is gone."""
        for message in self._waiting:
            close_all(message.descriptors)
        self._waiting.clear()
        self.waiting_bytes = 0

    def _send_some(self) -> None:
        """Send the next messages; one with descriptors alone, so that they arrive with its own bytes."""
        raw, descriptors = self._waiting[0]
        if descriptors:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            count = self._bus.socket.sendmsg([raw], [rights])
            self._waiting[0] = _Waiting(raw, ())
            close_all(descriptors)
        else:
            plain = itertools.takewhile(lambda message: not message.descriptors, self._waiting)
            count = self._bus.socket.sendmsg([message.raw for message in itertools.islice(plain, _BUFFERS)])
        self._sent(count)

    def _sent(self, count: int) -> None:
        self.waiting_bytes -= count
        while count:
            first = self._waiting[0].raw
            if count < len(first):
                self._waiting[0] = _Waiting(first[count:], ())
                return
            count -= len(first)
            self._waiting.popleft()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().add_writer(self._bus.socket.fileno(), self.flush)

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            asyncio.get_running_loop().remove_writer(self._bus.socket.fileno())
