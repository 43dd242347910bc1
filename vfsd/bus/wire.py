"""D-Bus bodies as bytes that are made once and kept.

Dictionary entries and structures are aligned to 8 bytes and nothing in them needs more, so an entry that was
marshalled at an offset divisible by 8 is valid at every such offset (D-Bus specification, "Marshaling"). Thus one
property, one interface of an object and one object among many are each kept as bytes, and a reply is these put
together; when one property changes, one entry is made again.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from dbus_next import Message, Variant
from dbus_next._private.marshaller import Marshaller
from dbus_next.signature import SignatureTree

PropertyValue = tuple[str, Any]
"""Signature and value."""


def marshal(signature: str, body: list[Any]) -> bytes:
    """A body as bytes. :raise Exception: the body does not match the signature."""
    return bytes(Marshaller(signature, body).marshall())


def take_descriptors(signature: str, body: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """A body whose file descriptors (`h`, outside of containers) are replaced by their indexes, and these."""
    tree: Any = SignatureTree
    indexed: list[Any] = []
    descriptors: list[int] = []
    codes = (kind.token for kind in tree._get(signature).types)
    for code, value in zip(codes, body, strict=False):
        if code == "h":
            indexed.append(len(descriptors))
            descriptors.append(value)
        else:
            indexed.append(value)
    return indexed, descriptors


def _pad(buffer: bytearray, alignment: int) -> None:
    buffer.extend(bytes(-len(buffer) % alignment))


def _string(buffer: bytearray, text: str) -> None:
    raw = text.encode()
    _pad(buffer, 4)
    buffer += struct.pack("<I", len(raw)) + raw + b"\0"


def _array(buffer: bytearray, entries: Iterable[bytes]) -> None:
    """Append an array of entries that are aligned to 8 bytes each."""
    _pad(buffer, 4)
    position = len(buffer)
    buffer += b"\0\0\0\0"
    _pad(buffer, 8)
    start = len(buffer)
    for entry in entries:
        _pad(buffer, 8)
        buffer += entry
    struct.pack_into("<I", buffer, position, len(buffer) - start)


def property_entry(name: str, value: PropertyValue) -> bytes:
    """One entry of an `a{sv}`."""
    signature, content = value
    fixed = _hashable(content)
    size = len(fixed) if isinstance(fixed, str) else len(repr(fixed))
    make = _property_entry if size <= _KEPT_VALUE_MAX else _property_entry.__wrapped__
    return make(name, signature, fixed)


_KEPT_VALUE_MAX = 256
"""Characters in a value whose entry is kept."""


@functools.lru_cache(maxsize=4096)
def _property_entry(name: str, signature: str, content: Any) -> bytes:
    """Kept, since most properties of most objects have their default."""
    plain = list(content) if isinstance(content, tuple) else content
    if isinstance(content, frozenset):
        plain = dict(sorted(content))
    # an array's length takes 4 bytes, and 4 more align its first entry
    return marshal("a{sv}", [{name: Variant(signature, plain)}])[8:]


def _hashable(content: Any) -> Any:
    if isinstance(content, dict):
        return frozenset(content.items())
    return tuple(content) if isinstance(content, list) else content


_kept_fields: dict[tuple[str, str, str], bytes] = {}
_KEPT_FIELDS_MAX = 4096
_KEPT_FIELD_MAX = 512
"""Characters in a value that is kept: some command lines have more, and they are all different."""


def named_variant(name: str, signature: str, value: object) -> bytes:
    """One structure of an `a(sv)`. Kept, since the units of one kind differ in few of theirs."""
    key = (name, signature, repr(value))
    known = _kept_fields.get(key)
    if known is None:
        made = marshal("a(sv)", [[[name, Variant(signature, value)]]])[8:]
        if len(key[2]) > _KEPT_FIELD_MAX:
            return made
        if len(_kept_fields) >= _KEPT_FIELDS_MAX:
            _kept_fields.clear()
        known = _kept_fields[key] = made
    return known


def transient_units_body(name: str, mode: str, properties: Iterable[bytes], aux: Iterable[bytes]) -> bytes:
    """The body of StartTransientUnit, `ssa(sv)a(sa(sv))`; each of `aux` is made by named_array()."""
    buffer = bytearray()
    _string(buffer, name)
    _string(buffer, mode)
    _array(buffer, properties)
    _array(buffer, aux)
    return bytes(buffer)


def marshal_variant(value: PropertyValue) -> bytes:
    """A body that is one variant."""
    return marshal("v", [Variant(*value)])


def named_array(name: str, entries: Iterable[bytes]) -> bytes:
    """A string, or object path, and an array: one entry of `a{sa{sv}}`, `a{oa{sa{sv}}}` or `a(sa(sv))`.

    That of an object is the body of InterfacesAdded too.
    """
    buffer = bytearray()
    _string(buffer, name)
    _array(buffer, entries)
    return bytes(buffer)


def array_body(entries: Iterable[bytes]) -> bytes:
    """A body that is one array of entries: `a{sv}`, `a{oa{sa{sv}}}`."""
    buffer = bytearray()
    _array(buffer, entries)
    return bytes(buffer)


def changed_body(interface: str, properties: Iterable[bytes], invalidated: Iterable[str] = ()) -> bytes:
    """The body of PropertiesChanged, `sa{sv}as`: entries with their values, and names without."""
    buffer = bytearray()
    _string(buffer, interface)
    _array(buffer, properties)
    names = bytearray()
    for name in invalidated:
        _string(names, name)
    _pad(buffer, 4)
    buffer += struct.pack("<I", len(names)) + names
    return bytes(buffer)


class RawMessage(Message):
    """A message whose body is bytes already."""

    def __init__(self, raw_body: bytes, **fields: Any) -> None:
        super().__init__(**fields)
        self._raw_body = raw_body

    def _marshall(self, negotiate_unix_fd: bool = False) -> bytes:  # noqa: ARG002
        header = bytearray(
            struct.pack(
                "<BBBBII",
                ord("l"),
                self.message_type.value,
                self.flags.value,
                1,
                len(self._raw_body),
                self.serial,
            )
        )
        _array(header, self._fields())
        _pad(header, 8)
        return bytes(header) + self._raw_body

    def _fields(self) -> Iterable[bytes]:
        strings = (
            (1, "o", self.path),
            (2, "s", self.interface),
            (3, "s", self.member),
            (4, "s", self.error_name),
            (6, "s", self.destination),
        )
        for code, signature, value in strings:
            if value:
                yield bytes((code, 1)) + signature.encode() + b"\0" + self._field_string(value)
        if self.reply_serial:
            yield bytes((5, 1)) + b"u\0" + struct.pack("<I", self.reply_serial)
        if self.signature:
            raw = self.signature.encode()
            yield bytes((8, 1)) + b"g\0" + bytes((len(raw),)) + raw + b"\0"
        if self.unix_fds:
            yield bytes((9, 1)) + b"u\0" + struct.pack("<I", len(self.unix_fds))

    @staticmethod
    def _field_string(value: str) -> bytes:
        buffer = bytearray()
        _string(buffer, value)
        return bytes(buffer)
