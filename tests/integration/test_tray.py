"""`vfsctl tray` against the real vfsd, as a panel sees it; what a desktop has besides is played by the test.

Real panels show it in tests/desktop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageType, Variant

from tests.integration.conftest import only_system, only_user
from tests.integration.harness import MACHINE, BusError, Client, Vfsd, until, wait_for
from tests.integration.tiny_guest import tiny_machine

WATCHER = "org.kde.StatusNotifierWatcher"
ITEM = "org.kde.StatusNotifierItem"
MENU = "com.canonical.dbusmenu"
PORTAL = "org.freedesktop.portal.Desktop"
NOTIFICATIONS = "org.freedesktop.Notifications"
PATH = "/StatusNotifierItem"


class Desktop:
    """A panel, and who else is there on a desktop's session bus."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.registered: list[str] = []
        self.notified: list[tuple[str, str, list[str]]] = []
        """Titles, texts and buttons."""
        self.replaced: list[int] = []
        """Which notification each of them replaces."""
        self.chosen: str | None = None
        """The folder that is chosen in dialogs; None cancels them."""
        self.dialogs = 0
        self.layouts = 0
        client.bus.add_message_handler(self._on_message)

    @classmethod
    async def connect(cls) -> Desktop:
        desktop = cls(await Client.connect(Vfsd("user"), listen=False))
        await desktop.bus("AddMatch", "s", f"type='signal',interface='{MENU}'")
        return desktop

    async def close(self) -> None:
        await self._client.close()

    async def bus(self, member: str, signature: str, *body: Any) -> Any:
        bus = "org.freedesktop.DBus"
        (answer,) = await self._client.raw(
            bus, "/org/freedesktop/DBus", bus, member, signature, list(body)
        ) or [None]
        return answer

    async def own(self, name: str) -> None:
        assert await self.bus("RequestName", "su", name, 0) == 1

    async def release(self, name: str) -> None:
        assert await self.bus("ReleaseName", "s", name) == 1

    def _on_message(self, message: Message) -> Message | None:
        if message.message_type is MessageType.SIGNAL:
            self.layouts += message.member == "LayoutUpdated"
        elif message.member == "RegisterStatusNotifierItem":
            self.registered.append(message.body[0])
            return Message.new_method_return(message)
        elif message.member == "Notify":
            _, replaced, _, title, text, buttons, _, _ = message.body
            self.notified.append((title, text, buttons))
            self.replaced.append(replaced)
            return Message.new_method_return(message, "u", [replaced or len(self.notified)])
        elif message.member == "OpenFile":
            return self._choose(message)
        return None

    def _choose(self, message: Message) -> Message:
        _, _, options = message.body
        self.dialogs += 1
        assert options["directory"].value is True
        sender = message.sender.removeprefix(":").replace(".", "_")
        handle = f"/org/freedesktop/portal/desktop/request/{sender}/{options['handle_token'].value}"
        results = {"uris": Variant("as", [Path(self.chosen).as_uri()])} if self.chosen else {}
        response = Message.new_signal(
            handle, "org.freedesktop.portal.Request", "Response", "ua{sv}", [0 if self.chosen else 1, results]
        )
        # it may well be the first to arrive
        self._client.bus.send(response)
        return Message.new_method_return(message, "o", [handle])

    async def click_button(self, number: int, key: str) -> None:
        """Press a button of a notification."""
        path = "/org/freedesktop/Notifications"
        clicked = Message.new_signal(path, NOTIFICATIONS, "ActionInvoked", "us", [number, key])
        await self._client.bus.send(clicked)


