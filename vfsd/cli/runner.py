"""A machine from its making to its removal: what `vfsctl run` does while the guest lives."""

from __future__ import annotations

import asyncio
import re
import signal as signals
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli import console
from vfsd.cli.command import CommandOutput
from vfsd.cli.console import End, first
from vfsd.cli.errors import NO_SUCH_MACHINE, WRONG_STATE, BusGone, CallFailed, CliError, Exit
from vfsd.cli.journal import follow_console
from vfsd.cli.objects import MACHINE, describe_step, object_of
from vfsd.cli.output import clean
from vfsd.cli.progress import Spinner
from vfsd.cli.session import Session
from vfsd.cli.values import Options

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Signal

START_TIMEOUT = 60.0
POWER_OFF_TIMEOUT = 30.0
"""Seconds that a guest has to power off once its command or its console has ended."""
DRAIN_TIMEOUT = 2.0
"""Seconds for the console's last words once QEMU has ended."""
REMOVE_TRIES = 5
REMOVE_INTERVAL = 1.0
"""Seconds; vfsd may be about to be restarted."""
IDLE = ("stopped", "failed")
_ENDING_SIGNALS = (signals.SIGINT, signals.SIGTERM, signals.SIGHUP)
_BANNER = re.compile(rb"vfsd built-in guest, Linux [^\n]*\n")
_BANNER_MAX = 4096


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    name: str
    options: Options
    command: CommandOutput | None
    builtin: bool


