"""Commands that shares and machines have alike: remove, list, show, and a method called by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli.errors import CallFailed
from vfsd.cli.objects import Kind, print_properties
from vfsd.cli.output import Column, print_json, print_table
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.values import parse_settings

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client
    from vfsd.options import Option


def add_method(group: click.Group, kind: Kind, member: str, help_text: str) -> None:
    """A command that calls one method of an object, and says nothing."""

    @group.command(member.lower(), help=help_text)
    @click.argument("name")
    @global_options
    @pass_session
    def call(session: Session, name: str) -> None:
        session.run(lambda client: kind.call(client, name, member))


def add_remove(group: click.Group, kind: Kind, help_text: str) -> None:
    """`remove NAME…`."""

    @group.command(help=help_text)
    @click.argument("name", nargs=-1, required=True)
    @global_options
    @pass_session
    def remove(session: Session, name: tuple[str, ...]) -> None:
        async def body(client: Client) -> None:
            for each in name:
                await client.manager(f"Remove{kind.noun.title()}", "s", each)

        session.run(body)


def add_set(group: click.Group, kind: Kind, table: Mapping[str, Option], help_text: str) -> None:
    """`set NAME OPTION=VALUE…`; all values are read before the first one is set."""

    @group.command("set", help=help_text)
    @click.argument("name")
    @click.argument("assignments", nargs=-1, required=True, metavar="OPTION=VALUE...")
    @global_options
    @pass_session
    def set_options(session: Session, name: str, assignments: tuple[str, ...]) -> None:
        options = parse_settings(table, assignments)

        async def body(client: Client) -> None:
            path = await kind.path(client, name)
            done: list[str] = []
            for option, value in options.items():
                try:
                    await client.set(path, kind.interface, option, value)
                except CallFailed as error:
                    before = f" ({', '.join(done)} was set before)" if done else ""
                    raise CallFailed(error.name, f"{error}{before}") from None
                done.append(option)

        session.run(body)


def add_views(
    group: click.Group, kind: Kind, columns: Sequence[Column], row: Callable[[dict[str, Any]], list[str]]
) -> None:
    """`list` and `show NAME`; `row` makes a line of a table with those columns."""

    @group.command("list", help=f"All {kind.noun}s, by name.")
    @global_options
    @pass_session
    def list_all(session: Session) -> None:
        async def body(client: Client) -> dict[str, dict[str, Any]]:
            return kind.named(await client.objects())

        found = session.run(body)
        if session.json:
            print_json(list(found.values()))
        else:
            print_table(columns, [row(item) for item in found.values()], legend=session.legend)

    @group.command(help=f"All properties of a {kind.noun}.")
    @click.argument("name")
    @global_options
    @pass_session
    def show(session: Session, name: str) -> None:
        print_properties(session, session.run(lambda client: kind.show_all(client, name)))
