"""Readers of consoles that come and go, some without reading."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass


@dataclass
class _Reader:
    socket: socket.socket
    stays: bool
    reads: bool


class Readers:
    """Those of one machine."""

    def __init__(self) -> None:
        self._readers: list[_Reader] = []

    def take(self, descriptor: int, *, stays: bool, reads: bool) -> None:
        """One more. :param stays: until the machine's life is over."""
        end = socket.socket(fileno=descriptor)
        end.setblocking(False)
        self._readers.append(_Reader(end, stays, reads))

    def type(self, data: bytes) -> None:
        """Let one of them type something, and those read that do."""
        for reader in self._readers[-1:]:
            with contextlib.suppress(OSError):
                reader.socket.send(data)
        for reader in self._readers:
            with contextlib.suppress(OSError):
                while reader.reads and reader.socket.recv(1 << 16):
                    pass

    def drop_some(self) -> None:
        """Those leave that don't stay."""
        for reader in self._readers:
            if not reader.stays:
                reader.socket.close()
        self._readers = [reader for reader in self._readers if reader.stays]

    def close(self) -> None:
        """All leave."""
        for reader in self._readers:
            reader.socket.close()
        self._readers.clear()