class Tray:
    """A `vfsctl tray` that runs, and its menu."""

    def __init__(self, desktop: Client, process: asyncio.subprocess.Process, scope: str) -> None:
        self._client = desktop
        self.process = process
        self._name = f"org.vfsd1.tray.{scope}"

    async def call(self, path: str, interface: str, member: str, signature: str, *body: Any) -> list[Any]:
        return await self._client.raw(self._name, path, interface, member, signature, list(body))

    async def get(self, name: str) -> Any:
        (value,) = await self.call(PATH, "org.freedesktop.DBus.Properties", "Get", "ss", ITEM, name)
        return value.value

    async def layout(self) -> list[Any]:
        """The entries of the menu: id, properties, entries below it."""
        menu = await self.get("Menu")
        _, (number, _, entries) = await self.call(menu, MENU, "GetLayout", "iias", 0, -1, [])
        assert number == 0
        return [entry.value for entry in entries]

    async def labels(self, *above: str) -> list[str]:
        """What can be read in the menu, or below an entry of it; "-" for a line."""
        entries = await self.layout()
        for label in above:
            entries = [v.value for _, found, below in entries if text(found) == label for v in below]
        return [text(found) for _, found, _ in entries]

    async def shows(self, *labels: str, below: tuple[str, ...] = (), within: float = 15) -> None:
        """Wait until all these entries are there."""
        end = time.monotonic() + within
        seen: list[str] = []
        while not set(labels) <= set(seen):
            assert time.monotonic() < end, f"{labels} not in {seen}"
            await asyncio.sleep(0.03)
            try:
                seen = await self.labels(*below)
            except BusError as error:  # it has just been started
                assert error.name in ("ServiceUnknown", "NameHasNoOwner", "UnknownMethod"), error

    async def press(self, *labels: str) -> None:
        """Click on an entry, which must be enabled."""
        entries = await self.layout()
        for label in labels:
            ((number, found, below),) = [each for each in entries if text(each[1]) == label]
            entries = [each.value for each in below]
        assert found.get("enabled", Variant("b", True)).value is True
        menu = await self.get("Menu")
        await self.call(menu, MENU, "Event", "isvu", number, "clicked", Variant("i", 0), 0)


def text(properties: dict[str, Variant]) -> str:
    if "type" in properties:
        return "-"
    return str(properties["label"].value).replace("__", "_")


@pytest.fixture
async def desktop() -> AsyncIterator[Desktop]:
    """A desktop with a panel and notifications."""
    found = await Desktop.connect()
    await found.own(WATCHER)
    await found.own(NOTIFICATIONS)
    yield found
    await found.close()


@pytest.fixture
def programs(folder: Path) -> Iterator[Path]:
    """A folder in which programs are found first."""
    found = folder / "bin"
    found.mkdir()
    yield found


@pytest.fixture
async def tray(vfsd: Vfsd, desktop: Desktop, programs: Path) -> AsyncIterator[Tray]:
    """A tray of that vfsd. It must end as it is told to, without a complaint."""
    path = f"PATH={programs}:/usr/bin:/bin"
    command = Vfsd("user").argv(["env", path, "vfsctl", f"--{vfsd.scope}", "tray"])
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    yield Tray(desktop._client, process, vfsd.scope)
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    _, complaints = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, complaints) == (0, b"")


@only_user
async def test_the_menu_follows_and_acts(
    vfsd: Vfsd, client: Client, desktop: Desktop, tray: Tray, folder: Path
) -> None:
    await tray.shows("No machines", "Share a Folder…", "Quit")
    assert await tray.get("Status") == "Active"
    assert desktop.registered == ["org.vfsd1.tray.user"]
    shared = folder / "a_b"
    shared.mkdir()
    path = await tiny_machine(client, folder, "tiny_1", shares=[shared])
    await tray.shows("tiny_1: Stopped")
    assert await tray.labels("tiny_1: Stopped") == [f"a_b: Stopped ({shared})", "-", "Start", "Show Log"]
    await tray.press("tiny_1: Stopped", "Start")
    await tray.shows("tiny_1: Running")
    running = ("-", "Shut Down", "Pause", "Open Console", "Force Off", "Show Log")
    await tray.shows(f"a_b: In use ({shared})", *running, below=("tiny_1: Running",))
    assert (await tray.get("Status"), await tray.get("IconName")) == ("Active", "org.vfsd1.vfsd-symbolic")
    assert (await tray.get("ToolTip"))[3] == "tiny_1: Running"
    for deed, shown in (("Pause", "Paused"), ("Resume", "Running"), ("Force Off", "Stopped")):
        (before,) = (label for label in await tray.labels() if label.startswith("tiny_1"))
        await tray.press(before, deed)
        await tray.shows(f"tiny_1: {shown}")
    assert await client.get(path, MACHINE, "State") == "stopped"
    await client.manager("RemoveMachine", "s", "tiny_1")
    await tray.shows("No machines")
    assert desktop.notified == []


@only_user
async def test_a_look_starts_nothing(vfsd: Vfsd, desktop: Desktop, tray: Tray) -> None:
    vfsd.systemctl("stop", "vfsd.service")
    await tray.shows("vfsd is not running", "Start vfsd")
    await tray.labels()
    assert vfsd.unit_property("vfsd.service", "ActiveState") == "inactive"
    await tray.press("Start vfsd")
    await tray.shows("No machines")
    vfsd.crash()
    await tray.shows("No machines")
    await asyncio.sleep(0.2)
    assert "No machines" in await tray.labels()
    assert desktop.notified == []


