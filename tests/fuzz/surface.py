"""What there is to call: every member of every interface at every path, by introspection."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field

from tests.fuzz.raw import RETURN, Bus, Call

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"


@dataclass(frozen=True, slots=True)
class Method:
    """A method at a path."""

    path: str
    interface: str
    member: str
    takes: str


@dataclass(frozen=True, slots=True)
class Property:
    """A property at a path."""

    path: str
    interface: str
    name: str
    type: str
    writable: bool


@dataclass
class Surface:
    """All of it."""

    paths: list[str] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)
    properties: list[Property] = field(default_factory=list)

    @property
    def interfaces(self) -> list[str]:
        return sorted({method.interface for method in self.methods})


def introspect(bus: Bus) -> Surface:
    """Walk the tree from its root. Objects that go meanwhile are left out."""
    found = Surface()
    waiting = ["/"]
    while waiting:
        path = waiting.pop()
        reply = bus.call(Call(path, INTROSPECTABLE, "Introspect"))
        if reply.message_type.value != RETURN:
            continue
        found.paths.append(path)
        root = ET.fromstring(reply.body[0])
        for interface in root.findall("interface"):
            _take(found, path, interface)
        waiting += [f"{path.rstrip('/')}/{node.get('name')}" for node in root.findall("node")]
    return found


def _take(found: Surface, path: str, interface: ET.Element) -> None:
    name = str(interface.get("name"))
    for method in interface.findall("method"):
        takes = "".join(str(arg.get("type")) for arg in method.findall("arg") if arg.get("direction") == "in")
        found.methods.append(Method(path, name, str(method.get("name")), takes))
    for each in interface.findall("property"):
        writable = "write" in str(each.get("access"))
        found.properties.append(Property(path, name, str(each.get("name")), str(each.get("type")), writable))
