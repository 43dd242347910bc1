"""The objects of one service as a tree: who is there, what is shown of them, and telling everybody of changes."""

from __future__ import annotations

from typing import Any

from dbus_next import MessageType

from vfsd.bus import interface as interfaces
from vfsd.bus import wire
from vfsd.bus.connection import Connection
from vfsd.bus.incoming import Incoming
from vfsd.bus.interface import OBJECT_MANAGER, PROPERTIES, Interface
from vfsd.bus.nodes import BusObject, Empty, Node
from vfsd.errors import UnknownInterface, UnknownObject

_STANDARD = interfaces.parse(interfaces.STANDARD_XML)


class Tree:
    """Objects by path; the root is there from the beginning."""

    def __init__(self, connection: Connection, root: BusObject, *, discreet: bool) -> None:
        """:param discreet: whether signals leave out what not everybody may read."""
        self._connection = connection
        self._discreet = discreet
        self._root = root.path
        self._nodes = {root.path: Node(root)}
        self._children: dict[str, set[str]] = {}
        self._add_path(root.path)
        self._managed: bytes | None = None
        """The answer to GetManagedObjects, until something changes."""

    def get(self, path: str) -> Node | None:
        """What is at a path."""
        return self._nodes.get(path)

    def add(self, shown: BusObject, *, announce: bool = True) -> None:
        """Show an object, and tell everybody."""
        node = self._nodes[shown.path] = Node(shown)
        self._managed = None
        self._add_path(shown.path)
        if announce:
            body = node.open_part() if self._discreet else node.whole()
            self._signal(self._root, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", body)

    def add_folder(self, path: str) -> None:
        """Show a path that has no object of its own, even while nothing is below it."""
        self._add_path(path)
        self._children.setdefault(path, set())

    def remove(self, path: str) -> None:
        """Stop showing an object, and tell everybody."""
        node = self._nodes.pop(path, None)
        if node is None:
            return
        self._managed = None
        parent, _, last = path.rpartition("/")
        self._children.get(parent, set()).discard(last)
        body = wire.marshal("oas", [path, [node.shown.interface.name]])
        self._signal(self._root, OBJECT_MANAGER, "InterfacesRemoved", "oas", body)

    def changed(self, path: str) -> None:
        """Tell everybody what changed of an object, if anything did and it is shown."""
        node = self._nodes.get(path)
        if node is None:
            return
        own = node.shown.interface
        changed = node.refresh()
        if changed:
            self._managed = None
        told = [name for name in changed if own.properties[name].emits]
        # everybody on the bus hears this
        hidden = [name for name in told if self._discreet and not node.is_open(name)]
        if told:
            values = node.entries(name for name in told if name not in hidden)
            body = wire.changed_body(own.name, values, hidden)
            self._signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def signal(self, path: str, member: str, *arguments: Any) -> None:
        """Send a signal of an object's own interface, if the object is shown."""
        node = self._nodes.get(path)
        if node is not None:
            own = node.shown.interface
            signature = own.signals[member]
            self._signal(path, own.name, member, signature, wire.marshal(signature, list(arguments)))

    def _add_path(self, path: str) -> None:
        while path != "/":
            parent, _, last = path.rpartition("/")
            self._children.setdefault(parent or "/", set()).add(last)
            path = parent or "/"

    def _signal(self, path: str, interface: str, member: str, signature: str, body: bytes) -> None:
        message = wire.RawMessage(
            body,
            message_type=MessageType.SIGNAL,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
        )
        self._connection.send_now(message)

    def interface_of(self, message: Incoming) -> Interface:
        """The interface that a call means: named, or the one that has the member."""
        node = self._nodes.get(message.path)
        if node is None and message.path not in self._children:
            raise _unknown(message.path)
        own = [] if node is None else [node.shown.interface]
        all_of_them = [*own, *self._standard(message.path)]
        if message.interface is None:
            return next((i for i in all_of_them if message.member in i.methods), all_of_them[0])
        found = next((i for i in all_of_them if i.name == message.interface), None)
        if found is None:
            raise UnknownInterface(f'"{message.path}" has no interface "{message.interface}"')
        return found

    def _standard(self, path: str) -> list[Interface]:
        """The standard interfaces of a path."""
        names = ["Introspectable", "Peer"]
        if path in self._nodes:
            names.append("Properties")
        if path == self._root:
            names.append("ObjectManager")
        return [_STANDARD[f"org.freedesktop.DBus.{name}"] for name in names]

    def node(self, path: str, interface: str) -> Node:
        """The node of a path, of which the caller asks one interface's properties."""
        node = self._nodes.get(path)
        if node is None:
            raise _unknown(path)  # it went while the call waited
        if interface not in ("", node.shown.interface.name):
            if interface in (other.name for other in self._standard(path)):
                return Node(Empty(path, _STANDARD[interface]))
            raise UnknownInterface(f'"{path}" has no interface "{interface}"')
        if node.look_up():
            self._managed = None
        return node

    def managed_objects(self) -> bytes:
        changed = [node for node in self._nodes.values() if node.look_up()]
        if changed or self._managed is None:
            shown = (node.whole() for path, node in self._nodes.items() if path != self._root)
            self._managed = wire.array_body(shown)
        return self._managed

    def what_is_open_to(self, uid: int) -> bytes:
        """The answer to GetManagedObjects for a user who sees only what everybody does, and what is that user's own."""
        shown = [node for path, node in self._nodes.items() if path != self._root]
        if [node for node in shown if node.look_up()]:
            self._managed = None
        return wire.array_body(node.whole() if node.belongs_to(uid) else node.open_part() for node in shown)

    def introspect(self, path: str) -> str:
        node = self._nodes.get(path)
        own = [] if node is None else [node.shown.interface]
        return interfaces.document([*own, *self._standard(path)], sorted(self._children.get(path, ())))


def _unknown(path: str) -> UnknownObject:
    return UnknownObject(f'there is no object "{path}"; GetManagedObjects tells which there are')
