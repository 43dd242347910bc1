"""vfsctl's entry: the group of commands, and the one place where a failure becomes text and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from vfsd import __version__
from vfsd.cli.errors import (
    EXIT_CODES_HELP,
    CallFailed,
    CliError,
    Exit,
    Explanation,
    Unreachable,
    explain,
    explain_unreachable,
)
from vfsd.cli.lazy import LazyCommand, LazyGroup
from vfsd.cli.output import clean, sentence
from vfsd.cli.session import Session, global_options

DEBUG = "VFSCTL_DEBUG"
"""Set in the environment, it lets a bug of vfsctl end in a traceback."""
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

COMMANDS = {
    "check": LazyCommand("vfsd.cli.check:check", "Check what virtio-fs needs on this host."),
    "run": LazyCommand("vfsd.cli.run:run", "Boot a guest with directories shared; gone when it ends."),
    "status": LazyCommand("vfsd.cli.status:status", "What there is and how it does."),
    "share": LazyCommand("vfsd.cli.share:share", "Directories behind a virtiofsd socket."),
    "machine": LazyCommand("vfsd.cli.machine:machine", "QEMU machines and the shares they see."),
    "exec": LazyCommand("vfsd.cli.execute:execute", "Run a program in a guest, through its agent."),
    "console": LazyCommand("vfsd.cli.open_console:console", "A machine's console on this terminal."),
    "view": LazyCommand("vfsd.cli.view:view", "A machine's display in a window."),
    "ssh": LazyCommand("vfsd.cli.ssh:ssh", "Log in to a guest, or run a command there."),
    "guest-config": LazyCommand(
        "vfsd.cli.guest_config:guest_config", "What to write into a guest that mounts its shares."
    ),
    "top": LazyCommand("vfsd.cli.top:top", "What machines and shares use, as it changes."),
    "logs": LazyCommand("vfsd.cli.logs:logs", "The journal of a machine or share, in one stream."),
    "monitor": LazyCommand("vfsd.cli.monitor:monitor", "Print what happens as it happens."),
    "tray": LazyCommand("vfsd.cli.tray:tray", "An icon with a menu in the desktop's panel."),
    "install-files": LazyCommand(
        "vfsd.cli.install_files:install_files", "Put the files of a vfsd from pip into your home."
    ),
    "reload": LazyCommand("vfsd.cli.status:reload", "Read the configuration folders again."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, epilog=EXIT_CODES_HELP, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="vfsctl")
@global_options
def cli() -> None:
    """Share directories with QEMU guests over virtio-fs, and run such guests.

    vfsctl talks to vfsd over D-Bus; D-Bus starts vfsd when it is needed.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run vfsctl and return its exit code; nothing is raised."""
    session = Session()
    _open_standard_streams()
    try:
        # The name that is shown should be the one to type, also when started as "python3 -m vfsd.cli".
        result = cli.main(args=args, prog_name="vfsctl", standalone_mode=False, obj=session)
        sys.stdout.flush()
    except click.ClickException as error:
        return _usage(error)
    except (CallFailed, Unreachable, CliError) as error:
        code = _fail(_explain(error, session))
        return code if session.failure_code is None or code == Exit.USAGE else session.failure_code
    except (KeyboardInterrupt, click.Abort):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return Exit.FAILED
    except OSError as error:
        _drop_output()
        return _fail(_explain_system(error))
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        return _fail(_explain_bug(error))
    return _code(result)


def _open_standard_streams() -> None:
    """A descriptor that the caller closed (`>&-`) must not be taken by the next file that is opened.

    And what is printed in a locale that is not UTF-8 must not fail.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd != number:
                os.dup2(fd, number)
            setattr(sys, name, os.fdopen(number, mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # what the locale's encoding lacks, such as an arrow


def _explain(error: CallFailed | Unreachable | CliError, session: Session) -> Explanation:
    if isinstance(error, CallFailed):
        return explain(error, session.scope, session.login)
    if isinstance(error, Unreachable):
        return explain_unreachable(error, session.scope)
    return Explanation(str(error), error.hint, error.code)


def _drop_output() -> None:
    """The reader has gone (`| head`) or the disk is full: what is still buffered must not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain_system(error: OSError) -> Explanation:
    what = error.strerror or str(error)
    named = f"{error.filename}: " if error.filename else ""
    hint = "is there room where the output goes, and does the working directory exist?"
    return Explanation(f"{named}{what}", hint, Exit.FAILED)


def _explain_bug(error: Exception) -> Explanation:
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = f"python3-{error.name.partition('.')[0].replace('_', '-')}"
        return Explanation(f"the Python module {error.name} is missing", f"install {package}.", Exit.FAILED)
    sentence = f"this is a bug in vfsctl: {type(error).__name__}: {error}"
    return Explanation(sentence, f"with {DEBUG}=1 in the environment it shows where.", Exit.FAILED)


def _code(result: Any) -> int:
    return result if isinstance(result, int) else Exit.DONE


def _usage(error: click.ClickException) -> int:
    context = getattr(error, "ctx", None)
    hint = f'see "{context.command_path} --help".' if context else ""
    return _fail(Explanation(error.format_message(), hint, Exit.USAGE))


def _fail(explanation: Explanation) -> int:
    click.echo(f"{_bold('Error:', 'red')} {sentence(clean(explanation.sentence))}", err=True)
    if explanation.hint:
        click.echo(f"{_bold('Hint:', 'cyan')} {sentence(explanation.hint)}", err=True)
    return explanation.code


def _bold(text: str, colour: str) -> str:
    return text if os.environ.get("NO_COLOR") else click.style(text, fg=colour, bold=True)
