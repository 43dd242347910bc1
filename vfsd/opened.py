"""Files that systemd opens for QEMU (OpenFile=), which then needs no right to reach them, whoever it runs as.

There are three ways to name a descriptor, by what an option of QEMU does with it: the number, for what is connected
already; a set of descriptors, for what its block layer opens; and /proc/self/fd for what is opened and read once,
which the file must let everybody do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_READ_ONLY = 1
"""OPENFILE_READ_ONLY of systemd's src/shared/open-file.h."""

_DESCRIPTOR = re.compile(r"/(?:proc/self/fd|dev/fdset)/(\d+)")

OpenFile = tuple[str, str, int]
"""One entry of OpenFile=: path, name of the descriptor, flags."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file as QEMU reaches it: by a descriptor, or by its path where systemd opens none (before 253)."""

    path: Path
    descriptor: int | None = None

    @property
    def readable(self) -> str:
        """The name for what is opened once more."""
        return str(self.path) if self.descriptor is None else f"/proc/self/fd/{self.descriptor}"

    @property
    def block(self) -> str:
        """The name for QEMU's block layer, once set_arguments() are given."""
        return str(self.path) if self.descriptor is None else f"/dev/fdset/{self.descriptor}"

    @property
    def set_arguments(self) -> list[str]:
        """What makes the descriptor a set, of its own number."""
        if self.descriptor is None:
            return []
        return ["-add-fd", f"fd={self.descriptor},set={self.descriptor}"]


class Openings:
    """What is to be opened for one QEMU, in the order of its descriptors."""

    def __init__(self, first: int, *, opens: bool) -> None:
        """:param first: the number of the first descriptor. :param opens: whether systemd can open files."""
        self._first = first
        self.opens = opens
        self._files: list[OpenFile] = []

    def add(self, path: Path, *, writable: bool = False) -> Opened:
        """Have a file opened, or a listening socket connected to.

        :param writable: whether it can be written; the one end of a connection that can't is shut down.
        """
        if not self.opens:
            return Opened(path)
        number = self._first + len(self._files)
        self._files.append((str(path), f"file{number}", 0 if writable else _READ_ONLY))
        return Opened(path, number)

    def named(self, words: str) -> str:
        """QEMU's words, with the paths of what was opened in place of the descriptors."""

        def path(match: re.Match[str]) -> str:
            place = int(match[1]) - self._first
            return self._files[place][0] if 0 <= place < len(self._files) else match[0]

        return _DESCRIPTOR.sub(path, words)

    @property
    def entries(self) -> list[OpenFile]:
        """For OpenFile=."""
        return list(self._files)
