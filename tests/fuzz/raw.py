"""Messages as bytes, in either byte order and right or wrong; and a connection that sends them."""

from __future__ import annotations

import array
import io
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dbus_next._private.unmarshaller import Unmarshaller

from tests.integration.harness import Vfsd
from vfsd.bus.incoming import Incoming, _complete

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
VFSD = "org.vfsd1"
CALL, RETURN, ERROR = 1, 2, 3
NO_REPLY, NO_AUTO_START, INTERACTIVE = 1, 2, 4
TIMEOUT = 60.0
"""Seconds for what ought to be quick, on a busy machine."""

_FIXED = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
_ALIGNED = {"y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8}


class Disconnected(Exception):
    """The bus ended the connection."""


@dataclass(frozen=True, slots=True)
class Typed:
    """A variant."""

    signature: str
    value: Any


def pad(buffer: bytearray, alignment: int) -> None:
    buffer.extend(bytes(-len(buffer) % alignment))


def marshal(buffer: bytearray, signature: str, value: Any, order: str) -> None:
    """Append a value of one complete type. A text may be bytes, which need not be UTF-8."""
    kind = signature[0]
    pad(buffer, _ALIGNED.get(kind, 4))
    if kind in "so":
        raw = value if isinstance(value, bytes) else value.encode()
        buffer += struct.pack(f"{order}I", len(raw)) + raw + b"\0"
    elif kind == "g":
        buffer += bytes((len(value),)) + value.encode() + b"\0"
    elif kind == "v":
        marshal(buffer, "g", value.signature, order)
        marshal(buffer, value.signature, value.value, order)
    elif kind == "a":
        _array(buffer, signature[1:], value, order)
    elif kind in "({":
        for each, part in zip(_complete(signature[1:-1]), value, strict=True):
            marshal(buffer, each, part, order)
    else:
        buffer += struct.pack(order + _FIXED[kind], value)


def _array(buffer: bytearray, element: str, value: Any, order: str) -> None:
    place = len(buffer)
    buffer += bytes(4)
    pad(buffer, _ALIGNED.get(element[0], 4))
    begin = len(buffer)
    if element == "y":
        buffer += bytes(value)
    else:
        for item in value.items() if isinstance(value, dict) else value:
            marshal(buffer, element, item, order)
    struct.pack_into(f"{order}I", buffer, place, len(buffer) - begin)


@dataclass(frozen=True, slots=True)
class Call:
    """A method call that can be sent."""

    path: str | bytes
    interface: str | None
    member: str
    signature: str = ""
    body: Sequence[Any] = ()
    flags: int = 0
    order: str = "<"
    descriptors: Sequence[int] = ()
    destination: str = VFSD

    @property
    def expects_reply(self) -> bool:
        return not self.flags & NO_REPLY

    def __str__(self) -> str:
        shown = f"{self.path!r} {self.interface} {self.member} {self.signature!r} {self.body!r}"
        return f"{shown[:400]} flags={self.flags} order={self.order} fds={len(self.descriptors)}"

    def raw(self, serial: int) -> bytes:
        """The message."""
        body = bytearray()
        for each, value in zip(_complete(self.signature), self.body, strict=True):
            marshal(body, each, value, self.order)
        fields: list[tuple[int, Typed]] = [
            (1, Typed("o", self.path)),
            (3, Typed("s", self.member)),
            (6, Typed("s", self.destination)),
        ]
        if self.interface is not None:
            fields.append((2, Typed("s", self.interface)))
        if self.signature:
            fields.append((8, Typed("g", self.signature)))
        if self.descriptors:
            fields.append((9, Typed("u", len(self.descriptors))))
        first = ord("l" if self.order == "<" else "B")
        raw = bytearray(struct.pack(f"{self.order}BBBBII", first, CALL, self.flags, 1, len(body), serial))
        marshal(raw, "a(yv)", fields, self.order)
        pad(raw, 8)
        return bytes(raw + body)


class Bus:
    """A connection to a scope's bus, as the scope's user; it looks at nothing that it does not have to."""

    def __init__(self, vfsd: Vfsd) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        os.setresuid(vfsd.owner_uid, vfsd.owner_uid, 0)  # the bus sees who connects, once
        try:
            self.socket.connect(vfsd.bus_address().partition("=")[2])
        finally:
            os.setresuid(0, 0, 0)
        self._serial = 0
        self._buffer = bytearray()
        self.socket.sendall(b"\0AUTH EXTERNAL " + str(vfsd.owner_uid).encode().hex().encode() + b"\r\n")
        self._line(b"OK")
        self.socket.sendall(b"NEGOTIATE_UNIX_FD\r\n")
        self._line(b"AGREE_UNIX_FD")
        self.socket.sendall(b"BEGIN\r\n")
        self.name = str(self.call_bus("Hello")[0])

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, call: Call) -> int:
        """Send a call; returns its serial. :raise Disconnected."""
        serial = self.next_serial()
        raw = call.raw(serial)
        try:
            if call.descriptors:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", call.descriptors))
                sent = self.socket.sendmsg([raw], [rights])
                raw = raw[sent:]
            self.socket.sendall(raw)
        except OSError as error:
            raise Disconnected(str(error)) from None
        return serial

    def next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def call(self, call: Call) -> Incoming:
        """Send a call and wait for its reply. :raise Disconnected, TimeoutError."""
        serial = self.send(call)
        end = time.monotonic() + TIMEOUT
        while (left := end - time.monotonic()) > 0:
            for message in self.receive(left, call):
                if message.message_type.value in (RETURN, ERROR) and message.reply_serial == serial:
                    return message
        raise TimeoutError(f"no reply within {TIMEOUT} s: {call}")

    def call_bus(self, member: str, signature: str = "", *body: Any, interface: str = BUS[2]) -> list[Any]:
        """Ask the bus itself; returns plain values."""
        reply = self.call(Call(BUS[1], interface, member, signature, body, destination=BUS[0]))
        assert reply.message_type.value == RETURN, reply.body
        return list(reply.body)

    def receive(self, timeout: float, what: object = "") -> list[Incoming]:
        """Messages that came, at least one. :raise Disconnected, TimeoutError."""
        while not (found := list(self._whole())):
            if not select.select([self.socket], [], [], timeout)[0]:
                raise TimeoutError(f"nothing came within {timeout:.0f} s {what}")
            try:
                data, rights, _, _ = self.socket.recvmsg(1 << 18, 1024)
            except OSError as error:
                raise Disconnected(str(error)) from None
            for _, _, raw in rights:
                for descriptor in array.array("i", raw):
                    os.close(descriptor)
            if not data:
                raise Disconnected("the bus closed the connection")
            self._buffer += data
        return found

    def poll(self) -> list[Incoming]:
        """Messages that came already."""
        try:
            return self.receive(0)
        except TimeoutError:
            return []

    def _whole(self) -> list[Incoming]:
        found = []
        while len(self._buffer) >= 16:
            body, _, fields = struct.unpack_from("<III", self._buffer, 4)
            size = 16 + fields + (-fields % 8) + body
            if len(self._buffer) < size:
                break
            found.append(Incoming(bytes(self._buffer[:size])))
            del self._buffer[:size]
        return found

    def _line(self, wanted: bytes) -> None:
        line = b""
        while not line.endswith(b"\r\n"):
            line += self.socket.recv(1)
        assert line.startswith(wanted), line


def check_body(message: Incoming) -> None:
    """That a reply is what its signature says, by dbus-next's strict reader. :raise Exception: it isn't."""
    Unmarshaller(io.BytesIO(message._raw)).unmarshall()
