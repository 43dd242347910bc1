"""What one guest has said, from the start of its machine to the end, and over a restart of vfsd."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vfsd import vsock
from vfsd.context import Context
from vfsd.lifecycle import Lifecycle
from vfsd.model import MachineSpec
from vfsd.names import Scope
from vfsd.notifications import Hear
from vfsd.readiness import Readiness
from vfsd.store import Memory
from vfsd.vsock import Address, Notice


class House:
    """A machine and a port without a QEMU, a kernel's vsock or a guest."""

    def __init__(self, memory: Memory | None = None, **options: tuple[str, Any]) -> None:
        self.spec = MachineSpec.from_options("dev", Scope.USER, options)
        self.memory = memory or Memory()
        self.told = 0
        self.hears: dict[int, Hear] = {}
        self.refuses = False
        self.ports: list[int] = []
        notifications = SimpleNamespace(
            cids=self.hears, expect=self.hears.__setitem__, listen=self.listen, forget=self.forget
        )
        context = SimpleNamespace(notifications=notifications)
        self.readiness = Readiness(cast("Context", context), cast("Lifecycle", self))

    def listen(self, wanted: int) -> int:
        if self.refuses:
            raise OSError
        self.ports.append(wanted)
        return wanted or 777

    def forget(self, cid: int) -> None:
        self.hears.pop(cid, None)

    def remember(self, **changes: Any) -> None:
        self.memory = dataclasses.replace(self.memory, **changes)

    def changed(self) -> None:
        self.told += 1


def test_from_start_to_end() -> None:
    house = House()
    readiness = house.readiness
    readiness.begin(Address(5, 777))
    assert (readiness.ready, readiness.ssh_address, house.told) == (False, "", 0)
    house.hears[5](Notice())
    assert house.told == 0
    house.hears[5](Notice(ready=True))
    house.hears[5](Notice(ready=True))
    assert (readiness.ready, readiness.ssh_address, house.told) == (True, "", 1)
    house.hears[5](Notice(ssh=True))
    assert (readiness.ready, readiness.ssh_address, house.told) == (True, "vsock:5", 2)
    readiness.reset()
    assert (readiness.ready, readiness.ssh_address, house.told) == (False, "", 3)
    house.hears[5](Notice(ready=True))
    readiness.end()
    assert (readiness.ready, house.told, house.hears) == (False, 5, {})
    assert house.memory == Memory(cid=5, notify_port=777), "the address is that of the next start too"


def test_over_a_restart_of_vfsd() -> None:
    house = House()
    house.readiness.begin(Address(5, 777))
    house.hears[5](Notice(ready=True, ssh=True))
    after = House(house.memory)
    after.readiness.adopt()
    assert (after.readiness.ready, after.readiness.ssh_address) == (True, "vsock:5")
    assert after.ports == [777]
    after.hears[5](Notice(ready=False, ssh=False))
    assert (after.readiness.ready, after.memory.said_ready) == (False, False)


def test_a_guest_that_moves() -> None:
    house = House()
    house.readiness.begin(Address(5, 777))
    house.hears[5](Notice(ready=True, ssh=True))
    house.readiness.move(Address(6, 777))
    assert (house.readiness.ready, house.readiness.ssh_address, list(house.hears)) == (True, "vsock:6", [6])
    assert house.memory == Memory(cid=6, notify_port=777, said_ready=True, said_ssh=True)
    assert house.told == 2


def test_a_machine_without_it_is_adopted_too() -> None:
    house = House(Memory(notify_port=777))
    house.readiness.adopt()
    assert (house.hears, house.ports, house.readiness.ssh_address) == ({}, [], "")
    house = House(Memory(cid=5, notify_port=777, said_ready=True))
    house.refuses = True
    house.readiness.adopt()
    assert (house.hears, house.readiness.ready) == ({}, True)
    house.readiness.end()
    assert not house.readiness.ready


async def test_who_gets_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "choose_cid", lambda wanted, taken: wanted or 1000 + len(taken))
    assert await House().readiness.prepare() == Address(1000, 777)
    assert await House(Memory(cid=5, notify_port=66)).readiness.prepare() == Address(5, 66)
    assert await House(Builtin=("b", True)).readiness.prepare() is None
    own = ("as", ["-device", "vhost-vsock-pci,guest-cid=3"])
    assert await House(ExtraArguments=own).readiness.prepare() is None
    house = House()
    house.refuses = True
    assert await house.readiness.prepare() is None
    house.readiness.begin(None)
    assert (house.hears, house.memory) == ({}, Memory())


async def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: int, taken: object) -> int:
        raise PermissionError

    monkeypatch.setattr(vsock, "choose_cid", refuse)
    house = House()
    assert await house.readiness.prepare() is None
    assert house.ports == []
