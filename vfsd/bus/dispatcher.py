"""Answers method calls on a tree of objects, driven by their interface XML.

A call ends in exactly one reply: a result, an error of vfsd's own by its D-Bus name, or Failed with "internal
error" after a bug, whose traceback goes to the journal alone. Results are marshalled before the reply is chosen,
so that a wrongly typed one can't leave the caller without an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dbus_next import MessageFlag, MessageType

from vfsd.bus import interface as interfaces
from vfsd.bus import wire
from vfsd.bus.connection import CallError, Connection
from vfsd.bus.incoming import Incoming
from vfsd.bus.interface import Interface, Method
from vfsd.bus.limits import CALLER, Gate
from vfsd.bus.nodes import BusObject, Empty, Node
from vfsd.bus.writer import close_all
from vfsd.errors import (
    InvalidArgs,
    LimitsExceeded,
    NotSupported,
    PropertyReadOnly,
    UnknownInterface,
    UnknownMethod,
    UnknownObject,
    UnknownProperty,
    VfsdError,
)

log = logging.getLogger(__name__)

_STANDARD = interfaces.parse(interfaces.STANDARD_XML)
_OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_MACHINE_ID = Path("/etc/machine-id")
_INTERNAL_ERROR = ("org.freedesktop.DBus.Error.Failed", "internal error; vfsd's journal has the details")
_GOING_DOWN = "vfsd is going down; call again"
REPLY_MAX = 31 << 20
"""Bytes in the body of a reply. Whoever sends more than 32 MiB is thrown off the system bus (max_message_size)."""
TEXT_MAX = 16 << 10
"""Characters in the message of an error, which often repeats what the caller said."""
_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

Refused = Callable[[str, str, str], None]
"""Told of each call that ended in an error of vfsd's own: object path, member, message."""


