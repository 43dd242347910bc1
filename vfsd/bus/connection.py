"""One connection to a message bus: calls out, calls in, signals, paced.

dbus-next gives the transport and the marshalling. Three of its habits would not do for a service that lives for
months, and are replaced here: a full send buffer ended the connection, every message cost two reads, and an
exception in a handler went back to the caller with its traceback.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from dbus_next import BusType, Message, MessageFlag, MessageType
from dbus_next.aio import MessageBus
from dbus_next.auth import AuthExternal

from vfsd.bus import wire
from vfsd.bus.incoming import Incoming
from vfsd.bus.limits import CALL_MAX, FairSlots
from vfsd.bus.writer import READY_WATER, SEND_BUFFER, PacedWriter, close_all
from vfsd.names import Scope

log = logging.getLogger(__name__)

MAX_CALLS = 64
"""Calls in flight, besides those to polkit. dbus-daemon allows 128 pending replies for each connection."""
CALL_TIMEOUT = 25.0
"""Seconds, the usual time limit of D-Bus clients."""
_CHUNK = 256 << 10
_DESCRIPTORS = 16
"""File descriptors in one message; dbus-daemon's own limit."""
_FIXED_HEADER = 16
_STATS = "org.freedesktop.DBus.Debug.Stats"
_KNOWN_TYPES = frozenset(kind.value for kind in MessageType)

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")

SignalHandler = Callable[[Incoming], None]
CallHandler = Callable[[Incoming], None]