class Runner:
    """Makes one machine, shows its console, and removes it."""

    def __init__(self, client: Client, session: Session, plan: Plan) -> None:
        self._client = client
        self._session = session
        self._plan = plan
        loop = asyncio.get_running_loop()
        self._console: asyncio.Future[str] = loop.create_future()
        self._ended: asyncio.Future[tuple[str, str]] = loop.create_future()
        self._ready = asyncio.Event()
        self._command_ended = asyncio.Event()
        self._started = time.time()
        self._spinner = Spinner(f"Starting {plan.name}", shown=session.interactive)
        self._seen = b""

    async def run(self) -> int:
        """Live with the machine, and remove it whatever happens. Returns the exit code of `vfsctl run`.

        :raise CallFailed: it could not be made or started.
        :raise CliError: its command did not come to its end.
        """
        loop = asyncio.get_running_loop()
        stop: asyncio.Future[int] = loop.create_future()
        for number in _ENDING_SIGNALS:
            loop.add_signal_handler(number, _settle, stop, number)
        # Not cancelled by a signal: only who knows that the machine was made by this call may remove it.
        await self._client.manager("CreateMachine", "sa{sv}", self._plan.name, self._plan.options)
        try:
            life = asyncio.create_task(self._live())
            await asyncio.wait({life, stop}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                return life.result()
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            return 128 + stop.result()
        finally:
            await remove(self._client, self._session, self._plan.name)

    async def _live(self) -> int:
        tasks: list[asyncio.Task[Any]] = []
        self._spinner.start()
        try:
            async with self._client.signals() as queue:
                tasks.append(asyncio.create_task(self._watch(queue)))
                tasks.append(asyncio.create_task(self._client.closed()))
                await self._start()
                tasks.append(asyncio.create_task(self._show()))
                return await self._until_end(shown=tasks[-1], closed=tasks[-2])
        finally:
            self._spinner.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self) -> None:
        """Start the machine; its console may be known, and it may even have ended, before that returns."""
        await self._client.manager("StartMachine", "s", self._plan.name, within=START_TIMEOUT)
        if not self._console.done():
            found = await MACHINE.show(self._client, self._plan.name)
            _settle(self._console, found["ConsolePath"])

    async def _watch(self, queue: asyncio.Queue[Signal]) -> None:
        while True:
            signal = await queue.get()
            if object_of(signal.path) == (MACHINE.noun, self._plan.name):
                self._learn(signal)
                if signal.member == "PropertiesChanged" and "ConsolePath" in signal.body[2]:
                    await self._ask_for_console(signal.path)
            elif signal.member == "NameOwnerChanged" and signal.body[2]:
                # What happened while vfsd was away was not told.
                with suppress(CallFailed):
                    found = await MACHINE.show(self._client, self._plan.name)
                    if self._console.done() and found["State"] in IDLE:
                        _settle(self._ended, (found["State"], found["Reason"]))

    def _learn(self, signal: Signal) -> None:
        self._spinner.step = describe_step(signal) or self._spinner.step
        if signal.member == "StateChanged" and signal.body[1] in IDLE:
            _settle(self._ended, (signal.body[1], signal.body[2]))
        elif signal.member == "PropertiesChanged" and signal.body[1].get("ConsolePath"):
            _settle(self._console, signal.body[1]["ConsolePath"])

    async def _ask_for_console(self, path: str) -> None:
        """On the system bus signals don't say where it is."""
        with suppress(CallFailed):
            console_path = await self._client.get(path, MACHINE.interface, "ConsolePath")
            if console_path:
                _settle(self._console, console_path)

    async def _show(self) -> End:
        """The console until it ends."""
        path = self._console.result()
        if not path:
            return await self._show_journal()
        terminal = sys.stdin.isatty()
        if self._plan.command:
            self._spinner.step = f"Booting {self._plan.name}"
        else:
            self._spinner.stop()
            if terminal:
                click.echo(
                    f"This is {self._plan.name}; Ctrl-] three times within a second ends it.", err=True
                )
        if not self._plan.builtin:
            self._ready.set()
        # A pipe's content would be echoed into the command's output by the guest's terminal.
        keys = terminal or not self._plan.command
        try:
            streams = await console.connect(path)
        except OSError as error:
            reason = error.strerror or error
            raise CliError(f"the console of {self._plan.name} can't be reached: {reason}") from None
        return await console.attach(streams, keys=keys, convert=self._convert, ready=self._ready)

    async def _show_journal(self) -> End:
        self._spinner.stop()
        if not self._plan.command:
            click.echo(f"This QEMU gives no console to type on; {self._plan.name} prints:", err=True)
        found = await MACHINE.show(self._client, self._plan.name)
        scope = self._session.scope
        await follow_console(found["Unit"], scope, self._started, self._convert, self._ended)
        return End.CLOSED

    def _convert(self, data: bytes) -> bytes:
        """Look for what the built-in guest says of itself; with a command, only its output is shown."""
        if self._plan.command:
            shown = self._plan.command.feed(data)
            if self._plan.command.began:
                self._spinner.stop()
            if self._plan.command.exit_code is not None:
                self._command_ended.set()
            return shown
        if not self._ready.is_set():
            self._seen = (self._seen + data)[-_BANNER_MAX:]
            if _BANNER.search(self._seen):
                self._ready.set()
        return data

    async def _until_end(self, shown: asyncio.Task[End], closed: asyncio.Task[None]) -> int:
        command_ended = asyncio.create_task(self._command_ended.wait())
        try:
            await first(shown, self._ended, command_ended, closed)
        finally:
            command_ended.cancel()
        if closed.done():
            raise BusGone()
        if shown.done() and shown.result() is not End.CLOSED:
            return Exit.INTERRUPTED if shown.result() is End.ESCAPED and self._plan.command else Exit.DONE
        await asyncio.wait({self._ended}, timeout=POWER_OFF_TIMEOUT)
        await asyncio.wait({shown}, timeout=DRAIN_TIMEOUT)
        return self._verdict()

    def _verdict(self) -> int:
        state, reason = self._ended.result() if self._ended.done() else ("running", "it did not power off")
        command = self._plan.command
        if command is None:
            click.echo(clean(f"{self._plan.name} {state}" + (f": {reason}" if reason else "")), err=True)
            return Exit.FAILED if state == "failed" else Exit.DONE
        if command.exit_code is not None:
            return command.exit_code
        if command.last_lines:
            click.echo(command.last_lines, err=True)
        raise CliError(f"the guest ended before its command did: {reason or state}")


async def remove(client: Client, session: Session, name: str) -> None:
    """End and forget a machine, also if vfsd is being restarted. Says so if that can't be done."""
    problem = ""
    for _ in range(REMOVE_TRIES):
        try:
            await client.manager("RemoveMachine", "s", name)
            return
        except CallFailed as error:
            if error.name == NO_SUCH_MACHINE:
                return
            problem = str(error)
            if error.name != WRONG_STATE:
                await asyncio.sleep(REMOVE_INTERVAL)
                continue
        # It may end by itself between the two calls.
        with suppress(CallFailed):
            await client.manager("KillMachine", "s", name)
    again = f"vfsctl {session.flag}machine kill {name}; vfsctl {session.flag}machine remove {name}"
    with suppress(OSError):
        click.echo(clean(f"{name} could not be removed ({problem}). Later: {again}"), err=True)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
