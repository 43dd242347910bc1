"""What a soak is going to do is told by its seed; and what it says is too much."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

from tests.soak import health, plan
from tests.soak.tally import Tally, quantile

SCOPES = ["system", "user"]


def lives(seed: int) -> list[plan.Life]:
    machines = [itertools.islice(plan.machines(seed, SCOPES, slot), 50) for slot in range(2)]
    shares = [itertools.islice(plan.shares(seed, scope), 50) for scope in SCOPES]
    return list(itertools.chain(*machines, *shares))


def test_a_seed_tells_everything() -> None:
    assert lives(1) == lives(1)
    assert lives(1) != lives(2)
    first, second = (list(itertools.islice(plan.disturbances(1, scope), 20)) for scope in SCOPES)
    assert first != second


def test_everything_happens_and_no_name_twice() -> None:
    drawn = lives(3)
    names = [(life.scope, life.name) for life in drawn]
    assert len(set(names)) == len(names)
    done = {step.name for life in drawn for step in life.steps}
    assert done == set(plan.MACHINE_STEPS) | set(plan.SHARE_STEPS)
    assert {life.scope for life in drawn} == set(SCOPES)
    assert not any(
        step.name in plan.NOT_WITHOUT_AGENT
        for life in drawn
        for step in life.steps
        if life.guest in (plan.TINY, plan.STUBBORN)
    )
    warm = {step.name for life in plan.one_of_each("user") for step in life.steps}
    assert warm == done


def test_what_is_too_much() -> None:
    process = health.Process(1, 30 << 20, 20 << 20, 10, 0, 2, 3)
    before = health.Health(
        daemons={"vfsd": process, "manager": process, "bus": process},
        match_rules=7,
        stored=0,
        units=frozenset(),
        files=frozenset({"/run/vfsd"}),
        control_groups=frozenset(),
        mounts=10,
        processes=Counter({"/usr/bin/vfsd": 2}),
    )
    assert health.compare(before, before) == []
    grown = replace(process, own=process.own + health.GROWTH_MAX["vfsd"] + 1, descriptors=11, memfds=1)
    after = replace(
        before,
        daemons={**before.daemons, "vfsd": grown},
        units=frozenset({"vfsd-share-x.socket"}),
        files=frozenset({"/run/vfsd/share/x.sock"}),
        processes=Counter({"/usr/bin/vfsd": 2, "qemu": 1}),
    )
    told = health.compare(before, after)
    for words in (
        "vfsd grew by 16.0 MiB",
        "1 more descriptors",
        "1 more memfds",
        "x.socket",
        "x.sock",
        "qemu (1)",
    ):
        assert any(words in text for text in told), words
    assert len(told) == 6


def test_whether_vfsd_was_away() -> None:
    tally = Tally()
    assert not tally.was_away("user", 0)
    with tally.away("user"):
        assert tally.was_away("user", 1e12)
    assert tally.was_away("user", 0)
    assert not tally.was_away("user", 1e12)
    assert not tally.was_away("system", 0)


def test_quantiles() -> None:
    values = [float(number) for number in range(101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1), quantile([], 0.5)) == (
        50,
        99,
        100,
        0,
    )
