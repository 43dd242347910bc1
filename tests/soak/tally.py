"""What was done, what was refused, and what was wrong."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator

WRONG_MAX = 100
"""So many things that are wrong are enough."""


class Tally:
    """Counts, for all buses."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        """Operations, by what and on which bus."""
        self.refused: Counter[str] = Counter()
        """Errors that may be, by their name."""
        self.latencies: dict[str, list[float]] = defaultdict(list)
        """Seconds that a Get took, by bus."""
        self.took: dict[str, list[float]] = defaultdict(list)
        """Seconds that an operation took, by its name."""
        self.wrong: list[str] = []
        self._away: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def blame(self, text: str) -> None:
        """Something is wrong."""
        self.wrong.append(text)
        print(f"{time.strftime('%T')} WRONG: {text}", flush=True)

    @property
    def enough(self) -> bool:
        return len(self.wrong) >= WRONG_MAX

    @contextlib.contextmanager
    def away(self, scope: str) -> Iterator[None]:
        """vfsd is ended and started again meanwhile."""
        entry = (time.monotonic(), float("inf"))
        self._away[scope].append(entry)
        try:
            yield
        finally:
            self._away[scope].remove(entry)
            self._away[scope].append((entry[0], time.monotonic()))

    def was_away(self, scope: str, since: float) -> bool:
        """Whether vfsd was away at some moment since then."""
        return any(end >= since for _, end in self._away[scope])


def quantile(values: list[float], part: float) -> float:
    """The value below which that part of all lies; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(round(part * (len(ordered) - 1)), len(ordered) - 1)] if ordered else 0.0
