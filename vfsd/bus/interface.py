"""Interfaces as their XML describes them: what exists, with which types, and what introspection answers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
PROPERTIES = "org.freedesktop.DBus.Properties"

_EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"
_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

STANDARD_XML = """<node>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg name="xml" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg name="machine_id" type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Properties">
    <method name="Get">
      <arg name="interface" type="s" direction="in"/>
      <arg name="property" type="s" direction="in"/>
      <arg name="value" type="v" direction="out"/>
    </method>
    <method name="GetAll">
      <arg name="interface" type="s" direction="in"/>
      <arg name="properties" type="a{sv}" direction="out"/>
    </method>
    <method name="Set">
      <arg name="interface" type="s" direction="in"/>
      <arg name="property" type="s" direction="in"/>
      <arg name="value" type="v" direction="in"/>
    </method>
    <signal name="PropertiesChanged">
      <arg name="interface" type="s"/>
      <arg name="changed" type="a{sv}"/>
      <arg name="invalidated" type="as"/>
    </signal>
  </interface>
  <interface name="org.freedesktop.DBus.ObjectManager">
    <method name="GetManagedObjects"><arg name="objects" type="a{oa{sa{sv}}}" direction="out"/></method>
    <signal name="InterfacesAdded">
      <arg name="path" type="o"/>
      <arg name="interfaces" type="a{sa{sv}}"/>
    </signal>
    <signal name="InterfacesRemoved">
      <arg name="path" type="o"/>
      <arg name="interfaces" type="as"/>
    </signal>
  </interface>
</node>"""
"""The interfaces of the D-Bus specification that vfsd's objects have; ObjectManager is the root's alone."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method's types."""

    name: str
    takes: str
    gives: str


@dataclass(frozen=True, slots=True)
class Property:
    """A property's type, and how its changes are told."""

    name: str
    signature: str
    writable: bool
    emits: bool
    """Whether PropertiesChanged tells of changes; constants never change."""


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface."""

    name: str
    methods: Mapping[str, Method]
    properties: Mapping[str, Property]
    signals: Mapping[str, str]
    xml: str
    """The `<interface>` element, without comments."""


def parse(text: str) -> dict[str, Interface]:
    """The interfaces of an introspection document."""
    return {node.get("name", ""): _interface(node) for node in ET.fromstring(text).iter("interface")}  # noqa: S314


def load(folder: Path) -> dict[str, Interface]:
    """The interfaces of all `org.vfsd1.*.xml` in a folder."""
    found: dict[str, Interface] = {}
    for path in sorted(folder.glob("org.vfsd1.*.xml")):
        found |= parse(path.read_text(encoding="utf-8"))
    return found


def document(interfaces: Iterable[Interface], children: Iterable[str]) -> str:
    """What introspection answers for a path with such interfaces and children."""
    shown = [interface.xml for interface in interfaces]
    below = [f'<node name="{child}"/>' for child in children]
    return "\n".join([f"{_DOCTYPE}<node>", *shown, *below, "</node>"])


def _interface(node: ET.Element) -> Interface:
    methods, properties, signals = {}, {}, {}
    for child in node:
        name = child.get("name", "")
        if child.tag == "method":
            methods[name] = Method(name, _signature(child, "in"), _signature(child, "out"))
        elif child.tag == "signal":
            signals[name] = "".join(arg.get("type", "") for arg in child.findall("arg"))
        elif child.tag == "property":
            annotations = {note.get("name"): note.get("value") for note in child.findall("annotation")}
            properties[name] = Property(
                name,
                child.get("type", ""),
                writable="write" in child.get("access", ""),
                emits=annotations.get(_EMITS, "true") in ("true", "invalidates"),
            )
    ET.indent(node, level=1)
    return Interface(
        node.get("name", ""), methods, properties, signals, ET.tostring(node, encoding="unicode").rstrip()
    )


def _signature(method: ET.Element, direction: str) -> str:
    arguments = method.findall("arg")
    return "".join(arg.get("type", "") for arg in arguments if arg.get("direction", "in") == direction)
