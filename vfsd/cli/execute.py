"""`vfsctl exec`: run a program in a guest, through its agent."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli.errors import CliError, Exit
from vfsd.cli.objects import MACHINE
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.values import Options, Typed, own_words, parse_timespan

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client

INPUT_MAX = 1 << 20
"""Bytes of standard input: the guest's agent takes all of it in one message."""
CALL_MARGIN = 10.0
"""Seconds that the call may take beyond the program's own time."""


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--timeout", metavar="TIME", default="1min", help="How long to wait for its end. Default: 1min."
)
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@global_options
@pass_session
def execute(session: Session, name: str, command: tuple[str, ...], timeout: str) -> int:
    """Run COMMAND in the guest of the machine NAME, through its agent.

    Its output comes when it has ended; its exit code is vfsctl's, and 125 if it was not run to its end. Standard
    input is passed on, up to 1 MiB, unless it is a terminal.
    """
    session.failure_code = Exit.RUN_FAILED
    usec = parse_timespan(timeout)
    options: Options = {"TimeoutUSec": Typed("t", usec)}
    if data := _standard_input():
        options["Input"] = Typed("ay", data)

    async def body(client: Client) -> list[Any]:
        path = await MACHINE.path(client, name)
        return await client.call(
            path,
            MACHINE.interface,
            "Execute",
            "asa{sv}",
            list(own_words(command)),
            options,
            within=usec / 1e6 + CALL_MARGIN,
        )

    status, output, errors = session.run(body)
    for stream, told in ((sys.stdout, output), (sys.stderr, errors)):
        stream.flush()
        stream.buffer.write(bytes(told))
        stream.buffer.flush()
    return int(status)


def _standard_input() -> bytes:
    """:raise CliError: it is too long."""
    if sys.stdin.isatty():
        return b""
    data = sys.stdin.buffer.read(INPUT_MAX + 1)
    if len(data) > INPUT_MAX:
        raise CliError("standard input has more than 1 MiB", "put it into a shared directory instead.")
    return data
