"""Messages that come in: the header is read at once, the body when somebody asks, and of it only what is asked for.

systemd tells of each unit's change with all the properties that may have changed, some hundred values of which
vfsd wants seven, and of every unit of the host. So most of what comes in is never looked at beyond its path, and
of the rest most is stepped over. dbus-next's reader makes objects of everything, checks each against its
signature, and takes five times as long for what is read.

The bus has checked the messages that it passes on; what is malformed nevertheless raises some exception.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.signature import SignatureTree

_FIXED = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I"}
"""D-Bus types of fixed size, as `struct` knows them; each is aligned to its size."""
_LITTLE = ord("l")
_KINDS = {kind.value: kind for kind in MessageType}


@dataclass(frozen=True, slots=True)
class _Type:
    """How values of one complete type are read, and how they are stepped over."""

    alignment: int
    read: Callable[[bytes, int], tuple[Any, int]]
    """Takes a message and a place in it; returns the value and the place behind it."""
    skip: Callable[[bytes, int], int]
    """The same, without the value."""


def _complete(signature: str) -> list[str]:
    """A signature's complete types."""
    found = []
    start = 0
    while start < len(signature):
        end = start
        while signature[end] == "a":
            end += 1
        depth = 0
        while True:
            depth += (signature[end] in "({") - (signature[end] in ")}")
            end += 1
            if depth == 0:
                break
        found.append(signature[start:end])
        start = end
    return found


@functools.lru_cache(maxsize=512)
def _types(signature: str, order: str) -> tuple[_Type, ...]:
    return tuple(_type(one, order) for one in _complete(signature))


@functools.lru_cache(maxsize=512)
def _type(signature: str, order: str) -> _Type:
    """One complete type; `order` is the byte order as `struct` writes it."""
    match signature[0]:
        case "s" | "o":
            return _string(order)
        case "g":
            return _signature()
        case "v":
            return _variant(order)
        case "a":
            return _array(signature[1:], order)
        case "(":
            return _struct(_types(signature[1:-1], order))
        case code:
            return _fixed(code, order)


def _fixed(code: str, order: str) -> _Type:
    packed = struct.Struct(order + _FIXED[code])
    size, unpack = packed.size, packed.unpack_from

    def read(raw: bytes, place: int) -> tuple[Any, int]:
        place += -place % size
        value = unpack(raw, place)[0]
        return (value != 0 if code == "b" else value), place + size

    return _Type(size, read, lambda _raw, place: place + -place % size + size)


def _string(order: str) -> _Type:
    length = struct.Struct(f"{order}I").unpack_from

    def read(raw: bytes, place: int) -> tuple[Any, int]:
        place += -place % 4 + 4
        end = place + length(raw, place - 4)[0]
        return raw[place:end].decode(), end + 1

    def skip(raw: bytes, place: int) -> int:
        place += -place % 4
        return int(place + 5 + length(raw, place)[0])

    return _Type(4, read, skip)


def _signature() -> _Type:
    def read(raw: bytes, place: int) -> tuple[Any, int]:
        end = place + 1 + raw[place]
        return raw[place + 1 : end].decode(), end + 1

    return _Type(1, read, lambda raw, place: place + 2 + raw[place])


def _variant(order: str) -> _Type:
    def read(raw: bytes, place: int) -> tuple[Any, int]:
        start = place + 2 + raw[place]
        signature = raw[place + 1 : start - 1].decode()
        value, end = _type(signature, order).read(raw, start)
        return _make_variant(signature, value), end

    def skip(raw: bytes, place: int) -> int:
        start = place + 2 + raw[place]
        return _type(raw[place + 1 : start - 1].decode(), order).skip(raw, start)

    return _Type(1, read, skip)


def _make_variant(signature: str, value: object) -> Variant:
    """A variant whose value is known to fit: the constructor would check that."""
    made: Any = Variant.__new__(Variant)
    made.type, made.signature, made.value = _dbus_next_type(signature), signature, value
    return cast(Variant, made)


