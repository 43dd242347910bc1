"""The applet in a real Plasma, driven by pointer and keyboard, with a real vfsd and real machines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbus_next import Variant

from tests.desktop.kde import APPLET, Plasma, authenticating
from tests.desktop.screen_reader import matching
from tests.desktop.session import Session
from tests.integration.conftest import kept_clean
from tests.integration.harness import MACHINE, SHARE, Client, Vfsd

PICTURES = "/home/tester/pictures"
BOX = "/org/vfsd1/machine/box"
NEWS = re.compile("“box”")
MEMORY = 24 << 20
"""Bytes by which the shell may grow in what is done here; a leak of a reply for each signal would be more."""


@pytest.fixture(scope="module")
def shell(session: Session) -> Iterator[Plasma]:
    plasma = Plasma(session)
    plasma.start()
    yield plasma
    plasma.stop()


@pytest.fixture
def plasma(shell: Plasma) -> Iterator[Plasma]:
    """The shell; the test fails if Qt complains of the applet's files."""
    since = time.time()
    yield shell
    shell.application = "plasmashell"
    shell.close_popup()
    assert shell.complaints(since) == []


@pytest.fixture
def system() -> Iterator[Vfsd]:
    """The system's vfsd, without objects before and after."""
    with kept_clean("system") as service:
        yield service


@pytest.fixture
def box(plasma: Plasma, vfsd: Vfsd) -> Vfsd:
    """A machine with a share, which runs."""
    vfsd.run("mkdir", "-p", PICTURES)
    vfsd.run(
        "vfsctl", "machine", "add", "box", "--builtin", "--memory", "128M", "--share", f"{PICTURES}:/data"
    )
    vfsd.run("vfsctl", "machine", "start", "box")
    return vfsd


def kill(vfsd: Vfsd, path: str, interface: str) -> None:
    """Kill the QEMU or virtiofsd of an object."""
    os.kill(vfsd.get(path, interface, "MainPID"), signal.SIGKILL)


def terminals(*words: str) -> list[int]:
    """Terminals in units of their own that run a command with these words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().decode().split("\0")
            is_apart = "/app.slice/run-" in (folder / "cgroup").read_text()
            if is_apart and "-e" in line and all(word in line for word in words):
                found.append(int(folder.name))
    return found


def close_terminal(plasma: Plasma, *words: str) -> None:
    """Wait for the terminal that runs this command, and end it."""
    plasma.until(lambda: terminals(*words), f"a terminal runs {words}")
    plasma.run("xdotool", "search", "--sync", "--onlyvisible", "--class", "xterm")
    for pid in terminals(
        *words
    ):  # the terminal forks before it runs the command, and is seen twice for a moment
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def test_pointer(plasma: Plasma, box: Vfsd) -> None:
    """Each action on a machine, by clicks in the tray's popup."""
    plasma.open_popup("1 running")
    plasma.press("Expand “box”")
    plasma.find(f"{PICTURES}, In use", "list item")
    plasma.screenshot("machine")
    plasma.press("Pause “box”")
    plasma.find("box", "button", "Paused")
    plasma.press("Resume “box”")
    plasma.find("box", "button", "Running · 1 share")

    plasma.press("Expand “box”")
    plasma.press("Open the console of “box”")
    plasma.run("xdotool", "search", "--sync", "--onlyvisible", "--class", "xterm", "windowactivate", "--sync")
    answer = Path(PICTURES, "answer")

    def answers() -> bool:
        plasma.write("echo $((6 * 7)) > /data/answer\n")
        return answer.exists() and answer.read_text() == "42\n"

    plasma.until(answers, "the guest does what is typed, once it listens", 40)
    plasma.screenshot("console")
    close_terminal(plasma, "vfsctl", "--user", "console", "box")

    plasma.open_popup("1 running")
    plasma.press("Shut down “box”")
    plasma.find("box", "button", "Stopped", timeout=20)
    plasma.press("Start “box”")
    plasma.find("box", "button", "Running")
    plasma.press("Expand “box”")
    plasma.press("Force off “box”")
    plasma.find("box", "button", "Stopped")


