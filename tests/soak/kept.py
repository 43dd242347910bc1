"""A machine that is kept running, and whose guest must go on writing."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from dbus_next import Variant

from tests.integration.harness import ROOT, BusError
from tests.integration.tiny_guest import make_image
from tests.soak.caller import PATIENCE, POLL, Caller, eventually
from tests.soak.plan import BUILTIN, STUBBORN, Life
from vfsd.names import machine_path

SHUTDOWN_USEC = 8_000_000
"""What a guest has to power off; a stubborn one takes all of it."""
RACES = ("WrongState",)
"""What a call may be answered that meets another one, or what OnShareFailure does."""
OF_A_GUEST = ("WrongState", "GuestTimeout", "NotSupported")
"""The same for one that takes a guest's agent: it may be slow, or not yet there."""
# Each write is a process of its own, since one that is in a request when virtiofsd ends hangs until the guest reboots.
# The second one holds its file open, which a refresh and a sleep must keep.
WRITERS = """
[ -e /soak ] && { echo old; exit; }
: >/soak
(i=0; while :; do i=$((i+1)); (echo $i >>/own/counter) & sleep 0.3; done) </dev/null >/dev/null 2>&1 &
(i=0; while sleep 0.2; do i=$((i+1)); echo $i; done) </dev/null >/own/log 2>/dev/null &
echo new
"""


