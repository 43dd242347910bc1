"""One who looks at the console of a machine that lives on: what `vfsctl console` does."""

from __future__ import annotations

import asyncio
import os
import signal as signals
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli import console
from vfsd.cli.console import End
from vfsd.cli.errors import DISCONNECTED, NO_REPLY, CallFailed, Exit
from vfsd.cli.objects import MACHINE, object_of
from vfsd.cli.output import clean
from vfsd.cli.values import Typed

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Signal

IDLE = ("stopped", "failed")
REOPEN_TRIES = 20
REOPEN_INTERVAL = 0.5
"""Seconds; vfsd may be about to be restarted."""
REPLAY = 64 << 10
"""Bytes that vfsd replays, or all that there were if those are fewer."""
RESIZE_USEC = 5_000_000
"""How long the guest may take to set the size of its terminal; nobody waits for it."""
_ENDING_SIGNALS = (signals.SIGINT, signals.SIGTERM, signals.SIGHUP)


class Continued:
    """Takes from a console that was opened again what was shown before.

    What vfsd replays begins within what was shown, or with it, since both are the end of what the guest wrote.
    """

    def __init__(self) -> None:
        self._shown = b""
        self._replayed = b""
        self._expected = 0

    def again(self) -> None:
        """The console was opened again: its first bytes are a replay."""
        self._replayed = b""
        self._expected = len(self._shown)

    def feed(self, data: bytes) -> bytes:
        """Take output of the console, return what of it is new."""
        if self._expected:
            self._replayed += data
            if len(self._replayed) < self._expected:
                return b""
            data = self._replayed[self._known() :]
            self._expected, self._replayed = 0, b""
        self._shown = (self._shown + data)[-REPLAY:]
        return data

    def _known(self) -> int:
        """How many bytes at the beginning of the replay were shown."""
        lengths = range(len(self._shown), 0, -1)
        return next((length for length in lengths if self._shown.endswith(self._replayed[:length])), 0)


class Visitor:
    """Opens one machine's console and shows it."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._path = ""
        self._continued = Continued()
        self._resizing: asyncio.Task[None] | None = None
        self._ready = False

    async def run(self) -> int:
        """Show the console until it or this command is ended. Returns the exit code.

        :raise CallFailed: there is no such machine, it does not run, or its console can't be opened.
        """
        loop = asyncio.get_running_loop()
        stop: asyncio.Future[int] = loop.create_future()
        self._path = await MACHINE.path(self._client, self._name)
        streams = await self._open()
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self._show(streams))]
        for number in _ENDING_SIGNALS:
            loop.add_signal_handler(number, _settle, stop, number)
        if sys.stdin.isatty():
            text = f"This is {self._name}; Ctrl-] three times within a second leaves it."
            click.echo(clean(text), err=True)
            tasks.append(asyncio.create_task(self._watch()))
            loop.add_signal_handler(signals.SIGWINCH, self._resize)
        try:
            await asyncio.wait({tasks[0], stop}, return_when=asyncio.FIRST_COMPLETED)
            return tasks[0].result() if tasks[0].done() else 128 + stop.result()
        finally:
            loop.remove_signal_handler(signals.SIGWINCH)
            if self._resizing is not None:
                tasks.append(self._resizing)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self) -> console.Streams:
        descriptor = await self._client.descriptor(self._path, MACHINE.interface, "OpenConsole")
        return await asyncio.open_unix_connection(sock=socket.socket(fileno=descriptor))

    async def _show(self, streams: console.Streams) -> int:
        ready = asyncio.Event()
        ready.set()
        while True:
            end = await console.attach(streams, keys=True, convert=self._continued.feed, ready=ready)
            if end is not End.CLOSED:
                return Exit.DONE
            self._continued.again()
            again = await self._reopen()
            if isinstance(again, int):
                return again
            streams = again

    async def _reopen(self) -> console.Streams | int:
        """The console of a machine that runs on, since it was vfsd that ended; else the exit code."""
        for _ in range(REOPEN_TRIES - 1):
            try:
                found = await MACHINE.show(self._client, self._name)
                if found["State"] in IDLE:
                    return self._ended(found["State"], found["Reason"])
                return await self._open()
            except CallFailed as error:
                if error.name == DISCONNECTED:
                    raise
            await asyncio.sleep(REOPEN_INTERVAL)
        return await self._open()

    def _ended(self, state: str, reason: str) -> int:
        click.echo(clean(f"{self._name} {state}" + (f": {reason}" if reason else "")), err=True)
        return Exit.FAILED if state == "failed" else Exit.DONE

    # the terminal's size, which nothing else depends on

    async def _watch(self) -> None:
        """Set the size as soon as the guest has an agent, which may be later."""
        with suppress(CallFailed):
            async with self._client.signals() as queue:
                found = await MACHINE.show(self._client, self._name)
                self._learn(ready=bool(found["GuestReady"]))
                while True:
                    signal = await queue.get()
                    if object_of(signal.path) == (MACHINE.noun, self._name):
                        self._learn_from(signal)

    def _learn_from(self, signal: Signal) -> None:
        if signal.member == "PropertiesChanged" and "GuestReady" in signal.body[1]:
            self._learn(ready=bool(signal.body[1]["GuestReady"]))

    def _learn(self, *, ready: bool) -> None:
        self._ready = ready
        if ready:
            self._resize()

    def _resize(self) -> None:
        if self._ready and (self._resizing is None or self._resizing.done()):
            self._resizing = asyncio.create_task(self._pass_size_on())

    async def _pass_size_on(self) -> None:
        """Tell the guest the terminal's size, and again if it has changed meanwhile."""
        told = None
        while (size := _size()) != told:
            told = size
            command = ["stty", "-F", "/dev/console", "rows", str(size.lines), "cols", str(size.columns)]
            options = {"TimeoutUSec": Typed("t", RESIZE_USEC)}
            try:
                await self._client.call(self._path, MACHINE.interface, "Execute", "asa{sv}", command, options)
            except CallFailed as error:
                if error.name in (DISCONNECTED, NO_REPLY):
                    return
                continue


def _size() -> os.terminal_size:
    return os.get_terminal_size(sys.stdin.fileno())


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
