"""Groups of commands: all print their help when called with nothing, one imports its commands late."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click

from vfsd.cli.errors import Exit


class Group(click.Group):
    """A group that takes no arguments for wrong usage and prints its help, with any version of click."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Stop here if there is nothing to parse."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(Exit.USAGE)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """The commands in the order in which they are written, which is the one in which they are used."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; if a shell asks what may follow, one that knows."""
        command = self.find(ctx, cmd_name)
        if command is not None and ctx.resilient_parsing:
            from vfsd.cli import completion  # noqa: PLC0415  # only a Tab needs it

            completion.prepare(command)
        return command

    def find(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        return super().get_command(ctx, cmd_name)


class LazyCommand(NamedTuple):
    """Where a command lives, and what the group's help says about it without importing it."""

    target: str
    """`module:attribute`."""
    help: str


class LazyGroup(Group):
    """A group that imports a command's module when the command is called for, not before."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a newcomer needs them."""
        return [*self._lazy, *super().list_commands(ctx)]

    def find(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        lazy = self._lazy.get(cmd_name)
        if lazy is None:
            return super().find(ctx, cmd_name)
        module, _, attribute = lazy.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  # a wrong entry in the table is a bug
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands with the help that the table gives."""
        rows = [(name, lazy.help) for name, lazy in self._lazy.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
