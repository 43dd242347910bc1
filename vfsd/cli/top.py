"""`vfsctl top`: what machines and shares use, as a table that is drawn anew every other second."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal as signals
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli import resources, usage
from vfsd.cli.errors import BusGone
from vfsd.cli.objects import MACHINE, SHARE, object_of, state_text
from vfsd.cli.output import Column, clean, plural, print_json_line, size, table_lines
from vfsd.cli.progress import fit
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.usage import Rates, Sample
from vfsd.cli.values import parse_timespan

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Objects

FIRST_INTERVAL = 0.5
"""Seconds from the first look to the first table."""
COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("CPU", right=True),
    Column("MEMORY", right=True),
    Column("READ/S", right=True),
    Column("WRITE/S", right=True),
)
_UNKNOWN = "-"
_BEGIN_SCREEN, _END_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The terminal's other screen, and no cursor; and back (xterm's control sequences)."""


@dataclass
class Row:
    """A machine with its shares, or a share."""

    name: str
    state: str
    rates: Rates = field(default_factory=Rates)
    shares: list[Row] = field(default_factory=list)
    is_machine: bool = False

    def as_json(self) -> dict[str, Any]:
        """With numbers, null for what is not known."""
        found: dict[str, Any] = {
            "Name": self.name,
            "State": self.state,
            "CPUPercent": None if self.rates.cpu is None else round(self.rates.cpu, 1),
            "Memory": self.rates.memory,
            "ReadPerSec": None if self.rates.read is None else round(self.rates.read),
            "WrittenPerSec": None if self.rates.written is None else round(self.rates.written),
        }
        return found

    def cells(self, indent: str = "") -> list[str]:
        """As a line of the table."""
        cpu, memory, read, written = self.rates
        return [
            indent + clean(self.name),
            self.state,
            _UNKNOWN if cpu is None else f"{cpu:.1f}%",
            _UNKNOWN if memory is None else size(memory),
            *(_UNKNOWN if number is None else size(round(number)) for number in (read, written)),
        ]


_SORTS: dict[str, Callable[[Row], tuple[float, str]]] = {
    "name": lambda row: (0, row.name),
    "cpu": lambda row: (-(row.rates.cpu or 0), row.name),
    "memory": lambda row: (-(row.rates.memory or 0), row.name),
    "read": lambda row: (-(row.rates.read or 0), row.name),
    "write": lambda row: (-(row.rates.written or 0), row.name),
}


@click.command()
@click.option("--once", is_flag=True, help="Print one table and end, as without a terminal.")
@click.option("--count", "-n", metavar="N", type=click.IntRange(1), help="Print N tables and end.")
@click.option("--interval", "-d", metavar="TIME", default="2s", help="Between two tables. Default: 2s.")
@click.option("--sort", type=click.Choice(list(_SORTS)), default="name", help="Default: name.")
@global_options
@pass_session
def top(session: Session, once: bool, count: int | None, interval: str, sort: str) -> None:
    """What machines and shares use of this host: processor time, memory, and what a share reads and writes.

    A machine's line is QEMU and its virtiofsds together, as its slice counts them. A dash stands for what can't be
    read: what another user's virtiofsd reads and writes, and over --host what any does. The key q and Ctrl-C end it.
    """
    if count is None and (once or session.json or not sys.stdout.isatty()):
        count = 1
    seconds = max(parse_timespan(interval) / 1e6, 0.1)
    session.ask = False
    session.run(lambda client: _Top(client, session, seconds, sort).run(count))


