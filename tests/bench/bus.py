"""Three clients of the system bus: a raw socket for exact times, dbus-next for ordinary calls, and an observer."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from dbus_next import BusType, Message, MessageType
from dbus_next.aio import MessageBus

SYSTEM_BUS = "/run/dbus/system_bus_socket"
VFSD, ROOT = "org.vfsd1", "/org/vfsd1"
MANAGER, MACHINE, SHARE = "org.vfsd1.Manager", "org.vfsd1.Machine", "org.vfsd1.Share"
PROPERTIES = "org.freedesktop.DBus.Properties"
SYSTEMD = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
CALL_TIMEOUT = 30.0


class CallFailed(Exception):
    """A call was answered with an error, or not in time."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the raw client reads of a message."""

    kind: int
    serial: int
    reply_serial: int
    path: str
    interface: str
    member: str
    error_name: str
    raw: bytes
    received: float

    def body(self) -> list[Any]:
        """The body, unmarshalled; slow."""
        import io

        from dbus_next._private.unmarshaller import Unmarshaller

        message = Unmarshaller(io.BytesIO(self.raw)).unmarshall()
        return list(message.body) if message else []


def parse_header(raw: bytes, received: float = 0.0) -> Header:
    """Read a little-endian message's header fields; strings and the reply's serial only."""
    serial, length = struct.unpack_from("<I", raw, 8)[0], struct.unpack_from("<I", raw, 12)[0]
    texts: dict[int, str] = {}
    reply_serial = 0
    place, end = 16, 16 + length
    while place < end:
        place += -place % 8
        code, kind = raw[place], raw[place + 2]
        place += 4
        if kind == ord("g"):
            place += 2 + raw[place]
            continue
        place += -place % 4
        (value,) = struct.unpack_from("<I", raw, place)
        place += 4
        if kind == ord("u"):
            reply_serial = value if code == 5 else reply_serial
        else:
            texts[code] = raw[place : place + value].decode()
            place += value + 1
    text = texts.get
    return Header(
        raw[1], serial, reply_serial, text(1, ""), text(2, ""), text(3, ""), text(4, ""), raw, received
    )