def test_keyboard(plasma: Plasma, box: Vfsd) -> None:
    """The same by keyboard alone, in a window."""
    with plasma.window():
        plasma.find("box", "button", "Running")
        plasma.expand_by_keyboard("box")
        plasma.tab_to("Pause “box”", "space")
        plasma.find("box", "button", "Paused")
        plasma.keys("Return")
        plasma.find("box", "button", "Running")
        plasma.expand_by_keyboard("box")
        plasma.tab_to("Open the console of “box”", "space")
        close_terminal(plasma, "vfsctl", "--user", "console", "box")
        plasma.expand_by_keyboard("box")
        plasma.tab_to("Force off “box”", "space")
        plasma.find("box", "button", "Stopped")
        plasma.tab_to("Expand “box”", "space")
        plasma.tab_to("Show the log of “box”", "space")
        close_terminal(plasma, "journalctl", "VFSD_MACHINE=box")
        plasma.tab_to("Start “box”", "space")
        plasma.find("box", "button", "Running")
        plasma.tab_to("Shut down “box”", "space")
        plasma.find("box", "button", "Stopping…")


def test_share(plasma: Plasma, vfsd: Vfsd, folder: Path) -> None:
    """A folder is shared through the dialog, and no longer; once by pointer, once by keyboard."""
    with plasma.window():
        plasma.find("No machines")
        plasma.screenshot("empty")
        plasma.press("Share a Folder…")
        plasma.find("Share a Folder", "dialog")
        plasma.press("", "text")
        plasma.keys("ctrl+a")
        plasma.write(str(folder))
        plasma.screenshot("dialog")
        plasma.press("OK")
        plasma.find(folder.name, "button", f"Waiting for a client · {folder}")
        plasma.screenshot("share")
        plasma.press(f"Stop sharing “{folder.name}”")
        plasma.find("No machines")
        assert vfsd.manager("ListShares") == []

        plasma.tab_to("Share a Folder…", "space")
        plasma.find("Share a Folder", "dialog")
        plasma.keys("alt+o")  # what it opens with: the home
        plasma.find("tester", "button", "Waiting for a client · /home/tester")
        plasma.tab_to("Stop sharing “tester”", "space")
        plasma.find("No machines")


def test_failure(plasma: Plasma, box: Vfsd) -> None:
    """What fails is told, with what helps."""
    plasma.find("vfsd", "button", "1 running")
    kill(box, BOX, MACHINE)
    plasma.point(plasma.find("“box” failed", "notification", "QEMU was killed by SIGKILL"))
    plasma.find("vfsd", "button", "“box” failed")
    plasma.screenshot("failed")
    plasma.press("Start")
    plasma.find("vfsd", "button", "1 running")
    assert not matching(plasma.nodes(), NEWS, "notification")
    time.sleep(1.2)  # for a second what happens to it counts as what was asked for

    kill(box, box.get(BOX, MACHINE, "Shares")[0], SHARE)
    plasma.point(plasma.find("“box” lost a share", "notification", "virtiofsd was killed by SIGKILL"))
    plasma.press("Show Log")
    close_terminal(plasma, "journalctl", "VFSD_MACHINE=box")
    plasma.open_popup("“box” lost a share")
    plasma.find("box", "button", "Running, a share is broken")
    plasma.press("Expand “box”")
    plasma.find(f"{PICTURES}, Failed", "list item")
    plasma.screenshot("broken")
    plasma.press("Restart “box”")
    plasma.find("box", "button", "Stopping…")  # the guest waits for its share, and is not done within seconds
    plasma.press("Expand “box”")
    plasma.press("Force off “box”")
    plasma.find("box", "button", "Running · 1 share")
    assert not matching(plasma.nodes(), NEWS, "notification")


