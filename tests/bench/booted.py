"""A guest that has booted, to do something to: one of vfsd's, and the same one made by hand, side by side."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from dbus_next import Variant

from tests.bench.bus import MACHINE, PROPERTIES, SHARE, VFSD, Client
from tests.bench.by_hand import ByHand
from tests.bench.modes import Vfsd
from tests.bench.rounds import progress
from tests.bench.setting import NAME, Plan
from vfsd import names

READY_TIMEOUT = 60.0
_POLL = 0.05
CONTENT = b"shared by the bench\n"
FILE = "file"
"""In each source; its content is CONTENT."""


@dataclass
class ThroughVfsd:
    """A machine of vfsd's that runs."""

    client: Client
    path: str = names.machine_path(NAME)

    async def call(self, member: str, signature: str = "", *body: Any) -> list[Any]:
        """Call a method of the machine."""
        return await self.client.call(VFSD, self.path, MACHINE, member, signature, *body)

    async def get(self, name: str) -> Any:
        """A property of the machine."""
        return await self._property(self.path, MACHINE, name)

    async def get_of_share(self, share: str, name: str) -> Any:
        """A property of a share."""
        return await self._property(names.share_path(share), SHARE, name)

    async def ready(self) -> None:
        """Wait until the guest's agent answers. :raise TimeoutError."""
        end = time.perf_counter() + READY_TIMEOUT
        while not await self.get("GuestReady"):
            if time.perf_counter() > end:
                raise TimeoutError("the guest of vfsd's machine is not ready")
            await asyncio.sleep(_POLL)

    async def shell(self, script: str, *arguments: str) -> bytes:
        """Run a script in the guest and return its output. :raise RuntimeError: it failed."""
        words = ["/bin/sh", "-c", script, "sh", *arguments]
        status, output, errors = await self.call("Execute", "asa{sv}", words, {})
        if status:
            raise RuntimeError(f"exit code {status} in the guest: {errors or output!r}")
        return bytes(output)

    async def read(self, path: str) -> bytes:
        """A file in the guest."""
        return await self.shell('cat "$1"', path)

    async def _property(self, path: str, interface: str, name: str) -> Any:
        [value] = await self.client.call(VFSD, path, PROPERTIES, "Get", "ss", interface, name)
        return value.value


@contextlib.asynccontextmanager
async def both(
    plan: Plan, client: Client, further: Mapping[str, Variant] | None = None
) -> AsyncIterator[tuple[ThroughVfsd, ByHand]]:
    """Boot the guest both ways, and end both whatever happens.

    :param further: options of vfsd's machine.
    """
    progress("booting a guest of vfsd's, and one by hand")
    for source in plan.sources:
        (source / FILE).write_bytes(CONTENT)
    mode, hand = Vfsd(plan, client, further=dict(further or {})), ByHand(plan)
    try:
        await mode.start()
        hand.spawn()
        hand.connect()
        vfsd = ThroughVfsd(client)
        await vfsd.ready()
        await asyncio.to_thread(hand.greet)
        yield vfsd, hand
    finally:
        try:
            hand.abandon()
        finally:
            await mode.abandon()


def check(content: bytes) -> None:
    """What was read in the guest is what lies on the host. :raise AssertionError."""
    if content != CONTENT:
        raise AssertionError(f"the guest read {content!r}")
