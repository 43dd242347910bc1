"""What was measured, and how it is told: a table for people and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.stats import Goal, Spread, Verdict, median, ratios, spread


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    section: str
    what: str
    value: Spread
    unit: str
    """`x` for a ratio, else a unit of measurement."""
    goal: Goal | None = None
    note: str = ""
    """For orientation: absolute times, or what the value is made of."""

    @property
    def verdict(self) -> Verdict:
        return self.goal.verdict(self.value) if self.goal else Verdict.NO_GOAL


@dataclass
class Results:
    """All lines, and what went wrong."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    """All single measurements by section, in seconds."""

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def compare(
        self,
        section: str,
        what: str,
        values: Sequence[float],
        base: Sequence[float],
        goal: float | None = None,
    ) -> None:
        """Add a paired ratio, both in seconds."""
        if not values:
            return
        note = f"{milliseconds(median(values))} / {milliseconds(median(base))}"
        self.add(Row(section, what, spread(ratios(values, base)), "x", Goal(goal) if goal else None, note))

    def add_with_times(
        self, section: str, what: str, value: Spread, goal: Goal, seconds: float, base: float
    ) -> None:
        """Add a ratio with a goal that is written in its own way."""
        note = f"{milliseconds(seconds)} / {milliseconds(base)}"
        self.add(Row(section, what, value, "x", goal, note))

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.verdict in (Verdict.MISSED, Verdict.MISSED_CLOSE)]

    def write(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write everything as JSON."""
        rows = [
            {
                **dataclasses.asdict(row),
                "verdict": row.verdict.value,
                "goal": row.goal.limit if row.goal else None,
            }
            for row in self.rows
        ]
        document = {"about": about, "rows": rows, "problems": self.problems, "samples": self.samples}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def milliseconds(seconds: float) -> str:
    """A time for people."""
    value = seconds * 1000
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def number(value: float, unit: str) -> str:
    """A value with its unit, with as many digits as mean something."""
    if unit == "x":
        return f"x{value:.2f}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}".rstrip()


HEADINGS = ("", "what", "value", "quartiles", "goal", "verdict", "vfsd / base")


def cells(row: Row) -> tuple[str, ...]:
    """A row as texts, in the order of HEADINGS."""
    quartiles = ""
    if row.value.count > 1:
        quartiles = f"{number(row.value.low, '')} to {number(row.value.high, '')}"
    goal = (row.goal.text or f"≤ {number(row.goal.limit, row.unit)}") if row.goal else ""
    return row.section, row.what, number(row.value.median, row.unit), quartiles, goal, row.verdict, row.note


def table(rows: Sequence[Row]) -> str:
    """The table as plain text."""
    lines = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text = []
    section = None
    for line in lines:
        shown = ("" if line[0] == section else line[0], *line[1:])
        if shown[0]:
            text.append("")
        section = line[0]
        text.append("  ".join(cell.ljust(width) for cell, width in zip(shown, widths, strict=True)).rstrip())
    return "\n".join(text)
