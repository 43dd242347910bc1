"""One operation at a time on one object; only a kill overtakes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from vfsd.errors import VfsdError, WrongState

_Result = TypeVar("_Result")


async def finish(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Await work to its end, even if this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()


class Turns:
    """A queue of operations on one object."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._lock = asyncio.Lock()
        self._running: asyncio.Task[object] | None = None
        self._generation = 0
        self._closed: VfsdError | None = None

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for this operation's turn. :raise WrongState: it was overtaken, in turn or waiting for it."""
        generation = self._generation
        task = asyncio.current_task()
        async with self._lock:
            if self._closed is not None:
                raise self._closed
            if generation != self._generation:
                raise self._overtaken()
            self._running = task
            try:
                yield
            except asyncio.CancelledError:
                if generation == self._generation or task is None:
                    raise
                task.uncancel()
                raise self._overtaken() from None
            finally:
                self._running = None

    @asynccontextmanager
    async def overtake(self) -> AsyncIterator[None]:
        """End the operation that runs, turn away those that wait, and take the turn."""
        self._generation += 1
        if self._running is not None:
            self._running.cancel()
        async with self._lock:
            if self._closed is not None:
                raise self._closed
            yield

    def close(self, error: VfsdError) -> None:
        """Refuse all further operations: the object is gone."""
        self._closed = error

    def _overtaken(self) -> WrongState:
        return WrongState(
            f"{self._who} was killed meanwhile; look at its state, and call again if it is still wanted"
        )
