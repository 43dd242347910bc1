"""Who needs what: every member of the interface is decided on, and what rules are told can't deceive them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vfsd.bus.authorisation import METHODS, OPEN, SETTING, About, Action, plain_source
from vfsd.bus.interface import Interface, load

DBUS = Path(__file__).parents[2] / "dbus"
INTERFACES = load(DBUS)
HIDDEN = {
    "org.vfsd1.Manager": set(),
    "org.vfsd1.Share": {"Source", "SocketPath"},
    "org.vfsd1.Machine": {
        *("ConsolePath", "DisplayPath", "Kernel", "Initrd", "Append", "Image"),
        *("Credentials", "CredentialFiles", "ExtraArguments"),
    },
}
"""A new property goes into OPEN, or here."""

each = pytest.mark.parametrize("interface", INTERFACES.values(), ids=lambda interface: interface.name)


@each
def test_each_method_is_decided_on(interface: Interface) -> None:
    assert set(METHODS[interface.name]) == set(interface.methods)


@each
def test_each_property_is_decided_on(interface: Interface) -> None:
    assert OPEN[interface.name].isdisjoint(HIDDEN[interface.name])
    assert OPEN[interface.name] | HIDDEN[interface.name] == set(interface.properties)
    assert any(item.writable for item in interface.properties.values()) == (interface.name in SETTING)


@each
def test_what_signals_do_not_tell_is_annotated(interface: Interface) -> None:
    node = ET.fromstring(interface.xml)
    told = {
        item.get("name"): note.get("value")
        for item in node.iter("property")
        for note in item.iter("annotation")
    }
    assert {name for name, value in told.items() if value == "invalidates"} == {
        name for name in HIDDEN[interface.name] if told.get(name) != "const"
    }
    assert all(
        interface.properties[name].emits for name, value in told.items() if name and value == "invalidates"
    )


def test_polkit_knows_each_action() -> None:
    root = ET.parse(DBUS / "org.vfsd1.policy").getroot()
    described = {item.get("id"): item for item in root.iter("action")}
    assert set(described) == set(Action)
    for item in described.values():
        defaults = [default.text for default in item.iterfind("defaults/*")]
        assert defaults == ["auth_admin_keep"] * 3
    for action in (Action.MANAGE_SHARES, Action.MANAGE_MACHINES):
        text = "".join(described[action].itertext())
        assert "as good as being root" in text
        assert "every file, as root can" in text


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/srv", "/srv"),
        ("/srv/", "/srv"),
        ("/", "/"),
        ("/srv/Grüße an alle", "/srv/Grüße an alle"),
        ("/srv/../etc", ""),
        ("/srv/./x", ""),
        ("/srv//x", ""),
        ("/srv/x/..", ""),
        ("/srv/x\n/etc", ""),
        ("srv/../x", ""),
        ("", ""),
        ("/" + "x" * 5000, ""),
    ],
)
def test_a_rule_is_told_only_a_path_that_means_itself(path: str, told: str) -> None:
    assert plain_source(path) == told


def test_details_have_what_there_is() -> None:
    about = About("share", "src", "Set", "/srv", property="Tag")
    assert about.details() == {
        "kind": "share",
        "name": "src",
        "verb": "Set",
        "source": "/srv",
        "property": "Tag",
    }
    assert str(about) == 'Set Tag of share "src"'
    assert str(About("machine", "box", "Start")) == 'Start machine "box"'
    assert About(verb="Reload").details() == {"kind": "service", "verb": "Reload"}
