"""Each ability of the extension in the real GNOME Shell, with real machines: by pointer and by keyboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.desktop.gnome import GnomeShell
from tests.desktop.session import Session
from tests.integration.harness import MACHINE, SHARE, TESTER, Vfsd, wait_for

MEANS = {"web": "Pointer", "db": "Keyboard"}
PORTAL = "portal-test"


class Terminal:
    """What was run in a terminal, and what it printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def started(self) -> list[list[str]]:
        path = self.folder / "started"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def output(self) -> str:
        path = self.folder / "output"
        return path.read_bytes().decode(errors="replace") if path.exists() else ""

    def ran(self, *command: str) -> None:
        """Wait until that was run."""
        wait_for(lambda: list(command) in self.started(), f"a terminal runs {command}", 10)

    def shows(self, *texts: str) -> None:
        """Wait until these were printed, one after the other."""
        pattern = re.compile(".*".join(re.escape(text) for text in texts), re.DOTALL)
        try:
            wait_for(lambda: pattern.search(self.output()), f"the terminal shows {texts}", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.output()[-1000:]}") from None


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    """The user's terminal."""
    kept = folder / "terminal"
    kept.mkdir()
    shutil.chown(kept, TESTER, TESTER)
    program = Path("/usr/local/bin/xdg-terminal-exec")
    source = Path(__file__).with_name("terminal.py")
    program.write_text(f'#!/bin/sh\nexec python3 {source} {kept} "$@"\n')
    program.chmod(0o755)
    yield Terminal(kept)
    program.unlink()


def add_machine(vfsd: Vfsd, name: str, *shares: Path, **options: tuple[str, str]) -> None:
    """A machine with the built-in guest; an option is its type and value, as busctl takes them."""
    given = {"Builtin": ("b", "true"), "Memory": ("t", str(256 << 20)), **options}
    entries = [word for key, value in given.items() for word in (key, value[0], *value[1].split())]
    sources = [word for share in shares for word in (str(share), "", "0")]
    entries += ["Shares", "a(ssa{sv})", str(len(shares)), *sources]
    vfsd.manager("CreateMachine", "sa{sv}", name, str(len(given) + 1), *entries)


def kill_virtiofsd(vfsd: Vfsd, name: str) -> None:
    path = str(vfsd.manager("GetShare", "s", name))
    wait_for(lambda: vfsd.get(path, SHARE, "MainPID"), "virtiofsd runs", 10)
    os.kill(int(vfsd.get(path, SHARE, "MainPID")), signal.SIGKILL)


def told(gnome: GnomeShell, title: str) -> dict[str, Any]:
    """The notification of that title, once it is there: the only one."""
    gnome.until(f"shell.notifications().some(({{title}}) => title === '{title}')", 15)
    [notification] = gnome.notifications()
    return notification


