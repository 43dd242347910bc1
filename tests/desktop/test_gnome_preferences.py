"""The preferences window, and what each preference changes; the system's vfsd among it, where polkit has its say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.desktop.gnome import SETTINGS, GnomeShell
from tests.desktop.screen_reader import Node
from tests.desktop.test_gnome import add_machine
from tests.integration.conftest import kept_clean
from tests.integration.harness import Client, Vfsd, wait_for
from tests.integration.polkit import TESTER_IS_ADMINISTRATOR, Agent, rules

PROCESS = "org.gnome.Shell.Extensions"
ICON = "shell.icon().visible"


def setting(gnome: GnomeShell, key: str) -> str:
    return gnome.user.run("gsettings", "get", SETTINGS, key).strip().strip("'")


def becomes(gnome: GnomeShell, key: str, value: str) -> None:
    wait_for(lambda: setting(gnome, key) == value, f"{key} becomes {value}", 10)


def offered(gnome: GnomeShell, name: str) -> dict[str, Node]:
    """The things in the window, once one of them is there."""
    found: dict[str, Node] = {}

    def is_there() -> bool:
        for node in gnome.nodes(PROCESS):
            found.setdefault(node.name, node)  # a row comes before its parts, which have its name too
        return name in found

    wait_for(is_there, f"{name} is shown", 10)
    return found


def test_the_window(gnome: GnomeShell) -> None:
    gnome.open()
    gnome.choose_own("Pointer", "Settings")
    gnome.until("shell.window('vfsd')?.has_focus()", 15)
    places = offered(gnome, "Close")
    gnome.screenshot("preferences")
    for key, name in (("notify-failures", "Failures"), ("notify-recoveries", "Recoveries")):
        gnome.click_in_window("vfsd", places[name])
        becomes(gnome, key, "false")
    gnome.keys("space")
    becomes(gnome, "notify-recoveries", "true")
    for key, name, last, value in (
        ("bus", "Machines and folders", "Both", "both"),
        ("panel-icon", "Icon in the panel", "Only on problems", "attention"),
    ):
        gnome.click_in_window("vfsd", places[name])
        offered(gnome, last)
        gnome.keys("End")
        gnome.keys("Return")
        becomes(gnome, key, value)
    gnome.run("shell.window('vfsd').delete(global.get_current_time())")
    gnome.until("!shell.window('vfsd')")


def test_when_the_icon_is_shown(gnome: GnomeShell, vfsd: Vfsd) -> None:
    for when, shown in (("always", True), ("active", False), ("attention", False)):
        gnome.set(SETTINGS, "panel-icon", when)
        gnome.until(f"{ICON} === {str(shown).lower()}")
    add_machine(vfsd, "web")
    vfsd.manager("StartMachine", "s", "web")
    gnome.until("shell.toggle.subtitle === '1 running'")
    for when, shown in (("always", True), ("attention", False), ("active", True)):
        gnome.set(SETTINGS, "panel-icon", when)
        gnome.until(f"{ICON} === {str(shown).lower()}")
    vfsd.manager("KillMachine", "s", "web")
    gnome.until(f"!{ICON}")


def told_of_failure(gnome: GnomeShell, name: str) -> None:
    """The only notification says so, and why."""
    gnome.until(f"shell.notifications().some(({{title}}) => title === 'Could not start “{name}”')", 10)
    [notification] = gnome.notifications()
    assert notification["body"]
    assert "GDBus" not in notification["body"]


@pytest.fixture
def system() -> Iterator[Vfsd]:
    """The system's vfsd, without objects before and after."""
    with kept_clean("system") as service:
        yield service


@pytest.fixture
async def root(system: Vfsd) -> AsyncIterator[Client]:
    """A connection of root's to the system bus."""
    connected = await Client.connect(system)
    yield connected
    await connected.close()


async def test_the_systems_machines(gnome: GnomeShell, vfsd: Vfsd, system: Vfsd, root: Client) -> None:
    add_machine(vfsd, "mine")
    add_machine(system, "theirs")
    gnome.open()
    gnome.says("mine", "Stopped")
    assert gnome.eval("shell.row('theirs')") is None
    gnome.set(SETTINGS, "bus", "both")
    gnome.says("theirs", "theirs, Stopped, System")
    gnome.screenshot("both")
    agent = Agent(root)
    async with rules(root, TESTER_IS_ADMINISTRATOR):
        await agent.serve(gnome.pid)
        # somebody closes the dialog
        gnome.choose("Pointer", "theirs", "Start “theirs”")
        question = await agent.question()
        assert question.body[0] == "org.vfsd1.manage-machines"
        begun = time.monotonic()
        gnome.open()
        gnome.says("theirs", "Stopped")
        assert time.monotonic() - begun < 5  # nothing waits for the dialog
        agent.dismiss(question)
        await asyncio.to_thread(told_of_failure, gnome, "theirs")
        gnome.run("shell.dismissAll()")
        # and then somebody authenticates
        gnome.choose("Keyboard", "theirs", "Start “theirs”")
        await agent.accept(await agent.question(2))
        await asyncio.to_thread(gnome.open)
        await asyncio.to_thread(gnome.says, "theirs", "Running", 20)
    gnome.set(SETTINGS, "bus", "system")
    gnome.until("!shell.row('mine')")
    assert gnome.notifications() == []
