"""The life of a share that no machine uses: made, connected to, stopped, changed, removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from dbus_next import Variant

from tests.integration.harness import ROOT, BusError
from tests.soak.caller import Caller, eventually
from tests.soak.plan import Life, Step
from vfsd.names import share_path

BUSY = ("WrongState", "ShareBusy")


class ShareLife:
    """One share of a plan."""

    def __init__(self, caller: Caller, life: Life, folder: Path) -> None:
        """:param folder: an empty one that the scope's user owns."""
        self._caller, self._life, self._folder = caller, life, folder
        self._path = share_path(life.name)
        self._source = folder / "source"
        self._draw = random.Random()
        """That of the step."""
        self._doing: dict[str, Callable[[], Awaitable[None]]] = {
            "client": self._client,
            "end virtiofsd": self._end_virtiofsd,
            "stop": self._stop,
            "set": self._set,
            "space": self._space,
            "source": self._source_goes,
            "refused": self._refused,
            "vanish": self._vanish,
        }

    async def live(self, goes_on: Callable[[], bool]) -> None:
        """All of it, or as much as there is time for; what is wrong is told to the tally, and nothing is left."""
        step: Step | None = None
        try:
            await self._create()
            for step in self._life.steps:
                if not goes_on():
                    break
                self._caller.tally.done[f"step {step.name} (share, {self._life.scope})"] += 1
                self._draw = random.Random(step.seed)
                with contextlib.suppress(BusError):  # the tally has it
                    await self._doing[step.name]()
        except (AssertionError, BusError, OSError) as error:
            where = f"step {step.name}" if step else "its creation"
            self._caller.tally.blame(f"{self._life}: in {where}: {error}")
        finally:
            await self._remove()

    async def _create(self) -> None:
        self._source.mkdir()
        os.chown(self._source, self._caller.vfsd.owner_uid, self._caller.vfsd.owner_uid)
        options = {"Persistent": Variant("b", self._life.persistent), "Tag": Variant("s", "soak")}

        async def made() -> bool:
            try:
                await self._caller.call(
                    ROOT,
                    "CreateShare",
                    "ssa{sv}",
                    self._life.name,
                    str(self._source),
                    options,
                    allowed=("ShareExists",),
                )
            except BusError as error:
                return error.name == "ShareExists"  # made before vfsd was killed
            return True

        await eventually(made, "the share is created", 30)

    async def _remove(self) -> None:
        async def gone() -> bool:
            try:
                await self._caller.call(self._path, "Remove", allowed=(*BUSY, "UnknownObject", "NoSuchShare"))
            except BusError as error:
                return error.name in ("UnknownObject", "NoSuchShare")
            return True

        try:
            await eventually(gone, f"{self._life.name} is removed")
        except AssertionError as error:
            self._caller.tally.blame(f"{self._life}: {error}")

    # what is done

    async def _listens(self) -> None:
        """Have it listen, whatever it is now."""

        async def listening() -> bool:
            state = await self._caller.get(self._path, "State")
            if state in ("stopped", "failed"):
                try:
                    await self._caller.call(self._path, "Start", allowed=BUSY)
                except BusError:
                    return False
            return bool(state == "listening")

        await eventually(listening, "the share listens")

    async def _connect(self) -> socket.socket:
        """A client that is served."""
        while True:
            await self._listens()
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(await self._caller.get(self._path, "SocketPath")))

            async def served(client: socket.socket = client) -> bool:
                return _is_closed(client) or bool(await self._caller.get(self._path, "State") == "active")

            try:
                await eventually(served, "the share is active")
            except BaseException:
                client.close()
                raise
            if not _is_closed(client):
                return client
            client.close()  # it came as the virtiofsd before was about to end, and was flushed with its socket

    async def _client(self) -> None:
        with await self._connect():
            await asyncio.sleep(self._draw.choice((0, 0.1, 1)))
            if self._draw.random() < 0.3:
                await self._caller.call(self._path, "Remove", allowed=BUSY)
        await self._listens()

    async def _end_virtiofsd(self) -> None:
        with await self._connect():
            pid = await self._caller.get(self._path, "MainPID")
            if pid:
                os.kill(pid, self._draw.choice((signal.SIGKILL, signal.SIGTERM)))

            async def ended() -> bool:
                return bool(await self._caller.get(self._path, "MainPID") != pid)

            await eventually(ended, "virtiofsd is gone")
        await self._listens()

    async def _stop(self) -> None:
        await self._listens()
        await self._caller.call(self._path, "Stop", allowed=BUSY)
        await asyncio.sleep(self._draw.uniform(0, 0.3))
        await self._caller.call(self._path, "Start", allowed=BUSY)

    async def _set(self) -> None:
        with await self._connect():
            await self._caller.set(self._path, "MemoryMax", Variant("t", self._draw.choice((0, 64 << 20))))
        await self._listens()
        await self._caller.call(self._path, "Stop", allowed=BUSY)
        await self._caller.set(self._path, "ReadOnly", Variant("b", self._draw.random() < 0.5), allowed=BUSY)
        await self._caller.set(
            self._path, "Cache", Variant("s", self._draw.choice(("auto", "never"))), allowed=BUSY
        )

    async def _space(self) -> None:
        size, free = await self._caller.call(self._path, "GetSpace")
        assert 0 < free <= size

    async def _source_goes(self) -> None:
        await self._listens()
        away = self._source.with_name("away")
        self._source.rename(away)

        async def is_in(*wanted: str) -> bool:
            return await self._caller.get(self._path, "State") in wanted

        try:
            await eventually(lambda: is_in("unavailable"), "the share is unavailable")
        finally:
            away.rename(self._source)
        await eventually(lambda: is_in("listening"), "the share listens again")

    async def _refused(self) -> None:
        await self._listens()
        try:
            await self._caller.call(self._path, "Start", allowed=("WrongState",))
        except BusError as error:
            if error.name == "WrongState":
                return
            raise
        raise AssertionError("Start of a share that listens was not refused")

    async def _vanish(self) -> None:
        member = self._draw.choice(("Start", "Stop", "GetSpace"))
        await self._caller.vanish(self._path, member, self._draw.uniform(0.02, 0.5))
        # takes its turn after the other call, so that is over then
        await self._caller.call(self._path, "Start", allowed=BUSY)


def _is_closed(client: socket.socket) -> bool:
    """Whether the other side has ended a connection, on which it says nothing."""
    try:
        return client.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