def test_recovery(plasma: Plasma, vfsd: Vfsd, folder: Path) -> None:
    """A folder that goes is told, and that it is back, though nothing runs or is shown."""
    vfsd.run("vfsctl", "share", "add", "music", str(folder))
    plasma.find("vfsd", "button", "1 shared folder")
    away = folder.rename(folder.with_name("away"))
    plasma.find("“music” is unavailable", "notification")
    plasma.find("vfsd", "button", "“music” is unavailable")
    away.rename(folder)
    plasma.find("“music” works again", "notification")
    plasma.find("vfsd", "button", "1 shared folder")


def test_own_failure(plasma: Plasma, vfsd: Vfsd, folder: Path) -> None:
    """What the user did and what fails is told once, as an error, never as news."""
    vfsd.run("vfsctl", "machine", "add", "box", "--builtin", "--memory", "128M", "--share", f"{folder}:/data")
    folder.rmdir()
    with plasma.window():
        plasma.press("Start “box”")
        plasma.find("box", "button", "Failed")
        plasma.application = "plasmashell"
        plasma.point(plasma.find("Could not start “box”", "notification", str(folder)))
        plasma.screenshot("error")
        time.sleep(1)
        told = [node.name for node in matching(plasma.nodes(), NEWS, "notification")]
        assert told == ["Could not start “box”"]
    folder.mkdir()


def test_looking_starts_nothing(plasma: Plasma, vfsd: Vfsd) -> None:
    vfsd.systemctl("stop", "vfsd.service")
    with plasma.window():
        plasma.find("vfsd is not running")
        plasma.screenshot("not-running")
        time.sleep(2.5)  # longer than between two looks
        assert vfsd.systemctl("is-active", "vfsd.service", check=False).strip() == "inactive"
        plasma.tab_to("Start vfsd", "space")
        plasma.find("No machines")


def test_service(plasma: Plasma, box: Vfsd) -> None:
    """The applet follows vfsd as it comes and goes, and tells nobody of what it finds then."""
    plasma.open_popup("1 running")
    plasma.find("box", "button", "Running")
    for upset in (box.restart, box.crash):
        upset()
        plasma.find("box", "button", "Running")
    box.systemctl("stop", "vfsd.service")
    plasma.find("vfsd is not running")
    os.kill(int(box.unit_property("vfsd-machine-box.service", "MainPID")), signal.SIGKILL)
    plasma.press("Start vfsd")
    plasma.find("box", "button", "Failed")
    assert not matching(plasma.nodes(), NEWS, "notification")


def test_tray(plasma: Plasma, vfsd: Vfsd) -> None:
    """The icon is in the panel while something runs or needs attention."""
    vfsd.run("vfsctl", "machine", "add", "box", "--builtin", "--memory", "128M")
    plasma.gone("vfsd", "button")
    vfsd.run("vfsctl", "machine", "start", "box")
    plasma.find("vfsd", "button", "1 running")
    kill(vfsd, BOX, MACHINE)
    plasma.find("vfsd", "button", "“box” failed")
    vfsd.run("vfsctl", "machine", "remove", "box")
    plasma.gone("vfsd", "button")


async def test_many(plasma: Plasma, vfsd: Vfsd) -> None:
    """Thirty machines, one with the longest of names; the list scrolls by keyboard."""
    names = [f"machine-{number:02}" for number in range(29)] + ["z" * 64]
    client = await Client.connect(vfsd, listen=False)
    for name in names:
        await client.create_machine(name, Builtin=("b", True))
    await client.close()
    with plasma.window():
        plasma.find(names[0], "button", "Stopped")
        plasma.screenshot("many")
        plasma.keys(*["Down"] * 30)
        plasma.focused(names[-1])
        plasma.screenshot("long")


