"""The service manager, PID 1 or a user's, over D-Bus (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from dbus_next import Variant

from vfsd import names
from vfsd.bus import wire
from vfsd.bus.connection import CallError, Connection
from vfsd.bus.incoming import Incoming
from vfsd.supervisor import MISSING, Command, Process, SupervisorError, UnitStatus, UnitWatcher
from vfsd.units import Property, Unit

log = logging.getLogger(__name__)

_NAME = "org.freedesktop.systemd1"
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_PROPERTIES = "org.freedesktop.DBus.Properties"
_UNIT_INTERFACE = f"{_NAME}.Unit"
_SERVICE_INTERFACE = f"{_NAME}.Service"
_OUR_PATTERNS = ["vfsd-*.service", "vfsd-*.socket", "vfsd-*.slice"]
_OUR_UNITS = f"/org/freedesktop/systemd1/unit/{names.label_escape('vfsd-')}"
JOB_TIMEOUT = 12.0
"""Seconds that a job may take before the caller is told that it did not end."""
RELIST_DELAY = 1.0
"""Seconds between tries to list the units after a reload of systemd."""
APPEAR_TIMEOUT, APPEAR_INTERVAL = 10.0, 0.05
"""Seconds in which systemd must be on the bus, and between looks: to a new bus it comes when it notices."""


_FIELDS = {
    "ActiveState": "active",
    "SubState": "sub",
    "MainPID": "main_pid",
    "Result": "result",
    "ExecMainCode": "exit_code",
    "ExecMainStatus": "exit_status",
}
_WANTED = frozenset((*_FIELDS, "InvocationID"))


class _Jobs:
    """Results of jobs. One may be told before the reply to the call that made the job is looked at."""

    def __init__(self) -> None:
        self._calls = 0
        """Calls whose replies have not been looked at."""
        self._early: dict[str, str] = {}
        self._awaited: dict[str, set[asyncio.Future[str]]] = {}
        """By the job's path. systemd merges jobs, so that two calls may have made one."""

    async def result(self, call: Coroutine[Any, Any, list[Any]]) -> str:
        """The result of the job that a call makes."""
        self._calls += 1
        try:
            [path] = await call
            early = self._early.get(path)
        finally:
            self._calls -= 1
            if not self._calls:
                self._early.clear()
        if early is not None:
            return early
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(path, set()).add(told)
        try:
            async with asyncio.timeout(JOB_TIMEOUT):
                return await told
        finally:
            if waiting := self._awaited.get(path):
                waiting.discard(told)
                if not waiting:
                    del self._awaited[path]

    def removed(self, path: str, result: str) -> None:
        """systemd says that a job is over."""
        for told in self._awaited.pop(path, ()):
            if not told.done():
                told.set_result(result)
        if self._calls:
            self._early[path] = result