class CallError(Exception):
    """A call was answered with an error, or not at all."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


def _gone() -> CallError:
    return CallError("org.freedesktop.DBus.Error.Disconnected", "the bus is gone")


class Authenticator(AuthExternal):
    """Asks the bus to pass file descriptors on, and goes on without them if it does not (dbus-next would end)."""

    def __init__(self) -> None:
        untyped: Any = super()
        untyped.__init__()
        self.agreed = False
        """Whether the bus passes descriptors on."""

    def _receive_line(self, line: str) -> str:
        self.agreed = line.startswith("AGREE_UNIX_FD")
        if self.negotiating_fds and line.startswith("ERROR"):
            return "BEGIN"
        answer: str = super()._receive_line(line)
        return answer


class Connection(MessageBus):
    """A connection; everything is called in the event loop's thread."""

    def __init__(self, scope: Scope, *, takes_descriptors: bool = False) -> None:
        """:param takes_descriptors: whether call_for_descriptor() is going to be used."""
        self._takes_descriptors = takes_descriptors
        self._descriptors: list[int] = []
        """Those that came before their message was whole."""
        self._authenticator = Authenticator()
        super().__init__(
            bus_type=BusType.SYSTEM if scope is Scope.SYSTEM else BusType.SESSION,
            auth=self._authenticator,
            negotiate_unix_fd=True,
        )
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.on_call: CallHandler | None = None
        """Receives each method call; it must answer it. Of one with more than CALL_MAX bytes it gets the header."""
        self.on_ready: Callable[[], None] | None = None
        """Called when what came was handed over, and when there is room again to send."""
        self._signal_handlers: list[SignalHandler] = []
        self._replies: dict[int, asyncio.Future[Message]] = {}
        self._slots = FairSlots(MAX_CALLS)
        self._serials = itertools.count(1)
        self._received = bytearray()
        self._to_skip = 0
        self._reading = True
        self._writer = PacedWriter(self)

    @property
    def socket(self) -> Any:
        """The socket underneath."""
        return self._sock

    @property
    def passes_descriptors(self) -> bool:
        """Whether a message may carry file descriptors."""
        return self._authenticator.agreed

    @property
    def congested(self) -> bool:
        """Whether so much waits to be sent that no more calls should be answered for now."""
        return bool(self._writer.waiting_bytes > READY_WATER)

    def next_serial(self) -> int:
        """A serial of 32 bits that is not 0."""
        return (next(self._serials) - 1) % 0xFFFFFFFF + 1

    def on_signal(self, handler: SignalHandler) -> None:
        """Call `handler` with each signal."""
        self._signal_handlers.append(handler)

    async def call(  # type: ignore[override]  # arguments instead of a message
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] | bytes = (),
        timeout: float | None = CALL_TIMEOUT,
        slots: AbstractAsyncContextManager[None] | None = None,
    ) -> list[Any]:
        """Call a method and return the body of its reply.

        :param body: arguments, or all of them marshalled already.
        :param timeout: seconds, or None for a caller who has a time limit of its own.
        :param slots: what bounds calls that may take long, so that they keep no others waiting.
        :raise CallError: the reply is an error, or none came in time.
        """
        reply = await self._request(destination, path, interface, member, signature, body, timeout, slots)
        result: list[Any] = reply.body
        return result

    async def call_for_descriptor(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] | bytes = (),
    ) -> int:
        """Call a method that gives one file descriptor, which is the caller's. :raise CallError: see call()."""
        reply = await self._request(destination, path, interface, member, signature, body, CALL_TIMEOUT)
        if len(reply.unix_fds) != 1:
            close_all(reply.unix_fds)
            raise CallError("org.freedesktop.DBus.Error.Failed", f"{member} gave no descriptor")
        return int(reply.unix_fds[0])

    async def _request(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: Sequence[Any] | bytes,
        timeout: float | None,
        slots: AbstractAsyncContextManager[None] | None = None,
    ) -> Message:
        """:raise CallError: see call()."""
        async with slots or self._slots:
            if self._disconnected:
                raise _gone()
            raw = body if isinstance(body, bytes) else wire.marshal(signature, list(body))
            message = wire.RawMessage(
                raw,
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                serial=self.next_serial(),
            )
            future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
            self._replies[message.serial] = future
            try:
                self._writer.schedule_write(message)
                async with asyncio.timeout(timeout):
                    reply = await future
            except TimeoutError:
                raise CallError("org.freedesktop.DBus.Error.NoReply", f"{member} got no answer") from None
            finally:
                self._replies.pop(message.serial, None)
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.signature.startswith("s") else ""
            raise CallError(reply.error_name, text)
        return reply

    def send_now(self, message: Message) -> None:
        """Send a message that expects no reply; its file descriptors are closed here once they were sent."""
        if not message.serial:
            message.serial = self.next_serial()
        self._writer.schedule_write(message)

    def tell(
        self, destination: str, path: str, interface: str, member: str, signature: str, *body: Any
    ) -> None:
        """Call a method without waiting for an answer. Nothing is started to take the call."""
        message = wire.RawMessage(
            wire.marshal(signature, list(body)),
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            flags=MessageFlag.NO_REPLY_EXPECTED | MessageFlag.NO_AUTOSTART,
        )
        self.send_now(message)

    async def call_bus(self, member: str, signature: str, *body: Any) -> list[Any]:
        """Call the message bus itself."""
        return await self.call(*BUS, member, signature, body)

    async def unread(self, name: str) -> int:
        """Bytes that wait in dbus-daemon until a connection reads them; 0 if it is gone, or the bus doesn't tell."""
        try:
            [stats] = await self.call(*BUS[:2], _STATS, "GetConnectionStats", "s", [name])
            return int(stats["OutgoingBytes"].value)
        except (CallError, KeyError, ValueError):
            return 0

    async def add_match(self, rule: str) -> None:
        """Ask the bus for signals."""
        await self.call_bus("AddMatch", "s", rule)

    def flush(self) -> None:
        """Send what waits, before the connection is ended."""
        self._writer.flush()

    def fail(self, error: Exception) -> None:
        """End the connection because of an error."""
        self._finalize(error)

    def _finalize(self, err: Exception | None = None) -> None:
        super()._finalize(err)
        self._writer.drop()
        for future in self._replies.values():
            if not future.done():
                future.set_exception(_gone())

    def pause_reading(self) -> None:
        """Take no more messages in until what waits has been sent."""
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Undo pause_reading()."""
        if not self._reading and not self._disconnected:
            self._reading = True
            asyncio.get_running_loop().add_reader(self._fd, self._message_reader)

    def tell_ready(self) -> None:
        """Say that calls may be answered."""
        if self.on_ready is not None:
            self.on_ready()

    def _message_reader(self) -> None:
        # Where no file descriptors are taken, recv() has no place for those that a client sends with a message, so
        # the kernel closes them (unix(7), MSG_CTRUNC) and none of them ever is vfsd's.
        try:
            data = self._receive()
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(error)
            return
        if not data:
            self.fail(EOFError("the bus closed the connection"))
            return
        if self._to_skip:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            data = data[skipped:]
        self._received += data
        self._take_messages()
        self.tell_ready()

    def _receive(self) -> bytes:
        if not self._takes_descriptors:
            data: bytes = self._sock.recv(_CHUNK)
            return data
        data, descriptors, _, _ = socket.recv_fds(self._sock, _CHUNK, _DESCRIPTORS)
        self._descriptors += descriptors
        return data

    def _take_messages(self) -> None:
        """Handle each whole message in the buffer."""
        start = 0
        while len(self._received) - start >= _FIXED_HEADER:
            order = "little" if self._received[start] == ord("l") else "big"
            body = int.from_bytes(self._received[start + 4 : start + 8], order)  # type: ignore[arg-type]
            fields = int.from_bytes(self._received[start + 12 : start + 16], order)  # type: ignore[arg-type]
            kept = size = _FIXED_HEADER + fields + (-fields % 8) + body
            if body > CALL_MAX and self._received[start + 1] == MessageType.METHOD_CALL.value:
                kept -= body
            if len(self._received) < start + kept:
                break
            self._take(bytes(self._received[start : start + kept]), size)
            start += size
        self._to_skip += max(0, start - len(self._received))
        del self._received[:start]

    def _take(self, raw: bytes, size: int) -> None:
        if raw[1] not in _KNOWN_TYPES:
            return  # the specification: unknown types must be ignored
        try:
            message = Incoming(raw, size)
        except Exception:
            log.exception("A message on the bus could not be read")
            return
        if message.descriptors and self._takes_descriptors:
            message.unix_fds = self._descriptors[: message.descriptors]
            del self._descriptors[: message.descriptors]
        try:
            self._handle(message)
        except Exception:
            log.exception("A message on the bus could not be handled")

    def _handle(self, message: Incoming) -> None:
        if message.message_type is MessageType.SIGNAL:
            for handler in self._signal_handlers:
                handler(message)
        elif message.message_type is MessageType.METHOD_CALL:
            if self.on_call is not None:
                self.on_call(message)
            elif not message.flags & MessageFlag.NO_REPLY_EXPECTED:
                unknown = "org.freedesktop.DBus.Error.UnknownMethod"
                self.send_now(Message.new_error(message, unknown, "This connection serves nothing"))
        else:
            hello = self._method_return_handlers.pop(message.reply_serial, None)
            future = self._replies.get(message.reply_serial)
            if hello is not None:
                failed = message.message_type is MessageType.ERROR
                hello(message, RuntimeError(message.body) if failed else None)
            elif future is not None and not future.done():
                future.set_result(message)
                return
        close_all(message.unix_fds)
