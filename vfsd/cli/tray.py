"""`vfsctl tray`: an icon with a menu for the panels of desktops that have no applet of vfsd's own."""

from __future__ import annotations

import asyncio
import math
import signal as signals
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli import tray_menu as menu
from vfsd.cli.errors import SHARE_EXISTS, BusGone, CallFailed, CliError, Exit, Unreachable, explain
from vfsd.cli.objects import SHARE, kind_at, object_of
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.tray_desktop import RULES, Desktop, in_terminal
from vfsd.cli.tray_item import WATCHER, StatusItem
from vfsd.names import BUS_NAME, Scope

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Objects, Signal

NAME_OWNED = 1
"""What the bus answers to RequestName if the name is the caller's now."""
DO_NOT_QUEUE = 4
"""The flag of RequestName."""
BURST = 0.05
"""Seconds in which changes gather before the panel is told."""
START_TIMEOUT = 60.0
"""Seconds. Starting many shares on a busy host may take longer than a call should."""
AFTER_A_CALL = 1.0
"""Seconds in which what becomes of an object is still put down to the last call from here."""


@click.command()
@global_options
@pass_session
def tray(session: Session) -> int:
    """An icon in the panel: what runs, what is broken, and a menu to act.

    For desktops other than GNOME and Plasma, which have applets of their own.
    It waits for a panel that shows StatusNotifierItems, and follows vfsd as it
    comes and goes, which it starts only when told to. Of the system's vfsd
    (--system) the desktop asks for a password when something is to be done.
    """
    session.require_here("tray", "it shows what is on this desktop's host")
    ask, session.ask = session.ask, False  # by the desktop, if at all, and not on a terminal
    return session.run(lambda client: _run(client, session.scope, ask))


