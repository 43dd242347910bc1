"""virtiofsd is killed under a running guest: how long until the guest has its share again?"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence

from dbus_next import Variant

from tests.bench.booted import FILE, ThroughVfsd, both, check
from tests.bench.bus import BUS, MACHINE, VFSD, Client, Header, RawBus
from tests.bench.by_hand import ByHand
from tests.bench.machines import SETTLE
from tests.bench.results import Results, Row
from tests.bench.rounds import Turn, paired
from tests.bench.setting import Plan
from tests.bench.stats import Goal, spread
from vfsd.healing import ATTEMPTS
from vfsd.model import SPARE_PORTS_MAX, ShareSpec

GOAL = Goal(3.0)
"""Seconds from the kill until the guest can use the share again, on TCG."""
HEAL_TIMEOUT = 30.0
SECTION = "kill → healed"


def shares_for(turns: int) -> int:
    """How many shares it takes: vfsd heals each ATTEMPTS times in a minute, and every time takes a slot for good.

    :raise ValueError: no machine has so many slots.
    """
    count = -(-turns // ATTEMPTS)
    if count * ATTEMPTS > SPARE_PORTS_MAX:
        raise ValueError(f"{turns} turns are more than a machine has slots for")
    return count


async def measure(results: Results, client: Client, rounds: int) -> None:
    """OnShareFailure=heal beside a script that waits for the death and then does the same at once."""
    count = shares_for(rounds + 1)
    plan = await asyncio.to_thread(Plan.make, count, None, count * ATTEMPTS)
    shares = plan.spec.shares
    async with both(plan, client, {"OnShareFailure": Variant("s", "heal")}) as (vfsd, hand):
        turns = {"by hand": _hand_turn(hand, shares), "vfsd": _vfsd_turn(vfsd, shares)}
        for turn in turns.values():  # the first of each finds cold caches
            await turn(rounds)
        samples = await paired(results, "heal", turns, rounds)
    measured, base = samples["vfsd"], samples["by hand"]
    if measured:
        results.compare(SECTION, "vfsd / by hand", measured["healed"], base["healed"])
        note = f"by hand {spread(base['read']).median:.2f} s"
        value = spread(measured["read"])
        results.add(Row(SECTION, "vfsd: until the guest has read a file", value, "s", GOAL, note))


def _vfsd_turn(vfsd: ThroughVfsd, shares: Sequence[ShareSpec]) -> Turn:
    async def run(number: int) -> dict[str, float]:
        share = shares[number % len(shares)]
        pid = await vfsd.get_of_share(share.name, "MainPID")
        where = f"/mnt/{share.tag}"
        bus = RawBus()
        try:
            rule = f"sender='{VFSD}',member='PropertiesChanged',path='{vfsd.path}',arg0='{MACHINE}'"
            bus.call(*BUS, "AddMatch", "s", f"type='signal',{rule}")
            begin = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            for degraded in (True, False):
                bus.wait_for(lambda message: degraded_in(message) is degraded, HEAL_TIMEOUT)  # noqa: B023
            healed = time.perf_counter() - begin
        finally:
            bus.close()
        check(await vfsd.read(f"{where}/{FILE}"))
        read = time.perf_counter() - begin
        found = [await vfsd.get_of_share(share.name, name) for name in ("State", "MountedAt")]
        if found != ["active", where]:
            raise AssertionError(f"the share is not back: {found}")
        await asyncio.sleep(SETTLE)
        return {"healed": healed, "read": read}

    return run


def degraded_in(message: Header) -> bool | None:
    """What a PropertiesChanged says of Degraded; None if nothing."""
    if message.member != "PropertiesChanged":
        return None
    changed = message.body()[1]
    return bool(changed["Degraded"].value) if "Degraded" in changed else None


def _hand_turn(hand: ByHand, shares: Sequence[ShareSpec]) -> Turn:
    slots = dict(enumerate(range(len(shares))))

    async def run(number: int) -> dict[str, float]:
        place = number % len(shares)
        where = f"/mnt/{shares[place].tag}"
        begin = time.perf_counter()
        slots[place], healed = hand.kill_and_heal(shares[place], slots[place], where)
        check(hand.read(f"{where}/{FILE}"))
        read = time.perf_counter() - begin
        await asyncio.sleep(SETTLE)
        return {"healed": healed, "read": read}

    return run
