"""`vfsctl tray` in a real panel: GNOME Shell's, with the extension that shows StatusNotifierItems."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.desktop.gnome import EXTENSION, GnomeShell
from tests.desktop.session import Session
from tests.integration.harness import MACHINE, Vfsd, wait_for
from vfsd.cli.tray import AFTER_A_CALL

APP_INDICATORS = "ubuntu-appindicators@ubuntu.com"
UNIT = "test-tray"
ICON = "Object.entries(Main.panel.statusArea).find(([name]) => name.startsWith('appindicator-'))?.[1]"


@pytest.fixture
def panel(gnome: GnomeShell) -> Iterator[GnomeShell]:
    """A panel that shows such icons, and none of our own extension's."""
    gnome.run(f"Main.extensionManager.disableExtension('{EXTENSION}')")
    gnome.run(f"Main.extensionManager.enableExtension('{APP_INDICATORS}')")
    yield gnome
    gnome.run(f"Main.extensionManager.disableExtension('{APP_INDICATORS}')")
    gnome.run(f"Main.extensionManager.enableExtension('{EXTENSION}')")


@pytest.fixture
def tray(panel: GnomeShell, session: Session) -> Iterator[GnomeShell]:
    """The panel with the icon in it."""
    session.start(UNIT, "vfsctl", "tray")
    yield panel
    session.stop(UNIT)


def press(tray: GnomeShell, *labels: str) -> None:
    """Click on the icon, and then on one entry after the other."""
    tray.until(f"!!({ICON})?.mapped")
    # the panel asks for the menu when it has shown the icon, and a click before it has got it opens nothing
    tray.run(f"""for (let tries = 0; !{ICON}.menu.isOpen; tries++) {{
        if (tries === 5)
            throw new Error('the menu does not open');
        await shell.clickActor({ICON});
        await shell.until(() => {ICON}.menu.isOpen, 'it opens', 1000).catch(() => {{}});
    }}""")
    for label in labels:
        entry = f"shell.find({json.dumps(label)}, {ICON}.menu.actor)"
        tray.until(f"!!{entry}")
        tray.run(f"await shell.clickActor({entry})")


def close(tray: GnomeShell) -> None:
    tray.run(f"{ICON}.menu.close(0)")


def reads(tray: GnomeShell, text: str) -> None:
    """Open the menu, and wait until a text can be read in it."""
    press(tray)
    tray.until(f"shell.texts({ICON}.menu.actor).includes({json.dumps(text)})")


def test_a_machine_from_the_panel(tray: GnomeShell, vfsd: Vfsd) -> None:
    reads(tray, "No machines")
    close(tray)
    vfsd.run("vfsctl", "machine", "add", "web_1", "--builtin", "--memory", "128M")
    press(tray, "web_1: Stopped", "Start")
    path = vfsd.manager("GetMachine", "s", "web_1")
    wait_for(lambda: vfsd.get(path, MACHINE, "State") == "running", "it runs", 10)
    press(tray, "web_1: Running")
    tray.until(f"!!shell.find('Force Off', {ICON}.menu.actor)")
    tray.screenshot("tray")
    close(tray)
    time.sleep(1.5 * AFTER_A_CALL)  # what happens before is put down to the start
    os.kill(vfsd.get(path, MACHINE, "MainPID"), signal.SIGKILL)
    tray.until("shell.notifications().length === 1")
    ((told),) = tray.notifications()
    assert (told["title"], told["actions"]) == ("“web_1” failed", ["Start", "Show Log"])
    reads(tray, "web_1: Failed")
    tray.screenshot("tray-attention")
    close(tray)


def test_panel_and_tray_come_and_go(tray: GnomeShell, session: Session) -> None:
    reads(tray, "No machines")
    close(tray)
    tray.run(f"Main.extensionManager.disableExtension('{APP_INDICATORS}')")
    tray.until(f"!({ICON})")
    tray.run(f"Main.extensionManager.enableExtension('{APP_INDICATORS}')")
    reads(tray, "No machines")
    close(tray)
    session.stop(UNIT)
    tray.until(f"!({ICON})")
    session.start(UNIT, "vfsctl", "tray", environment={"LANG": "de_DE.UTF-8"})
    reads(tray, "Keine Maschinen")
    close(tray)
    press(tray, "Beenden")
    tray.until(f"!({ICON})")
