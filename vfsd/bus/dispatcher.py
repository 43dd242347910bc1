"""Answers method calls on a tree of objects, driven by their interface XML.

A call ends in exactly one reply: a result, an error of vfsd's own by its D-Bus name, or Failed with "internal
error" after a bug, whose traceback goes to the journal alone. Results are marshalled before the reply is chosen,
so that a wrongly typed one can't leave the caller without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from dbus_next import MessageFlag, MessageType

from vfsd.bus import wire
from vfsd.bus.authorisation import METHODS, SETTING, About, Action
from vfsd.bus.callers import Caller, CallerGone
from vfsd.bus.connection import CallError, Connection
from vfsd.bus.guard import Guard
from vfsd.bus.incoming import Incoming
from vfsd.bus.interface import OBJECT_MANAGER, PROPERTIES, Method
from vfsd.bus.limits import CALLER, Gate
from vfsd.bus.nodes import Node
from vfsd.bus.tree import Tree
from vfsd.bus.writer import close_all
from vfsd.errors import (
    AccessDenied,
    InvalidArgs,
    LimitsExceeded,
    NotSupported,
    PropertyReadOnly,
    UnknownMethod,
    UnknownProperty,
    VfsdError,
    WrongState,
)

log = logging.getLogger(__name__)

_MACHINE_ID = Path("/etc/machine-id")
_INTERNAL_ERROR = ("org.freedesktop.DBus.Error.Failed", "internal error; vfsd's journal has the details")
_GOING_DOWN = "vfsd is going down; call again"
REPLY_MAX = 31 << 20
"""Bytes in the body of a reply. Whoever sends more than 32 MiB is thrown off the system bus (max_message_size)."""
TEXT_MAX = 16 << 10
"""Characters in the message of an error, which often repeats what the caller said."""

Refused = Callable[[str, str, str, Caller | None], None]
"""Told of each call that ended in an error of vfsd's own: object path, member, message, and who called, if known."""


