"""A guest's console out of the journal: for a QEMU (before 10.0) that can't give the console a socket too."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from vfsd.cli.console import Filter, first, write_all
from vfsd.cli.errors import CliError
from vfsd.names import Scope

LAST_WORDS = 0.5
"""Seconds until what a unit printed last has gone through journald."""


async def follow_console(
    unit: str, scope: Scope, since: float, convert: Filter, ended: asyncio.Future[tuple[str, str]]
) -> None:
    """Write what the unit prints to standard output until it has ended.

    :param since: seconds since the epoch; an earlier unit may have had the same name.
    :raise CliError: there is no journalctl.
    """
    whose = ["--user", f"--user-unit={unit}"] if scope is Scope.USER else [f"--unit={unit}"]
    filters = ["_TRANSPORT=stdout", f"--since=@{since:.3f}"]
    try:
        journal = await asyncio.create_subprocess_exec(
            *("journalctl", "--quiet", "--follow", "--lines=all", "--output=cat", *whose, *filters),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise CliError("there is no journalctl to read the guest's console with") from None
    copying = asyncio.create_task(_copy(journal, convert))
    try:
        await first(copying, ended)
        await asyncio.sleep(LAST_WORDS)
    finally:
        with suppress(ProcessLookupError):
            journal.terminate()
        await journal.wait()
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)


async def _copy(journal: asyncio.subprocess.Process, convert: Filter) -> None:
    assert journal.stdout  # noqa: S101  # it was asked for
    while data := await journal.stdout.read(1 << 16):
        await write_all(sys.stdout.fileno(), convert(data))