class Systemd:
    """The part of systemd's interface that vfsd lives on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._owner = ""
        self._status: dict[str, UnitStatus] = {}
        self._jobs = _Jobs()
        self._leaving: dict[str, set[asyncio.Future[None]]] = {}
        """By unit, who waits for its end."""
        self._reloading = False
        self._moved: set[str] = set()
        """Units of which a signal told since they were last listed: it is newer than the list."""
        self._catching_up: asyncio.Task[None] | None = None
        self.watcher: UnitWatcher | None = None
        self.version = 0
        self.life = ""

    async def subscribe(self) -> None:
        """Begin to follow vfsd's units. Must come before anything is listed or started."""
        connection = self._connection
        connection.on_signal(self._on_signal)
        rules = [
            f"type='signal',sender='{_NAME}',interface='{_PROPERTIES}',arg0='{_UNIT_INTERFACE}'",
            f"type='signal',sender='{_NAME}',interface='{_PROPERTIES}',arg0='{_SERVICE_INTERFACE}'",
            f"type='signal',sender='{_NAME}',interface='{_MANAGER[2]}',member='JobRemoved'",
            f"type='signal',sender='{_NAME}',interface='{_MANAGER[2]}',member='UnitRemoved'",
            f"type='signal',sender='{_NAME}',interface='{_MANAGER[2]}',member='Reloading'",
            f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{_NAME}'",
        ]
        await asyncio.gather(*(connection.add_match(rule) for rule in rules))
        self._owner = await self._appear()
        [version], [since] = await asyncio.gather(
            *(
                connection.call(*_MANAGER[:2], _PROPERTIES, "Get", "ss", [_MANAGER[2], name])
                for name in ("Version", "UserspaceTimestampMonotonic")
            )
        )
        self.life = str(since.value)
        digits = version.value.lstrip("v").split(".")[0].split("-")[0].split("~")[0].split(" ")[0]
        self.version = int(digits) if digits.isdecimal() else 0
        await connection.call(*_MANAGER, "Subscribe")

    async def _appear(self) -> str:
        """Wait until systemd is on the bus; returns its unique name. :raise CallError: it does not come."""
        end = asyncio.get_running_loop().time() + APPEAR_TIMEOUT
        while True:
            try:
                [owner] = await self._connection.call_bus("GetNameOwner", "s", _NAME)
            except CallError:
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(APPEAR_INTERVAL)
            else:
                return str(owner)

    def status(self, unit: str) -> UnitStatus:
        """What is known of a unit; a unit that is not loaded is inactive."""
        return self._status.get(unit, UnitStatus())

    async def enumerate(self) -> None:
        """Learn the status of every unit of vfsd's that is loaded. Call after subscribe()."""
        self._status = await self._list_units()
        services = [unit for unit, known in self._status.items() if unit.endswith(".service") and known.runs]
        failed = [unit for unit, known in self._status.items() if known.active == "failed"]
        await asyncio.gather(*(self._learn_service(unit) for unit in (*services, *failed)))

    async def _list_units(self) -> dict[str, UnitStatus]:
        self._moved.clear()
        [units] = await self._connection.call(*_MANAGER, "ListUnitsByPatterns", "asas", [[], _OUR_PATTERNS])
        found = {}
        for name, _, _, active, sub, *_ in units:
            found[name] = dataclasses.replace(self.status(name), active=active, sub=sub)
        for name in self._moved:
            if name in self._status:
                found[name] = self._status[name]
            else:
                found.pop(name, None)
        return found

    async def _after_reload(self) -> None:
        """Catch up: while systemd reloads, it says of every unit that it was removed."""
        while True:
            try:
                found = await self._list_units()
                break
            except CallError:
                log.exception("systemd's units can't be listed after its reload")
                await asyncio.sleep(RELIST_DELAY)
        before, self._status = self._status, found
        for unit in before.keys() - found.keys():
            self._tell_left(unit)
        for unit, status in found.items():
            if before.get(unit) != status:
                self._notify(unit, status)
        for unit, last in before.items():
            if unit not in found:
                self._notify(unit, _forgotten(last))
        for unit, status in found.items():
            # the files of transient units were taken away: what did not run is not known any more
            service = unit.removesuffix(".socket") + ".service"
            if unit.endswith(".socket") and status.active == "active" and service not in found:
                self._notify(service, UnitStatus(sub=MISSING))

    async def _learn_service(self, unit: str) -> None:
        wanted = ("MainPID", "Result", "ExecMainCode", "ExecMainStatus")
        path = names.unit_object_path(unit)
        values = await asyncio.gather(
            *(
                self._connection.call(_NAME, path, _PROPERTIES, "Get", "ss", [_SERVICE_INTERFACE, name])
                for name in wanted
            ),
            return_exceptions=True,
        )
        known = {_FIELDS[n]: v[0].value for n, v in zip(wanted, values, strict=True) if isinstance(v, list)}
        if unit in self._status:
            self._status[unit] = dataclasses.replace(self._status[unit], **known)

    async def start(self, unit: Unit, aux: Sequence[Unit]) -> None:
        """Make transient units in one call and wait until the first is started.

        :raise SupervisorError: nothing was made, or the start failed.
        """
        marshalled = [wire.named_array(other.name, _properties(other)) for other in aux]
        body = wire.transient_units_body(unit.name, "fail", _properties(unit), marshalled)
        try:
            await self._run_job(unit.name, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
        except SupervisorError as error:
            masked = await self._masked([unit, *aux]) if error.unit_exists else ""
            if masked:
                raise SupervisorError(f"{masked} is masked, unmask it") from None
            raise

    async def stop(self, unit: str) -> None:
        """Stop a unit and wait until it is stopped; no error if it is not loaded."""
        try:
            await self._run_job(unit, "StopUnit", "ss", [unit, "replace"])
        except SupervisorError as error:
            if not error.no_such_unit:
                raise

    async def begin_stop(self, unit: str) -> None:
        """Ask for a unit's stop without waiting for its end. :raise SupervisorError: refused."""
        await self._call("StopUnit", "ss", [unit, "replace"])

    async def kill(self, unit: str, signal: int) -> None:
        """Send a signal to all processes of a unit; no error if it is not loaded."""
        try:
            await self._call("KillUnit", "ssi", [unit, "all", signal])
        except SupervisorError as error:
            if not error.no_such_unit:
                raise

    async def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Change a loaded unit for as long as it is loaded; no error if it is not. :raise SupervisorError: refused."""
        changes = [[name, Variant(signature, value)] for name, signature, value in properties]
        try:
            await self._call("SetUnitProperties", "sba(sv)", [unit, True, changes])
        except SupervisorError as error:
            if not error.no_such_unit:
                raise

    async def command(self, unit: str) -> Command:
        """How a service was started. :raise SupervisorError: it is not loaded."""
        path, get = names.unit_object_path(unit), (_PROPERTIES, "Get", "ss")
        try:
            [[commands], [started]] = await asyncio.gather(
                *(
                    self._connection.call(_NAME, path, *get, [_SERVICE_INTERFACE, name])
                    for name in ("ExecStartEx", "ExecMainStartTimestamp")
                )
            )
        except CallError as error:
            raise SupervisorError(error.message) from None
        return Command(commands.value[0][1] if commands.value else [], started.value)

    async def processes(self, unit: str) -> list[Process]:
        """The processes of a unit. :raise SupervisorError: it is not loaded."""
        [found] = await self._call("GetUnitProcesses", "s", [unit])
        return [Process(pid, command) for _, pid, command in found]

    async def discard(self, units: Sequence[str]) -> None:
        """Stop units and forget that they failed: those whose files were taken away have no CollectMode= any more."""
        for unit in units:
            if unit in self._status:
                with contextlib.suppress(SupervisorError):
                    await self.stop(unit)
                with contextlib.suppress(SupervisorError):
                    await self._call("ResetFailedUnit", "s", [unit])

    async def wait_gone(self, units: Sequence[str], timeout: float) -> bool:
        """Wait until none of the units is loaded, `timeout` seconds at most; whether that came true."""
        try:
            async with asyncio.timeout(timeout):
                for unit in units:
                    while unit in self._status:
                        left = asyncio.get_running_loop().create_future()
                        self._leaving.setdefault(unit, set()).add(left)
                        await left
        except TimeoutError:
            return False
        return True

    def _tell_left(self, unit: str) -> None:
        for left in self._leaving.pop(unit, ()):
            if not left.done():
                left.set_result(None)

    async def is_active(self, unit: str) -> bool:
        """Whether a unit is up, asked now."""
        state: str = await self._unit_property(unit, "ActiveState")
        return state == "active"

    async def _unit_property(self, unit: str, name: str) -> Any:
        """A property of a unit; "" if it can't be had."""
        path = names.unit_object_path(unit)
        try:
            [value] = await self._connection.call(
                _NAME, path, _PROPERTIES, "Get", "ss", [_UNIT_INTERFACE, name]
            )
        except CallError:
            return ""
        return value.value

    async def _masked(self, units: Sequence[Unit]) -> str:
        """The first of some units that an administrator forbade; "" if none is."""
        for unit in units:
            if await self._unit_property(unit.name, "LoadState") == "masked":
                return unit.name
        return ""

    async def _call(self, member: str, signature: str, body: Sequence[object] | bytes) -> list[Any]:
        try:
            return await self._connection.call(*_MANAGER, member, signature, body)
        except CallError as error:
            raise SupervisorError(
                error.message,
                unit_exists=error.name == f"{_NAME}.UnitExists",
                no_such_unit=error.name == f"{_NAME}.NoSuchUnit",
            ) from None

    async def _run_job(self, unit: str, member: str, signature: str, body: Sequence[object] | bytes) -> None:
        try:
            result = await self._jobs.result(self._call(member, signature, body))
        except TimeoutError:
            raise SupervisorError(f"systemd did not end the job of {unit} in time") from None
        if result not in ("done", "skipped"):
            raise SupervisorError(f"systemd's job of {unit} ended as {result}")

    def _on_signal(self, message: Incoming) -> None:
        if message.member == "NameOwnerChanged" and message.sender == "org.freedesktop.DBus":
            if message.body[0] == _NAME:
                self._owner = message.body[2]
        elif message.sender != self._owner:
            return  # anybody may send a signal to us alone
        elif message.member == "PropertiesChanged":
            if message.path.startswith(_OUR_UNITS):
                self._on_properties(names.unit_from_object_path(message.path), message.changed(_WANTED))
        elif message.member == "JobRemoved":
            self._jobs.removed(message.body[1], message.body[3])
        elif message.member == "UnitRemoved":
            if not self._reloading:
                self._on_removed(message.body[0])
        elif message.member == "Reloading":
            self._reloading = message.body[0]
            if not self._reloading:
                if self._catching_up is not None:
                    self._catching_up.cancel()
                self._catching_up = asyncio.get_running_loop().create_task(self._after_reload())

    def _on_properties(self, unit: str, changed: dict[str, Any]) -> None:
        known = {_FIELDS[name]: value for name, value in changed.items() if name in _FIELDS}
        if "InvocationID" in changed:
            known["invocation"] = bytes(changed["InvocationID"]).hex()
        self._moved.add(unit)
        old = self.status(unit)
        new = dataclasses.replace(old, **known)
        if unit in self._status and new == old:
            return
        self._status[unit] = new
        self._notify(unit, new)

    def _on_removed(self, unit: str) -> None:
        self._moved.add(unit)
        last = self._status.pop(unit, None)
        self._tell_left(unit)
        if last is not None:
            self._notify(unit, _forgotten(last))

    def _notify(self, unit: str, status: UnitStatus) -> None:
        if self.watcher is not None:
            self.watcher(unit, status)


def _properties(unit: Unit) -> list[bytes]:
    return [wire.named_variant(*one) for one in unit.properties]


def _forgotten(last: UnitStatus) -> UnitStatus:
    """The status of a unit that is not loaded any more, with how it ended."""
    return dataclasses.replace(last, active="inactive", sub="dead", main_pid=0)
