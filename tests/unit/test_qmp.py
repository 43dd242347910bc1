"""The end of a connection to a monitor, at moments that no real QEMU picks."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from vfsd.errors import MonitorFailed
from vfsd.qmp import Monitor, ignore

GREETING = b'{"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}}, "capabilities": []}}\n'
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ends_after(seconds: float) -> Connected:
    """Greet, and end the connection so long after the client is satisfied."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        command = json.loads(await reader.read(4096))
        assert command["execute"] == "qmp_capabilities"
        writer.write(json.dumps({"return": {}, "id": command.get("id")}).encode() + b"\n")
        await writer.drain()
        if seconds:
            await asyncio.sleep(seconds)
        writer.close()

    return connected


@asynccontextmanager
async def listening(path: Path, connected: Connected) -> AsyncIterator[list[dict[str, Any]]]:
    """Somebody listens; what asyncio complains of meanwhile."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    async with await asyncio.start_unix_server(connected, path):
        yield told
        await asyncio.sleep(0.05)
        gc.collect()


@pytest.mark.parametrize("turns", range(1, 4))
async def test_who_closes_it_is_cancelled(tmp_path: Path, turns: int) -> None:
    """What the connection ended with was told to nobody, so asyncio told it."""
    async with listening(tmp_path / "monitor", ends_after(0.02)) as told:
        monitor = await Monitor.open(tmp_path / "monitor", ignore)
        await monitor.closed()
        closing = asyncio.ensure_future(monitor.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait({closing})
        del monitor, closing
    assert told == []


async def test_it_is_closed_as_soon_as_it_is_open(tmp_path: Path) -> None:
    """The library asserts that it is not."""
    async with listening(tmp_path / "monitor", ends_after(0)) as told:
        with pytest.raises(MonitorFailed, match="can't be reached"):
            await Monitor.open(tmp_path / "monitor", ignore)
    assert told == []
