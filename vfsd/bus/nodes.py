"""What is shown at a path: an object, and its properties as the bytes of which replies are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from vfsd.bus import wire
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

    async def call(self, member: str, arguments: list[Any], sender: str) -> list[Any]:
        """Carry out a method whose arguments have the right types.

        A file descriptor (`h`) among the results is the dispatcher's from then on.
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
            self._whole = None
        return changed

    def value(self, name: str) -> wire.PropertyValue:
        return self._values[name]

    def entries(self, names: Iterable[str] | None = None) -> Iterable[bytes]:
        """Entries of `a{sv}`: all, or those of some properties."""
        return self._entries.values() if names is None else [self._entries[name] for name in names]

    def whole(self) -> bytes:
        """The entry of `a{oa{sa{sv}}}`."""
        if self._whole is None:
            own = wire.named_array(self.shown.interface.name, self._entries.values())
            self._whole = wire.named_array(self.shown.path, [own])
        return self._whole


class Empty:
    """A standard interface, which has no properties."""

    def __init__(self, path: str, interface: Interface) -> None:
        self.path = path
        self.interface = interface

    def values(self) -> dict[str, wire.PropertyValue]:
        return {}

    looked_up = values

    async def call(self, member: str, arguments: list[Any], sender: str) -> list[Any]:  # noqa: ARG002
        raise UnknownMethod(f'"{self.interface.name}" has no method "{member}"')

    async def set(self, name: str, value: wire.PropertyValue) -> None:  # noqa: ARG002
        raise UnknownProperty(f'"{self.interface.name}" has no property "{name}"')
