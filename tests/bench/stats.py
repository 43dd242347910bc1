"""Statistics of paired measurements: pure functions, nothing is run here.

Two modes are compared turn by turn, within each round, and the median of the ratios of the rounds is what counts:
a machine that is slow for a while is slow for both, and one odd turn does not move a median.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

_Mode = TypeVar("_Mode")


@dataclass(frozen=True, slots=True)
class Spread:
    """The median, and the quartiles around it."""

    median: float
    low: float
    high: float
    count: int


class Verdict(StrEnum):
    """Whether a goal is met; `close` if it lies between the quartiles, so that a further run may say otherwise."""

    MET = "met"
    MET_CLOSE = "met, close"
    MISSED = "missed"
    MISSED_CLOSE = "missed, close"
    NO_GOAL = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """A value is to be at most this."""

    limit: float
    text: str = ""
    """How the goal is written, where that is not "≤ limit"."""

    def verdict(self, value: Spread) -> Verdict:
        """Judge a measured value."""
        close = value.low <= self.limit <= value.high and value.low < value.high
        if value.median <= self.limit:
            return Verdict.MET_CLOSE if close else Verdict.MET
        return Verdict.MISSED_CLOSE if close else Verdict.MISSED


def quantile(values: Sequence[float], part: float) -> float:
    """A quantile, linear between the two nearest values. :raise ValueError: there are no values."""
    if not values:
        raise ValueError("a quantile of no values")
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return quantile(values, 0.5)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    return Spread(median(values), quantile(values, 0.25), quantile(values, 0.75), len(values))


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Value by value. :raise ValueError: they are no pairs."""
    return [value / other for value, other in zip(values, base, strict=True)]


def turn_order(modes: Sequence[_Mode], number: int) -> list[_Mode]:
    """The modes in the order of one round: each begins in its turn, and every second time they go backwards.

    Thus, over twice as many rounds as there are modes, each mode follows each of its two neighbours equally often.
    """
    if not modes:
        return []
    first = number // 2 % len(modes)
    order = [*modes[first:], *modes[:first]]
    return order[::-1] if number % 2 else order
