"""`export` and `import` of shares and machines: as TOML, which a configuration folder takes too."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vfsd import __version__, document
from vfsd.cli import definition
from vfsd.cli.errors import CliError, Exit
from vfsd.cli.objects import MACHINE, SHARE, Kind, say
from vfsd.cli.output import clean, print_json
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.names import is_machine_name, is_share_name

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client
    from vfsd.model import MachineSpec, ShareSpec

STANDARD_INPUT = "-"
TEXT_MAX = 4 << 20
"""Bytes of a file that is imported; what is longer is none of those that are meant."""


def add_export(group: click.Group, kind: Kind) -> None:
    """`export NAME`."""

    @group.command(
        help=f"Print the definition of a {kind.noun} as TOML, for import or a configuration folder."
    )
    @click.argument("name")
    @global_options
    @pass_session
    def export(session: Session, name: str) -> None:
        known = session.run(lambda client: definition.fetch(client, kind, name, session.scope))
        click.echo(f"# {kind.noun} {name}, exported by vfsctl {__version__}")
        click.echo(known.text(session.scope), nl=False)
        report("Not exported", left_out(known))


def left_out(known: definition.Known) -> list[str]:
    """What belongs to a machine and is not part of its document."""
    told = [
        f'share {name}, which is attached to it: "vfsctl share export {name}" does' for name in known.attached
    ]
    told += [f"what is in credential {name}, which vfsd tells nobody: write it in" for name in known.secrets]
    return told


def report(what: str, lines: Iterable[str]) -> None:
    """Say on standard error, a line each, what did not come along."""
    for line in lines:
        click.echo(clean(f"{what}: {line}."), err=True)


def add_import(group: click.Group) -> None:
    """`share import FILE`."""

    @group.command("import", help="Make a share from TOML; - reads standard input.")
    @click.argument("file", type=click.Path())
    @click.option("--name", metavar="NAME", help="Its name. Default: that of the file.")
    @click.option("--dry-run", is_flag=True, help="Make nothing; print what would be made, as TOML.")
    @click.option("--persistent", is_flag=True, help="Keep the definition across a reboot.")
    @global_options
    @pass_session
    def import_share(session: Session, file: str, name: str | None, dry_run: bool, persistent: bool) -> None:
        name = name_for(SHARE, name, file)
        try:
            spec = definition.read(SHARE, read_text(file), name, session.scope)
        except document.BadDocument as error:
            raise CliError(f"file {file} can't be used: {error}", "correct it.") from None
        finish(session, SHARE, spec, dry_run=dry_run, persistent=persistent)


def finish(
    session: Session, kind: Kind, spec: ShareSpec | MachineSpec, *, dry_run: bool, persistent: bool
) -> None:
    """Make what was imported, or print what it is."""
    if dry_run:
        click.echo(definition.write(spec, session.scope), nl=False)
        return

    async def body(client: Client) -> dict[str, Any]:
        path = await definition.create(client, spec, session.scope, persistent=persistent)
        return await client.properties(path, kind.interface)

    made = session.run(body)
    if session.json:
        print_json(made)
    elif kind is MACHINE:
        say(session, f'{spec.name} is defined; "vfsctl {session.flag}machine start {spec.name}" starts it.')
    else:
        say(session, f"{spec.name} listens on {made['SocketPath']}")


def name_for(kind: Kind, *candidates: str | None) -> str:
    """The first name that was given; a file's is that without its folder and its ending."""
    *given, last = candidates
    for name in given:
        if name:
            return name
    stem = Path(last or "").stem
    good = is_share_name(stem) if kind is SHARE else is_machine_name(stem)
    if last == STANDARD_INPUT or not good:
        raise CliError(f"nothing says how the {kind.noun} is to be called", "give --name NAME.", Exit.USAGE)
    return stem


def read_text(file: str) -> str:
    """What is in a file, or comes on standard input. :raise CliError: it can't be read, or is no text."""
    try:
        if file == STANDARD_INPUT:
            data = sys.stdin.buffer.read(TEXT_MAX + 1)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(TEXT_MAX + 1)
        if len(data) > TEXT_MAX:
            raise CliError(f"file {file} is longer than {TEXT_MAX >> 20} MiB", "it defines no machine.")
        return data.decode()
    except OSError as error:
        raise CliError(
            f"file {file} can't be read: {error.strerror}", "name a file, or - for standard input."
        ) from None
    except UnicodeDecodeError:
        raise CliError(f"file {file} is no text in UTF-8", "name another.") from None