@only_user
async def test_panels_that_come_and_go(vfsd: Vfsd, desktop: Desktop, tray: Tray) -> None:
    for _ in range(3):
        await until(lambda: desktop.registered, "the tray is in the panel")
        desktop.registered.clear()
        await desktop.release(WATCHER)
        await desktop.own(WATCHER)
    await until(lambda: desktop.registered, "it is in the last one")
    assert "No machines" in await tray.labels()


@only_user
async def test_what_breaks_is_told(
    vfsd: Vfsd, client: Client, desktop: Desktop, tray: Tray, folder: Path
) -> None:
    path = await tiny_machine(client, folder)
    await client.call(path, MACHINE, "Start")
    await tray.shows("tiny: Running")
    os.kill(await client.get(path, MACHINE, "MainPID"), signal.SIGKILL)
    await tray.shows("tiny: Failed")
    await until(lambda: desktop.notified, "it is told")
    reason = await client.get(path, MACHINE, "Reason")
    assert desktop.notified == [("“tiny” failed", reason, ["0", "Start", "1", "Show Log"])]
    assert await tray.get("Status") == "NeedsAttention"
    assert reason in await tray.labels("tiny: Failed")
    await desktop.click_button(1, "0")
    await tray.shows("tiny: Running")
    assert await tray.get("Status") == "Active"
    # a share on its own, as its folder goes and comes
    source = folder / "gone"
    source.mkdir()
    await client.create_share("alone", source)
    await tray.shows("alone: Waiting for a client")
    source.rename(folder / "elsewhere")
    await tray.shows("alone: Unavailable")
    (folder / "elsewhere").rename(source)
    await tray.shows("alone: Waiting for a client")
    await until(lambda: len(desktop.notified) == 3, "both are told")
    assert [title for title, _, _ in desktop.notified[1:]] == [
        "“alone” is unavailable",
        "“alone” works again",
    ]
    assert desktop.replaced == [0, 0, 2]


@only_user
async def test_what_cannot_be_done_is_told_once(
    vfsd: Vfsd, client: Client, desktop: Desktop, tray: Tray
) -> None:
    await client.create_machine("empty")
    await tray.shows("empty: Stopped")
    await tray.press("empty: Stopped", "Start")
    await until(lambda: desktop.notified, "it is told")
    await asyncio.sleep(0.2)
    ((title, why, buttons),) = desktop.notified
    assert (title, buttons) == ("Could not start “empty”", [])
    with pytest.raises(BusError) as told:
        await client.manager("StartMachine", "s", "empty")
    assert why.lower() == told.value.message.lower()


@only_system
async def test_the_systems_vfsd_for_somebody_who_may_not(
    vfsd: Vfsd, client: Client, desktop: Desktop, tray: Tray, folder: Path
) -> None:
    """There is no agent in the lab, so polkit can ask nobody."""
    path = await tiny_machine(client, folder)
    await client.create_share("private", folder)
    await tray.shows("tiny: Stopped", "private: Waiting for a client")
    assert await tray.get("Title") == "vfsd (System)"
    # who may not inspect does not see the path
    assert await tray.labels("private: Waiting for a client") == ["Stop Sharing", "Show Log"]
    await tray.press("tiny: Stopped", "Start")
    await until(lambda: desktop.notified, "the refusal is told")
    ((title, why, _),) = desktop.notified
    assert title == "Could not start “tiny”"
    assert why
    assert await client.get(path, MACHINE, "State") == "stopped"


@only_user
async def test_a_folder_is_shared_and_no_longer(
    vfsd: Vfsd, client: Client, desktop: Desktop, tray: Tray, folder: Path
) -> None:
    await tray.shows("Share a Folder…")
    await tray.press("Share a Folder…")
    await until(lambda: desktop.notified, "that there is no portal is told")
    assert desktop.notified[0][0] == "Could not share the folder"
    await desktop.own(PORTAL)
    await tray.press("Share a Folder…")
    await until(lambda: desktop.dialogs == 1, "the dialog is cancelled")
    odd = folder / "ü b"
    odd.mkdir()
    desktop.chosen = str(odd)
    # twice before the first has its name
    await asyncio.gather(tray.press("Share a Folder…"), tray.press("Share a Folder…"))
    await tray.shows("__b: Waiting for a client", "__b-2: Waiting for a client")
    assert (await tray.labels("__b-2: Waiting for a client"))[0] == str(odd)
    desktop.chosen = str(folder / "missing")
    await tray.press("Share a Folder…")
    await until(lambda: len(desktop.notified) == 2, "it is told")
    assert desktop.notified[1][0] == "Could not share “missing”"
    for name in ("__b", "__b-2"):
        await tray.press(f"{name}: Waiting for a client", "Stop Sharing")
    await until(lambda: len(vfsd.manager("ListShares")) == 0, "both are gone")
    assert len(desktop.notified) == 2