class Dispatcher:
    """The objects of one service on one connection."""

    def __init__(self, connection: Connection, root: BusObject, refused: Refused) -> None:
        self._connection = connection
        self._root = root.path
        self._nodes = {root.path: Node(root)}
        self._children: dict[str, set[str]] = {}
        self._add_path(root.path)
        self._managed: bytes | None = None
        """The answer to GetManagedObjects, until something changes."""
        self._refused = refused
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = Gate(self._begin, self._reply_error, connection.unread, lambda: connection.congested)
        connection.on_call, connection.on_ready = self._gate.let_in, self._gate.serve

    # the tree

    def add(self, shown: BusObject, *, announce: bool = True) -> None:
        """Show an object, and tell everybody."""
        node = self._nodes[shown.path] = Node(shown)
        self._managed = None
        self._add_path(shown.path)
        if announce:
            self._signal(self._root, _OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", node.whole())

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
        self._signal(self._root, _OBJECT_MANAGER, "InterfacesRemoved", "oas", body)

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
        if told:
            body = wire.changed_body(own.name, node.entries(told))
            self._signal(path, _PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def signal(self, path: str, member: str, *arguments: Any) -> None:
        """Send a signal of an object's own interface, if the object is shown."""
        node = self._nodes.get(path)
        if node is not None:
            own = node.shown.interface
            signature = own.signals[member]
            self._signal(path, own.name, member, signature, wire.marshal(signature, list(arguments)))

    async def close(self) -> None:
        """Cancel the calls that are being carried out; each is answered with an error, and those that wait."""
        await self._gate.close(VfsdError(_GOING_DOWN))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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

    # calls

    def _begin(self, message: Incoming) -> bool:
        """Answer a call; returns whether it is still being carried out."""
        try:
            method = self._method_of(message)
            body = self._answer_at_once(message)
        except VfsdError as error:
            self._reply_error(message, error)
        except Exception:
            self._reply_bug(message)
        else:
            if body is not None:
                self._reply(message, method.gives, body)
                return False
            work = self._carry_out(message, self._nodes[message.path], method.gives)
            task = asyncio.get_running_loop().create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return True
        return False

    def _method_of(self, message: Incoming) -> Method:
        """The method that a call means; the message then names its interface. :raise VfsdError: there is none."""
        interface = self._interface_of(message)
        method = interface.methods.get(message.member)
        if method is None:
            raise UnknownMethod(f'"{interface.name}" has no method "{message.member}"')
        if message.signature != method.takes:
            raise InvalidArgs(
                f'{message.member} takes arguments of type "{method.takes}", not "{message.signature}"'
            )
        if "h" in method.gives and not self._connection.passes_descriptors:
            raise NotSupported(f"{message.member} gives a file descriptor, and this bus passes none on")
        message.interface = interface.name
        return method

    def _answer_at_once(self, message: Incoming) -> bytes | None:
        """The body of the reply to a call that needs no waiting, None for the others."""
        match message.interface, message.member:
            case "org.freedesktop.DBus.Introspectable", _:
                return wire.marshal("s", [self._introspect(message.path)])
            case "org.freedesktop.DBus.Peer", "Ping":
                return b""
            case "org.freedesktop.DBus.Peer", _:
                return wire.marshal("s", [_MACHINE_ID.read_text(encoding="ascii").strip()])
            case "org.freedesktop.DBus.ObjectManager", _:
                return self._managed_objects()
            case "org.freedesktop.DBus.Properties", "Get":
                return self._get(message)
            case "org.freedesktop.DBus.Properties", "GetAll":
                return wire.array_body(self._node(message.path, message.body[0]).entries())
        return None

    def _interface_of(self, message: Incoming) -> Interface:
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

    def _node(self, path: str, interface: str) -> Node:
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

    def _get(self, message: Incoming) -> bytes:
        interface, name = message.body
        node = self._node(message.path, interface)
        if name not in node.shown.interface.properties:
            raise UnknownProperty(f'"{node.shown.interface.name}" has no property "{name}"')
        return wire.marshal_variant(node.value(name))

    async def _carry_out(self, message: Incoming, node: Node, gives: str) -> None:
        CALLER.set(message.sender)
        descriptors: list[int] = []
        try:
            if message.interface == _PROPERTIES:
                body = await self._set(message)
            else:
                body = await node.shown.call(message.member, message.body, message.sender)
            body, descriptors = wire.take_descriptors(gives, body)
            raw = wire.marshal(gives, body)
        except VfsdError as error:
            self._reply_error(message, error)
        except asyncio.CancelledError:
            self._reply_error(message, VfsdError(_GOING_DOWN))
            raise
        except CallError as error:
            log.warning("A call was not answered: %s", error)
            self._reply_error(
                message, VfsdError("another service did not answer; vfsd's journal has the details")
            )
        except OSError as error:
            log.exception("%s failed", message.member)
            text = f"{message.member} failed: {error.strerror or error}; vfsd's journal has the details"
            self._reply_error(message, VfsdError(text))
        except Exception:
            close_all(descriptors)
            self._reply_bug(message)
        else:
            self._reply(message, gives, raw, descriptors)

    async def _set(self, message: Incoming) -> list[Any]:
        interface, name, value = message.body
        node = self._node(message.path, interface)
        known = node.shown.interface.properties.get(name)
        if known is None:
            raise UnknownProperty(f'"{node.shown.interface.name}" has no property "{name}"')
        if not known.writable:
            raise PropertyReadOnly(f'property "{name}" can only be read')
        if value.signature != known.signature:
            raise InvalidArgs(f'{name} has type "{known.signature}", not "{value.signature}"')
        await node.shown.set(name, (value.signature, value.value))
        return []

    def _managed_objects(self) -> bytes:
        changed = [node for node in self._nodes.values() if node.look_up()]
        if changed or self._managed is None:
            shown = (node.whole() for path, node in self._nodes.items() if path != self._root)
            self._managed = wire.array_body(shown)
        return self._managed

    def _introspect(self, path: str) -> str:
        node = self._nodes.get(path)
        own = [] if node is None else [node.shown.interface.xml]
        shown = [*own, *(interface.xml for interface in self._standard(path))]
        children = [f'<node name="{child}"/>' for child in sorted(self._children.get(path, ()))]
        return "\n".join([f"{_DOCTYPE}<node>", *shown, *children, "</node>"])

    # replies

    def _reply(self, message: Incoming, signature: str, body: bytes, descriptors: Sequence[int] = ()) -> None:
        if len(body) > REPLY_MAX:
            text = f"the answer has {len(body)} bytes, and the bus passes on 32 MiB; ask for single objects"
            self._reply_error(message, LimitsExceeded(text))
            return
        self._send(
            message,
            body,
            message_type=MessageType.METHOD_RETURN,
            signature=signature,
            unix_fds=list(descriptors),
        )

    def _reply_error(self, message: Incoming, error: VfsdError) -> None:
        text = str(error)[:TEXT_MAX]
        self._send_error(message, error.dbus_name, text)
        self._refused(message.path, message.member, text)

    def _reply_bug(self, message: Incoming) -> None:
        log.exception("A bug in vfsd: %s of %s failed", message.member, message.path)
        self._send_error(message, *_INTERNAL_ERROR)

    def _send_error(self, message: Incoming, name: str, text: str) -> None:
        body = wire.marshal("s", [text])
        self._send(message, body, message_type=MessageType.ERROR, error_name=name, signature="s")

    def _send(self, message: Incoming, body: bytes, **fields: Any) -> None:
        expected = not message.flags & MessageFlag.NO_REPLY_EXPECTED
        self._gate.done(message, len(body) if expected else 0)
        if expected:
            reply = wire.RawMessage(body, destination=message.sender, reply_serial=message.serial, **fields)
            self._connection.send_now(reply)
        else:
            close_all(fields.get("unix_fds", ()))


def _unknown(path: str) -> UnknownObject:
    return UnknownObject(f'there is no object "{path}"; GetManagedObjects tells which there are')
