"""What a guest wrote last: kept in memory, kept on disk, and joined where two sources of it meet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

LIMIT = 64 << 10
"""Bytes that are replayed to a new reader: what the interface promises, and the size of QEMU's ring."""


class Tail:
    """The last LIMIT bytes of a stream."""

    def __init__(self, begin: bytes = b"") -> None:
        self._kept = bytearray(begin[-LIMIT:])

    def add(self, data: bytes) -> None:
        """Append to the stream."""
        self._kept += data
        if len(self._kept) > 2 * LIMIT:  # so that each byte is moved once, not at each call
            del self._kept[:-LIMIT]

    def __bytes__(self) -> bytes:
        return bytes(self._kept[-LIMIT:])


class Kept:
    """The same in a file, which outlives vfsd; nobody else can read it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes:
        """What was kept; nothing if there is no such file."""
        try:
            return self._path.read_bytes()[-LIMIT:]
        except FileNotFoundError:
            return b""

    def write(self, data: bytes) -> None:
        """Keep this instead: after a kill at any moment there is the one or the other."""
        fresh = self._path.with_name(f"{self._path.name}.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data[-LIMIT:])
        fresh.rename(self._path)

    def forget(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def overlaps(earlier: bytes, later: bytes, low: int, high: int) -> list[int]:
    """How many bytes at the end of `earlier` may be those at the beginning of `later`; the largest number first.

    :param low, high: the least and the most that it can be.
    """
    high = min(high, len(earlier), len(later))
    if low > high:
        return []
    pattern, text = later[:high], earlier[-high:] if high else b""
    borders = _borders(pattern)
    matched = 0
    for byte in text:  # as long as the pattern, so that this is matched at the end only
        while matched and pattern[matched] != byte:
            matched = borders[matched - 1]
        if pattern[matched] == byte:
            matched += 1
    found = []
    while matched:
        found.append(matched)
        matched = borders[matched - 1]
    return [length for length in [*found, 0] if length >= low]


def _borders(pattern: bytes) -> Sequence[int]:
    """For each prefix, the length of its longest proper prefix that also ends it (Knuth, Morris and Pratt)."""
    lengths = [0] * len(pattern)
    length = 0
    for position in range(1, len(pattern)):
        while length and pattern[position] != pattern[length]:
            length = lengths[length - 1]
        if pattern[position] == pattern[length]:
            length += 1
        lengths[position] = length
    return lengths


class Seam:
    """Finds where a live stream begins within what was read piece by piece from a ring.

    Both carry the same bytes from the moment on at which the stream was connected, which nothing tells. But what
    had arrived on the stream before the ring was asked is in the ring too, and what arrives after the answer is
    not; between these bounds the bytes themselves decide. Where they leave a choice, because the guest repeats
    itself just then, the ring is asked again: the place stays the same, and the bounds close in on it.
    """

    def __init__(self) -> None:
        self._choices: set[int] = set()
        """How many bytes of the ring come before the stream's beginning."""
        self.ring = b""

    def narrow(self, piece: bytes, stream: bytes, before: int, after: int) -> bool:
        """Take one more answer of the ring. Returns whether the place is known.

        :param stream: all of the stream so far.
        :param before, after: the length of the stream before the ring was asked, and after it answered.
        """
        self.ring += piece
        found = {len(self.ring) - length for length in overlaps(self.ring, stream, before, after)}
        self._choices = (self._choices & found) or self._choices or found
        return len(self._choices) == 1

    def joined(self, stream: bytes) -> bytes:
        """The ring and then the stream, without what is in both.

        Among several possible places it is the earliest; without any (so much was written at once that the ring
        overflowed) the stream alone, which is longer then.
        """
        if not self._choices:
            return stream
        place = min(self._choices)
        return self.ring[:place] + stream
