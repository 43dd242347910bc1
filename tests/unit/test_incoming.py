"""What comes in is read as dbus-next reads it, and properties that nobody wants are stepped over rightly."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next._private.unmarshaller import Unmarshaller
from hypothesis import given
from hypothesis import strategies as st

from vfsd.bus.incoming import Incoming

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "y": st.integers(0, 255),
    "b": st.booleans(),
    "n": st.integers(-(1 << 15), (1 << 15) - 1),
    "q": st.integers(0, (1 << 16) - 1),
    "i": st.integers(-(1 << 31), (1 << 31) - 1),
    "u": st.integers(0, (1 << 32) - 1),
    "x": st.integers(-(1 << 63), (1 << 63) - 1),
    "t": st.integers(0, (1 << 64) - 1),
    "d": st.floats(allow_nan=False),
    "s": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9),
    "o": st.sampled_from(["/", "/org/vfsd1", "/a/b_2d"]),
    "g": st.sampled_from(["", "s", "a{sv}", "(ii)"]),
}


def typed(depth: int = 2) -> st.SearchStrategy[tuple[str, Any]]:
    """A signature of one complete type, and a value of it."""
    plain = st.sampled_from(sorted(VALUES)).flatmap(lambda code: st.tuples(st.just(code), VALUES[code]))
    if not depth:
        return plain
    inner = typed(depth - 1)
    array = inner.map(lambda one: (f"a{one[0]}", [one[1]] * 3 if one[0] != "y" else bytes([one[1]] * 3)))
    empty = inner.map(lambda one: (f"a{one[0]}", [] if one[0] != "y" else b""))
    members = st.lists(inner, min_size=1, max_size=3).map(
        lambda ones: (f"({''.join(one[0] for one in ones)})", [one[1] for one in ones])
    )
    pairs = st.tuples(VALUES["s"], inner).map(lambda pair: (f"a{{s{pair[1][0]}}}", {pair[0]: pair[1][1]}))
    variant = inner.map(lambda one: ("v", Variant(*one)))
    return st.one_of(plain, array, empty, members, pairs, variant)


def signal(signature: str, body: list[Any]) -> bytes:
    message = Message(
        message_type=MessageType.SIGNAL,
        path="/org/example",
        interface="org.example.Interface",
        member="Told",
        signature=signature,
        body=body,
        serial=9,
    )
    return bytes(message._marshall())


@given(st.lists(typed(), max_size=4))
def test_it_reads_what_dbus_next_reads(arguments: list[tuple[str, Any]]) -> None:
    raw = signal("".join(one[0] for one in arguments), [one[1] for one in arguments])
    expected = Unmarshaller(io.BytesIO(raw)).unmarshall()
    assert expected is not None
    found = Incoming(raw)
    assert found.body == expected.body
    for name in ("path", "interface", "member", "signature", "serial", "message_type", "destination"):
        assert getattr(found, name) == getattr(expected, name)


@given(st.dictionaries(VALUES["s"], typed(), max_size=6), st.data())
def test_wanted_properties_are_found_among_others(properties: dict[str, Any], data: st.DataObject) -> None:
    wanted = data.draw(st.sets(st.sampled_from(sorted(properties)))) if properties else set()
    values = {name: Variant(*value) for name, value in properties.items()}
    raw = signal("sa{sv}as", ["org.example.Interface", values, ["Gone"]])
    whole = Incoming(raw).body[1]
    assert Incoming(raw).changed(wanted) == {name: whole[name].value for name in wanted}


def test_what_is_no_change_of_properties_has_none() -> None:
    assert Incoming(signal("s", ["text"])).changed({"text"}) == {}


def test_the_other_byte_order_is_read() -> None:
    strings = ((1, "o", b"/o"), (2, "s", b"o.e"), (3, "s", b"M"), (7, "s", b":1.7"))
    fields = b""
    for code, kind, text in strings:
        fields += bytes(-len(fields) % 8)
        fields += bytes((code, 1)) + kind.encode() + b"\0" + struct.pack(">I", len(text)) + text + b"\0"
    fields += bytes(-len(fields) % 8) + bytes((8, 1)) + b"g\0\1u\0"
    head = struct.pack(">BBBBIII", ord("B"), 4, 0, 1, 4, 7, len(fields))
    message = Incoming(head + fields + bytes(-len(fields) % 8) + struct.pack(">I", 5))
    assert (message.path, message.interface, message.member, message.body) == ("/o", "o.e", "M", [5])
    assert message.sender == ":1.7"


def test_a_call_keeps_its_flags_and_an_error_its_name() -> None:
    call = Message(destination="d.e", path="/p", member="M", serial=5, flags=MessageFlag.NO_REPLY_EXPECTED)
    found = Incoming(bytes(call._marshall()))
    assert found.flags & MessageFlag.NO_REPLY_EXPECTED
    assert found.interface is None
    error = Message.new_error(call, "org.example.Error", "why")
    error.serial = 6
    found = Incoming(bytes(error._marshall()))
    assert (found.error_name, found.reply_serial, found.body) == ("org.example.Error", 5, ["why"])


def test_a_call_without_a_member_is_refused() -> None:
    with pytest.raises(ValueError, match="without path or member"):
        Incoming(struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 0, 7, 0))
