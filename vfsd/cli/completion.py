"""What a shell offers at a Tab for the arguments of commands: names that there are, files and directories.

Commands and options are click's own business. Nothing is started by a Tab, nobody is asked for a password, and no other
host is called: where no vfsd runs, or none answers at once, nothing is offered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

from vfsd.cli.errors import CallFailed, CliError, Unreachable
from vfsd.cli.objects import MACHINE, SHARE, Kind
from vfsd.cli.session import Session
from vfsd.names import MANAGER_INTERFACE, ROOT_PATH

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client

PATIENCE = 1.0
"""Seconds that somebody who pressed Tab waits."""
_NAMES = {"name": (MACHINE, SHARE), "machine": (MACHINE,), "share": (SHARE,)}
"""What arguments name, if nothing below says otherwise."""
_OF_MACHINES = ("console", "exec", "ssh", "view")
"""Commands beside the group "machine" whose argument is one."""
_NEW = ("add", "import")
"""Commands whose argument is a name that nobody has yet."""
_DIRECTORIES = ("root", "shares", "source")
"""Parameters that are a directory of this host."""


def prepare(command: click.Command) -> None:
    """Have a command offer what its parameters may be."""
    for parameter in command.params:
        if parameter.type is click.STRING:
            parameter.type = _Offer()


class _Offer(StringParamType):
    """A text, of which it is known what it stands for."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """What may stand there and begins like this."""
        if param.name in _DIRECTORIES:
            return [CompletionItem(incomplete, type="dir")]
        if param.metavar == "FILE" or param.name == "file":
            return [CompletionItem(incomplete, type="file")]
        if not isinstance(param, click.Argument):
            return []
        given = ctx.params.get(param.name or "") or ()
        found = _names(ctx.ensure_object(Session), kinds_of(ctx.command_path.split()[1:], param.name or ""))
        return [CompletionItem(name) for name in found if name.startswith(incomplete) and name not in given]


def kinds_of(command: list[str], argument: str) -> tuple[Kind, ...]:
    """What an argument of a command names, such as `["machine", "attach"]`; nothing if no object."""
    if command[-1] in _NEW or argument not in _NAMES:
        return ()
    if argument == "name" and command[0] in (*_NAMES, *_OF_MACHINES):
        return _NAMES.get(command[0], (MACHINE,))
    return _NAMES[argument]


def _names(session: Session, kinds: tuple[Kind, ...]) -> list[str]:
    """The names of the objects that there are."""
    if not kinds or session.host:
        return []

    async def body(client: Client) -> list[str]:
        names: list[str] = []
        for kind in kinds:
            listed = f"List{kind.noun.title()}s"
            (found,) = await client.call(ROOT_PATH, MANAGER_INTERFACE, listed, within=PATIENCE, look=True)
            names += [item[0] for item in found]
        return names

    from vfsd.cli import proxy  # noqa: PLC0415  # commands and options are completed without a bus

    try:
        return proxy.run(session.scope, body, ask=False)
    except (CallFailed, CliError, Unreachable):
        return []
