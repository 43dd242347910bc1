"""One line on standard error that shows what is going on while a person waits."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vfsd.cli.output import ELLIPSIS, clean

_INTERVAL = 0.1
_DELAY = 0.2
"""Seconds before the first frame: what is done at once needs no spinner."""
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_PLAIN_FRAMES = "|/-\\"


class Spinner:
    """The line; `step` is what it says, and may change."""

    def __init__(self, step: str, *, shown: bool) -> None:
        self.step = step
        self._shown = shown
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to draw, if it is to be shown at all."""
        if self._shown and self._task is None:
            self._task = asyncio.create_task(self._turn())

    def stop(self) -> None:
        """Wipe the line away; nothing is drawn after."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    async def _turn(self) -> None:
        encoding = (sys.stderr.encoding or "ascii").lower()
        frames = _FRAMES if encoding.startswith("utf") else _PLAIN_FRAMES
        await asyncio.sleep(_DELAY)
        drawn = 0
        while True:
            text = fit(clean(self.step), shutil.get_terminal_size().columns - 3)
            sys.stderr.write(f"\r{frames[drawn % len(frames)]} {text}\x1b[K")
            sys.stderr.flush()
            drawn += 1
            await asyncio.sleep(_INTERVAL)


def fit(text: str, width: int) -> str:
    """The text, its end cut off if it is longer than `width`."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + ELLIPSIS


@contextmanager
def spinning(step: str, *, shown: bool) -> Iterator[Spinner]:
    """Show a spinner while the body runs."""
    spinner = Spinner(step, shown=shown)
    spinner.start()
    try:
        yield spinner
    finally:
        spinner.stop()