@only_user
async def test_terminals(vfsd: Vfsd, client: Client, tray: Tray, folder: Path, programs: Path) -> None:
    terminal, said = programs / "xdg-terminal-exec", folder / "said"
    terminal.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{said}\n')
    terminal.chmod(0o755)
    path = await tiny_machine(client, folder, "a-b")
    await client.call(path, MACHINE, "Start")
    await tray.shows("a-b: Running")
    await tray.press("a-b: Running", "Open Console")
    wait_for(said.exists, "the terminal is opened")
    assert said.read_text() == "vfsctl --user console a-b\n"
    await tray.press("a-b: Running", "Show Log")
    wait_for(lambda: said.read_text().count("\n") == 2, "another is opened")
    command = said.read_text().splitlines()[1]
    assert command == "vfsctl --user logs --lines=1000 --follow a-b"
    assert "a-b" in vfsd.run(*command.replace(" --follow", "").split())


@only_user
async def test_many_machines_are_told_together(
    vfsd: Vfsd, client: Client, desktop: Desktop, tray: Tray
) -> None:
    await tray.shows("No machines")
    before = desktop.layouts
    names = [f"m{number:02}" for number in range(30)]
    await asyncio.gather(*(client.create_machine(name) for name in names))
    await tray.shows(*(f"{name}: Stopped" for name in names))
    assert [label for label in await tray.labels() if label.startswith("m")] == [
        f"{n}: Stopped" for n in names
    ]
    assert 0 < desktop.layouts - before <= len(names) / 2


@only_user
async def test_one_for_each_vfsd_and_none_without_a_bus(vfsd: Vfsd, tray: Tray) -> None:
    await tray.shows("No machines")
    again = subprocess.run(
        vfsd.argv(["vfsctl", "tray"]), capture_output=True, text=True, timeout=30, check=False
    )
    assert (again.returncode, "in the panel already" in again.stderr) == (1, True)
    nowhere = subprocess.run(
        vfsd.argv(["env", "DBUS_SESSION_BUS_ADDRESS=unix:path=/nowhere", "vfsctl", "tray"]),
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (nowhere.returncode, nowhere.stderr.splitlines()[0]) == (
        5,
        "Error: There is no user bus to talk to: No such file or directory.",
    )
    await tray.press("Quit")
    assert await asyncio.wait_for(tray.process.wait(), 10) == 0


@only_user
async def test_a_panel_that_asks_for_nonsense(vfsd: Vfsd, tray: Tray) -> None:
    await tray.shows("No machines")
    menu = await tray.get("Menu")
    properties = "org.freedesktop.DBus.Properties"
    for interface, member, signature, body, error in (
        (MENU, "GetLayout", "iias", [99, -1, []], "InvalidArgs"),
        (MENU, "GetLayout", "s", [""], "UnknownMethod"),
        (MENU, "Event", "isvu", [99, "clicked", Variant("i", 0), 0], "InvalidArgs"),
        (MENU, "GetProperty", "is", [0, "colour"], "InvalidArgs"),
        (properties, "Get", "ss", [ITEM, "Colour"], "InvalidArgs"),
        (properties, "Set", "ssv", [MENU, "Version", Variant("u", 1)], "UnknownMethod"),
    ):
        with pytest.raises(BusError) as refused:
            await tray.call(menu, interface, member, signature, *body)
        assert refused.value.name == error
    assert await tray.call(menu, MENU, "EventGroup", "a(isvu)", [[99, "opened", Variant("i", 0), 0]]) == [
        [99]
    ]
    assert await tray.call(menu, MENU, "AboutToShow", "i", 0) == [False]
    assert await tray.call(menu, MENU, "AboutToShowGroup", "ai", [0, 99]) == [[], [99]]
    ((group),) = await tray.call(menu, MENU, "GetGroupProperties", "aias", [], [])
    assert {"No machines", "Quit"} <= {text(found) for _, found in group if "label" in found}
    (found,) = await tray.call(PATH, properties, "GetAll", "s", ITEM)
    assert found["ItemIsMenu"].value is True
