"""What the extension tells by notifications, and what it does not: that which the user did himself."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.desktop.gnome import SETTINGS, GnomeShell
from tests.desktop.test_gnome import Terminal, add_machine, kill_virtiofsd, terminal, told
from tests.integration.harness import MACHINE, Vfsd, wait_for

__all__ = ["terminal"]
BROKEN = ("as", "1 -no-such-option")


@pytest.fixture
def shared(vfsd: Vfsd, folder: Path) -> Path:
    """A folder of the user's to be shared."""
    inner = folder / "src"
    vfsd.run("mkdir", str(inner))
    return inner


def test_a_share_of_a_machine_is_lost(
    gnome: GnomeShell, vfsd: Vfsd, shared: Path, terminal: Terminal
) -> None:
    # its guest has not booted: it can't be asked to shut down
    add_machine(vfsd, "web", shared, ShutdownTimeoutUSec=("t", "500000"))
    vfsd.manager("StartMachine", "s", "web")
    gnome.until("shell.toggle.subtitle === '1 running'")
    kill_virtiofsd(vfsd, "web.src")
    notification = told(gnome, "“web” lost a share")
    assert "SIGKILL" in notification["body"]
    assert notification["actions"] == ["Restart", "Show Log"]
    gnome.until("Main.messageTray._banner?.mapped")
    gnome.screenshot("notification")
    gnome.run("await shell.point(Main.messageTray._banner)")
    gnome.click("Show Log")
    matches = ("VFSD_MACHINE=web", "+", "_SYSTEMD_USER_SLICE=vfsd-web.slice")
    terminal.ran("journalctl", "--lines=500", "--follow", *matches)
    gnome.open()
    gnome.says("web", "Running, a share is broken")
    gnome.until("shell.toggle.subtitle === '1 problem'")
    gnome.run("await shell.clickActor(shell.row('web'))")
    gnome.until("shell.find('Restart “web”')")
    assert any("SIGKILL" in text for text in gnome.texts())
    gnome.screenshot("degraded")
    # what it does then is the user's doing, and so is that its share is served again
    gnome.click("Restart “web”")
    gnome.open()
    gnome.says("web", "web, Running, 1 share", 10)
    time.sleep(0.5)
    assert gnome.eval("shell.told") == ["“web” lost a share"]
    assert gnome.notifications() == []
    assert vfsd.get(str(vfsd.manager("GetMachine", "s", "web")), MACHINE, "Degraded") is False


def test_a_machine_that_does_not_start(gnome: GnomeShell, vfsd: Vfsd) -> None:
    add_machine(vfsd, "web", ExtraArguments=BROKEN)
    # by the user, here: only that it did not work
    gnome.choose("Pointer", "web", "Start “web”")
    notification = told(gnome, "Could not start “web”")
    assert gnome.eval("shell.told") == ["Could not start “web”"]
    assert "GDBus" not in notification["body"]
    assert "no-such-option" in notification["body"]
    gnome.open()
    gnome.says("web", "Failed")
    # by somebody else, and later
    time.sleep(1)
    gnome.run("shell.close(); shell.dismissAll()")
    vfsd.run("vfsctl", "machine", "start", "web", check=False)
    assert told(gnome, "“web” failed")["actions"] == ["Start", "Show Log"]


def test_a_folder_that_comes_and_goes(gnome: GnomeShell, vfsd: Vfsd, shared: Path) -> None:
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(shared), "0")
    away = shared.with_name("away")
    for is_told in (True, False):
        gnome.until("shell.toggle.subtitle === '1 shared folder'")
        shared.rename(away)
        if is_told:
            assert "src" in told(gnome, "“src” is unavailable")["body"]
        gnome.until("shell.toggle.subtitle === '1 problem'", 15)
        away.rename(shared)
        if is_told:
            told(gnome, "“src” works again")
        gnome.until("shell.toggle.subtitle === '1 shared folder'", 15)
        if not is_told:
            assert gnome.notifications() == []
        gnome.set(SETTINGS, "notify-failures", "false")
        gnome.set(SETTINGS, "notify-recoveries", "false")
        gnome.run("shell.dismissAll()")
    shutil.rmtree(shared)
    gnome.until("shell.toggle.subtitle === '1 problem'", 15)
    gnome.choose("Pointer", "src", "Stop sharing “src”")
    wait_for(lambda: vfsd.manager("ListShares") == [], "it is gone", 10)
    assert gnome.notifications() == []
