"""`vfsctl install-files`: what a vfsd that came from a wheel needs outside of it, so that its user can use it.

A wheel can put files only below the folder that it is installed to, where neither systemd nor D-Bus nor a shell looks.
So it brings them along in share/vfsd, and this puts them into the user's home: where systemd.unit(5), "User Unit Search
Path", has the units of packages that are installed there, and where the D-Bus specification, "Message Bus Starting
Services", and the shells look.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from importlib import metadata
from pathlib import Path

import click

from vfsd.cli.errors import CliError
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.names import Scope

MARK = 'put here by "vfsctl install-files"'
"""Each file has it in a comment. Whoever edits one and takes it out keeps the file."""
_COMMENTS = {".1": '.\\" ', ".5": '.\\" ', ".8": '.\\" '}
_TARGETS = {
    ".service": "systemd/user/{name}",
    ".slice": "systemd/user/{name}",
    ".bash": "bash-completion/completions/{stem}",
    ".zsh": "zsh/site-functions/_{stem}",
    ".fish": "fish/vendor_completions.d/{name}",
    ".1": "man/man1/{name}",
    ".5": "man/man5/{name}",
    ".8": "man/man8/{name}",
}
"""Where a file goes below $XDG_DATA_HOME, by how its name ends."""
_ACTIVATION = "org.vfsd1.session.service"
_ACTIVATION_TARGET = "dbus-1/services/org.vfsd1.service"


@click.command("install-files")
@click.option("--remove", is_flag=True, help="Take them away again.")
@global_options
@pass_session
def install_files(session: Session, remove: bool) -> None:
    """Put the user's unit, D-Bus activation, completions and man pages in place.

    Only for a vfsd that pip or pipx installed: a distribution's package has put its files in place. A file that is
    there already, and that this command did not put there, is named and left alone.
    """
    session.require_here("install-files", "it is for this user's home", "install-files")
    if session.scope is not Scope.USER:
        raise CliError(
            "a wheel is installed for a user, not for the system",
            'say "vfsctl install-files --user" as that user; for the system, install your distribution\'s '
            'package, or use "make install".',
        )
    home = _data_home()
    if remove:
        _remove(home)
    else:
        _install(home)
    _tell_the_buses()


def _install(home: Path) -> None:
    wanted = {home / target: text for target, text in _files().items()}
    for path in wanted:
        if path.exists() and not _is_ours(path):
            raise CliError(
                f'"{path}" is there already, and is not vfsctl\'s', "move it away, or keep it and do without."
            )
    made: list[Path] = []
    try:
        for path, text in wanted.items():
            if not path.exists():
                made.append(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            new.write_text(text, encoding="utf-8")
            new.replace(path)
    except OSError:
        for path in made:
            path.with_name(f".{path.name}.new").unlink(missing_ok=True)
            _take_away(path, home)
        raise
    for path in wanted:
        click.echo(path)


def _remove(home: Path) -> None:
    # what an older or newer version put there goes too
    folders = {(home / target).parent for target in (*_TARGETS.values(), _ACTIVATION_TARGET)}
    for path in sorted(path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        if _is_ours(path):
            _take_away(path, home)
            click.echo(path)


def _take_away(path: Path, home: Path) -> None:
    """Remove a file, and the folders below `home` that are empty then."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not empty
        for folder in path.relative_to(home).parents[:-1]:
            (home / folder).rmdir()


def _is_ours(path: Path) -> bool:
    try:
        return path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")[:1000]
    except OSError:
        return False


def _files() -> dict[str, str]:
    """The text of each file, by its place below $XDG_DATA_HOME. :raise CliError: there are none."""
    daemon, sources = None, []
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files("vfsd") or []:
            path = Path(str(file.locate()))
            if path.parent.name == "bin" and path.name == "vfsd":
                daemon = path.resolve()
            elif file.parts[-3:-1] == ("share", "vfsd"):
                sources.append(path)
    if daemon is None or not sources:
        raise CliError(
            "this vfsd was not installed from a wheel",
            'a package or "make install" has put its files in place already; there is nothing to do.',
        )
    return dict(_file(path, daemon) for path in sources)


def _file(source: Path, daemon: Path) -> tuple[str, str]:
    name = source.name.removesuffix(".in")
    if name == _ACTIVATION:
        target = _ACTIVATION_TARGET
    else:
        target = _TARGETS[Path(name).suffix].format(name=name, stem=Path(name).stem)
    text = source.read_text(encoding="utf-8").replace("@BINDIR@/vfsd", _quoted(str(daemon)))
    comment = f"{_COMMENTS.get(Path(name).suffix, '# ')}{MARK}; --remove takes it away\n"
    # the first line of a completion for zsh says what it completes
    head, tail = text.split("\n", 1) if text.startswith("#compdef") else ("", text)
    return target, f"{head}\n{comment}{tail}" if head else comment + tail


def _quoted(path: str) -> str:
    """A path as systemd.service(5) reads it in ExecStart=."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if escaped == path and not set(path) & set(" \t';") else f'"{escaped}"'


def _data_home() -> Path:
    # the XDG Base Directory Specification has a relative path ignored
    given = Path(os.environ.get("XDG_DATA_HOME", ""))
    return given if given.is_absolute() else Path.home() / ".local/share"


def _tell_the_buses() -> None:
    """Have the user's service manager and bus read what has changed."""
    call = (
        "--user",
        "--quiet",
        "call",
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
    )
    for command in (["systemctl", "--user", "daemon-reload"], ["busctl", *call, "ReloadConfig"]):
        try:
            done = subprocess.run(command, check=False, capture_output=True, timeout=30)
            failed = done.returncode != 0
        except (OSError, subprocess.TimeoutExpired):
            failed = True
        if failed:
            click.echo(f'"{" ".join(command[:3])}" did not work: log in anew, and all is known.', err=True)
