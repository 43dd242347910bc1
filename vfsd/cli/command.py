"""The output of the one command that a built-in guest runs, cut out of its console."""

from __future__ import annotations

import re

# What the built-in guest prints before and after the command (vfsd.guest.script).
_BEGIN = re.compile(rb"vfsd built-in guest, Linux [^\n]*\n")
_EXITED = re.compile(rb"vfsd: command exited (\d+)\r?\n")
_MARK = b"vfsd: command exited "
_MARK_MAX = len(_MARK) + len(b"255\r\n")
_BOOT_KEPT = 1 << 16
"""Bytes of the boot's output that are kept, to be shown if it fails."""


class CommandOutput:
    """A filter for the console: lets through what the command prints, and finds its exit code.

    A command that prints the guest's closing line itself is not cut off: the last one counts.
    """

    def __init__(self, *, newlines: bool) -> None:
        """:param newlines: undo what the guest's terminal does to each newline."""
        self._newlines = newlines
        self._held = b""
        self.began = False
        self.exit_code: int | None = None

    def feed(self, data: bytes) -> bytes:
        """Take output of the console, return what of it is the command's."""
        self._held += data
        if not self.began:
            begin = _BEGIN.search(self._held)
            if begin is None:
                self._held = self._held[-_BOOT_KEPT:]
                return b""
            self.began = True
            self._held = self._held[begin.end() :]
        return self._plain(self._release())

    def _release(self) -> bytes:
        """What can't be the closing line, nor come after it."""
        marks = list(_EXITED.finditer(self._held))
        if marks:
            self.exit_code = int(marks[-1][1])
            cut = marks[-1].start()
        elif self._held.startswith(_MARK) and self.exit_code is not None:
            cut = 0
        else:
            cut = _possible_mark(self._held)
        released, self._held = self._held[:cut], self._held[cut:]
        return released

    def _plain(self, data: bytes) -> bytes:
        return data.replace(b"\r\n", b"\n") if self._newlines else data

    @property
    def last_lines(self) -> str:
        """The end of what the console said, for when the command did not come to its end."""
        text = self._held.decode(errors="replace").replace("\r", "")
        return "\n".join(text.splitlines()[-10:])


def _possible_mark(data: bytes) -> int:
    """Where a closing line, or the two bytes of a newline, may have begun."""
    begin = data.rfind(_MARK[:1], max(len(data) - _MARK_MAX, 0))
    while begin >= 0:
        tail = data[begin:]
        if tail.startswith(_MARK) or _MARK.startswith(tail):
            return begin
        begin = data.rfind(_MARK[:1], max(len(data) - _MARK_MAX, 0), begin)
    return len(data) - 1 if data.endswith(b"\r") else len(data)
