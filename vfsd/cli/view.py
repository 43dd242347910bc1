"""`vfsctl view`: a machine's display in a window of whatever viewer is installed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import Any, NamedTuple
from urllib.parse import quote

import click

from vfsd.cli.errors import CliError
from vfsd.cli.objects import MACHINE
from vfsd.cli.session import Session, global_options, pass_session

VIEWER = "VFSD_VIEWER"
"""Environment: a command that is used instead of those that are known here."""


class Viewer(NamedTuple):
    """A program that shows a display on a Unix socket, and how it is told which."""

    program: str
    address: str
    """With {path} for the socket, {uri} for the same as a part of a URI."""


VIEWERS = {
    "spice": [
        Viewer("remote-viewer", "spice+unix://{uri}"),
        Viewer("spicy", "--uri=spice+unix://{uri}"),
    ],
    "vnc": [
        Viewer("xtigervncviewer", "{path}"),
        Viewer("vncviewer", "{path}"),
        Viewer("remote-viewer", "vnc+unix://{uri}"),
    ],
}
"""By the machine's Display, the best first."""
TO_INSTALL = {"spice": "virt-viewer", "vnc": "tigervnc-viewer or virt-viewer"}


@click.command()
@click.argument("name")
@global_options
@pass_session
def view(session: Session, name: str) -> int:
    """The display of the machine NAME in a window, until that is closed.

    The machine needs a display: "vfsctl machine add --display vnc" or spice.
    VFSD_VIEWER in the environment names another viewer; it is called with
    spice+unix://PATH, or with the PATH of the socket for VNC.
    """
    session.require_here("view", "a display is a socket of that host", f"view {name}")
    found = session.run(lambda client: MACHINE.show_all(client, name))
    kind, path = display_of(found)
    command = viewer_command(kind, path)
    if not os.access(path, os.R_OK | os.W_OK):
        raise CliError(
            f"you may not open the display of {name}", "try again as the user whose machine it is."
        )
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        text = f"the viewer {command[0]} could not be started: {error.strerror}"
        raise CliError(text, f"correct {VIEWER}, or unset it.") from None
    return code if code >= 0 else 128 - code


def display_of(machine: dict[str, Any]) -> tuple[str, str]:
    """A machine's kind of display and its socket. :raise CliError: it has none, or none now."""
    name, kind, path = machine["Name"], machine["Display"], machine.get("DisplayPath")
    if kind == "none":
        raise CliError(
            f"machine {name} has no display",
            'make it with "--display vnc", or set its property Display to vnc while it is stopped; "vfsctl console" '
            "shows its console.",
        )
    if path is None:
        raise CliError(f"you may not see where the display of {name} is", "its owner and root may.")
    if not path:
        raise CliError(
            f"machine {name} is {machine['State']}; only one that runs has a display",
            f'"vfsctl machine start {name}" starts it.',
        )
    return kind, path


def viewer_command(kind: str, path: str) -> list[str]:
    """What is to be run to see a display. :raise CliError: nothing can show it here."""
    chosen = shlex.split(os.environ.get(VIEWER, ""))
    if chosen:
        return [*chosen, f"spice+unix://{quote(path)}" if kind == "spice" else path]
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise CliError(
            "there is no screen here to open a window on",
            f"run this in a graphical session (DISPLAY and WAYLAND_DISPLAY are unset), or set {VIEWER}.",
        )
    for viewer in VIEWERS[kind]:
        program = shutil.which(viewer.program)
        if program:
            return [program, viewer.address.format(path=path, uri=quote(path))]
    known = ", ".join(viewer.program for viewer in VIEWERS[kind])
    raise CliError(
        f"there is no viewer for {kind} here ({known})", f"install {TO_INSTALL[kind]}, or set {VIEWER}."
    )
