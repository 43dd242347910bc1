"""`vfsctl logs`: what the journal has of a machine or a share, of its units, and of vfsd about it, in one stream."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from vfsd import names
from vfsd.cli import remote
from vfsd.cli.errors import CallFailed, CliError, Unreachable
from vfsd.cli.objects import MACHINE, SHARE, object_of
from vfsd.cli.output import clean, sentence
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.names import Scope

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client


class Subject(NamedTuple):
    """Whose entries are wanted."""

    machine: str = ""
    shares: tuple[str, ...] = ()


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option("--lines", "-n", metavar="N", type=click.IntRange(0), help="Begin with the last N entries.")
@click.option("--since", metavar="TIME", help='Begin there: "1h ago", "today", "2026-01-31 12:00".')
@click.argument("name")
@global_options
@pass_session
def logs(session: Session, name: str, follow: bool, lines: int | None, since: str | None) -> None:
    """The journal of the machine or share NAME: what its processes print, its guest's console, and vfsd's entries.

    Of a machine that includes its shares. journalctl(1) reads it, and shows what its user may see; --json gives the
    entries as "journalctl -o json" has them.
    """
    session.ask = False
    subject = _subject(session, name)
    command = ["journalctl", *_arguments(follow, lines, since, as_json=session.json)]
    command += matches(session.scope, subject, None if session.host else os.getuid())
    if session.host:
        command = remote.ssh_command(session.host, shlex.join(command))
    program = shutil.which(command[0])
    if program is None:
        raise CliError(f"there is no {command[0]} here", "install it, or correct the environment.")
    sys.stdout.flush()
    os.execv(program, command)  # noqa: S606  # no shell is wanted


def _subject(session: Session, name: str) -> Subject:
    """What has the name; if nothing has now, what had it, which the journal still knows."""

    async def body(client: Client) -> Subject:
        objects = await client.objects()
        machine, share = MACHINE.named(objects).get(name), SHARE.named(objects).get(name)
        if machine is None and share is None:
            raise CallFailed("", f'there is no machine or share "{name}" now')
        own = [object_of(path)[1] for path in machine["Shares"]] if machine else []
        shares = dict.fromkeys([*own, *([name] if share else [])])
        return Subject(name if machine else "", tuple(shares))

    try:
        return session.run(body)
    except (CallFailed, Unreachable) as error:
        if session.legend:
            told = f"{str(error).rstrip('.')}; this is what the journal has under that name"
            click.echo(clean(sentence(told)), err=True)
        return Subject(name, (name,))


def _arguments(follow: bool, lines: int | None, since: str | None, *, as_json: bool) -> Iterator[str]:
    if follow:
        yield "--follow"
    if lines is not None:
        yield f"--lines={lines}"
    if since:
        yield f"--since={since}"
    if as_json:
        yield "--output=json"


def matches(scope: Scope, subject: Subject, uid: int | None) -> list[str]:
    """The matches of journalctl. Different fields of a group must all match, of one field any; "+" begins a group.

    vfsd's own entries and systemd's about the units are told from those of other users' vfsd. A user's service manager
    does not tag what processes print, so there the slice and the units are asked for; elsewhere that does as well.

    :param uid: the user's, None if it is not known.
    """
    user = scope is Scope.USER
    field = {"unit": "_SYSTEMD_USER_UNIT", "slice": "_SYSTEMD_USER_SLICE", "about": "USER_UNIT"}
    if not user:
        field = {"unit": "_SYSTEMD_UNIT", "slice": "_SYSTEMD_SLICE", "about": "UNIT"}
    groups: list[list[str]] = []
    units: list[str] = []
    own = f"{field['unit']}=vfsd.service"
    if subject.machine:
        groups.append([f"VFSD_MACHINE={subject.machine}", own])
        groups.append([f"{field['slice']}={names.machine_slice(subject.machine)}"])
        units += names.machine_units(subject.machine)
    if subject.shares:
        groups.append([*(f"VFSD_SHARE={share}" for share in subject.shares), own])
    units += [unit for share in subject.shares for unit in names.share_units(share)]
    groups.append([f"{field['unit']}={unit}" for unit in units])
    groups.append([f"{field['about']}={unit}" for unit in units])
    return _joined(groups, [f"_UID={uid}"] if user and uid is not None else [])


def _joined(groups: Sequence[Sequence[str]], of_all: Sequence[str]) -> list[str]:
    words: list[str] = []
    for group in groups:
        words += [*(["+"] if words else []), *group, *of_all]
    return words
