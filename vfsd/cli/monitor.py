"""`vfsctl monitor`: vfsd's signals, as they come."""

from __future__ import annotations

import asyncio
import signal as signals
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli.errors import ACCESS_DENIED, INTERACTIVE_AUTHORIZATION_REQUIRED, BusGone, CallFailed, Exit
from vfsd.cli.objects import object_of, property_text
from vfsd.cli.output import clean, print_json_line, state_colour
from vfsd.cli.session import Session, global_options, pass_session

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Signal

_TOLD_BY_STATE_CHANGED = ("State", "Reason", "StateChangedUSec")


@click.command()
@click.argument("name", required=False)
@global_options
@pass_session
def monitor(session: Session, name: str | None) -> int:
    """Print what happens to shares and machines as it happens, until Ctrl-C.

    With NAME, only what happens to the machine or share of that name, and to that machine's own shares.
    vfsd may stop and start meanwhile; monitor does not start it.
    """
    session.ask = False  # who only watches is not interrupted
    return session.run(lambda client: _watch(client, session, name))


async def _watch(client: Client, session: Session, name: str | None) -> int:
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signals.SIGINT, signals.SIGTERM):
        loop.add_signal_handler(number, asked_to_end.set)
    async with client.signals() as queue:
        if session.legend and not session.json:
            state = "" if await client.is_running() else "; vfsd does not run yet"
            click.echo(f"Watching vfsd on the {session.scope.value} bus{state}. Ctrl-C ends.", err=True)
        ends = {asyncio.create_task(asked_to_end.wait()), asyncio.create_task(client.closed())}
        printer = asyncio.create_task(_print_all(client, queue, session, name))
        await asyncio.wait({*ends, printer}, return_when=asyncio.FIRST_COMPLETED)
        for task in (*ends, printer):
            task.cancel()
        if printer.done():  # it ends by itself only with an error: nobody reads what it prints
            printer.result()
    if not asked_to_end.is_set():
        raise BusGone()
    return Exit.DONE


async def _print_all(
    client: Client, queue: asyncio.Queue[Signal], session: Session, name: str | None
) -> None:
    told = True
    while True:
        signal = await queue.get()
        if name is None or concerns(signal, name):
            told = told and await _complete(client, signal)
            _print(signal, session.json)


async def _complete(client: Client, signal: Signal) -> bool:
    """Ask for what a signal of the system's vfsd leaves out, since all hear it; whether vfsd tells."""
    try:
        if signal.member == "InterfacesAdded":
            path, interfaces = signal.body
            for interface in interfaces:
                interfaces[interface] = await client.properties(path, interface)
        elif signal.member == "PropertiesChanged":
            interface, changed, invalidated = signal.body
            for name in list(invalidated):
                changed[name] = await client.get(signal.path, interface, name)
                invalidated.remove(name)
    except CallFailed as error:
        # it may be gone already
        return error.name not in (ACCESS_DENIED, INTERACTIVE_AUTHORIZATION_REQUIRED)
    return True


def _subject(signal: Signal) -> str:
    """The object path that a signal is about, which for ObjectManager's is not the path it comes from."""
    if signal.member in ("InterfacesAdded", "InterfacesRemoved"):
        return str(signal.body[0])
    return signal.path


def concerns(signal: Signal, name: str) -> bool:
    """Whether a signal is about the object of that name, a share made with that machine, or vfsd itself."""
    kind, subject = object_of(_subject(signal))
    return kind == "service" or subject == name or (kind == "share" and subject.startswith(f"{name}."))


def _print(signal: Signal, as_json: bool) -> None:
    now = datetime.now(UTC).astimezone()
    if as_json:
        print_json_line({"Time": now.isoformat(timespec="milliseconds"), **describe(signal)})
        return
    text = say_signal(signal)
    if text:
        subject = " ".join(word for word in object_of(_subject(signal)) if word)
        click.echo(f"{now:%H:%M:%S}.{now.microsecond // 1000:03} {clean(subject)}: {text}")


def describe(signal: Signal) -> dict[str, Any]:
    """A signal as one JSON object."""
    kind, name = object_of(_subject(signal))
    found: dict[str, Any] = {"Signal": signal.member, "Kind": kind, "Name": name, "Path": _subject(signal)}
    if signal.member == "StateChanged":
        found |= dict(zip(("Old", "New", "Reason"), signal.body, strict=False))
    elif signal.member == "PropertiesChanged":
        found |= {"Interface": signal.body[0], "Changed": signal.body[1], "Invalidated": signal.body[2]}
    elif signal.member in ("InterfacesAdded", "InterfacesRemoved"):
        found["Interfaces"] = signal.body[1]
    elif signal.member == "NameOwnerChanged":
        found["Running"] = bool(signal.body[2])
    else:
        found["Arguments"] = signal.body
    return found


def say_signal(signal: Signal) -> str:
    """A signal in words, with colours; "" if another signal says the same."""
    member, body = signal.member, signal.body
    if member == "StateChanged":
        old, new, reason = body
        return f"{old} → {click.style(new, fg=state_colour(new))}" + (f" ({clean(reason)})" if reason else "")
    if member == "PropertiesChanged":
        news = ((name, value) for name, value in body[1].items() if name not in _TOLD_BY_STATE_CHANGED)
        changed = [f"{name}={property_text(value)}" for name, value in news]
        return clean(", ".join([*changed, *body[2]]))
    if member == "InterfacesAdded":
        return "added"
    if member == "InterfacesRemoved":
        return "removed"
    if member == "NameOwnerChanged":
        return "vfsd runs" if body[2] else "vfsd has ended"
    return clean(f"{member} {body}")