def test_a_machine(gnome: GnomeShell, vfsd: Vfsd, folder: Path, terminal: Terminal) -> None:
    shared = folder / "src"
    vfsd.run("mkdir", str(shared))
    # its guest boots meanwhile
    add_machine(vfsd, "healing", shared, OnShareFailure=("s", "heal"))
    vfsd.manager("StartMachine", "s", "healing")
    add_machine(vfsd, "web", shared)
    # its guest never gets so far that it could shut down
    add_machine(vfsd, "db", shared, ShutdownTimeoutUSec=("t", "500000"))
    for means, name, state, action in (
        ("Pointer", "web", "Stopped", "Start"),
        ("Keyboard", "db", "Stopped", "Start"),
        ("Keyboard", "db", "Running", "Pause"),
        ("Pointer", "web", "Running", "Pause"),
        ("Pointer", "web", "Paused", "Resume"),
        ("Keyboard", "db", "Paused", "Resume"),
        ("Keyboard", "db", "Running", "Shut down"),
        ("Pointer", "web", "Running", "Open the console of"),
        ("Keyboard", "web", "Running", "Open the console of"),
        ("Pointer", "web", "Running", "Shut down"),
        ("Pointer", "web", "Stopped", "Start"),
        ("Keyboard", "db", "Stopped", "Start"),
        ("Pointer", "web", "Running", "Force off"),
        ("Keyboard", "db", "Running", "Force off"),
        ("Pointer", "web", "Stopped", "Show the log of"),
        ("Keyboard", "db", "Stopped", "Show the log of"),
    ):
        gnome.open(means)
        gnome.says(name, f"{name}, {state}, 1 share", 20)
        gnome.choose(means, name, f"{action} “{name}”")
        if (means, action) == ("Keyboard", "Open the console of"):
            wait_for(
                lambda: terminal.started().count(["vfsctl", "--user", "console", "web"]) == 2, "both", 10
            )
            terminal.shows("This is web", "This is web", "guest:~#")
    for name in ("web", "db"):
        matches = (f"VFSD_MACHINE={name}", "+", f"_SYSTEMD_USER_SLICE=vfsd-{name}.slice")
        terminal.ran("journalctl", "--lines=500", "--follow", *matches)
    terminal.shows("Started vfsd-machine-db.service")
    assert gnome.notifications() == []  # of what the user did
    path = str(vfsd.manager("GetMachine", "s", "healing"))
    wait_for(lambda: vfsd.get(path, MACHINE, "GuestReady"), "the guest is ready", 60)
    kill_virtiofsd(vfsd, "healing.src")
    assert told(gnome, "“healing” works again")["actions"] == []


@pytest.fixture
def portal(session: Session, folder: Path) -> Iterator[Callable[..., Path]]:
    """Starts a portal in which a folder is chosen, or none; returns the file that tells what it was asked."""

    def start(*chosen: Path) -> Path:
        session.stop(PORTAL)
        asked = folder / "asked"
        program = Path(__file__).with_name("portal.py")
        session.start(PORTAL, "python3", str(program), str(asked), *map(str, chosen))
        status = ("busctl", "--user", "status", "org.freedesktop.portal.Desktop")
        wait_for(lambda: session.user.run(*status, check=False), "the portal is there", 10)
        return asked

    yield start
    session.stop(PORTAL)


def test_a_folder(
    gnome: GnomeShell, vfsd: Vfsd, folder: Path, portal: Callable[..., Path], terminal: Terminal
) -> None:
    chosen = folder / "Zürich & Süden"
    vfsd.run("mkdir", str(chosen))
    for number, means in enumerate(("Pointer", "Keyboard")):
        asked = portal(chosen)
        gnome.open(means)
        gnome.choose_own(means, "Share a Folder…")
        name = ("Zurich-Suden", "Zurich-Suden-2")[number]
        wait_for(lambda: vfsd.manager("ListShares"), "it is shared", 10)
        assert (
            json.loads(asked.read_text())[3].items() >= {"directory": True, "accept_label": "Share"}.items()
        )
        gnome.open(means)
        gnome.says(name, f"{name}, Waiting for a client, {chosen}")
    portal()
    gnome.open()
    gnome.choose_own("Pointer", "Share a Folder…")
    assert len(vfsd.manager("ListShares")) == 2
    gnome.choose("Pointer", "Zurich-Suden", "Show the log of “Zurich-Suden”")
    matches = ("VFSD_SHARE=Zurich-Suden", "+", "_SYSTEMD_USER_UNIT=vfsd-share-Zurich\\x2dSuden.service")
    terminal.ran("journalctl", "--lines=500", "--follow", *matches)
    gnome.choose("Pointer", "Zurich-Suden", "Stop sharing “Zurich-Suden”")
    gnome.choose("Keyboard", "Zurich-Suden-2", "Stop sharing “Zurich-Suden-2”")
    wait_for(lambda: vfsd.manager("ListShares") == [], "they are gone", 10)
    gnome.open()
    gnome.until("shell.texts(shell.toggle.menu.actor).some(text => text.startsWith('No machines'))")
    assert gnome.notifications() == []
