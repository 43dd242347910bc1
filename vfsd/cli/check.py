"""`vfsctl check`: what virtio-fs needs on this host, looked at from this very process."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vfsd.cli.errors import CliError, Exit
from vfsd.cli.output import clean, plural, state_colour
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.values import absolute
from vfsd.prerequisites import Result, Status, run_checks, to_json, to_markdown

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client


@click.command()
@click.option("--kernel", metavar="FILE", help="Look into this kernel for a guest, too.")
@click.option("--by-vfsd", is_flag=True, help="Let vfsd look, whose environment may be another than yours.")
@click.option("--format", "form", type=click.Choice(["text", "json", "markdown"]), help="Default: text.")
@global_options
@pass_session
def check(session: Session, kernel: str | None, by_vfsd: bool, form: str | None) -> int:
    """Check what virtio-fs needs on this host, and say what to do about what is missing.

    Needs no vfsd, unless --by-vfsd is given. The exit code is 1 if a check failed; warnings do not count.
    """
    if by_vfsd and kernel is not None:
        raise click.UsageError("--by-vfsd and --kernel exclude each other.")
    if kernel is not None:
        session.require_here("check --kernel", "vfsd itself looks at no kernel", f"check --kernel {kernel}")
    results = _vfsds(session) if by_vfsd or session.host else _own(session, kernel)
    form = form or ("json" if session.json else "text")
    if form == "json":
        click.echo(to_json(results), nl=False)
    elif form == "markdown":
        subject = f"{session.host or platform.node()}, {session.scope.value} services"
        click.echo(to_markdown(results, subject=subject), nl=False)
    else:
        _print_text(results)
    code = Exit.FAILED if any(result.status is Status.FAIL for result in results) else Exit.DONE
    _end_if_a_check_hangs(code)
    return code


def _own(session: Session, kernel: str | None) -> list[Result]:
    file = _kernel_file(kernel)
    # A bug in one check is one of its results; its traceback is for the journal of vfsd, not for a terminal.
    logging.getLogger("vfsd").addHandler(logging.NullHandler())
    return run_checks(session.scope.value, file)


def _vfsds(session: Session) -> list[Result]:
    async def body(client: Client) -> list[Result]:
        (rows,) = await client.manager("Check")
        return [
            Result(id_, Status(status), found, required, remedy)
            for id_, status, found, required, remedy in rows
        ]

    return session.run(body)


def _kernel_file(kernel: str | None) -> Path | None:
    if kernel is None:
        return None
    file = Path(absolute(kernel))
    if not file.is_file():
        hint = "--kernel takes the file that a guest boots."
        raise CliError(f'there is no kernel "{kernel}"', hint, Exit.USAGE)
    return file


def _print_text(results: Sequence[Result]) -> None:
    width = max(len(result.id) for result in results)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for result in results:
        status = click.style(f"{result.status.value:<4}", fg=state_colour(result.status.value))
        lines = _lines(result, columns - width - 8 if columns else 0)
        click.echo(f"{status}  {result.id:<{width}}  {lines[0]}")
        for line in lines[1:]:
            click.echo(f"{'':<{width + 8}}{line}")
    click.echo(f"\n{summary(results)}")


def _lines(result: Result, width: int) -> list[str]:
    """What was found; below it, if anything is wrong, what is required and what to do. 0 for no wrapping."""
    texts = [result.found]
    if result.status in (Status.FAIL, Status.WARN):
        texts.append(f"Required: {result.required}")
    if result.remedy:
        texts.append(f"→ {result.remedy}")
    if not width:
        return [clean(text) for text in texts]
    wrapped = [textwrap.wrap(clean(text), max(width, 20), subsequent_indent="  ") for text in texts]
    return [line for lines in wrapped for line in lines] or [""]


def summary(results: Sequence[Result]) -> str:
    """How it stands, in one sentence."""
    count = Counter(result.status for result in results)
    if count[Status.FAIL]:
        return f"{plural(count[Status.FAIL], 'check')} failed: shares or machines will not run here yet."
    if count[Status.WARN]:
        return f"All that is required is here, with {plural(count[Status.WARN], 'warning')}."
    return "All that is required is here."


def _end_if_a_check_hangs(code: Exit) -> None:
    """Python waits at its end for every thread; one that hangs in a system call would never let it go."""
    if threading.active_count() > 1:
        sys.stdout.flush()
        os._exit(code)
