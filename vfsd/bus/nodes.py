"""What is shown at a path: an object, and its properties as the bytes of which replies are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from vfsd.bus import wire
from vfsd.bus.authorisation import About, is_open
from vfsd.bus.callers import Caller
from vfsd.bus.interface import Interface
from vfsd.errors import UnknownMethod, UnknownProperty


class BusObject(Protocol):
    """What the dispatcher shows at a path."""

    path: str
    interface: Interface

    def values(self) -> dict[str, wire.PropertyValue]:
        """All properties."""

    def looked_up(self) -> dict[str, wire.PropertyValue]:
        """Properties besides, whose changes are not told: looked up, quickly, when somebody reads them."""

    def about(self, member: str, arguments: list[Any]) -> About:
        """What a call is about. :raise VfsdError: there is no such thing."""

    async def call(self, member: str, arguments: list[Any], caller: Caller, *, sees_all: bool) -> list[Any]:
        """Carry out a method whose arguments have the right types.

        A file descriptor (`h`) among the results is the dispatcher's from then on.

        :param sees_all: whether the result may tell what not everybody may read.
        """

    async def set(self, name: str, value: wire.PropertyValue) -> None:
        """Set a writable property to a value of the right type."""


class Node:
    """An object and its marshalled properties, each made again only when its value changed."""

    def __init__(self, shown: BusObject) -> None:
        self.shown = shown
        self._values: dict[str, wire.PropertyValue] = {}
        self._entries: dict[str, bytes] = {}
        self._whole: bytes | None = None
        self._open: bytes | None = None
        self.refresh()
        self.look_up()

    def refresh(self) -> list[str]:
        """Marshal what changed; returns the names of the changed properties."""
        return self._take(self.shown.values())

    def look_up(self) -> bool:
        """The same for those whose changes are not told; whether there were any."""
        return bool(self._take(self.shown.looked_up()))

    def _take(self, values: dict[str, wire.PropertyValue]) -> list[str]:
        changed = []
        for name, value in values.items():
            if self._values.get(name) != value:
                self._values[name] = value
                self._entries[name] = wire.property_entry(name, value)
                changed.append(name)
        if changed:
            self._whole = self._open = None
        return changed

    def value(self, name: str) -> wire.PropertyValue:
        return self._values[name]

    def belongs_to(self, uid: int) -> bool:
        """Whether that user made it."""
        return self._values.get("Owner") == ("u", uid)

    def is_open(self, name: str) -> bool:
        """Whether everybody may read a property."""
        return is_open(self.shown.interface.name, name)

    def entries(self, names: Iterable[str] | None = None) -> Iterable[bytes]:
        """Entries of `a{sv}`: all, or those of some properties."""
        return self._entries.values() if names is None else [self._entries[name] for name in names]

    def open_entries(self) -> Iterable[bytes]:
        """Those that everybody may read."""
        return self.entries(filter(self.is_open, self._entries))

    def whole(self) -> bytes:
        """The entry of `a{oa{sa{sv}}}`."""
        if self._whole is None:
            self._whole = self._entry(self.entries())
        return self._whole

    def open_part(self) -> bytes:
        """The same with those properties only that everybody may read."""
        if self._open is None:
            self._open = self._entry(self.open_entries())
        return self._open

    def _entry(self, entries: Iterable[bytes]) -> bytes:
        own = wire.named_array(self.shown.interface.name, entries)
        return wire.named_array(self.shown.path, [own])


class Empty:
    """A standard interface, which has no properties."""

    def __init__(self, path: str, interface: Interface) -> None:
        self.path = path
        self.interface = interface

    def values(self) -> dict[str, wire.PropertyValue]:
        return {}

    looked_up = values

    def about(self, member: str, arguments: list[Any]) -> About:  # noqa: ARG002
        raise UnknownProperty(f'"{self.interface.name}" has no properties')

    async def call(self, member: str, arguments: list[Any], caller: Caller, *, sees_all: bool) -> list[Any]:  # noqa: ARG002
        raise UnknownMethod(f'"{self.interface.name}" has no method "{member}"')

    async def set(self, name: str, value: wire.PropertyValue) -> None:  # noqa: ARG002
        raise UnknownProperty(f'"{self.interface.name}" has no property "{name}"')
