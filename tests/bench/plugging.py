"""A share is attached to a running guest, and mounted in it; and detached again."""

from __future__ import annotations

import asyncio
import time

from dbus_next import Variant

from tests.bench.booted import CONTENT, FILE, ThroughVfsd, both, check
from tests.bench.bus import MANAGER, ROOT, VFSD, Client
from tests.bench.by_hand import ByHand
from tests.bench.machines import SETTLE
from tests.bench.results import Results
from tests.bench.rounds import Turn, paired
from tests.bench.setting import NAME, SOURCES, Plan
from vfsd.model import ShareSpec
from vfsd.names import Scope

SHARE = f"{NAME}-late"
WHERE = "/mnt/late"


async def measure(results: Results, client: Client, rounds: int) -> None:
    """AttachShare until it has replied, the share being mounted then, beside the same steps by hand."""
    plan = await asyncio.to_thread(Plan.make, 1)
    source = SOURCES / "late"
    source.mkdir(exist_ok=True)
    (source / FILE).write_bytes(CONTENT)
    share = ShareSpec.from_options(SHARE, str(source), Scope.SYSTEM, {})
    await client.call(VFSD, ROOT, MANAGER, "CreateShare", "ssa{sv}", SHARE, str(source), {})
    try:
        async with both(plan, client) as (vfsd, hand):
            turns = {"by hand": _hand_turn(hand, share), "vfsd": _vfsd_turn(vfsd)}
            for turn in turns.values():  # the first of each finds cold caches
                await turn(0)
            samples = await paired(results, "attach", turns, rounds)
    finally:
        await client.call(VFSD, ROOT, MANAGER, "RemoveShare", "s", SHARE)
    if samples["vfsd"]:
        for what, section in (("attach", "attach → mounted"), ("detach", "detach → given back")):
            values, base = samples["vfsd"][what], samples["by hand"][what]
            results.compare(section, "vfsd / by hand", values, base)


def _vfsd_turn(vfsd: ThroughVfsd) -> Turn:
    async def run(_number: int) -> dict[str, float]:
        begin = time.perf_counter()
        await vfsd.call("AttachShare", "sa{sv}", SHARE, {"MountPoint": Variant("s", WHERE)})
        attached = time.perf_counter() - begin
        where = await vfsd.get_of_share(SHARE, "MountedAt")
        if where != WHERE:
            raise AssertionError(f"it is mounted at {where!r}")
        check(await vfsd.read(f"{WHERE}/{FILE}"))
        begin = time.perf_counter()
        await vfsd.call("DetachShare", "s", SHARE)
        detached = time.perf_counter() - begin
        await asyncio.sleep(SETTLE)
        return {"attach": attached, "detach": detached}

    return run


def _hand_turn(hand: ByHand, share: ShareSpec) -> Turn:
    async def run(_number: int) -> dict[str, float]:
        attached = hand.attach(share, WHERE)
        check(hand.read(f"{WHERE}/{FILE}"))
        measured = {"attach": attached, "detach": hand.detach(WHERE)}
        await asyncio.sleep(SETTLE)
        return measured

    return run
