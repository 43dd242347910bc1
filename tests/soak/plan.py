"""What is going to be done: drawn before it is done, so that a seed tells all of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

BUILTIN, TINY, STUBBORN = "builtin", "tiny", "stubborn"
POLICIES = ("signal", "heal", "heal", "heal", "restart", "stop")
MACHINE_STEPS = {
    "pause": 2,
    "reset": 1,
    "plug": 4,
    "end virtiofsd": 4,
    "refresh": 4,
    "suspend": 2,
    "execute": 3,
    "console": 3,
    "set": 2,
    "query": 1,
    "shut down": 1,
    "kill": 1,
    "end qemu": 1,
    "vanish": 2,
    "refused": 1,
    "overlap": 2,
}
"""What is done to a machine, and how often of it."""
NOT_WITHOUT_AGENT = ("execute", "query")
SHARE_STEPS = {
    "client": 4,
    "end virtiofsd": 2,
    "stop": 2,
    "set": 3,
    "space": 2,
    "source": 1,
    "refused": 1,
    "vanish": 1,
}
DISTURBANCES = {
    "reload": 3,
    "daemon-reload": 3,
    "check": 1,
    "restart vfsd": 1,
    "kill vfsd": 3,
}
ENDINGS = ("restart vfsd", "kill vfsd")
"""Those of them that end vfsd."""
STEPS_MAX = 10
"""In the life of one machine or share."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done."""

    name: str
    seed: int
    """For what is drawn in it."""


@dataclass(frozen=True, slots=True)
class Life:
    """A machine from its creation to its removal; or a share, which has no guest."""

    scope: str
    name: str
    guest: str
    policy: str
    persistent: bool
    shares: int
    """How many are made with it."""
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        words = [self.guest, self.policy, "persistent" if self.persistent else "", f"{self.shares} shares"]
        done = ", ".join(step.name for step in self.steps)
        return f"{self.scope} {self.name}: {' '.join(word for word in words if word)}: {done}"


def _steps(draw: random.Random, weights: dict[str, int], count: int) -> tuple[Step, ...]:
    names = draw.choices(list(weights), list(weights.values()), k=count)
    return tuple(Step(name, draw.randrange(1 << 32)) for name in names)


def machines(seed: object, scopes: list[str], slot: int) -> Iterator[Life]:
    """The machines that one slot has, one after the other; each on one of the buses."""
    draw = random.Random(f"{seed} machines {slot}")
    number = 0
    while True:
        number += 1
        guest = draw.choice([BUILTIN, BUILTIN, BUILTIN, TINY, STUBBORN])
        weights = {
            name: weight
            for name, weight in MACHINE_STEPS.items()
            if guest == BUILTIN or name not in NOT_WITHOUT_AGENT
        }
        yield Life(
            scope=draw.choice(scopes),
            name=f"soak{slot}-{number}",
            guest=guest,
            policy=draw.choice(POLICIES),
            persistent=draw.random() < 0.4,
            shares=draw.choice((1, 1, 2)),
            steps=_steps(draw, weights, draw.randint(3, STEPS_MAX)),
        )


def shares(seed: object, scope: str) -> Iterator[Life]:
    """Shares that stand alone, one after the other."""
    draw = random.Random(f"{seed} shares {scope}")
    number = 0
    while True:
        number += 1
        persistent = draw.random() < 0.4
        steps = _steps(draw, SHARE_STEPS, draw.randint(1, STEPS_MAX))
        yield Life(scope, f"alone{number}", "", "", persistent, 0, steps)


def disturbances(seed: object, scope: str) -> Iterator[tuple[float, Step]]:
    """What is done to vfsd and systemd besides, each with the part of the pause before it, 0.5 to 1.5."""
    draw = random.Random(f"{seed} disturbances {scope}")
    while True:
        pause = draw.uniform(0.5, 1.5)
        yield pause, _steps(draw, DISTURBANCES, 1)[0]


def one_of_each(scope: str) -> list[Life]:
    """Everything once, without what is left to chance: what is kept for good is there after that."""

    def all_of(weights: dict[str, int], without: tuple[str, ...] = ()) -> tuple[Step, ...]:
        return tuple(Step(name, number) for number, name in enumerate(weights) if name not in without)

    return [
        Life(scope, "warm-alone", "", "", True, 0, all_of(SHARE_STEPS)),
        Life(scope, "warm", BUILTIN, "heal", True, 2, all_of(MACHINE_STEPS)),
        Life(scope, "warm-tiny", TINY, "restart", False, 1, all_of(MACHINE_STEPS, NOT_WITHOUT_AGENT)),
    ]
