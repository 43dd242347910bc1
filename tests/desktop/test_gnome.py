"""Each ability of the extension in the real GNOME Shell, with real machines: by pointer and by keyboard."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desktop.gnome import GnomeShell
from tests.desktop.session import Session
from tests.integration.harness import TESTER, Vfsd, wait_for

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
        wait_for(lambda: list(command) in self.started(), f"a terminal runs {command}", 5)

    def shows(self, *texts: str) -> None:
        """Wait until these were printed, one after the other."""
        pattern = re.compile(".*".join(re.escape(text) for text in texts), re.DOTALL)
        wait_for(lambda: pattern.search(self.output()), f"the terminal shows {texts}", 15)


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


def add_machine(vfsd: Vfsd, name: str, *options: str) -> None:
    vfsd.run("vfsctl", "machine", "add", name, "--builtin", "--memory", "256M", *options)


def test_a_machine(gnome: GnomeShell, vfsd: Vfsd, folder: Path, terminal: Terminal) -> None:
    shared = folder / "src"
    vfsd.run("mkdir", str(shared))
    for name in MEANS:
        add_machine(vfsd, name, "--share", str(shared))
    for state, action in (
        ("Stopped", "Start"),
        ("Running", "Pause"),
        ("Paused", "Resume"),
        ("Running", "Open the console of"),
        ("Running", "Shut down"),
        ("Stopped", "Start"),
        ("Running", "Force off"),
        ("Stopped", "Show the log of"),
    ):
        for name, means in MEANS.items():
            gnome.open(means)
            gnome.says(name, f"{name}, {state}, 1 share", 20)
            gnome.choose(means, name, f"{action} “{name}”")
            if action == "Open the console of":
                terminal.ran("vfsctl", "--user", "console", name)
                terminal.shows(f"This is {name}", "guest:~#")
    for name in MEANS:
        matches = (f"VFSD_MACHINE={name}", "+", f"_SYSTEMD_USER_SLICE=vfsd-{name}.slice")
        terminal.ran("journalctl", "--lines=500", "--follow", *matches)
    assert gnome.notifications() == []