def test_system(plasma: Plasma, system: Vfsd) -> None:
    """Who may not manage the system's machines is asked to authenticate; the applet goes on meanwhile."""
    system.run("vfsctl", "machine", "add", "server", "--builtin")

    def begin() -> None:
        plasma.application = "plasmawindowed"
        plasma.press("Start “server”")
        plasma.application = "polkit-kde-authentication-agent-1"
        plasma.find(re.compile("^Authentication is required to manage virtual machines of the system"))
        plasma.run(
            "xdotool", "search", "--sync", "--name", "^Authentication Required$", "windowactivate", "--sync"
        )

    with authenticating(plasma, system) as secret, plasma.window(bus="system"):
        begin()
        plasma.screenshot("polkit")
        plasma.application = "plasmawindowed"
        system.run("vfsctl", "machine", "add", "other", "--builtin")
        plasma.find("other", "button", "Stopped")
        plasma.application = "polkit-kde-authentication-agent-1"
        plasma.press("Cancel")
        plasma.application = "plasmashell"
        plasma.find("Could not start “server”", "notification")
        assert system.get("/org/vfsd1/machine/server", MACHINE, "State") == "stopped"

        begin()
        plasma.press("", "password text")
        plasma.write(secret)
        plasma.press("OK")
        plasma.application = "plasmawindowed"
        plasma.find("server", "button", "Running")


def test_looks(plasma: Plasma, box: Vfsd) -> None:
    """In German, twice as large, from right to left, in dark colours: all is there, and no complaints."""
    with plasma.window({"LANG": "de_DE.UTF-8", "LANGUAGE": "de", "QT_SCALE_FACTOR": "2"}):
        plasma.find("box", "button", "Läuft")
        plasma.expand_by_keyboard("box")
        plasma.find(f"{PICTURES}, In Verwendung", "list item")
        plasma.screenshot("german-double")
    with plasma.window(arguments=("-reverse",)):
        plasma.press("Expand “box”")
        button, name = plasma.find("Shut down “box”"), plasma.find("box", "heading")
        assert button.box[0] < name.box[0]
        plasma.screenshot("right-to-left")
    with plasma.dark():
        plasma.open_popup("1 running")
        plasma.press("Expand “box”")
        plasma.find(f"{PICTURES}, In use", "list item")
        time.sleep(0.3)  # until it has moved into its place
        plasma.screenshot("dark")


async def test_leaves_nothing(plasma: Plasma, box: Vfsd) -> None:
    """Ten times put into the panel and taken away again, and a thousand changes, leave no memory taken."""

    def come_and_go() -> None:
        plasma.script(f"panels()[0].addWidget('{APPLET}')")
        plasma.until(lambda: len(icons()) > usual, "it is in the panel")
        plasma.script(f"panels()[0].widgets('{APPLET}').forEach(widget => widget.remove())")
        plasma.until(lambda: len(icons()) == usual, "it is away")

    def icons() -> list[object]:
        return [*matching(plasma.nodes(), "vfsd", "button", "1 running")]

    plasma.find("vfsd", "button", "1 running")
    usual = len(icons())
    client = await Client.connect(box, listen=False)
    path = await client.create_machine("other", Builtin=("b", True))

    async def change(count: int) -> None:
        for number in range(count):
            value = Variant("u", 1 + number % 2)
            await client.raw(
                "org.vfsd1", path, "org.freedesktop.DBus.Properties", "Set", "ssv", [MACHINE, "CPUs", value]
            )

    come_and_go()
    plasma.open_popup("1 running")
    before = plasma.memory()
    await change(1000)
    plasma.close_popup()
    for _ in range(9):
        come_and_go()
    assert plasma.memory() - before < MEMORY
    await client.close()


def test_settings(plasma: Plasma, box: Vfsd, system: Vfsd) -> None:
    """Both buses are shown once that is chosen; it is the last test, as they stay so."""
    system.run("vfsctl", "machine", "add", "server", "--builtin")
    plasma.open_popup("1 running")
    plasma.press("Configure vfsd...")
    plasma.press("Both", "radio button")
    plasma.screenshot("settings")
    plasma.press("OK")
    plasma.open_popup("1 running")
    plasma.find("server", "button", "Stopped · System")
    plasma.find("box", "button", "Running")
    plasma.screenshot("both")