class RawBus:
    """A blocking connection that looks at no body unless it is asked to."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(CALL_TIMEOUT)
        self.socket.connect(SYSTEM_BUS)
        self._serial = 0
        self._buffer = bytearray()
        identity = str(os.geteuid()).encode().hex().encode()
        self.socket.sendall(b"\0AUTH EXTERNAL " + identity + b"\r\n")
        if not self.socket.recv(4096).startswith(b"OK"):
            raise CallFailed("the bus does not let us in")
        self.socket.sendall(b"BEGIN\r\n")
        self.call(*BUS, "Hello")

    def close(self) -> None:
        self.socket.close()

    def message(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> tuple[int, bytes]:
        """A method call as bytes, and its serial."""
        self._serial += 1
        call = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            serial=self._serial,
        )
        return self._serial, bytes(call._marshall())

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> Header:
        """Call and wait for the reply; signals that come meanwhile are lost."""
        return self.exchange(*self.message(destination, path, interface, member, signature, *body))

    def exchange(self, serial: int, raw: bytes) -> Header:
        """Send a call and wait for its reply. :raise CallFailed: it is an error."""
        self.socket.sendall(raw)
        while True:
            reply = self.receive()
            if reply.reply_serial == serial:
                if reply.kind == MessageType.ERROR.value:
                    raise CallFailed(f"{reply.error_name}: {reply.body()}")
                return reply

    def receive(self) -> Header:
        """The next message. :raise TimeoutError."""
        while (message := self._next()) is None:
            data = self.socket.recv(1 << 20)
            if not data:
                raise CallFailed("the bus closed the connection")
            self._buffer += data
        return message

    def poll(self) -> list[Header]:
        """What has come, without waiting for more than the socket holds now."""
        while select.select([self.socket], [], [], 0)[0]:
            data = self.socket.recv(1 << 20)
            if not data:
                raise CallFailed("the bus closed the connection")
            self._buffer += data
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def _next(self) -> Header | None:
        buffer = self._buffer
        if len(buffer) < 16:
            return None
        body, fields = struct.unpack_from("<I", buffer, 4)[0], struct.unpack_from("<I", buffer, 12)[0]
        end = 16 + fields + (-fields % 8) + body
        if len(buffer) < end:
            return None
        raw = bytes(buffer[:end])
        del buffer[:end]
        return parse_header(raw, time.perf_counter())

    def pipelined(
        self,
        calls: Iterable[tuple[int, bytes]],
        in_flight: int,
        on_other: Callable[[Header], None],
        timeout: float,
    ) -> list[Header]:
        """Make many calls, so many at a time; returns the replies as they came. :raise CallFailed: one is an error."""
        waiting: set[int] = set()
        replies: list[Header] = []
        pending = iter(calls)
        end = time.perf_counter() + timeout
        exhausted = False
        while waiting or not exhausted:
            burst = bytearray()
            while len(waiting) < in_flight and not exhausted:
                following = next(pending, None)
                if following is None:
                    exhausted = True
                    break
                waiting.add(following[0])
                burst += following[1]
            if burst:
                self.socket.sendall(burst)
            if not waiting:
                break
            message: Header | None = self.receive()
            while message is not None:
                if message.reply_serial in waiting:
                    waiting.discard(message.reply_serial)
                    if message.kind == MessageType.ERROR.value:
                        raise CallFailed(f"{message.error_name}: {message.body()}")
                    replies.append(message)
                else:
                    on_other(message)
                message = self._next()
            if time.perf_counter() > end:
                raise CallFailed(f"{len(waiting)} calls were not answered in time")
        return replies

    def wait_for(self, condition: Callable[[Header], bool], timeout: float) -> Header:
        """Wait for a message. :raise TimeoutError."""
        end = time.perf_counter() + timeout
        while (left := end - time.perf_counter()) > 0:
            for message in self.poll():
                if condition(message):
                    return message
            select.select([self.socket], [], [], min(left, 1.0))
        raise TimeoutError("a message that was waited for did not come")


class Client:
    """An open dbus-next connection: what the modes are driven by, and what sees their signals."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self.listeners: list[Callable[[Message], None]] = []
        bus.add_message_handler(self._on_message)

    @classmethod
    async def connect(cls) -> Client:
        return cls(await MessageBus(bus_type=BusType.SYSTEM, bus_address=f"unix:path={SYSTEM_BUS}").connect())

    def _on_message(self, message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL:
            for listener in list(self.listeners):
                listener(message)
        return False

    async def match(self, rule: str) -> None:
        await self.call(*BUS, "AddMatch", "s", rule)

    async def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *body: Any
    ) -> list[Any]:
        """:raise CallFailed: the reply is an error."""
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        async with asyncio.timeout(CALL_TIMEOUT):
            reply = await self._bus.call(message)
        if reply is None or reply.message_type is MessageType.ERROR:
            raise CallFailed(f"{member}: {reply and (reply.error_name, reply.body)}")
        return list(reply.body)

    def close(self) -> None:
        self._bus.disconnect()


class Gone:
    """Waits until units have gone and signals have come."""

    def __init__(self, client: Client, units: Iterable[str], stopped: str = "") -> None:
        """:param stopped: object path of a machine whose StateChanged to `stopped` must come too."""
        self._client = client
        self._left = set(units)
        self._stopped = stopped
        self._done = asyncio.get_running_loop().create_future()
        client.listeners.append(self._on_signal)

    def _on_signal(self, message: Message) -> None:
        if message.member == "UnitRemoved":
            self._left.discard(message.body[0])
        elif (
            message.member == "StateChanged"
            and message.path == self._stopped
            and message.body[1] == "stopped"
        ):
            self._stopped = ""
        if not self._left and not self._stopped and not self._done.done():
            self._done.set_result(time.perf_counter())

    async def wait(self, timeout: float) -> float:
        """The moment at which the last was gone. :raise TimeoutError: names what is left."""
        try:
            async with asyncio.timeout(timeout):
                return float(await self._done)
        except TimeoutError:
            left = [*sorted(self._left), *([self._stopped] if self._stopped else [])]
            raise TimeoutError(f"not gone: {', '.join(left)}") from None
        finally:
            self._client.listeners.remove(self._on_signal)
