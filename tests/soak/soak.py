"""One run: warm up, look, do everything at random, take it all away, look again."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from tests.fuzz.raw import Bus
from tests.integration.harness import Vfsd
from tests.soak import health, plan, watch
from tests.soak.caller import Caller
from tests.soak.disturbances import disturb
from tests.soak.machines import MachineLife
from tests.soak.plan import Life
from tests.soak.shares import ShareLife
from tests.soak.tally import Tally

PAUSE = 12.0
"""Seconds between two disturbances of one bus, on average."""
JOURNAL_INTERVAL = 60.0
"""Seconds between looks into the journal, which keeps only so much."""
SHARE_PAUSE = 2.0
"""Seconds between the lives of shares that stand alone."""


@contextlib.contextmanager
def _folder(vfsd: Vfsd) -> Iterator[Path]:
    """A folder of the scope's user to be shared."""
    made = Path(tempfile.mkdtemp(prefix="vfsd-soak-", dir="/srv"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Soak:
    """A run over some buses."""

    def __init__(
        self, callers: dict[str, Caller], tally: Tally, seed: object, tell: Callable[[str], None]
    ) -> None:
        self._callers, self._tally, self._seed, self._tell = callers, tally, seed, tell
        self._end = 0.0
        self._kill_until = 0.0

    def _goes_on(self) -> bool:
        return time.monotonic() < self._end and not self._tally.enough

    async def warm_up(self) -> None:
        """Everything once on each bus."""
        async with asyncio.TaskGroup() as group:
            for scope, caller in self._callers.items():
                group.create_task(self._warm_up(scope, caller))

    async def _warm_up(self, scope: str, caller: Caller) -> None:
        # vfsd is ended first, so that the one that is looked at afterwards has done everything
        for number, name in enumerate(plan.DISTURBANCES):
            with _folder(caller.vfsd) as folder:
                await disturb(caller, plan.Step(name, number), folder)
        for life in plan.one_of_each(scope):
            await self._live(life, lambda: True)

    async def run(self, end: float, machines: int) -> None:
        """Everything at random, until a time (of the monotonic clock)."""
        self._end = end
        now = time.monotonic()
        self._kill_until = now + (end - now) / 2
        # connected now, since a connection changes the user for a moment, of all threads
        buses = {scope: Bus(caller.vfsd) for scope, caller in self._callers.items()}
        try:
            async with asyncio.TaskGroup() as group:
                for slot in range(machines):
                    group.create_task(self._machines(slot))
                for scope, caller in self._callers.items():
                    group.create_task(self._shares(scope))
                    group.create_task(self._disturbances(scope, caller))
                    group.create_task(watch.compare_with_systemd(caller, self._goes_on))
                    group.create_task(
                        asyncio.to_thread(
                            watch.measure_gets, caller.vfsd, buses[scope], self._tally, self._goes_on
                        )
                    )
                    group.create_task(self._read_journal(caller.vfsd))
        finally:
            self._end = 0.0  # a thread can't be cancelled

    async def _machines(self, slot: int) -> None:
        for life in plan.machines(self._seed, sorted(self._callers), slot):
            if not self._goes_on():
                return
            self._tell(str(life))
            await self._live(life, self._goes_on)

    async def _shares(self, scope: str) -> None:
        for life in plan.shares(self._seed, scope):
            if not self._goes_on():
                return
            await self._live(life, self._goes_on)
            await asyncio.sleep(SHARE_PAUSE)

    async def _disturbances(self, scope: str, caller: Caller) -> None:
        for pause, step in plan.disturbances(self._seed, scope):
            await asyncio.sleep(min(pause * PAUSE, max(self._end - time.monotonic(), 0)))
            if not self._goes_on():
                return
            if step.name in plan.ENDINGS and time.monotonic() > self._kill_until:
                continue
            with _folder(caller.vfsd) as folder:
                await disturb(caller, step, folder)

    async def _read_journal(self, vfsd: Vfsd) -> None:
        while self._goes_on():
            since = time.time()
            await asyncio.sleep(min(JOURNAL_INTERVAL, max(self._end - time.monotonic(), 0)))
            for text in await asyncio.to_thread(watch.complaints, vfsd, since):
                self._tally.blame(text)

    async def _live(self, life: Life, goes_on: Callable[[], bool]) -> None:
        caller = self._callers[life.scope]
        kind = MachineLife if life.guest else ShareLife
        with _folder(caller.vfsd) as folder:
            await kind(caller, life, folder).live(goes_on)


@contextlib.asynccontextmanager
async def _callers(scopes: list[str], tally: Tally) -> AsyncIterator[dict[str, Caller]]:
    callers = {scope: await Caller.connect(Vfsd(scope), tally) for scope in scopes}
    try:
        yield callers
    finally:
        for caller in callers.values():
            await caller.close()


async def soak(
    scopes: list[str], seconds: float, seed: object, machines: int, tell: Callable[[str], None]
) -> Tally:
    """Run for so many seconds, the warm-up included, which takes at most half of them."""
    tally, begun, since = Tally(), time.monotonic(), time.time()
    async with _callers(scopes, tally) as callers:
        await Soak(callers, tally, seed, tell).warm_up()
    tell(f"warmed up within {time.monotonic() - begun:.0f} s")
    before = {scope: await asyncio.to_thread(health.observe, Vfsd(scope)) for scope in scopes}
    _show(before, "after the warm-up", tell)
    for counted in (tally.done, tally.refused, tally.took):
        counted.clear()
    async with _callers(scopes, tally) as callers:
        end = max(begun + seconds, time.monotonic() + seconds / 2)
        await Soak(callers, tally, seed, tell).run(end, machines)
    after = {}
    for scope in scopes:
        after[scope] = await asyncio.to_thread(health.settled, Vfsd(scope), before[scope])
        for text in health.compare(before[scope], after[scope]):
            tally.blame(f"{scope}: too much at the end: {text}")
        for text in watch.complaints(Vfsd(scope), since):
            if text not in tally.wrong:
                tally.blame(text)
    _show(after, "at the end", tell)
    return tally


def _show(states: dict[str, health.Health], when: str, tell: Callable[[str], None]) -> None:
    for scope, state in states.items():
        for line in state.lines():
            tell(f"{scope} {when}: {line}")