@functools.lru_cache(maxsize=512)
def _dbus_next_type(signature: str) -> Any:
    tree: Any = SignatureTree
    return tree(signature).types[0]  # its _get() would keep for ever what callers think up


def _struct(members: tuple[_Type, ...]) -> _Type:
    def read(raw: bytes, place: int) -> tuple[Any, int]:
        place += -place % 8
        values = []
        for member in members:
            value, place = member.read(raw, place)
            values.append(value)
        return values, place

    def skip(raw: bytes, place: int) -> int:
        place += -place % 8
        for member in members:
            place = member.skip(raw, place)
        return place

    return _Type(8, read, skip)


def _array(element: str, order: str) -> _Type:
    pair = element[0] == "{"
    member = _struct(_types(element[1:-1], order)) if pair else _type(element, order)
    alignment, one = member.alignment, member.read
    length = struct.Struct(f"{order}I").unpack_from

    def bounds(raw: bytes, place: int) -> tuple[int, int]:
        place += -place % 4 + 4
        size = length(raw, place - 4)[0]
        place += -place % alignment
        return place, place + size

    def read(raw: bytes, place: int) -> tuple[Any, int]:
        place, end = bounds(raw, place)
        if element == "y":
            return raw[place:end], end
        values = []
        while place < end:
            value, place = one(raw, place)
            values.append(value)
        return (dict(values) if pair else values), place

    return _Type(4, read, lambda raw, place: bounds(raw, place)[1])


class Incoming(Message):
    """A message as bytes, with dbus-next's own face."""

    def __init__(self, raw: bytes, size: int = 0) -> None:
        """Of a message that is not kept whole, `raw` is the header and `size` says how many bytes there were.

        :raise Exception: it is malformed.
        """
        self.size = size or len(raw)
        """Bytes, header included."""
        order = self._order = "<" if raw[0] == _LITTLE else ">"
        self.message_type = _KINDS[raw[1]]
        self.flags = MessageFlag(raw[2])
        _, self.serial, length = struct.unpack_from(f"{order}III", raw, 4)
        fields: dict[int, Any] = {}
        place, end = 16, 16 + length
        while place < end:
            place += -place % 8
            code, signature = raw[place], chr(raw[place + 2])
            fields[code], place = _type(signature, order).read(raw, place + 4)
        field = fields.get
        self.path, self.interface, self.member, self.error_name = (
            field(1, ""),
            field(2),
            field(3, ""),
            field(4, ""),
        )
        self.reply_serial, self.destination, self.sender = field(5, 0), field(6), field(7, "")
        self.signature = field(8, "")
        self.unix_fds = []
        self.descriptors: int = field(9, 0)
        """How many file descriptors come with it."""
        if self.message_type is MessageType.METHOD_CALL and not (self.path and self.member):
            raise ValueError("a method call without path or member")
        self._raw = raw
        self._start = place + -place % 8
        self._body: list[Any] | None = None

    @property
    def body(self) -> list[Any]:  # type: ignore[override]  # nobody sets the body of what came in
        """The whole body."""
        if self._body is None:
            values = []
            place = self._start
            for each in _types(self.signature, self._order):
                value, place = each.read(self._raw, place)
                values.append(value)
            self._body = values
        return self._body

    def forget_body(self) -> None:
        """Keep the header only, and take up no room."""
        self._raw, self.size = b"", 0

    def changed(self, wanted: Collection[str]) -> dict[str, Any]:
        """The plain values of some properties in the body of a PropertiesChanged, `sa{sv}as`."""
        if self.signature != "sa{sv}as":
            return {}
        raw, order = self._raw, self._order
        text, variant = _string(order), _variant(order)
        place = text.skip(raw, self._start)
        end = _array("{sv}", order).skip(raw, place)
        place += -place % 4 + 4
        found = {}
        while place < end:
            name, place = text.read(raw, place + -place % 8)
            if name in wanted:
                value, place = variant.read(raw, place)
                found[name] = value.value
            else:
                place = variant.skip(raw, place)
        return found
