"""A small D-Bus client; the only module of vfsctl that knows the D-Bus library."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from dbus_next.constants import MessageFlag, MessageType
from dbus_next.errors import AuthError, InvalidAddressError
from dbus_next.message import Message
from dbus_next.signature import Variant

from vfsd.cli import remote, terminal_agent
from vfsd.cli.connection import BridgedBus, Bus, address
from vfsd.cli.errors import (
    INVALID_ARGS,
    NO_REPLY,
    UNKNOWN_METHOD,
    BusGone,
    CallFailed,
    CliError,
    Exit,
    Unreachable,
)
from vfsd.cli.values import Typed
from vfsd.names import BUS_NAME, MANAGER_INTERFACE, ROOT_PATH, Scope

T = TypeVar("T")

CALL_TIMEOUT = 25.0
"""Seconds; what D-Bus clients use, and what the interface promises to stay below."""
AUTHENTICATION_TIMEOUT = 300.0
"""Seconds that vfsd lets a person have to authenticate."""

_BUS = "org.freedesktop.DBus"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_OF_EVERY_OBJECT = ("org.freedesktop.DBus.Introspectable", "org.freedesktop.DBus.Peer")

Objects = dict[str, dict[str, dict[str, Any]]]
"""Properties by interface by object path."""


class Signal(NamedTuple):
    """A signal as it came from the bus."""

    path: str
    interface: str
    member: str
    body: list[Any]


class Method(NamedTuple):
    """A method that others call: its name, and the signature of what it takes."""

    interface: str
    member: str
    signature: str


Answer = Sequence[Any]
"""What a method returns: the signature, and then the values, in which `Typed` ones become variants."""


class Client:
    """A connection to one bus, for calls to vfsd and signals from it."""

    def __init__(self, bus: Any, *, asks: bool = False) -> None:
        """:param bus: a connected MessageBus; only some of its methods have types.

        :param asks: whether somebody may be asked to authenticate for a call.
        """
        self._bus = bus
        self._end = asyncio.ensure_future(self._until_end())
        self.asks = asks

    def close(self) -> None:
        """End the connection."""
        self._bus.disconnect()

    @property
    def unique_name(self) -> str:
        """The name that the bus gave to this connection."""
        return str(self._bus.unique_name)

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *body: Any,
        destination: str = BUS_NAME,
        within: float = CALL_TIMEOUT,
        look: bool = False,
    ) -> list[Any]:
        """Call a method and return what it answers, variants unpacked; `Typed` values in `body` become some.

        :param look: only look: start no service for it, and ask nobody to authenticate.
        :raise CallFailed: the answer is an error, or none came within that many seconds.
        """
        reply = await self._call(
            path, interface, member, signature, *body, destination=destination, within=within, look=look
        )
        return [_unpack(value) for value in reply.body]

    async def descriptor(self, path: str, interface: str, member: str) -> int:
        """Call a method without arguments and return the file descriptor that it answers, which is the caller's.

        The connection must have been made for that. :raise CallFailed: see `call()`.
        """
        reply = await self._call(path, interface, member)
        descriptor: int = reply.unix_fds[reply.body[0]]
        return descriptor

    async def _call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *body: Any,
        destination: str = BUS_NAME,
        within: float = CALL_TIMEOUT,
        look: bool = False,
    ) -> Message:
        asks = self.asks and not look
        flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if asks else MessageFlag.NONE
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=[_pack(value) for value in body],
            flags=flags | MessageFlag.NO_AUTOSTART if look else flags,
        )
        reply = await self._reply(message, within + (AUTHENTICATION_TIMEOUT if asks else 0))
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise CallFailed(reply.error_name, text)
        answer: Message = reply
        return answer

    async def _reply(self, message: Message, within: float) -> Message:
        """Send a call; wait for its answer, or the connection's end, after which the library lets it wait for ever."""
        answering = asyncio.ensure_future(self._bus.call(message))
        try:
            await asyncio.wait({answering, self._end}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                with suppress(OSError, EOFError):
                    reply: Message | None = answering.result()
                    if reply is not None:
                        return reply
        finally:
            answering.cancel()
        if answering.done() or self._end.done():
            raise BusGone()
        raise CallFailed(NO_REPLY, f"no answer within {within:.0f} seconds")

    async def manager(
        self, member: str, signature: str = "", *body: Any, within: float = CALL_TIMEOUT
    ) -> list[Any]:
        """Call a method of the root object's Manager interface. :raise CallFailed: see `call()`."""
        return await self.call(ROOT_PATH, MANAGER_INTERFACE, member, signature, *body, within=within)

    async def properties(self, path: str, interface: str, *, look: bool = False) -> dict[str, Any]:
        """The properties of an object that may be seen. :raise CallFailed: see `call()`."""
        (found,) = await self.call(path, _PROPERTIES, "GetAll", "s", interface, look=look)
        return dict(found)

    async def get(self, path: str, interface: str, name: str) -> Any:
        """One property. :raise CallFailed: see `call()`."""
        (value,) = await self.call(path, _PROPERTIES, "Get", "ss", interface, name)
        return value

    async def set(self, path: str, interface: str, name: str, value: Typed) -> None:
        """Set one property. :raise CallFailed: see `call()`."""
        await self.call(path, _PROPERTIES, "Set", "ssv", interface, name, value)

    async def objects(self, *, look: bool = False) -> Objects:
        """All shares and machines, with the properties that may be seen. :raise CallFailed: see `call()`."""
        (found,) = await self.call(ROOT_PATH, _OBJECT_MANAGER, "GetManagedObjects", look=look)
        return dict(found)

    async def is_running(self) -> bool:
        """Whether vfsd is on the bus; unlike any call to it, this does not start it."""
        (owned,) = await self.bus("NameHasOwner", "s", BUS_NAME)
        return bool(owned)

    async def bus(self, member: str, signature: str, *body: Any) -> list[Any]:
        """Call a method of the bus itself. :raise CallFailed: see `call()`."""
        return await self.call("/org/freedesktop/DBus", _BUS, member, signature, *body, destination=_BUS)

    async def closed(self) -> None:
        """Return when the bus has closed the connection."""
        await asyncio.wait({self._end})

    async def _until_end(self) -> None:
        with suppress(Exception):
            await self._bus.wait_for_disconnect()

    @asynccontextmanager
    async def signals(self, path_namespace: str = ROOT_PATH) -> AsyncIterator[asyncio.Queue[Signal]]:
        """Receive vfsd's signals from `path_namespace` down, and NameOwnerChanged of its name."""

        def is_vfsds(signal: Signal) -> bool:
            return signal.path.startswith(ROOT_PATH) or signal.member == "NameOwnerChanged"

        own = f"type='signal',sender='{BUS_NAME}',path_namespace='{path_namespace}'"
        async with self.listen(own, owner_rule(BUS_NAME), wanted=is_vfsds) as queue:
            yield queue

    @asynccontextmanager
    async def listen(
        self, *rules: str, wanted: Callable[[Signal], bool] = lambda _: True
    ) -> AsyncIterator[asyncio.Queue[Signal]]:
        """Receive the signals that match one of the bus's match rules, or are sent to this connection alone."""
        queue: asyncio.Queue[Signal] = asyncio.Queue()

        def receive(message: Message) -> None:
            if message.message_type is MessageType.SIGNAL:
                body = [_unpack(value) for value in message.body]
                signal = Signal(message.path or "", message.interface or "", message.member or "", body)
                if wanted(signal):
                    queue.put_nowait(signal)

        self._bus.add_message_handler(receive)
        try:
            for rule in rules:
                await self.bus("AddMatch", "s", rule)
            yield queue
        finally:
            self._bus.remove_message_handler(receive)
            # On a dead connection there is nothing left to remove.
            with suppress(CallFailed):
                for rule in rules:
                    await self.bus("RemoveMatch", "s", rule)

    def serve(self, path: str, methods: Mapping[Method, Callable[..., Answer | None]]) -> None:
        """Answer what others call at a path; a method that returns None can't do anything with its arguments."""

        def receive(message: Message) -> Message | bool:
            interface = message.interface or ""
            if message.message_type is not MessageType.METHOD_CALL or message.path != path:
                return False
            if interface in _OF_EVERY_OBJECT:
                return False  # the library's
            method = methods.get(Method(interface, message.member or "", message.signature))
            if method is None:
                return Message.new_error(
                    message, UNKNOWN_METHOD, f"there is no method {message.member} like this"
                )
            answer = method(*map(_unpack, message.body))
            if message.flags & MessageFlag.NO_REPLY_EXPECTED:
                return True
            if answer is None:
                return Message.new_error(message, INVALID_ARGS, "there is no such thing")
            signature, *values = answer
            return Message.new_method_return(message, signature, [_pack(value) for value in values])

        self._bus.add_message_handler(receive)

    def emit(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> None:
        """Send a signal."""
        packed = [_pack(value) for value in body]
        self._bus.send(Message.new_signal(path, interface, member, signature, packed))


def run(
    scope: Scope,
    body: Callable[[Client], Coroutine[Any, Any, T]],
    *,
    descriptors: bool = False,
    ask: bool = True,
    host: str = "",
) -> T:
    """Run `body` with a connection to that bus, and close it.

    :param descriptors: whether answers may be file descriptors.
    :param ask: whether somebody who is at a terminal may be asked to authenticate.
    :param host: [USER@]HOST if the bus is that of another host.
    :raise Unreachable: there is no bus.
    """

    async def connected() -> T:
        client = await connect(scope, descriptors=descriptors, ask=ask)
        try:
            return await body(client)
        finally:
            client.close()

    async def bridged() -> T:
        through = remote.bridge(host, scope)
        client = await _connect_through(through, host, scope)
        try:
            return await body(client)
        finally:
            client.close()
            await asyncio.to_thread(through.end)

    return asyncio.run(bridged() if host else connected())


async def connect(scope: Scope, *, descriptors: bool = False, ask: bool = True) -> Client:
    """Connect to the bus. :raise Unreachable: there is none, or it refuses this user."""
    what = "your user bus" if scope is Scope.USER else "the system bus"
    try:
        bus = Bus(bus_address=address(scope), negotiate_unix_fd=descriptors)
        await asyncio.wait_for(bus.connect(), CALL_TIMEOUT)
    except TimeoutError:
        raise Unreachable(f"{what} does not answer") from None
    except (AuthError, InvalidAddressError) as error:
        raise Unreachable(f"{what} refuses the connection: {error}") from None
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unreachable(f"there is no {what.split(' ', 1)[1]} to talk to: {reason}") from None
    return Client(bus, asks=terminal_agent.wanted(scope, ask))


async def _connect_through(through: remote.Bridge, host: str, scope: Scope) -> Client:
    """:raise Unreachable: there is no such bus, or ssh does not get there."""
    bus = BridgedBus(through.socket)
    try:
        # somebody may have to type a password for ssh
        await asyncio.wait_for(bus.connect(), AUTHENTICATION_TIMEOUT)
    except (OSError, EOFError, AuthError, TimeoutError):
        bus.disconnect()
        through.socket.close()
        raise remote.unreachable(host, scope, await asyncio.to_thread(through.end)) from None
    return Client(bus)


def owner_rule(name: str) -> str:
    """The match rule for who has a name on the bus."""
    return f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{name}'"


def _pack(value: Any) -> Any:
    """`Typed` to variant, at any depth."""
    if isinstance(value, Typed):
        return Variant(value.signature, _pack(value.value))
    if isinstance(value, dict):
        return {key: _pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item) for item in value]
    if isinstance(value, str):
        _check_utf8(value)
    return value


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="replace")
        raise CliError(
            f'"{shown}" is not UTF-8, which is all that D-Bus carries', "rename it.", Exit.USAGE
        ) from None


def _unpack(value: Any) -> Any:
    """Variant to its value, at any depth."""
    if isinstance(value, Variant):
        return _unpack(value.value)
    if isinstance(value, dict):
        return {key: _unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    return value