async def _run(vfsd: Client, scope: Scope, ask: bool) -> int:
    from vfsd.cli.proxy import connect, owner_rule  # noqa: PLC0415  # slow to import, and --help needs none

    try:
        desktop = await connect(Scope.USER)
    except Unreachable as error:
        raise Unreachable(
            str(error), "call it in the desktop's session, as the user whose desktop it is."
        ) from None
    vfsd.asks = ask and scope is Scope.SYSTEM
    try:
        ended = asyncio.Event()
        for number in (signals.SIGINT, signals.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        async with vfsd.signals() as of_vfsd, desktop.listen(owner_rule(WATCHER), *RULES) as of_desktop:
            name = f"{BUS_NAME}.tray.{scope.value}"
            shown = Tray(vfsd, desktop, scope, ended)
            shown.item.offer(name)
            await shown.look()  # before a panel asks: some never show a menu that was empty once
            if await desktop.bus("RequestName", "su", name, DO_NOT_QUEUE) != [NAME_OWNED]:
                raise CliError(f"the {scope.value}'s vfsd is in the panel already")
            work = [shown.follow_vfsd(of_vfsd), shown.follow_desktop(of_desktop)]
            await _until_first([*work, ended.wait(), vfsd.closed(), desktop.closed()], shown.tasks)
        if not ended.is_set():
            raise BusGone()
    finally:
        desktop.close()
    return Exit.DONE


async def _until_first(work: list[Coroutine[Any, Any, Any]], besides: set[asyncio.Task[None]]) -> None:
    """Do all at once until one has ended, whose error is raised, and then end the rest, what is `besides` too."""
    tasks = {asyncio.ensure_future(each) for each in work}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    rest = (tasks | besides) - done
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


class Tray:
    """What is known of vfsd, and what is done when somebody presses an entry."""

    def __init__(self, vfsd: Client, desktop: Client, scope: Scope, ended: asyncio.Event) -> None:
        self._vfsd = vfsd
        self._scope = scope
        self._ended = ended
        self._objects: Objects | None = None
        self._own: dict[str, float] = {}
        """Until when, in monotonic seconds, what becomes of an object is put down to a call from here."""
        self.tasks: set[asyncio.Task[None]] = set()
        self._desktop = Desktop(desktop, self.press)
        self.item = StatusItem(desktop, menu.title(scope), self.press)
        self._special = {
            menu.STOP_SHARING: self._stop_sharing,
            menu.SHARE_FOLDER: self._share_folder,
            menu.SHARE_CHOSEN: self._share_chosen,
            menu.OPEN_CONSOLE: self._open_console,
            menu.SHOW_LOG: self._show_log,
            menu.START_VFSD: self._start_vfsd,
            menu.QUIT: self._quit,
        }
        """What is not one call of a method of the object."""

    async def follow_vfsd(self, queue: asyncio.Queue[Signal]) -> None:
        """Know what vfsd has, and show it."""
        while True:
            changes = [await queue.get()]
            await asyncio.sleep(BURST)
            while not queue.empty():
                changes.append(queue.get_nowait())
            for change in changes:
                await self._take(change)
            self._show()

    def _show(self) -> None:
        objects = self._objects or {}
        self.item.show(menu.status(objects), menu.tool_tip(objects), menu.menu(self._objects))

    async def look(self) -> None:
        """Ask for everything, if vfsd runs, and show it."""
        try:
            self._objects = await self._vfsd.objects(look=True)
        except CallFailed:
            self._objects = None
        self._show()

    async def _take(self, change: Signal) -> None:
        body = change.body
        if change.member == "NameOwnerChanged" or self._objects is None:
            await self.look()
        elif change.member == "InterfacesAdded":
            path, interfaces = body
            with suppress(CallFailed):  # it may be gone already
                # the system's vfsd does not tell everybody all of it
                self._objects[path] = {
                    each: await self._vfsd.properties(path, each, look=True) for each in interfaces
                }
        elif change.member == "InterfacesRemoved":
            self._objects.pop(body[0], None)
        elif change.member == "PropertiesChanged":
            item = self._objects.get(change.path, {}).get(body[0])
            if item is not None:
                before = dict(item)
                item.update(body[1])
                news = menu.news(change.path, before, item)
                if news and self._own.get(change.path, 0) < time.monotonic():
                    self._start(self._desktop.tell(change.path, news))

    async def follow_desktop(self, queue: asyncio.Queue[Signal]) -> None:
        """Be in whatever panel comes up, and hear what is answered to dialogs and notifications."""
        await self._register()
        while True:
            signal = await queue.get()
            if signal.member == "NameOwnerChanged" and signal.body[2]:
                await self._register()
            else:
                self._desktop.hear(signal)

    async def _register(self) -> None:
        with suppress(CallFailed):  # there is no panel yet
            await self.item.register()

    def press(self, action: menu.Action) -> None:
        """Begin what an entry of the menu, or a button, is for."""
        self._start(self._do(action))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _do(self, action: menu.Action) -> None:
        """Do it, and tell if it failed."""
        deed, path = action
        name = self._item(path).get("Name") or PurePath(path).name
        try:
            special = self._special.get(deed)
            await (special(path) if special else self._call(deed.member, path))
        except (CallFailed, CliError) as error:
            text = explain(error, self._scope).sentence if isinstance(error, CallFailed) else str(error)
            title = deed.failure.replace("%s", name)
            await self._desktop.tell(path, menu.News(title, f"{text[:1].upper()}{text[1:]}"))

    def _item(self, path: str) -> dict[str, Any]:
        return next(iter((self._objects or {}).get(path, {}).values()), {})

    async def _call(self, member: str, path: str) -> None:
        """Call a method of a share or machine. What comes of it is told by its error, and not as news."""
        interface = kind_at(path).interface
        signature, body = ("t", [0]) if member == "Shutdown" else ("", [])
        self._own[path] = math.inf
        try:
            await self._vfsd.call(path, interface, member, signature, *body, within=START_TIMEOUT)
        finally:
            self._own[path] = time.monotonic() + AFTER_A_CALL

    async def _stop_sharing(self, path: str) -> None:
        if self._item(path).get("State") in ("active", "listening"):
            await self._call("Stop", path)  # a client that is connected would keep it
        await self._call("Remove", path)

    async def _share_folder(self, _: str) -> None:
        folder = await self._desktop.choose_folder(menu.CHOOSE_FOLDER)
        if folder:
            self.press(menu.Action(menu.SHARE_CHOSEN, folder))

    async def _share_chosen(self, folder: str) -> None:
        taken = set(SHARE.named(self._objects or {}))
        while True:
            name = menu.share_name(folder, taken)
            try:
                await self._vfsd.manager("CreateShare", "ssa{sv}", name, folder, {})
                return
            except CallFailed as error:
                if error.name != SHARE_EXISTS:
                    raise
            taken.add(name)  # by somebody who was faster

    async def _start_vfsd(self, _: str) -> None:
        await self._vfsd.bus("StartServiceByName", "su", BUS_NAME, 0)

    async def _open_console(self, path: str) -> None:
        in_terminal("vfsctl", f"--{self._scope.value}", "console", object_of(path)[1])

    async def _show_log(self, path: str) -> None:
        # a pager would end with a log that fits on its screen, and the terminal with it
        in_terminal(
            "vfsctl", f"--{self._scope.value}", "logs", "--lines=1000", "--follow", object_of(path)[1]
        )

    async def _quit(self, _: str) -> None:
        self._ended.set()
