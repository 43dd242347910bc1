"""Moving a guest out of one QEMU, over its monitor: into another one, or into a file (QEMU's docs/devel/migration).

Between two QEMUs of one host nothing need be copied: `cpr-transfer` (since 10.0) hands over the descriptors of the
guest's memory, and only the devices' state is sent. Elsewhere memory is copied through a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vfsd.errors import MonitorFailed
from vfsd.qmp import Monitor
from vfsd.supervisor import CLEANUP_TIMEOUT, Supervisor, SupervisorError

_FIRST_LOOK, _LAST_LOOK, _GROWTH = 0.002, 0.02, 1.05
"""Seconds between looks at how far it is, which grow from the one to the other: when all is sent, the guest stands
still."""
_CANCEL_TIMEOUT = 5.0
"""Seconds in which QEMU must have given a migration up."""
_END_TIMEOUT = 5.0
"""Seconds in which a QEMU that was asked to quit must be gone."""
_FULL_SPEED = 1 << 40
"""Bytes a second, more than there are; QEMU would send 128 MiB."""
_NOBODY_LISTENS = "Failed to connect"
"""How QEMU begins to say that nobody listens yet."""
_CONNECT_INTERVAL = 0.005
_ENDED = ("failed", "cancelled")
_UNDER_WAY = ("setup", "active", "device", "pre-switchover", "cancelling")


@dataclass(frozen=True, slots=True)
class Channels:
    """The sockets on which the other QEMU waits, as a QEMU names them."""

    main: str
    control: str
    """For the descriptors of the memory; "": it is copied."""

    @classmethod
    def below(cls, folder: str, *, shared: bool) -> Channels:
        """Those in a folder in which two QEMUs meet."""
        return cls(f"{folder}/main", f"{folder}/control" if shared else "")

    @property
    def named(self) -> list[dict[str, Any]]:
        """As QMP has them."""
        return [_channel("main", self.main), *([_channel("cpr", self.control)] if self.control else [])]

    @property
    def incoming(self) -> list[str]:
        """As `-incoming` has them."""
        return [json.dumps(channel) for channel in self.named]


def _channel(kind: str, path: str) -> dict[str, Any]:
    return {"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": path}}


async def shares_ram(monitor: Monitor) -> bool:
    """Whether all of the guest's memory is in descriptors that can be handed on. :raise MonitorFailed."""
    properties = await monitor.execute("qom-list", path="/machine")
    if not any(known.get("name") == "aux-ram-share" for known in properties):
        return False
    return await monitor.execute("qom-get", path="/machine", property="aux-ram-share") is True


async def machine_type(monitor: Monitor) -> str:
    """The versioned name of the machine that this QEMU emulates. :raise MonitorFailed."""
    kind = await monitor.execute("qom-get", path="/machine", property="type")
    return str(kind).removesuffix("-machine")


async def send(monitor: Monitor, channels: Channels) -> None:
    """Begin to move the guest, as soon as the other QEMU listens; wait() comes next.

    :raise MonitorFailed: something of the guest can't be moved.
    """
    await _set_parameters(monitor, "cpr-transfer" if channels.control else "normal")
    while True:
        try:
            await monitor.execute("migrate", channels=channels.named)
        except MonitorFailed as error:
            if _NOBODY_LISTENS not in str(error):
                raise
            await asyncio.sleep(_CONNECT_INTERVAL)
        else:
            return


async def save(monitor: Monitor, file: int) -> None:
    """Begin to write the guest to a file that is open; wait() comes next. :raise MonitorFailed: it can't be saved."""
    await _set_parameters(monitor, "normal")
    added = await monitor.add_fd(file)
    await monitor.execute("migrate", uri=f"file:/dev/fdset/{added.set}")


async def _set_parameters(monitor: Monitor, mode: str) -> None:
    parameters: dict[str, object] = {"max-bandwidth": _FULL_SPEED}
    if mode != "normal":
        parameters["mode"] = mode
    await monitor.execute("migrate-set-parameters", **parameters)


async def wait(monitor: Monitor) -> None:
    """Wait until QEMU has sent everything; the guest stands still then. :raise MonitorFailed: it could not be."""

    async def sent() -> bool:
        told = await _look(monitor)
        status = told.get("status")
        if status in _ENDED:
            raise MonitorFailed(str(told.get("error-desc") or f"QEMU's migration has {status}"))
        return status == "completed"

    await _until(sent)


async def arrived(monitor: Monitor) -> None:
    """Wait until QEMU has taken everything in. :raise MonitorFailed: its monitor broke."""

    async def taken() -> bool:
        return await monitor.status() != "inmigrate"

    await _until(taken)


async def end_sender(supervisor: Supervisor, monitor: Monitor, units: Sequence[str]) -> None:
    """End a QEMU that has sent its guest away, and return when its units are gone.

    :param units: that of QEMU first.
    """
    with contextlib.suppress(MonitorFailed):  # it may be gone before it answers
        await monitor.execute("quit")
    if not await supervisor.wait_gone(units[:1], _END_TIMEOUT):
        with contextlib.suppress(SupervisorError):
            await supervisor.kill(units[0], signal.SIGKILL)
    await supervisor.wait_gone(units, CLEANUP_TIMEOUT)


async def give_up(monitor: Monitor) -> None:
    """End what was begun, whatever became of it. :raise MonitorFailed: QEMU does not answer."""

    async def over() -> bool:
        return (await _look(monitor)).get("status") not in _UNDER_WAY

    await monitor.execute("migrate_cancel")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CANCEL_TIMEOUT):
            await _until(over)
    if await shares_ram(monitor):
        await monitor.execute("migrate-set-parameters", mode="normal")


async def _until(done: Callable[[], Awaitable[bool]]) -> None:
    delay = _FIRST_LOOK
    while not await done():
        await asyncio.sleep(delay)
        delay = min(delay * _GROWTH, _LAST_LOOK)


async def _look(monitor: Monitor) -> Mapping[str, Any]:
    told = await monitor.execute("query-migrate")
    return told if isinstance(told, Mapping) else {}
