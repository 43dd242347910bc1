"""`edit`: a definition in an editor, checked and applied; what was written is never lost."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from vfsd.cli.errors import CallFailed, CliError, Exit, explain
from vfsd.cli.objects import Kind, say
from vfsd.cli.output import clean, sentence
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.paths import Paths

if TYPE_CHECKING:
    from vfsd.cli.definition import Known
    from vfsd.cli.proxy import Client

EDITORS = ("sensible-editor", "editor", "nano", "vim", "vi")
"""What is tried when neither VISUAL nor EDITOR says."""


def add_edit(group: click.Group, kind: Kind) -> None:
    """`edit NAME`."""

    @group.command(help=f"Change the definition of a {kind.noun} as TOML, in the editor of VISUAL or EDITOR.")
    @click.argument("name")
    @click.option(
        "--file",
        metavar="FILE",
        type=click.Path(),
        help="Take what is wanted from FILE; - reads standard input.",
    )
    @global_options
    @pass_session
    def edit(session: Session, name: str, file: str | None) -> None:
        _Edit(session, kind, name).run(file)


class _Edit:
    """One definition that is being changed."""

    def __init__(self, session: Session, kind: Kind, name: str) -> None:
        self._session = session
        self._kind = kind
        self._name = name

    def run(self, file: str | None) -> None:
        """Change it as a file says, or an editor. :raise CliError, CallFailed: not everything could be done."""
        known = self._fetch()
        if file is not None:
            from vfsd.cli.transfer import read_text  # noqa: PLC0415

            self._apply(known, read_text(file), file)
            return
        begin = self._begin(known)
        descriptor, path = tempfile.mkstemp(prefix=f"vfsctl-{self._name}-", suffix=".toml")
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(begin)
        try:
            while not self._edited(known, begin, path):
                # some of it may be done, so that even the first text could be a change now
                begin, known = "", self._fetch()
        except (KeyboardInterrupt, click.Abort):
            if not self._is_unchanged(path, begin):
                click.echo(clean(sentence(self._kept(path))), err=True)
            raise
        finally:
            if self._is_unchanged(path, begin):
                Path(path).unlink(missing_ok=True)

    def _edited(self, known: Known, begin: str, path: str) -> bool:
        """Have the file edited, and apply it. False: it is to be edited again.

        :raise CliError, CallFailed: not everything could be done; what was written is kept.
        """
        try:
            _call_editor(path)
            text = _read(path)
            if text in ("", begin):
                say(self._session, f"Nothing was changed of {self._name}.")
            else:
                self._apply(self._as_it_is(known), text, path)
        except (CliError, CallFailed) as error:
            if self._is_unchanged(path, begin):
                raise
            self._again_or_end(error, path)
            return False
        Path(path).unlink(missing_ok=True)
        return True

    def _as_it_is(self, known: Known) -> Known:
        """What was shown, in the state that it is in now: it may have been stopped while somebody wrote."""
        now = self._fetch()
        return now._replace(spec=known.spec, own={**known.own, **now.own})

    def _fetch(self) -> Known:
        from vfsd.cli.definition import fetch  # noqa: PLC0415

        self._refuse_files()
        session = self._session
        return session.run(lambda client: fetch(client, self._kind, self._name, session.scope))

    def _refuse_files(self) -> None:
        """What a file of a configuration folder defines would be as before with the next Reload."""
        if self._session.host:
            return  # they can't be seen from here
        for folder in Paths.of(self._session.scope).config:
            path = folder / f"{self._kind.noun}s" / f"{self._name}.toml"
            if path.exists():
                hint = f'edit that; "vfsctl {self._session.flag}reload" applies it.'
                raise CliError(f"{self._kind.noun} {self._name} is defined by {path}", hint)

    def _begin(self, known: Known) -> str:
        """What the editor shows first."""
        noun, name = self._kind.noun, self._name
        lines = [
            f"The {noun} {name}, which is {known.state}. Save it and leave the editor to change the {noun}.",
            "An option that is taken out gets its default. All options: vfsctl "
            f"{noun} show {name}, in snake_case here.",
        ]
        lines += [f"Share {share} is attached to it, and stays." for share in known.attached]
        lines += [f'What is in credential {secret} is not shown; "" keeps it.' for secret in known.secrets]
        return "".join(f"# {line}\n" for line in lines) + "\n" + known.text(self._session.scope)

    def _apply(self, known: Known, text: str, path: str) -> None:
        """:raise CliError, CallFailed: not everything could be done."""
        from vfsd.cli import changes, definition  # noqa: PLC0415
        from vfsd.document import BadDocument  # noqa: PLC0415

        session, name = self._session, self._name
        try:
            wanted = definition.read(self._kind, text, name, session.scope)
        except BadDocument as error:
            raise CliError(f"this defines no {self._kind.noun}: {error}", "correct it.", Exit.USAGE) from None
        todo = changes.changes(known, wanted)

        async def body(client: Client) -> None:
            await changes.apply(client, known, todo, session.scope)

        if todo.done_now:
            session.run(body)
            say(session, f"{name} is changed: {', '.join(todo.done_now)}.")
        elif not todo.waiting:
            say(session, f"Nothing was changed of {name}.")
        if todo.waiting:
            self._tell_waiting(known, todo.waiting, path)

    def _tell_waiting(self, known: Known, waiting: list[str], path: str) -> NoReturn:
        again = "the same" if path == "-" else f'"{self._command(path)}"'
        raise _Waits(
            f"{self._kind.noun} {self._name} is {known.state}; it must be stopped to change {', '.join(waiting)}",
            f"when it is stopped, {again} changes that.",
        )

    def _command(self, path: str) -> str:
        return f"vfsctl {self._session.flag}{self._kind.noun} edit {self._name} --file {shlex.quote(path)}"

    def _kept(self, path: str) -> str:
        return f'what you wrote is kept in {path}; "{self._command(path)}" takes it when it is right.'

    def _is_unchanged(self, path: str, begin: str) -> bool:
        """Whether there is nothing in the file that anybody would miss."""
        try:
            return _read(path) in ("", begin)
        except CliError:
            return not Path(path).exists()

    def _again_or_end(self, error: CallFailed | CliError, path: str) -> None:
        """Return if it is to be edited again. :raise CliError: it is not; the file stays."""
        if isinstance(error, CallFailed):
            told, hint, code = explain(error, self._session.scope, self._session.login)
        else:
            told, hint, code = str(error), error.hint, error.code
        if isinstance(error, _Waits):
            raise error
        if sys.stdin.isatty() and not self._session.json:
            click.echo(clean(f"{sentence(told)} {sentence(hint)}".rstrip()), err=True)
            if click.confirm("Edit again?", default=True, err=True):
                return
        raise CliError(told, self._kept(path), code)


class _Waits(CliError):
    """All was done but for what waits for a stop: to edit again would not help."""


def _call_editor(path: str) -> None:
    """Let somebody edit a file. :raise CliError: there is no editor, or it failed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        editor = next((found for name in EDITORS if (found := shutil.which(name))), "")
    if not editor:
        raise CliError("there is no editor here", "set EDITOR, or use --file.")
    # as git does: the variable may be a command with arguments, and a Ctrl-C is the editor's, not the shell's or
    # vfsctl's (a handler, unlike what is ignored, is not passed on)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGQUIT)}
    try:
        command = ["/bin/sh", "-c", f'trap : INT QUIT; {editor} "$@"', editor, path]
        code = subprocess.run(command, check=False).returncode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code in (-signal.SIGINT, 128 + signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        raise CliError(f"the editor {editor} ended with {code}", "set EDITOR to another, or use --file.")


def _read(path: str) -> str:
    """What the editor left. :raise CliError: nothing that can be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise CliError(f"{path} is not UTF-8", "correct it.") from None
    except OSError as error:
        raise CliError(
            f"{path} can't be read: {error.strerror}", "the editor should save to that file."
        ) from None
