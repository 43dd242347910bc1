"""Bodies that are put together from kept bytes are those that dbus-next makes in one go."""

from __future__ import annotations

import io
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next._private.unmarshaller import Unmarshaller
from hypothesis import given
from hypothesis import strategies as st

from vfsd.bus import interface, wire

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUE: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("s"), TEXT),
    st.tuples(st.just("b"), st.booleans()),
    st.tuples(st.just("u"), st.integers(0, (1 << 32) - 1)),
    st.tuples(st.just("t"), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("as"), st.lists(TEXT, max_size=4)),
    st.tuples(st.just("o"), st.sampled_from(["/", "/org/vfsd1"])),
    st.tuples(st.just("ao"), st.lists(st.sampled_from(["/", "/org/vfsd1"]), max_size=3)),
)
PROPERTIES = st.dictionaries(st.from_regex("[A-Z][a-z]{0,12}", fullmatch=True), VALUE, max_size=6)


def variants(properties: dict[str, tuple[str, Any]]) -> dict[str, Variant]:
    return {name: Variant(*value) for name, value in properties.items()}


def entries(properties: dict[str, tuple[str, Any]]) -> list[bytes]:
    return [wire.property_entry(name, value) for name, value in properties.items()]


@given(PROPERTIES)
def test_a_dictionary_of_properties(properties: dict[str, tuple[str, Any]]) -> None:
    assert wire.array_body(entries(properties)) == wire.marshal("a{sv}", [variants(properties)])


@given(PROPERTIES)
def test_properties_changed(properties: dict[str, tuple[str, Any]]) -> None:
    made = wire.changed_body("org.vfsd1.Share", entries(properties))
    assert made == wire.marshal("sa{sv}as", ["org.vfsd1.Share", variants(properties), []])


@given(st.dictionaries(st.from_regex("/[a-z]{1,9}", fullmatch=True), PROPERTIES, max_size=4))
def test_managed_objects(objects: dict[str, dict[str, tuple[str, Any]]]) -> None:
    own = "org.vfsd1.Share"
    kept = [
        wire.named_array(path, [wire.named_array(own, entries(properties))])
        for path, properties in objects.items()
    ]
    whole = {path: {own: variants(properties)} for path, properties in objects.items()}
    assert wire.array_body(kept) == wire.marshal("a{oa{sa{sv}}}", [whole])
    for entry, (path, value) in zip(kept, whole.items(), strict=True):
        assert entry == wire.marshal("oa{sa{sv}}", [path, value]), "the body of InterfacesAdded too"


@given(VALUE)
def test_a_variant(value: tuple[str, Any]) -> None:
    assert wire.marshal_variant(value) == wire.marshal("v", [Variant(*value)])


@pytest.mark.parametrize(
    ("first", "second"), [(("b", True), ("u", 1)), (("u", 1), ("t", 1)), (("s", ""), ("as", []))]
)
def test_equal_values_of_two_types_are_not_mixed_up(first: Any, second: Any) -> None:
    made = [wire.property_entry("X", value) for value in (first, second, first)]
    assert made[0] == made[2] != made[1]


@pytest.mark.parametrize(
    ("signature", "value"), [("u", -1), ("u", "x"), ("b", "yes"), ("s", 5), ("as", [1]), ("o", "x")]
)
def test_what_does_not_match_is_refused(signature: str, value: Any) -> None:
    with pytest.raises(Exception, match=r".+"):
        wire.marshal(signature, [value])


@given(
    st.sampled_from(list(MessageType)),
    st.sampled_from(list(MessageFlag)),
    st.integers(1, (1 << 32) - 1),
    st.lists(TEXT, max_size=3),
)
def test_messages_arrive_as_they_were_sent(
    kind: MessageType, flag: MessageFlag, serial: int, body: list[str]
) -> None:
    signature = "s" * len(body)
    fields: dict[str, Any] = {
        "destination": ":1.5",
        "path": "/org/vfsd1",
        "interface": "org.vfsd1.Manager",
        "member": "Check",
        "error_name": "org.vfsd1.Error.X" if kind is MessageType.ERROR else None,
        "reply_serial": 7,
        "message_type": kind,
        "flags": flag,
        "signature": signature,
        "serial": serial,
    }
    raw = wire.RawMessage(wire.marshal(signature, body), **fields)._marshall()
    read: Any = Unmarshaller(io.BytesIO(raw)).unmarshall()
    for name, value in fields.items():
        assert getattr(read, name) == value
    assert read.body == body
    plain: Any = Unmarshaller(io.BytesIO(Message(**fields, body=body)._marshall())).unmarshall()
    assert plain.body == read.body


def test_the_standard_interfaces_are_those_of_the_specification() -> None:
    standard = interface.parse(interface.STANDARD_XML)
    methods = {(name, m.name): (m.takes, m.gives) for name, i in standard.items() for m in i.methods.values()}
    prefix = "org.freedesktop.DBus."
    assert methods == {
        (f"{prefix}Introspectable", "Introspect"): ("", "s"),
        (f"{prefix}Peer", "Ping"): ("", ""),
        (f"{prefix}Peer", "GetMachineId"): ("", "s"),
        (f"{prefix}Properties", "Get"): ("ss", "v"),
        (f"{prefix}Properties", "GetAll"): ("s", "a{sv}"),
        (f"{prefix}Properties", "Set"): ("ssv", ""),
        (f"{prefix}ObjectManager", "GetManagedObjects"): ("", "a{oa{sa{sv}}}"),
    }
    assert standard[f"{prefix}Properties"].signals == {"PropertiesChanged": "sa{sv}as"}
    signals = standard[f"{prefix}ObjectManager"].signals
    assert signals == {"InterfacesAdded": "oa{sa{sv}}", "InterfacesRemoved": "oas"}


def test_transient_units() -> None:
    properties: list[tuple[str, str, Any]] = [
        ("Description", "s", "a b"),
        ("Wants", "as", ["x.socket"]),
        ("LogExtraFields", "aay", [b"A=1"]),
    ]
    named = [wire.named_variant(*one) for one in properties]
    plain = [[name, Variant(signature, value)] for name, signature, value in properties]
    aux = [wire.named_array("b.service", named), wire.named_array("c.slice", [])]
    made = wire.transient_units_body("a.socket", "fail", named, aux)
    whole: list[Any] = ["a.socket", "fail", plain, [["b.service", plain], ["c.slice", []]]]
    assert made == wire.marshal("ssa(sv)a(sa(sv))", whole)
