"""`vfsctl run`: a guest for as long as this command runs."""

from __future__ import annotations

import secrets
import sys
from typing import Any

import click

from vfsd.cli.boot import SHARE_HELP, boot_options, machine_options
from vfsd.cli.command import CommandOutput
from vfsd.cli.errors import CliError, Exit
from vfsd.cli.options import BOOT_FLAGS
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.values import Typed

EXIT_HELP = """\
\b
Ctrl-] pressed three times within a second ends the machine; every other
key is the guest's. The exit code is 0 if the machine stopped, 1 if it
failed, 128 + N after signal N; with --exec that of the command, or 125.
"""


@click.command(epilog=f"{SHARE_HELP}\n{EXIT_HELP}")
@boot_options(BOOT_FLAGS)
@click.option("--name", metavar="NAME", help="Name of the machine. Default: one that is unique.")
@click.option("--exec", "command", metavar="COMMAND", help="Run only this, in the built-in guest.")
@global_options
@pass_session
def run(session: Session, /, name: str | None, command: str | None, **given: Any) -> int:
    """Boot a guest with its console on this terminal; when it ends, nothing of it is left.

    \b
    vfsctl run --builtin --share .
    vfsctl run --builtin --share src:/src:ro --exec 'wc -l /src/*'
    vfsctl run --kernel vmlinuz --root /srv/debian --memory 2G
    """
    # asyncio is slow to import, and --help needs none.
    from vfsd.cli.runner import Plan, Runner  # noqa: PLC0415

    session.require_here("run", "its console is a socket of that host", "run …")
    options = machine_options(BOOT_FLAGS, given)
    if not options.keys() & {"Builtin", "Kernel", "Image"}:
        raise click.UsageError("Nothing to boot: give --builtin, --kernel or --image.")
    output = None
    if command is not None:
        if "Builtin" not in options:
            raise click.UsageError("--exec needs --builtin: no other guest knows how to run a command.")
        session.failure_code = Exit.RUN_FAILED
        options["Append"] = _with_command(options.get("Append"), command)
        output = CommandOutput(newlines=not sys.stdout.isatty())
    plan = Plan(name or f"run-{secrets.token_hex(4)}", options, output, builtin="Builtin" in options)

    return session.run(lambda client: Runner(client, session, plan).run())


def _with_command(append: Typed | None, command: str) -> Typed:
    """The kernel's arguments with a command for the built-in guest."""
    from vfsd.guest.command_line import escape  # noqa: PLC0415  # it brings all of the guest along

    if not command.strip():
        raise CliError("the command is empty", code=Exit.USAGE)
    words = [append.value] if append else []
    return Typed("s", " ".join([*words, f"vfsd.exec={escape(command)}"]))
