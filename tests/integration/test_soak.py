"""Three minutes of everything at random, on both buses at once; HACKING.md, "Soak"."""

from __future__ import annotations

import os
import random

from tests.integration.conftest import kept_clean
from tests.soak.cli import report
from tests.soak.soak import soak

SECONDS = 180
"""In all, the warm-up included."""
MACHINES = 2
"""At once."""


async def test_nothing_is_lost_and_nothing_left() -> None:
    seed = os.environ.get("VFSD_SOAK_SEED") or str(random.randrange(1 << 32))
    print(f"VFSD_SOAK_SEED={seed}")
    with kept_clean("system"), kept_clean("user"):
        tally = await soak(["system", "user"], SECONDS, seed, MACHINES, print)
    print("\n".join(report(tally)))
    assert tally.wrong == []
