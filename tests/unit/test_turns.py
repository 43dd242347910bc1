"""One operation at a time, in order; a kill overtakes; nothing goes on after the end."""

from __future__ import annotations

import asyncio

import pytest

from vfsd.errors import NoSuchShare, WrongState
from vfsd.turns import Turns


async def test_operations_come_one_after_the_other() -> None:
    turns, done = Turns("x"), []

    async def work(number: int) -> None:
        async with turns.take():
            done.append(("begin", number))
            await asyncio.sleep(0)
            done.append(("end", number))

    await asyncio.gather(*(work(number) for number in range(5)))
    assert done == [(what, number) for number in range(5) for what in ("begin", "end")]


async def test_an_error_passes_the_turn_on() -> None:
    turns = Turns("x")
    with pytest.raises(ValueError, match="bad"):
        async with turns.take():
            raise ValueError("bad")
    async with asyncio.timeout(1), turns.take():
        pass


async def test_a_kill_overtakes_the_running_and_the_waiting() -> None:
    turns, cleaned = Turns("machine"), []

    async def work(name: str) -> None:
        async with turns.take():
            try:
                await asyncio.sleep(60)
            finally:
                cleaned.append(name)

    running, waiting = asyncio.create_task(work("running")), asyncio.create_task(work("waiting"))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(1), turns.overtake():
        assert cleaned == ["running"], "what was overtaken has cleaned up before the kill begins"
    for task in (running, waiting):
        with pytest.raises(WrongState, match="machine was killed meanwhile"):
            await task
    async with asyncio.timeout(1), turns.take():
        pass


async def test_a_cancelled_task_stays_cancelled() -> None:
    """Shutdown is no kill: CancelledError is not turned into WrongState."""
    turns = Turns("x")

    async def work() -> None:
        async with turns.take():
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(1), turns.take():
        pass


async def test_after_the_end_nobody_gets_a_turn() -> None:
    turns = Turns("x")

    async def late() -> None:
        async with turns.take():
            raise AssertionError("it had a turn")

    async with turns.take():
        waiting = asyncio.create_task(late())
        await asyncio.sleep(0.01)
        turns.close(NoSuchShare("gone"))
    for task in (waiting, asyncio.create_task(late())):
        with pytest.raises(NoSuchShare, match="gone"):
            await task
    with pytest.raises(NoSuchShare):
        async with turns.overtake():
            raise AssertionError("it had a turn")
