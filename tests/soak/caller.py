"""Calls of one bus, counted, and judged by whether they may fail as they did."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from dbus_next import Variant

from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd
from tests.soak.tally import Tally

PROPERTIES = "org.freedesktop.DBus.Properties"
PATIENCE = 120.0
"""Seconds for what takes a few, on a busy machine."""
POLL = 0.1
AWAY = (
    "NoReply",
    "Spawn",
    "TimedOut",
    "Timeout",
    "ServiceUnknown",
    "NameHasNoOwner",
    "org.freedesktop.systemd1",
)
"""Beginnings of the names of errors that callers get while vfsd is ended."""


class Caller:
    """A client of one vfsd."""

    def __init__(self, vfsd: Vfsd, client: Client, tally: Tally) -> None:
        self.vfsd = vfsd
        self.tally = tally
        self._client = client

    @classmethod
    async def connect(cls, vfsd: Vfsd, tally: Tally) -> Caller:
        return cls(vfsd, await Client.connect(vfsd, listen=False, descriptors=True), tally)

    async def close(self) -> None:
        await self._client.close()

    async def call(
        self, path: str, member: str, signature: str = "", *body: Any, allowed: Sequence[str] = ()
    ) -> Any:
        """Call a share, a machine or the manager. :raise BusError: it failed, as it may, or is to blame already."""
        work = self._client.raw("org.vfsd1", path, interface_of(path), member, signature, list(body))
        return await self.judged(member, work, allowed)

    async def console(self, path: str) -> int:
        """A descriptor of a console. :raise BusError."""
        work = self._client.descriptor(path, MACHINE, "OpenConsole")
        return int(await self.judged("OpenConsole", work, ("WrongState",)))

    async def set(self, path: str, name: str, value: Variant, allowed: Sequence[str] = ()) -> None:
        """Set an option. :raise BusError."""
        work = self._client.raw(
            "org.vfsd1", path, PROPERTIES, "Set", "ssv", [interface_of(path), name, value]
        )
        await self.judged("Set", work, allowed)

    async def judged(self, member: str, work: Awaitable[Any], allowed: Sequence[str]) -> Any:
        """The result. :raise BusError: it failed; unless it may with one of these errors, that was wrong."""
        begun = time.monotonic()
        self.tally.done[f"{member} ({self.vfsd.scope})"] += 1
        try:
            result = await work
        except BusError as error:
            self._judge(member, error, allowed, begun)
            raise
        self.tally.took[member].append(time.monotonic() - begun)
        return result[0] if isinstance(result, list) and len(result) == 1 else result

    def _judge(self, member: str, error: BusError, allowed: Sequence[str], begun: float) -> None:
        if error.name in allowed or self.is_away(error, begun):
            self.tally.refused[f"{error.name} of {member}"] += 1
        else:
            self.tally.blame(f"{self.vfsd.scope}: {member}: {error}")

    def is_away(self, error: BusError, begun: float) -> bool:
        """Whether a call that was made then failed since vfsd was ended."""
        says_so = error.name.startswith(AWAY) or error.message.startswith("vfsd is going down")
        return says_so and self.tally.was_away(self.vfsd.scope, begun)

    async def get(self, path: str, name: str) -> Any:
        """A property; it is asked again while vfsd is away. :raise BusError: there is no such object."""
        while True:
            begun = time.monotonic()
            try:
                return await self._client.get(path, interface_of(path), name)
            except BusError as error:
                if not self.is_away(error, begun):
                    raise
                await asyncio.sleep(POLL)

    async def objects(self) -> dict[str, dict[str, dict[str, Variant]]]:
        """GetManagedObjects. :raise BusError."""
        return await self._client.objects()

    async def vanish(self, path: str, member: str, after: float) -> None:
        """Call, and be gone so many seconds later, whether there was a reply or not."""
        self.tally.done[f"{member}, not waited for ({self.vfsd.scope})"] += 1
        command = ["busctl", self.vfsd.flag, "call", "org.vfsd1", path, interface_of(path), member]
        process = await asyncio.create_subprocess_exec(
            *self.vfsd.argv(command), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await asyncio.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def interface_of(path: str) -> str:
    """Which interface an object has."""
    kind = path.removeprefix("/org/vfsd1").strip("/").partition("/")[0]
    return {"machine": MACHINE, "share": SHARE}.get(kind, "org.vfsd1.Manager")


async def eventually(condition: Callable[[], Awaitable[Any]], what: str, timeout: float = PATIENCE) -> Any:
    """Wait until a condition holds, and return its value. :raise AssertionError: it does not."""
    end = time.monotonic() + timeout
    while not (value := await condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout:.0f} s")
        await asyncio.sleep(POLL)
    return value
