"""`machine import`: a machine from TOML, libvirt's XML, QEMU's command line or a script that has one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import click

from vfsd import document
from vfsd.cli.errors import CliError, Exit
from vfsd.cli.imports.found import Found
from vfsd.cli.objects import MACHINE
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.transfer import STANDARD_INPUT, finish, name_for, read_text, report
from vfsd.model import MachineSpec
from vfsd.names import Scope, is_machine_name, make_name

if TYPE_CHECKING:
    from vfsd.cli.imports.virtiofsd import Served

_PROGRAM = re.compile(r"qemu-system-[\w-]+|qemu-kvm")
FORMS = ("toml", "libvirt", "qemu")
FORMS_HELP = """\
\b
FILE is one of these; - reads standard input:
  TOML, as "vfsctl machine export" writes it
  libvirt's XML of a domain, as "virsh dumpxml" prints it
  a shell script or command line that starts QEMU, such as microvm.nix's
  microvm-run; give what starts its virtiofsds too (virtiofsd-run, or
  another script): how a directory is served, only they tell
  /proc/PID/cmdline of a QEMU that runs, and of its virtiofsds
Instead of files there may be a command line: -- qemu-system-x86_64 …
What can't be taken over is told on standard error, a line each; for QEMU's
own options the property ExtraArguments is there.
"""


@click.command("import", epilog=FORMS_HELP)
@click.option("--name", metavar="NAME", help="Its name. Default: what the description says, or the file's.")
@click.option("--from", "form", type=click.Choice(FORMS), help="What FILE is. Default: what it looks like.")
@click.option("--dry-run", is_flag=True, help="Make nothing; print what would be made, as TOML.")
@click.option("--persistent", is_flag=True, help="Keep the definition across a reboot.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path())
@global_options
@pass_session
def import_machine(
    session: Session,
    files: tuple[str, ...],
    name: str | None,
    form: str | None,
    dry_run: bool,
    persistent: bool,
) -> None:
    """Define a machine that another program describes; it is not started."""
    spec = _read(files, name, form, session.scope)
    finish(session, MACHINE, spec, dry_run=dry_run, persistent=persistent)


def _read(files: Sequence[str], name: str | None, form: str | None, scope: Scope) -> MachineSpec:
    """The machine that is described; what of it could not be taken over is told."""
    if len(files) > 1 and _is_qemu(files[0]):
        found = _from_commands([list(files)])
        name = name_for(MACHINE, name, _own_name(found), STANDARD_INPUT)
    else:
        texts = [read_text(file) for file in files]
        form = form or _form_of(texts[0])
        if form == "toml":
            _only_one(files)
            return _from_toml(texts[0], name_for(MACHINE, name, files[0]), files[0], scope)
        found = _from_libvirt(files, texts) if form == "libvirt" else _from_scripts(files, texts)
        name = name_for(MACHINE, name, _own_name(found), files[0])
    report("Not taken over", found.left)
    return found.spec(name, scope)


def _from_toml(text: str, name: str, file: str, scope: Scope) -> MachineSpec:
    try:
        return document.read_machine(text, name, scope)
    except document.BadDocument as error:
        raise CliError(f"file {file} can't be used: {error}", "correct it.") from None


def _form_of(text: str) -> str:
    """What a description looks like."""
    if text.lstrip().startswith("<"):
        return "libvirt"
    with suppress(tomllib.TOMLDecodeError):
        tomllib.loads(text)
        return "toml"
    return "qemu" if "qemu-" in text or "virtiofsd" in text or text.startswith("#!") else "toml"


def _is_qemu(word: str) -> bool:
    """Whether a word names QEMU; one that is set to it (QEMU=…) does not."""
    return "=" not in word and bool(_PROGRAM.fullmatch(PurePath(word).name))


def _own_name(found: Found) -> str:
    """The name that a description gives, with what vfsd does not have in names replaced."""
    name = make_name(found.name).lstrip(".-")[:64]
    return name if is_machine_name(name) else ""


def _only_one(files: Sequence[str]) -> None:
    if len(files) > 1:
        raise CliError("one file defines one machine", "import one after the other.", Exit.USAGE)


def _from_libvirt(files: Sequence[str], texts: Sequence[str]) -> Found:
    from vfsd.cli.imports import libvirt  # noqa: PLC0415

    _only_one(files)
    return libvirt.read(texts[0])


def _from_scripts(files: Sequence[str], texts: Sequence[str]) -> Found:
    from vfsd.cli.imports import shell, virtiofsd  # noqa: PLC0415

    beside = {
        one.socket: one for file in files if file != STANDARD_INPUT for one in virtiofsd.beside(Path(file))
    }
    return _from_commands([words for text in texts for words in shell.commands(text)], beside)


def _from_commands(commands: Iterable[list[str]], beside: Mapping[str, Served] | None = None) -> Found:
    """The one QEMU among commands, with the directories that the virtiofsds among them serve.

    :param beside: what is known of virtiofsds whose commands are not given, by their sockets.
    """
    from vfsd.cli.imports import qemu, virtiofsd  # noqa: PLC0415

    machines: list[list[str]] = []
    handed: list[str] = []
    served = dict(beside or {})
    for words in commands:
        names = [PurePath(word).name for word in words]
        at = next((place for place, word in enumerate(words) if _is_qemu(word)), None)
        if at is not None:
            if at + 1 < len(words):  # else it is asked for, as by "command -v"
                machines.append(words[at + 1 :])
        elif "virtiofsd" in names:
            one = virtiofsd.read(words[names.index("virtiofsd") + 1 :])
            if one is not None and one.socket:
                served[one.socket] = one
            elif one is not None:
                handed.append(one.share.source)
    if len(machines) != 1:
        what = f"{len(machines)} command lines of QEMU are" if machines else "no command line of QEMU is"
        raise CliError(
            f"{what} in it",
            "give what starts one machine: a script in which QEMU is named, or -- qemu-system-x86_64 …",
        )
    found = qemu.read(machines[0], served)
    for source in handed:
        found.leave(
            f"directory {source}", "its virtiofsd was given an open socket, which has no name to know it by"
        )
    return found
