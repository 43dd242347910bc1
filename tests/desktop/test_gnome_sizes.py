"""A screen that shows everything twice as large, in a language that is written from right to left, with long names."""

from __future__ import annotations

from pathlib import Path

from tests.desktop.gnome import GnomeShell
from tests.desktop.test_gnome import add_machine
from tests.desktop.test_gnome_look import OUTSIDE, populate
from tests.integration.harness import Vfsd

LONG = "a-machine-whose-name-is-as-long-as-the-name-of-a-machine-may-be."


def test_long_names_from_right_to_left_at_200_percent(gnome: GnomeShell, vfsd: Vfsd, folder: Path) -> None:
    gnome.close()
    gnome.start("1600x1600", CLUTTER_TEXT_DIRECTION="rtl")
    gnome.scale(2)
    populate(vfsd, folder)
    add_machine(vfsd, LONG)
    vfsd.manager("CreateShare", "ssa{sv}", LONG, str(folder), "0")
    gnome.open()
    gnome.says("build", "Running, a share is broken")
    gnome.run("shell.dismissAll(); await shell.clickActor(shell.row('build'))")
    gnome.until("shell.find('Restart “build”')")
    assert gnome.run(OUTSIDE) == []
    gnome.screenshot("rtl-200")
    gnome.run("await shell.clickActor(shell.row('build')); shell.scrollUp()")
    gnome.until("!shell.find('Restart “build”')")
    assert gnome.run(OUTSIDE) == []
    gnome.screenshot("rtl-200-long")
    assert gnome.errors() == []
    gnome.close()
