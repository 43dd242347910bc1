"""What share and machine commands have in common: finding an object, its steps, printing it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from vfsd import names
from vfsd.cli.errors import CallFailed
from vfsd.cli.output import clean, print_json
from vfsd.cli.progress import Spinner, spinning
from vfsd.cli.session import Session

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Objects, Signal

T = TypeVar("T")
HIDDEN = "-"
"""Shown for what the system's vfsd tells to root and to the owner only, and to whom polkit lets inspect."""
_KEY = {names.SHARE_INTERFACE: "Source", names.MACHINE_INTERFACE: "Kernel"}
"""A property of that sort."""
_BESIDES = {"Degraded": "degraded", "NeedsRefresh": "outdated", "Suspended": "suspended"}
"""What a state says nothing of, by property."""


class Kind(NamedTuple):
    """Shares or machines."""

    noun: str
    interface: str
    root: str
    getter: str

    def named(self, objects: Objects) -> dict[str, dict[str, Any]]:
        """Properties by name, sorted, of the objects of this kind."""
        found = (item[self.interface] for item in objects.values() if self.interface in item)
        return {str(item["Name"]): item for item in sorted(found, key=lambda item: str(item["Name"]))}

    async def path(self, client: Client, name: str) -> str:
        """The object path of what has that name. :raise CallFailed: nothing has."""
        (path,) = await client.manager(self.getter, "s", name)
        return str(path)

    async def call(self, client: Client, name: str, member: str, signature: str = "", *body: Any) -> None:
        """Call a method, without an answer, of the object of that name."""
        path = await self.path(client, name)
        await client.call(path, self.interface, member, signature, *body)

    async def show(self, client: Client, name: str) -> dict[str, Any]:
        """The properties of the object of that name that may be seen."""
        return await client.properties(await self.path(client, name), self.interface)

    async def show_all(self, client: Client, name: str) -> dict[str, Any]:
        """The same, after somebody was asked to authenticate, if that is needed and possible."""
        found = await self.show(client, name)
        if client.asks and _KEY[self.interface] not in found:
            with suppress(CallFailed):
                await client.get(await self.path(client, name), self.interface, _KEY[self.interface])
                found = await self.show(client, name)
        return found


SHARE = Kind("share", names.SHARE_INTERFACE, names.SHARE_ROOT, "GetShare")
MACHINE = Kind("machine", names.MACHINE_INTERFACE, names.MACHINE_ROOT, "GetMachine")


def object_of(path: str) -> tuple[str, str]:
    """Kind and name of the object at a path; `("service", "")` for vfsd's root and whatever else."""
    for kind in (SHARE, MACHINE):
        if path.startswith(kind.root + "/"):
            return kind.noun, names.label_unescape(path.rpartition("/")[2])
    return "service", ""


def kind_at(path: str) -> Kind:
    """Whether a share or a machine stands at a path of one of them."""
    return MACHINE if path.startswith(MACHINE.root) else SHARE


def describe_step(signal: Signal) -> str:
    """A StateChanged in a few words; "" for any other signal."""
    if signal.member != "StateChanged" or len(signal.body) != 3:
        return ""
    kind, name = object_of(signal.path)
    _, new, reason = signal.body
    return f"{kind} {name} {new}" + (f" ({reason})" if reason else "")


async def with_steps(client: Client, session: Session, machine: str, what: str, action: Awaitable[T]) -> T:
    """Await `action` while a spinner shows what becomes of the machine and of its own shares."""
    with spinning(what, shown=session.interactive) as spinner:
        if not session.interactive:
            return await action
        async with client.signals() as queue:
            watcher = asyncio.create_task(_show_steps(queue, spinner, machine, what))
            try:
                return await action
            finally:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher


async def _show_steps(queue: asyncio.Queue[Signal], spinner: Spinner, machine: str, what: str) -> None:
    while True:
        signal = await queue.get()
        _, name = object_of(signal.path)
        step = describe_step(signal) if name == machine or name.startswith(f"{machine}.") else ""
        if step:
            spinner.step = f"{what}: {step}"


def state_text(item: Mapping[str, Any]) -> str:
    """The state of a share or machine, and what a person should know besides."""
    besides = [word for name, word in _BESIDES.items() if item.get(name)]
    return str(item["State"]) + (f" ({', '.join(besides)})" if besides else "")


def print_properties(session: Session, properties: dict[str, Any]) -> None:
    """Print an object's properties: JSON, or `Name=value` lines as systemctl's show."""
    if session.json:
        print_json(properties)
        return
    for name, value in properties.items():
        click.echo(f"{name}={clean(property_text(value))}")


def property_text(value: Any) -> str:
    """A property's value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value)


def say(session: Session, text: str) -> None:
    """Tell a person what was done; programs that asked for JSON get nothing but JSON."""
    if not session.json:
        click.echo(clean(text))
