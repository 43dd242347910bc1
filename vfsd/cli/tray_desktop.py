"""What the tray asks of a desktop: to tell somebody something, to let a folder be chosen, to open a terminal."""

from __future__ import annotations

import asyncio
import html
import itertools
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import click

from vfsd.cli.errors import CallFailed, CliError
from vfsd.cli.tray_item import ICON
from vfsd.cli.values import Typed

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Signal
    from vfsd.cli.tray_menu import Action, News

PORTAL = "org.freedesktop.portal.Desktop"
PORTAL_PATH = "/org/freedesktop/portal/desktop"
NOTIFICATIONS = "org.freedesktop.Notifications"
RULES = (
    "type='signal',interface='org.freedesktop.portal.Request',member='Response'",
    f"type='signal',interface='{NOTIFICATIONS}',member='ActionInvoked'",
)
"""Match rules for what `Desktop.hear()` has to hear."""
TERMINALS = (
    ("xdg-terminal-exec",),
    ("x-terminal-emulator", "-e"),
    ("ptyxis", "--"),
    ("kgx", "--"),
    ("gnome-terminal", "--"),
    ("konsole", "-e"),
    ("xfce4-terminal", "-x"),
    ("mate-terminal", "-x"),
    ("qterminal", "-e"),
    ("foot",),
    ("kitty",),
    ("alacritty", "-e"),
    ("xterm", "-e"),
)
"""What runs a command in a terminal: what knows the user's choice, then those that are known here."""


class Desktop:
    """The services of a desktop, on the session bus."""

    def __init__(self, client: Client, press: Callable[[Action], None]) -> None:
        """:param press: told of the buttons of notifications."""
        self._client = client
        self._press = press
        self._told: dict[str, tuple[int, tuple[Action, ...]]] = {}
        """The id of the last notification about each object, and its buttons."""
        self._dialogs: dict[str, asyncio.Future[tuple[int, dict[str, Any]]]] = {}
        self._count = itertools.count()

    def hear(self, signal: Signal) -> None:
        """Take in a signal that may be an answer."""
        if signal.member == "Response" and signal.path in self._dialogs:
            code, results = signal.body
            self._dialogs.pop(signal.path).set_result((code, results))
        elif signal.member == "ActionInvoked":
            number, key = signal.body
            for told, actions in self._told.values():
                if told == number and key.isdecimal() and int(key) < len(actions):
                    self._press(actions[int(key)])

    async def tell(self, about: str, news: News) -> None:
        """Notify; what was told about the same object before is replaced."""
        buttons = [word for i, action in enumerate(news.actions) for word in (str(i), action.deed.label)]
        replaced = self._told.get(about, (0, ()))[0]
        text = html.escape(news.text, quote=False)
        hints = {"desktop-entry": Typed("s", ICON)}
        try:
            (number,) = await self._client.call(
                *("/org/freedesktop/Notifications", NOTIFICATIONS, "Notify", "susssasa{sv}i"),
                *("vfsd", replaced, ICON, news.title, text, buttons, hints, -1),
                destination=NOTIFICATIONS,
            )
            self._told[about] = (number, news.actions)
        except CallFailed:  # there is nobody who shows it
            click.echo(f"{news.title}: {news.text}", err=True)

    async def choose_folder(self, title: str) -> str:
        """Let a folder be chosen; "" if none was. :raise CallFailed: the desktop has no portal."""
        token = f"vfsd{next(self._count)}"
        sender = self._client.unique_name.removeprefix(":").replace(".", "_")
        handle = f"{PORTAL_PATH}/request/{sender}/{token}"
        answer = self._dialogs[handle] = asyncio.get_running_loop().create_future()
        options = {"handle_token": Typed("s", token), "directory": Typed("b", True)}
        try:
            await self._client.call(
                *(PORTAL_PATH, "org.freedesktop.portal.FileChooser", "OpenFile", "ssa{sv}"),
                *("", title, options),
                destination=PORTAL,
            )
            code, results = await answer
        finally:
            self._dialogs.pop(handle, None)
        uris = [] if code else results.get("uris", [])
        return unquote(urlsplit(uris[0]).path) if uris else ""


def in_terminal(*command: str) -> None:
    """Run a command in a terminal of its own, which goes on when this program ends. :raise CliError: there is none."""
    for program, *options in TERMINALS:
        if shutil.which(program):
            subprocess.run(["setsid", "--fork", program, *options, *command], check=False)
            return
    raise CliError("there is no terminal here that is known; xdg-terminal-exec would find yours")
