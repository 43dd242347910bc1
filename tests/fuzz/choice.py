"""Which call comes next: a random one, from nearly right to quite wrong."""

from __future__ import annotations

from typing import Any

from tests.fuzz.raw import INTERACTIVE, NO_AUTO_START, NO_REPLY, Call, Typed
from tests.fuzz.surface import PROPERTIES, Method, Surface
from tests.fuzz.values import Chance
from tests.integration.harness import MACHINE, MANAGER, ROOT, SHARE

DESCRIPTORS_MAX = 16
"""Descriptors of one message: what the system bus passes on (max_message_unix_fds)."""
SELDOM = {"Start": 30, "StartMachine": 30, "Check": 40, "Execute": 4, "Refresh": 4, "Suspend": 4, "Remove": 6}
"""One of so many times that such a method is picked it is called: it takes long, or leaves nothing to call."""


class Choice:
    """Picks calls on a surface."""

    def __init__(self, chance: Chance, prefix: str, folder: str, descriptors: list[int]) -> None:
        """:param prefix: what names of new objects begin with.
        :param folder: what new shares share.
        :param descriptors: what is sent along at times.
        """
        self._chance = chance
        self._prefix = prefix
        self._folder = folder
        self._descriptors = descriptors
        self._surface = Surface()
        self._options: dict[str, list[tuple[str, str]]] = {}

    def look(self, surface: Surface) -> None:
        """Go on with what there is now."""
        self._surface = surface
        for interface in (SHARE, MACHINE):
            known = {p.name: p.type for p in surface.properties if p.interface == interface and p.writable}
            if known:
                self._options[interface] = [*known.items(), ("Persistent", "b")]
        members = [*{m.member for m in surface.methods}, *{p.name for p in surface.properties}]
        names = [path.rpartition("/")[2] for path in surface.paths]
        self._chance.words = [*members, *names, *surface.interfaces, self._folder, f"{self._folder}/gone"]
        self._chance.paths = surface.paths

    def next(self) -> Call:
        """The next call."""
        chance = self._chance
        method = chance.pick(self._surface.methods)
        while (seldom := SELDOM.get(method.member)) and not chance.one_in(seldom):
            method = chance.pick(self._surface.methods)
        kinds = [
            self._right,
            self._right,
            self._property,
            self._property,
            self._make,
            self._wrong,
            self._elsewhere,
        ]
        path, interface, member, signature, body = chance.pick(kinds)(method)
        flags = sum(flag for flag in (NO_REPLY, NO_AUTO_START, INTERACTIVE) if chance.one_in(8))
        count = chance.pick([1, 3, DESCRIPTORS_MAX]) if chance.one_in(30) else 0
        return Call(
            path,
            None if chance.one_in(20) else interface,
            member,
            signature,
            body,
            flags | (chance.pick([0x80, 0xF8]) if chance.one_in(50) else 0),
            chance.pick("<<<>"),
            self._descriptors[:count],
        )

    def _right(self, method: Method) -> tuple[Any, ...]:
        body = self._chance.body(method.takes)
        return method.path, method.interface, method.member, method.takes, body

    def _property(self, _method: Method) -> tuple[Any, ...]:
        chance = self._chance
        picked = chance.pick(self._surface.properties)
        member = chance.pick(["Get", "GetAll", "Set", "Set", "Set"])
        if member == "Set":
            kind = chance.complete() if chance.one_in(4) else picked.type
            body = [picked.interface, picked.name, Typed(kind, chance.value(kind))]
            return picked.path, PROPERTIES, member, "ssv", body
        body = [picked.interface, picked.name][: 2 if member == "Get" else 1]
        return picked.path, PROPERTIES, member, "s" * len(body), body

    def _make(self, _method: Method) -> tuple[Any, ...]:
        """A share or machine that may well be good."""
        chance = self._chance
        name = f"{self._prefix}{chance.random.randrange(40)}"
        if chance.one_in(8):
            return ROOT, MANAGER, chance.pick(["RemoveShare", "RemoveMachine", "KillMachine"]), "s", [name]
        if chance.one_in(2):
            return ROOT, MANAGER, "CreateShare", "ssa{sv}", [name, self._source(), self._given(SHARE)]
        given = self._given(MACHINE)
        if chance.one_in(3):
            shares = [[self._source(), chance.pick(["", "/mnt"]), self._given(SHARE)] for _ in range(2)]
            given.append(("Shares", Typed("a(ssa{sv})", shares)))
        return ROOT, MANAGER, "CreateMachine", "sa{sv}", [name, given]

    def _wrong(self, method: Method) -> tuple[Any, ...]:
        """Arguments of other types."""
        signature = self._chance.signature()
        return method.path, method.interface, method.member, signature, self._chance.body(signature)

    def _elsewhere(self, method: Method) -> tuple[Any, ...]:
        """Another path, interface or member, or one that is nowhere."""
        chance = self._chance
        other = chance.pick(self._surface.methods)
        path = chance.pick([chance.path(), other.path])
        interface = chance.pick([other.interface, "a.b", "org.vfsd1.Nothing", "x" * 127 + "." + "y" * 127])
        member = chance.pick([method.member, "Nothing", "x" * 255])
        return path, interface, member, method.takes, chance.body(method.takes)

    def _source(self) -> str:
        return self._chance.text() if self._chance.one_in(5) else self._folder

    def _given(self, interface: str) -> list[tuple[str, Typed]]:
        """Some options, with the right types but for some."""
        chance = self._chance
        given = []
        for _ in range(chance.pick([0, 0, 1, 1, 2, 5])):
            name, kind = chance.pick(self._options[interface])
            if chance.one_in(10):
                kind = chance.complete()
            given.append((name, Typed(kind, chance.value(kind))))
        return given
