"""The host's register of machines, systemd-machined, over D-Bus (org.freedesktop.machine1(5)).

Registered is who has a leader: machined stops a machine's unit by itself, but asks for everything else by signals
to the leader, of which QEMU would die. So a machine that was started while machined was not there is not registered.
machined notices by itself when a unit and its leader are gone, and keeps its register when it is restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable
from typing import Any

from vfsd import names
from vfsd.bus.connection import CallError, Connection
from vfsd.bus.incoming import Incoming
from vfsd.context import Context
from vfsd.journal import INFO, MessageId
from vfsd.supervisor import Process, SupervisorError
from vfsd.systemd1 import Systemd
from vfsd.units import LEADER

_NAME = "org.freedesktop.machine1"
_PATH = "/org/freedesktop/machine1"
_MANAGER = f"{_NAME}.Manager"
_EXISTS = f"{_NAME}.MachineExists"
_GONE = (f"{_NAME}.NoSuchMachine", "org.freedesktop.DBus.Error.UnknownObject")
_NO_ANSWER = ("org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.TimedOut")
_MACHINE_NAME = re.compile(r"(?!.{65})[A-Za-z0-9]+(-+[A-Za-z0-9]+)*(\.[A-Za-z0-9]+(-+[A-Za-z0-9]+)*)*")
CALL_TIMEOUT = 10.0
"""Seconds in which machined must answer; D-Bus may have to start it first."""
RETRY_DELAY = 30.0
"""Seconds after which a machined that did not answer is asked again."""


class _CannotRegister(Exception):
    """Why a machine is not registered; asking again would not help."""


class _NoAnswer(Exception):
    """machined hangs, or ended."""


def is_name(name: str) -> bool:
    """Whether machined takes it as a machine's name: a host name (systemd's hostname_is_valid())."""
    return _MACHINE_NAME.fullmatch(name) is not None


def leader_among(processes: Iterable[Process], main_pid: int) -> int:
    """The process id of the leader among a unit's processes; 0 if there is none."""
    wanted = f"/{LEADER.name} "
    return next((p.pid for p in processes if p.pid != main_pid and wanted in p.command), 0)