class Dispatcher:
    """The objects of one service on one connection."""

    def __init__(self, connection: Connection, guard: Guard, tree: Tree, refused: Refused) -> None:
        self._connection = connection
        self._guard = guard
        self._tree = tree
        self._refused = refused
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = Gate(self._begin, self._reply_error, connection.unread, lambda: connection.congested)
        connection.on_call, connection.on_ready = self._gate.let_in, self._gate.serve

    async def close(self) -> None:
        """Cancel the calls that are being carried out; each is answered with an error, and those that wait."""
        await self._gate.close(VfsdError(_GOING_DOWN))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, message: Incoming) -> bool:
        """Answer a call; returns whether it is still being carried out."""
        caller = self._guard.known(message.sender)
        if caller is not None:
            return self._take(message, caller)
        self._spawn(self._meet(message))
        return True

    async def _meet(self, message: Incoming) -> None:
        """Take the first call of a connection: the bus is asked once who that is."""
        CALLER.set(message.sender)
        with self._errors_answered(message):
            self._take(message, await self._guard.admit(message.sender))

    def _take(self, message: Incoming, caller: Caller) -> bool:
        """Answer a call at once, or begin to; returns whether it is still being carried out."""
        with self._errors_answered(message):
            method = self._method_of(message)
            body = self._answer_at_once(message, caller)
            if body is None:
                self._spawn(self._carry_out(message, caller, method.gives))
                return True
            self._reply(message, method.gives, body)
        return False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextlib.contextmanager
    def _errors_answered(self, message: Incoming) -> Iterator[None]:
        """Whatever goes wrong in the body of this becomes the reply."""
        try:
            yield
        except CallerGone:
            self._gate.done(message, 0)
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
            self._reply_bug(message)

    def _method_of(self, message: Incoming) -> Method:
        """The method that a call means; the message then names its interface. :raise VfsdError: there is none."""
        interface = self._tree.interface_of(message)
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

    def _answer_at_once(self, message: Incoming, caller: Caller) -> bytes | None:
        """The body of the reply to a call that needs no waiting, None for the others."""
        match message.interface, message.member:
            case "org.freedesktop.DBus.Introspectable", _:
                return wire.marshal("s", [self._tree.introspect(message.path)])
            case "org.freedesktop.DBus.Peer", "Ping":
                return b""
            case "org.freedesktop.DBus.Peer", _:
                return wire.marshal("s", [_MACHINE_ID.read_text(encoding="ascii").strip()])
        return self._read(message, caller)

    def _read(self, message: Incoming, caller: Caller) -> bytes | None:
        """The body of the reply to a call that only reads what this caller may see anyway, None for the others."""
        trusted = self._guard.trusts(caller)
        if message.interface == OBJECT_MANAGER:
            return self._tree.managed_objects() if trusted else None
        if message.interface != PROPERTIES or message.member == "Set":
            return None
        node = self._tree.node(message.path, message.body[0])
        trusted = trusted or node.belongs_to(caller.uid)
        if message.member == "GetAll":
            return wire.array_body(node.entries()) if trusted else None
        name = self._property(node, message.body[1])
        return wire.marshal_variant(node.value(name)) if trusted or node.is_open(name) else None

    def _property(self, node: Node, name: str) -> str:
        """The name of a property. :raise UnknownProperty: there is none of that name."""
        if name not in node.shown.interface.properties:
            raise UnknownProperty(f'"{node.shown.interface.name}" has no property "{name}"')
        return name

    async def _carry_out(self, message: Incoming, caller: Caller, gives: str) -> None:
        CALLER.set(message.sender)
        with self._errors_answered(message):
            raw = await self._read_what_may_be(message, caller)
            if raw is not None:
                self._reply(message, gives, raw)
                return
            body, descriptors = wire.take_descriptors(gives, await self._act(message, caller))
            try:
                raw = wire.marshal(gives, body)
            except BaseException:
                close_all(descriptors)
                raise
            self._reply(message, gives, raw, descriptors)

    async def _read_what_may_be(self, message: Incoming, caller: Caller) -> bytes | None:
        """The body of the reply to a call that reads, for one who may not see everything; None for the others.

        :raise AccessDenied, InteractiveAuthorizationRequired: it is one property, which this caller may not see.
        """
        if message.interface == OBJECT_MANAGER:
            sees_all = await self._guard.may(caller, Action.INSPECT, About(verb=message.member))
            return self._tree.managed_objects() if sees_all else self._tree.what_is_open_to(caller.uid)
        if message.interface != PROPERTIES or message.member == "Set":
            return None
        node = self._tree.node(message.path, message.body[0])
        if message.member == "GetAll":
            about = node.shown.about(message.member, message.body[1:])
            sees_all = await self._guard.may(caller, Action.INSPECT, about)
            return wire.array_body(node.entries() if sees_all else node.open_entries())
        await self._authorise(message, caller, Action.INSPECT, node, message.body[1:])
        return wire.marshal_variant(node.value(message.body[1]))

    async def _act(self, message: Incoming, caller: Caller) -> list[Any]:
        """Carry out a call that does more than to read, if its caller may."""
        if message.interface == PROPERTIES:
            return await self._set(message, caller)
        node = self._tree.node(message.path, "")
        actions = METHODS[node.shown.interface.name]
        if message.member not in actions:
            raise AccessDenied(f"nobody may call {message.member}")
        action = actions[message.member]
        sees_all = self._guard.trusts(caller)
        if action is None:
            about = About(verb=message.member)
            sees_all = sees_all or await self._guard.may(caller, Action.INSPECT, about)
        elif action is not Action.INSPECT or not node.belongs_to(caller.uid):
            await self._authorise(message, caller, action, node, message.body)
        return await node.shown.call(message.member, message.body, caller, sees_all=sees_all)

    async def _authorise(
        self, message: Incoming, caller: Caller, action: Action, node: Node, arguments: list[Any]
    ) -> None:
        """Return if a caller may do this, and it is still about what it was about before that was asked."""
        if self._guard.trusts(caller):
            return
        about = node.shown.about(message.member, arguments)
        ask = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        await self._guard.authorise(caller, action, about, ask=ask)
        if self._tree.get(message.path) is not node or node.shown.about(message.member, arguments) != about:
            raise WrongState(f"{about}: it is another one than before the caller was authorised; call again")

    async def _set(self, message: Incoming, caller: Caller) -> list[Any]:
        interface, name, value = message.body
        node = self._tree.node(message.path, interface)
        known = node.shown.interface.properties[self._property(node, name)]
        if not known.writable:
            raise PropertyReadOnly(f'property "{name}" can only be read')
        if value.signature != known.signature:
            raise InvalidArgs(f'{name} has type "{known.signature}", not "{value.signature}"')
        await self._authorise(message, caller, SETTING[node.shown.interface.name], node, [name])
        await node.shown.set(name, (value.signature, value.value))
        return []

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
        self._refused(message.path, message.member, text, self._guard.known(message.sender))

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