class Kept:
    """One machine of a plan, and what is known of its guest."""

    def __init__(self, caller: Caller, life: Life, folder: Path) -> None:
        """:param folder: an empty one that the scope's user owns."""
        self.caller, self.life, self.folder = caller, life, folder
        self.path = machine_path(life.name)
        self.own = folder / "own"
        self.boots = True
        """Whether the guest may have booted since its writers were started."""
        self.log_is_open = False
        """Whether the guest's open file has outlived all until now."""
        self.ended_one = False
        """Whether a virtiofsd was ended since the guest booted."""
        self.plugged: list[str] = []
        """Shares that were attached and could not be detached."""

    # coming and going

    async def create(self) -> None:
        life = self.life
        self.own.mkdir()
        second = self.folder / "second"
        second.mkdir()
        for each in (self.folder, self.own, second):
            os.chown(each, self.caller.vfsd.owner_uid, self.caller.vfsd.owner_uid)
            each.chmod(0o777)
        shares = [
            [str(self.own), "/own", {}],
            [str(second), "/own second", {"ReadOnly": Variant("b", True)}],
        ]
        options: dict[str, Variant] = {
            "Memory": Variant("t", (160 if life.guest == BUILTIN else 32) << 20),
            "Accelerator": Variant("s", "tcg"),
            "Network": Variant("s", "user" if life.persistent else "none"),
            "OnShareFailure": Variant("s", life.policy),
            "Persistent": Variant("b", life.persistent),
            "ShutdownTimeoutUSec": Variant("t", SHUTDOWN_USEC),
            "Shares": Variant("a(ssa{sv})", shares[: life.shares]),
        }
        if life.guest == BUILTIN:
            options["Builtin"] = Variant("b", True)
        else:
            image = make_image(self.folder / "guest.img", stubborn=life.guest == STUBBORN)
            os.chown(image, self.caller.vfsd.owner_uid, self.caller.vfsd.owner_uid)
            options["Image"] = Variant("s", str(image))

        async def made() -> bool:
            try:
                await self.caller.call(
                    ROOT, "CreateMachine", "sa{sv}", life.name, options, allowed=("MachineExists",)
                )
            except BusError as error:
                return error.name == "MachineExists"  # made before vfsd was killed
            return True

        await eventually(made, "the machine is created", 30)

    async def remove(self) -> None:
        """Whatever it is, it is gone afterwards."""

        async def gone() -> bool:
            try:
                if await self.state() not in ("stopped", "failed"):
                    await self.caller.call(self.path, "Kill", allowed=RACES)
                await self.caller.call(self.path, "Remove", allowed=RACES)
            except BusError as error:
                return error.name in ("UnknownObject", "NoSuchMachine")
            return True

        async def share_gone() -> bool:
            try:
                await self.caller.call(
                    ROOT, "RemoveShare", "s", name, allowed=("ShareBusy", "WrongState", "NoSuchShare")
                )
            except BusError as error:
                return error.name == "NoSuchShare"
            return True

        try:
            await eventually(gone, f"{self.life.name} is removed")
            for name in self.plugged:
                await eventually(share_gone, f"share {name} is removed")
        except AssertionError as error:
            self.caller.tally.blame(f"{self.life}: {error}")

    # its guest

    def booting(self) -> None:
        """The guest is about to begin anew."""
        self.boots, self.log_is_open, self.ended_one = True, False, False

    async def boots_again(self, *, perhaps: bool = False) -> None:
        """After a reset: wait until the guest that was there is not there any more.

        :param perhaps: whether the caller may have ended before it had called.
        """
        if self.life.guest != BUILTIN:
            return
        began = time.monotonic()

        async def anew() -> bool:
            await self.run()
            if not await self.caller.get(self.path, "GuestReady"):
                return False
            try:
                said = await self.run_in_guest("[ -e /soak ] || echo anew")
            except BusError:
                return False
            return said == b"anew\n" or (perhaps and time.monotonic() > began + 5)

        await eventually(anew, "the guest boots again")

    async def run(self) -> None:
        """Have the machine run, whatever it is now."""
        for _ in range(8):
            state = await self.settled()
            if state == "running":
                return
            try:
                if state == "paused":
                    await self.call("Resume")
                elif await self.caller.get(self.path, "Suspended"):
                    await self.call("Thaw")
                else:
                    self.booting()
                    await self.call("Start")
            except BusError:
                await asyncio.sleep(0.2)
        raise AssertionError(f"it does not run: {state}")

    async def past_firmware(self) -> None:
        """Have the machine run, and its kernel, if it has one: a reset of the firmware may hang the guest."""
        await self.run()
        if self.life.guest == BUILTIN:
            await self.ready()

    async def ready(self) -> None:
        async def ready() -> bool:
            return bool(await self.caller.get(self.path, "GuestReady"))

        begun = time.monotonic()
        await eventually(ready, "the guest is ready")
        self.caller.tally.took["waiting for a guest"].append(time.monotonic() - begun)

    async def goes_on(self) -> None:
        """A guest that can write goes on writing."""
        await self.run()
        if self.life.guest != BUILTIN:
            return
        await self.ready()
        output = (await self.run_in_guest(WRITERS)).strip()
        if output == b"new":
            assert self.boots, "the guest has rebooted by itself"
            self.log_is_open = True
        self.boots = False
        files = [self.own / "counter", *([self.own / "log"] if self.log_is_open else [])]
        for file in files:
            before = _size(file)

            async def grows(file: Path = file, before: int = before) -> bool:
                await self.run()
                return _size(file) > before + 4

            begun = time.monotonic()
            await eventually(grows, f"the guest writes to {file.name}")
            self.caller.tally.took["two writes of a guest"].append(time.monotonic() - begun)
        if self.log_is_open:
            lines = (self.own / "log").read_text().splitlines()[:-1]
            assert lines == [str(number + 1) for number in range(len(lines))], "lines were lost"

    async def run_in_guest(self, script: str, data: bytes = b"") -> bytes:
        """What it writes. :raise BusError, AssertionError."""
        options = {"Input": Variant("ay", data)} if data else {}
        refusals, end = 0, time.monotonic() + PATIENCE
        while refusals < 5 and time.monotonic() < end:
            try:
                done = await self.call(
                    "Execute", "asa{sv}", ["sh", "-c", script], options, allowed=OF_A_GUEST
                )
            except BusError as error:
                if (
                    error.name not in OF_A_GUEST
                ):  # a vfsd that goes down says so to each call, as fast as it is called
                    await asyncio.sleep(POLL)
                    continue
                refusals += 1
                if error.name != "GuestTimeout":
                    await self.run()
                    await self.ready()
                continue
            status, output, errors = done
            assert status == 0, f"{script!r} ended with {status} in the guest: {errors!r}"
            return bytes(output)
        raise AssertionError(f"the guest did not run {script!r}")

    # small things

    async def call(
        self, member: str, signature: str = "", *body: Any, allowed: tuple[str, ...] = RACES
    ) -> Any:
        return await self.caller.call(self.path, member, signature, *body, allowed=allowed)

    async def state(self) -> str:
        return str(await self.caller.get(self.path, "State"))

    async def settled(self) -> str:
        """The state, once nothing is under way."""

        async def settled() -> str:
            state = await self.state()
            return state if state not in ("starting", "stopping") else ""

        return str(await eventually(settled, "the machine settles"))


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