class Machined:
    """Keeps vfsd's machines registered; a Registrar."""

    def __init__(self, connection: Connection, systemd: Systemd, context: Context) -> None:
        self._connection = connection
        self._systemd = systemd
        self._context = context
        self._units: dict[str, str] = {}
        """By machine, the unit with which it is, or ought to be, registered."""
        self._due: dict[str, None] = {}
        """Machines that are to be looked after, in order. One at a time: a machined that hangs must not take up
        more than one of the calls that may be under way."""
        self._worker: asyncio.Task[None] | None = None
        self._came = asyncio.Event()
        """machined was started since it was asked last."""
        self._told: dict[str, str] = {}
        """By machine, why it is not registered, so that it is told once."""

    async def subscribe(self) -> None:
        """Begin to notice when machined comes."""
        self._connection.on_signal(self._on_signal)
        await self._connection.add_match(
            f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{_NAME}'"
        )

    async def wants(self, machine: str) -> bool:
        """Whether the machine can be registered: its name can, and machined is there or can be started."""
        return is_name(machine) and await self._is_there()

    def register(self, machine: str, unit: str) -> None:
        """See to it that a machine is registered with the leader in this unit; see Registrar."""
        self._units[machine] = unit
        self._see_to([machine])

    def forget(self, machine: str) -> None:
        """The machine has ended."""
        self._units.pop(machine, None)
        self._told.pop(machine, None)

    # inner workings

    async def _is_there(self) -> bool:
        try:
            [owned], [activatable] = await asyncio.gather(
                self._connection.call_bus("NameHasOwner", "s", _NAME),
                self._connection.call_bus("ListActivatableNames", ""),
            )
        except CallError:
            return False
        return bool(owned) or _NAME in activatable

    def _on_signal(self, message: Incoming) -> None:
        if message.member != "NameOwnerChanged" or message.sender != "org.freedesktop.DBus":
            return
        name, _, owner = message.body
        if name == _NAME and owner:
            self._came.set()
            self._see_to(self._units)

    def _see_to(self, machines: Iterable[str]) -> None:
        self._due.update(dict.fromkeys(machines))
        if self._due and self._worker is None:
            self._worker = self._context.spawn(self._work())

    async def _work(self) -> None:
        try:
            while self._due:
                machine = next(iter(self._due))
                del self._due[machine]
                await self._look_after(machine)
        finally:
            self._worker = None

    async def _look_after(self, machine: str) -> None:
        unit = self._units.get(machine)
        if unit is None:
            return
        try:
            await self._register(machine, unit)
        except _NoAnswer:
            self._tell(machine, unit, "it does not answer; vfsd will go on asking")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_DELAY):
                    await self._came.wait()
            self._due[machine] = None
        except _CannotRegister as error:
            self._tell(machine, unit, str(error))
        else:
            self._told.pop(machine, None)

    async def _register(self, machine: str, unit: str) -> None:
        """:raise _NoAnswer, _CannotRegister."""
        if not await self._is_there():
            return
        if not is_name(machine):
            raise _CannotRegister("it takes host names only: letters, digits, single dots and inner hyphens")
        self._came.clear()
        leader = await self._leader(unit)
        request = [machine, b"", "vfsd", "vm", leader, ""]
        try:
            await self._call("RegisterMachine", "sayssus", request)
        except CallError as error:
            if error.name != _EXISTS:
                raise _CannotRegister(error.message) from None
            if await self._make_room(machine, unit, leader):
                await self._register_again(request)

    async def _register_again(self, request: list[Any]) -> None:
        try:
            await self._call("RegisterMachine", "sayssus", request)
        except CallError as error:
            raise _CannotRegister(error.message) from None

    async def _make_room(self, machine: str, unit: str, leader: int) -> bool:
        """Whether the name is free now; False: the machine is registered as it ought to be.

        :raise _CannotRegister: the name is that of a machine which is not vfsd's.
        """
        try:
            [path] = await self._call("GetMachine", "s", [machine])
            [known] = await self._call(
                "GetAll", "s", [f"{_NAME}.Machine"], path, "org.freedesktop.DBus.Properties"
            )
            if (known["Unit"].value, known["Leader"].value) == (unit, leader):
                return False
            if known["Unit"].value not in names.machine_units(machine):
                raise _CannotRegister(f"{known['Unit'].value} has registered a machine of that name")
            await self._call("UnregisterMachine", "s", [machine])
        except CallError as error:
            if error.name not in _GONE:
                raise _CannotRegister(error.message) from None
        return True

    async def _leader(self, unit: str) -> int:
        try:
            processes = await self._systemd.processes(unit)
        except SupervisorError as error:
            raise _CannotRegister(str(error)) from None
        leader = leader_among(processes, self._systemd.status(unit).main_pid)
        if not leader:
            raise _CannotRegister("it was not there when the machine was started; a new start registers it")
        return leader

    async def _call(
        self, member: str, signature: str, body: list[Any], path: str = _PATH, interface: str = _MANAGER
    ) -> list[Any]:
        """:raise _NoAnswer, CallError."""
        try:
            return await self._connection.call(
                _NAME, path, interface, member, signature, body, timeout=CALL_TIMEOUT
            )
        except CallError as error:
            if error.name in _NO_ANSWER:
                raise _NoAnswer from None
            raise

    def _tell(self, machine: str, unit: str, why: str) -> None:
        if self._units.get(machine) != unit or self._told.get(machine) == why:
            return  # it has ended meanwhile, which machined may have noticed first
        self._told[machine] = why
        text = f'machine "{machine}" is not registered with systemd-machined: {why}'
        self._context.journal.write(
            MessageId.NOT_REGISTERED, INFO, text, unit=unit, machine=machine, reason=why
        )
