"""What vfsctl prints on standard output: JSON for programs, tables and details for people.

A table for a terminal is fitted to its width, in colour, by rich. What goes into a pipe or a file is plain
and whole, and costs no import of rich.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from rich.table import Table

ELLIPSIS = "…"
MIDDLE_MIN = 16
"""Characters of a path that are shown however narrow the terminal is."""
_CONTROLS = re.compile("[\x7f-\x9f]")
WHOLE_MAX = 18
"""Characters of a cell that are not cut; what lies behind the edge of a narrower terminal is not shown."""

_STATE_COLOURS = {
    "running": "green",
    "active": "green",
    "listening": "cyan",
    "paused": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "unavailable": "red",
    "failed": "red",
    "pass": "green",
    "warn": "yellow",
    "fail": "red",
}


class Column(NamedTuple):
    """One column of a table."""

    title: str
    right: bool = False
    path: bool = False
    """Shortened in the middle, where the parts of a path that tell least are."""


def state_colour(state: str) -> str | None:
    """The colour in which a state is shown; None for the terminal's own."""
    return "yellow" if state.endswith("(degraded)") else _STATE_COLOURS.get(state)


def clean(text: str) -> str:
    """The text with every control character escaped: a path may hold a newline or a terminal's commands."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()


def sentence(text: str) -> str:
    """With a capital, if it does not begin with vfsd's name, and a full stop; "" stays what it is."""
    text = text.strip()
    first = text if text.startswith(("vfsd ", "vfsctl ")) else text[:1].upper() + text[1:]
    return first if not first or first.endswith((".", "!", "?")) else f"{first}."


def print_json(value: Any) -> None:
    """Print one JSON document, indented."""
    click.echo(_json(value, indent=2))


def print_json_line(value: Any) -> None:
    """Print one JSON document on one line, at once."""
    click.echo(_json(value, separators=(",", ":")))
    sys.stdout.flush()


def _json(value: Any, **layout: Any) -> str:
    """JSON that commands no terminal: what a guest told may have control characters which JSON lets stand (ECMA-48)."""
    text = json.dumps(value, ensure_ascii=not _is_unicode(), **layout)
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _is_unicode() -> bool:
    """Whether standard output takes every character; in JSON another can be escaped."""
    return sys.stdout.encoding.lower().replace("-", "") == "utf8"


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]], *, legend: bool = True) -> None:
    """Print rows below a head (without one if not `legend`)."""
    cleaned = [[clean(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_fitted(columns, cleaned, legend)
    else:
        _print_plain(columns, cleaned, legend)


def print_details(pairs: Iterable[tuple[str, str]]) -> None:
    """Print `name: value` lines, the colons below each other."""
    shown = [(name, clean(value)) for name, value in pairs]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{name:>{width}}: {value}")


def _print_plain(columns: Sequence[Column], rows: list[list[str]], legend: bool) -> None:
    for line in table_lines(columns, rows, legend=legend):
        click.echo(line)


def table_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, legend: bool = True
) -> Iterator[str]:
    """The lines of a plain table."""
    lines = [[column.title for column in columns], *rows] if legend else rows
    widths = [max((len(line[index]) for line in lines), default=0) for index in range(len(columns))]
    for line in lines:
        cells = (
            f"{cell:>{width}}" if column.right else f"{cell:<{width}}"
            for cell, width, column in zip(line, widths, columns, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _print_fitted(columns: Sequence[Column], rows: list[list[str]], legend: bool) -> None:
    # 50 ms that only a person at a terminal waits for.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    width = shutil.get_terminal_size().columns
    table = Table(box=None, pad_edge=False, show_header=legend, header_style="bold")
    _add_columns(table, columns, rows)
    for row in shorten_paths(columns, rows, width):
        cells = zip(row, columns, strict=True)
        table.add_row(*(Text(cell, (state_colour(cell) or "") if not c.path else "") for cell, c in cells))
    Console(width=width, highlight=False).print(table)


def _add_columns(table: Table, columns: Sequence[Column], rows: list[list[str]]) -> None:
    edges = (columns[0], columns[-1])
    for column, natural in zip(columns, _widths(columns, rows), strict=True):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            # half a number is another number, and of two half names nobody knows which is which
            # (at an edge rich adds room for a padding that is not there)
            min_width=None if column.path else min(natural, WHOLE_MAX) - (column in edges),
        )


def _widths(columns: Sequence[Column], rows: list[list[str]]) -> list[int]:
    """What each column would like to have."""
    return [
        max([len(column.title), *(len(row[index]) for row in rows)]) for index, column in enumerate(columns)
    ]


def shorten_paths(columns: Sequence[Column], rows: list[list[str]], width: int) -> list[list[str]]:
    """The rows with the paths in them cut in the middle, so that a line fits in `width`."""
    natural = _widths(columns, rows)
    paths = [index for index, column in enumerate(columns) if column.path]
    if not paths:
        return rows
    others = sum(natural) - sum(natural[index] for index in paths) + 2 * len(columns)
    limit = max((width - others) // len(paths), MIDDLE_MIN)
    return [
        [shorten_middle(cell, limit) if index in paths else cell for index, cell in enumerate(row)]
        for row in rows
    ]


def shorten_middle(text: str, width: int) -> str:
    """The beginning and the (longer) end of what is too long, an ellipsis between."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return text[:head] + ELLIPSIS + text[len(text) - (width - 1 - head) :]


def size(number: int) -> str:
    """Bytes for people: `2G`, `1.5M`; whole numbers of a unit stay exact."""
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if number >= 1 << shift:
            scaled = number / (1 << shift)
            return f"{scaled:.0f}{unit}" if scaled == int(scaled) else f"{scaled:.1f}{unit}"
    return str(number)


def plural(number: int, noun: str) -> str:
    """`1 share`, `2 shares`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