class _Top:
    """What is known between two tables."""

    def __init__(self, client: Client, session: Session, interval: float, sort: str) -> None:
        self._client = client
        self._session = session
        self._interval = interval
        self._sort = _SORTS[sort]
        self._samples: dict[str, Sample] = {}
        self._rows: list[Row] = []

    async def run(self, count: int | None) -> None:
        """Draw so many tables, or until somebody ends it.

        :raise CallFailed: vfsd does not answer, or the bus is gone.
        """
        asked_to_end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signals.SIGINT, signals.SIGTERM):
            loop.add_signal_handler(number, asked_to_end.set)
        ends = {asyncio.ensure_future(asked_to_end.wait()), asyncio.ensure_future(self._client.closed())}
        try:
            # all is asked once; later the signals tell when it is worth asking again
            async with self._client.signals() as queue:
                objects = await self._client.objects()
                await self._look(objects)
                with _screen(count is None, asked_to_end.set, self._draw_again):
                    drawn = 0
                    while count is None or drawn < count:
                        wait = self._interval if drawn else min(FIRST_INTERVAL, self._interval)
                        done, _ = await asyncio.wait(ends, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                        if asked_to_end.is_set():
                            return
                        if done:
                            raise BusGone()
                        if not queue.empty():
                            while not queue.empty():
                                queue.get_nowait()
                            objects = await self._client.objects()
                        self._draw(await self._look(objects), live=count is None)
                        drawn += 1
        finally:
            for task in ends:
                task.cancel()

    async def _look(self, objects: Objects) -> list[Row]:
        """Everything with what it used since the last look."""
        rows: list[Row] = []
        samples: dict[str, Sample] = {}
        shares: dict[str, Row] = {}
        for name, item in SHARE.named(objects).items():
            shares[name] = await self._row(f"share {name}", item, item["ServiceUnit"], samples, io=True)
            if item["Machine"] == "/":
                rows.append(shares[name])
        for name, item in MACHINE.named(objects).items():
            row = await self._row(f"machine {name}", item, item["Slice"], samples, io=False)
            own = [object_of(path)[1] for path in item["Shares"]]
            row.is_machine = True
            row.shares = [shares[share] for share in own if share in shares]
            row.rates = row.rates._replace(
                read=_sum(share.rates.read for share in row.shares),
                written=_sum(share.rates.written for share in row.shares),
            )
            rows.append(row)
        self._samples = samples
        self._rows = sorted(rows, key=self._sort)
        return self._rows

    async def _row(
        self, key: str, item: Mapping[str, Any], unit: str, samples: dict[str, Sample], *, io: bool
    ) -> Row:
        row = Row(item["Name"], state_text(item))
        if item["MainPID"]:
            now = time.monotonic()
            if self._session.host:
                counted = await resources.used(self._client, unit)
                cpu = counted.get("CPUUsageNSec")
                samples[key] = Sample(now, None if cpu is None else cpu // 1000, counted.get("MemoryCurrent"))
            else:
                samples[key] = usage.sample(item["MainPID"], unit, now, io=io)
            row.rates = usage.rates(self._samples.get(key), samples[key])
        return row

    def _draw_again(self) -> None:
        self._draw(self._rows, live=True)

    def _draw(self, rows: list[Row], *, live: bool) -> None:
        if self._session.json:
            with_shares = [
                row.as_json() | {"Shares": [share.as_json() for share in row.shares]}
                for row in rows
                if row.is_machine
            ]
            alone = [row.as_json() for row in rows if not row.is_machine]
            print_json_line({"Machines": with_shares, "Shares": alone})
            return
        cells = [line for row in rows for line in (row.cells(), *(share.cells("  ") for share in row.shares))]
        lines = list(table_lines(COLUMNS, cells, legend=self._session.legend))
        if not live:
            click.echo("\n".join(lines))
            return
        columns, height = shutil.get_terminal_size()
        machines = sum(row.is_machine for row in rows)
        shares = len(cells) - machines
        head = (
            f"{time.strftime('%H:%M:%S')}  {plural(machines, 'machine')}, {plural(shares, 'share')}. q ends."
        )
        shown = [fit(line, columns) for line in (head, "", *lines)][: max(height - 1, 1)]
        sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\r\n" for line in shown) + "\x1b[J")
        sys.stdout.flush()


@contextmanager
def _screen(live: bool, end: Callable[[], object], draw: Callable[[], object]) -> Iterator[None]:
    """A screen of its own for what is drawn again and again, and what is to be done at a key and at another size."""
    if not live:
        yield
        return
    loop = asyncio.get_running_loop()
    with _keys({"q": end, "Q": end, " ": draw}):
        sys.stdout.write(_BEGIN_SCREEN)
        loop.add_signal_handler(signals.SIGWINCH, draw)
        try:
            yield
        finally:
            loop.remove_signal_handler(signals.SIGWINCH)
            sys.stdout.write(_END_SCREEN)
            sys.stdout.flush()


@contextmanager
def _keys(meanings: Mapping[str, Callable[[], object]]) -> Iterator[None]:
    """Single keys, which are not shown, if standard input is a terminal."""
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        yield
        return

    def read() -> None:
        for key in os.read(fd, 64).decode(errors="replace"):
            meanings.get(key, bool)()

    before = termios.tcgetattr(fd)
    loop = asyncio.get_running_loop()
    try:
        tty.setcbreak(fd)
        # the shell that continued a stopped vfsctl has set the terminal for itself
        loop.add_signal_handler(signals.SIGCONT, tty.setcbreak, fd)
        loop.add_reader(fd, read)
        yield
    finally:
        loop.remove_reader(fd)
        loop.remove_signal_handler(signals.SIGCONT)
        with suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _sum(numbers: Iterator[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
