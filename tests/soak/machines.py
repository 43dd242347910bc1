"""The life of a machine: made, started, everything done to it, removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from dbus_next import Variant

from tests.integration.harness import ROOT, BusError, process_exists
from tests.integration.tiny_guest import make_image
from tests.soak import consoles, diagnosis
from tests.soak.caller import Caller, eventually
from tests.soak.plan import BUILTIN, STUBBORN, Life, Step
from vfsd.healing import ATTEMPTS, WINDOW
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


class MachineLife:
    """One machine of a plan."""

    def __init__(self, caller: Caller, life: Life, folder: Path) -> None:
        """:param folder: an empty one that the scope's user owns."""
        self._caller, self._life, self._folder = caller, life, folder
        self._path = machine_path(life.name)
        self._own = folder / "own"
        self._boots = True
        """Whether the guest may have booted since its writers were started."""
        self._log_is_open = False
        """Whether the guest's open file has outlived all until now."""
        self._ended_one = False
        """Whether a virtiofsd was ended since the guest booted."""
        self._ends: list[float] = []
        """When a virtiofsd was ended."""
        self._plugged: list[str] = []
        """Shares that were attached and could not be detached."""
        self._readers = consoles.Readers()
        self._draw = random.Random()
        """That of the step."""
        self._doing: dict[str, Callable[[], Awaitable[None]]] = {
            "pause": self._pause,
            "reset": self._reset,
            "plug": self._plug,
            "end virtiofsd": self._end_virtiofsd,
            "refresh": self._refresh,
            "suspend": self._suspend,
            "execute": self._execute,
            "console": self._console,
            "set": self._set,
            "query": self._query,
            "shut down": self._shut_down,
            "kill": self._kill,
            "end qemu": self._end_qemu,
            "vanish": self._vanish,
            "refused": self._refused,
            "overlap": self._overlap,
        }

    async def live(self, goes_on: Callable[[], bool]) -> None:
        """All of it, or as much as there is time for; what is wrong is told to the tally, and nothing is left."""
        step: Step | None = None
        try:
            await self._create()
            for step in self._life.steps:
                if goes_on():
                    await self._do(step)
        except (AssertionError, BusError, OSError) as error:
            where = f"step {step.name}" if step else "its creation"
            facts = await diagnosis.facts(self._caller, self._path)
            lines = await asyncio.to_thread(
                lambda: list(diagnosis.look_inside(self._caller.vfsd, self._life.name))
            )
            self._caller.tally.blame("\n".join([f"{self._life}: in {where}: {error}", facts, *lines]))
        finally:
            self._readers.close()
            await self._remove()

    async def _do(self, step: Step) -> None:
        self._caller.tally.done[f"step {step.name} ({self._life.guest}, {self._life.scope})"] += 1
        self._draw = random.Random(step.seed)
        with contextlib.suppress(BusError):  # the tally has it
            await self._doing[step.name]()
        await self._settled()

    # coming and going

    async def _create(self) -> None:
        life = self._life
        self._own.mkdir()
        second = self._folder / "second"
        second.mkdir()
        for each in (self._folder, self._own, second):
            os.chown(each, self._caller.vfsd.owner_uid, self._caller.vfsd.owner_uid)
            each.chmod(0o777)
        shares = [
            [str(self._own), "/own", {}],
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
            image = make_image(self._folder / "guest.img", stubborn=life.guest == STUBBORN)
            os.chown(image, self._caller.vfsd.owner_uid, self._caller.vfsd.owner_uid)
            options["Image"] = Variant("s", str(image))

        async def made() -> bool:
            try:
                await self._caller.call(
                    ROOT, "CreateMachine", "sa{sv}", life.name, options, allowed=("MachineExists",)
                )
            except BusError as error:
                return error.name == "MachineExists"  # made before vfsd was killed
            return True

        await eventually(made, "the machine is created", 30)

    async def _remove(self) -> None:
        """Whatever it is, it is gone afterwards."""

        async def gone() -> bool:
            try:
                if await self._state() not in ("stopped", "failed"):
                    await self._caller.call(self._path, "Kill", allowed=RACES)
                await self._caller.call(self._path, "Remove", allowed=RACES)
            except BusError as error:
                return error.name in ("UnknownObject", "NoSuchMachine")
            return True

        async def share_gone() -> bool:
            try:
                await self._caller.call(
                    ROOT, "RemoveShare", "s", name, allowed=("ShareBusy", "WrongState", "NoSuchShare")
                )
            except BusError as error:
                return error.name == "NoSuchShare"
            return True

        try:
            await eventually(gone, f"{self._life.name} is removed")
            for name in self._plugged:
                await eventually(share_gone, f"share {name} is removed")
        except AssertionError as error:
            self._caller.tally.blame(f"{self._life}: {error}")

    # what is done

    async def _pause(self) -> None:
        await self._run()
        await self._call("Pause")
        assert await self._state() == "paused"
        await asyncio.sleep(self._draw.uniform(0, 1))
        await self._call("Resume")
        await self._goes_on()

    async def _reset(self) -> None:
        await self._run()
        self._booting()
        await self._call("Reset")
        await self._boots_again()

    async def _plug(self) -> None:
        await self._run()
        if self._plugged:
            return
        if self._life.guest == BUILTIN:
            await self._ready()  # else nobody mounts it
        name = f"{self._life.name}.plug"
        source = self._folder / "plug"
        source.mkdir(exist_ok=True)
        source.chmod(0o777)
        (source / "file").write_text(name)
        options = {"MountPoint": Variant("s", "/plug")}
        self._plugged.append(name)
        await self._caller.call(
            ROOT, "CreateShare", "ssa{sv}", name, str(source), options, allowed=("ShareExists",)
        )
        await self._call("AttachShare", "sa{sv}", name, {}, allowed=OF_A_GUEST)
        if self._life.guest == BUILTIN:
            output = await self._run_in_guest("cat /plug/file || mount -t virtiofs")
            assert output == name.encode(), output
        if self._draw.random() < 0.3:
            return  # it stays until the end
        await self._call("DetachShare", "s", name, allowed=(*OF_A_GUEST, "ShareBusy"))
        await self._caller.call(ROOT, "RemoveShare", "s", name, allowed=("ShareBusy",))
        self._plugged.remove(name)

    async def _end_virtiofsd(self) -> None:
        await self._goes_on()  # a guest that boots still has no agent that could heal
        now = time.monotonic()
        self._ends = [end for end in self._ends if now - end < WINDOW + 10]
        if len(self._ends) >= ATTEMPTS:
            return  # it would be left alone, as it ought to
        share = self._draw.choice(await self._caller.get(self._path, "Shares"))
        pid, qemu = await self._caller.get(share, "MainPID"), await self._caller.get(self._path, "MainPID")
        if not pid or await self._state() != "running":
            return
        self._ends.append(now)
        self._log_is_open, self._ended_one = False, True
        os.kill(pid, signal.SIGKILL)
        policy = self._life.policy
        if policy == "heal" and self._life.guest == BUILTIN:
            await self._is_healed(share, pid)
            await self._goes_on()
        elif policy == "restart":
            self._booting()

            async def anew() -> bool:
                now = await self._caller.get(self._path, "MainPID")
                return await self._state() == "running" and now not in (0, qemu)

            await eventually(anew, "the machine is restarted")
            assert not process_exists(qemu)
            await self._goes_on()
        elif policy == "stop":

            async def stopped() -> bool:
                return await self._state() == "stopped"

            await eventually(stopped, "the machine is stopped")
        else:

            async def failed() -> bool:
                return bool(
                    await self._caller.get(share, "State") == "failed"
                    and await self._caller.get(self._path, "Degraded")
                )

            await eventually(failed, "the machine is degraded")
            await self._call("Kill")

    async def _is_healed(self, share: str, pid: int) -> None:
        async def healed() -> bool:
            reason = await self._caller.get(share, "Reason")
            assert "not healed" not in reason, reason
            return bool(
                await self._caller.get(share, "State") == "active"
                and await self._caller.get(share, "MainPID") not in (0, pid)
                and not await self._caller.get(self._path, "Degraded")
            )

        begun = time.monotonic()
        await eventually(healed, "the share is healed")
        self._caller.tally.took["healing"].append(time.monotonic() - begun)

    async def _refresh(self) -> None:
        await self._run()
        before = await self._caller.get(self._path, "MainPID")
        await self._call("Refresh", allowed=self._of_a_move)
        assert await self._caller.get(self._path, "MainPID") != before
        assert not process_exists(before)
        self._caller.tally.took["standing still in a refresh"].append(
            await self._caller.get(self._path, "RefreshDowntimeUSec") / 1e6
        )
        await self._goes_on()

    async def _suspend(self) -> None:
        await self._run()
        await self._call("Suspend", allowed=self._of_a_move)
        assert await self._caller.get(self._path, "Suspended")
        await asyncio.sleep(self._draw.uniform(0, 1))
        if self._draw.random() < 0.2:
            self._booting()
            await self._call("Kill")
            return
        await self._call("Thaw")
        await self._goes_on()

    @property
    def _of_a_move(self) -> tuple[str, ...]:
        """What a guest that is to be moved may be refused with: what was healed needs a reset first."""
        return (*RACES, "NotSupported") if self._ended_one else RACES

    async def _execute(self) -> None:
        await self._run()
        kind = self._draw.choice(("output", "input", "slow", "none"))
        if kind == "output":
            output = await self._run_in_guest("yes 0123456789abcdef | head -c 100000")
            assert len(output) == 100000
        elif kind == "input":
            data = self._draw.randbytes(20000)
            assert await self._run_in_guest("cat", data) == data
        elif kind == "slow":
            options = {"TimeoutUSec": Variant("t", 200_000)}
            await self._call("Execute", "asa{sv}", ["sleep", "2"], options, allowed=OF_A_GUEST)
        else:
            await self._call("Execute", "asa{sv}", ["there-is-none"], {}, allowed=(*OF_A_GUEST, "Failed"))

    async def _console(self) -> None:
        await self._run()
        count = self._draw.randint(1, 4)
        for _ in range(count):
            descriptor = await self._caller.console(self._path)
            self._readers.take(descriptor, stays=self._draw.random() < 0.3, reads=self._draw.random() < 0.7)
        self._readers.type(b"\r")
        await asyncio.sleep(self._draw.uniform(0, 0.5))
        self._readers.drop_some()

    async def _set(self) -> None:
        limit = self._draw.choice((0, 2 << 30, 3 << 30))
        await self._caller.set(self._path, "MemoryMax", Variant("t", limit))
        assert await self._caller.get(self._path, "MemoryMax") == limit
        await self._caller.set(self._path, "CPUs", Variant("u", self._draw.choice((1, 2))), allowed=RACES)

    async def _query(self) -> None:
        await self._run()
        await self._ready()
        await self._call("QueryGuest", allowed=OF_A_GUEST)

    async def _shut_down(self) -> None:
        await self._run()
        await self._call("Shutdown", "t", self._draw.choice((0, 3_000_000)))
        assert await self._settled() == "stopped"

    async def _kill(self) -> None:
        await self._run()
        await self._call("Kill")
        assert await self._state() == "stopped"

    async def _end_qemu(self) -> None:
        await self._run()
        pid = await self._caller.get(self._path, "MainPID")
        if not pid:
            return
        self._booting()
        os.kill(pid, self._draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGABRT)))

        async def failed() -> bool:
            return await self._state() == "failed"

        await eventually(failed, "the machine fails")

    async def _vanish(self) -> None:
        await self._run()
        member = self._draw.choice(("Refresh", "Pause", "Suspend", "Kill", "Reset", "QueryGuest"))
        if member in ("Kill", "Reset"):
            self._booting()
        await self._caller.vanish(self._path, member, self._draw.uniform(0.02, 0.5))
        with contextlib.suppress(BusError):
            await self._call("Resume")  # takes its turn after the other call, so that is over then
        if member == "Reset":
            await self._boots_again()

    async def _refused(self) -> None:
        await self._run()
        for member in self._draw.sample(("Start", "Resume", "Thaw", "Remove"), 2):
            try:
                await self._call(member)
            except BusError as error:
                if error.name == "WrongState":
                    continue
                raise
            raise AssertionError(f"{member} of a machine that runs was not refused")

    async def _overlap(self) -> None:
        await self._run()
        members = self._draw.choice(
            (
                ("Refresh", "Kill"),
                ("Suspend", "Kill"),
                ("Pause", "Resume"),
                ("Refresh", "Refresh"),
                ("Reset", "Refresh"),
                ("Refresh", "Pause", "Resume"),
                ("Suspend", "Thaw"),
            )
        )
        calls = [self._call(member, allowed=self._of_a_move) for member in members]
        if {"Kill", "Reset"} & set(members):
            self._booting()
        await asyncio.gather(*calls, return_exceptions=True)
        if "Reset" in members:
            await self._boots_again()

    # its guest

    def _booting(self) -> None:
        """The guest is about to begin anew."""
        self._boots, self._log_is_open, self._ended_one = True, False, False

    async def _boots_again(self) -> None:
        """After a reset: wait until the guest that was there is not there any more."""
        if self._life.guest != BUILTIN:
            return

        async def anew() -> bool:
            await self._run()
            if not await self._caller.get(self._path, "GuestReady"):
                return False
            try:
                return await self._run_in_guest("[ -e /soak ] || echo anew") == b"anew\n"
            except BusError:
                return False

        await eventually(anew, "the guest boots again")

    async def _run(self) -> None:
        """Have the machine run, whatever it is now."""
        for _ in range(8):
            state = await self._settled()
            if state == "running":
                return
            try:
                if state == "paused":
                    await self._call("Resume")
                elif await self._caller.get(self._path, "Suspended"):
                    await self._call("Thaw")
                else:
                    self._booting()
                    await self._call("Start")
            except BusError:
                await asyncio.sleep(0.2)
        raise AssertionError(f"it does not run: {state}")

    async def _ready(self) -> None:
        async def ready() -> bool:
            return bool(await self._caller.get(self._path, "GuestReady"))

        begun = time.monotonic()
        await eventually(ready, "the guest is ready")
        self._caller.tally.took["waiting for a guest"].append(time.monotonic() - begun)

    async def _goes_on(self) -> None:
        """A guest that can write goes on writing."""
        await self._run()
        if self._life.guest != BUILTIN:
            return
        await self._ready()
        output = (await self._run_in_guest(WRITERS)).strip()
        if output == b"new":
            assert self._boots, "the guest has rebooted by itself"
            self._log_is_open = True
        self._boots = False
        files = [self._own / "counter", *([self._own / "log"] if self._log_is_open else [])]
        for file in files:
            before = _size(file)

            async def grows(file: Path = file, before: int = before) -> bool:
                await self._run()
                return _size(file) > before + 4

            begun = time.monotonic()
            await eventually(grows, f"the guest writes to {file.name}")
            self._caller.tally.took["two writes of a guest"].append(time.monotonic() - begun)
        if self._log_is_open:
            lines = (self._own / "log").read_text().splitlines()[:-1]
            assert lines == [str(number + 1) for number in range(len(lines))], "lines were lost"

    async def _run_in_guest(self, script: str, data: bytes = b"") -> bytes:
        """What it writes. :raise BusError, AssertionError."""
        options = {"Input": Variant("ay", data)} if data else {}
        for _ in range(5):
            try:
                done = await self._call(
                    "Execute", "asa{sv}", ["sh", "-c", script], options, allowed=OF_A_GUEST
                )
            except BusError as error:
                if error.name in ("WrongState", "NotSupported"):
                    await self._run()
                    await self._ready()
                continue
            status, output, errors = done
            assert status == 0, f"{script!r} ended with {status} in the guest: {errors!r}"
            return bytes(output)
        raise AssertionError(f"the guest did not run {script!r}")

    # small things

    async def _call(
        self, member: str, signature: str = "", *body: Any, allowed: tuple[str, ...] = RACES
    ) -> Any:
        return await self._caller.call(self._path, member, signature, *body, allowed=allowed)

    async def _state(self) -> str:
        return str(await self._caller.get(self._path, "State"))

    async def _settled(self) -> str:
        """The state, once nothing is under way."""

        async def settled() -> str:
            state = await self._state()
            return state if state not in ("starting", "stopping") else ""

        return str(await eventually(settled, "the machine settles"))


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
