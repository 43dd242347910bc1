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

from dbus_next import Variant

from tests.integration.harness import ROOT, BusError, process_exists
from tests.soak import consoles, diagnosis
from tests.soak.caller import Caller, eventually
from tests.soak.kept import OF_A_GUEST, RACES, Kept
from tests.soak.plan import BUILTIN, Life, Step
from vfsd.healing import ATTEMPTS, WINDOW


class MachineLife(Kept):
    """One machine of a plan."""

    def __init__(self, caller: Caller, life: Life, folder: Path) -> None:
        """:param folder: an empty one that the scope's user owns."""
        super().__init__(caller, life, folder)
        self._ends: list[float] = []
        """When a virtiofsd was ended."""
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
            await self.create()
            for step in self.life.steps:
                if goes_on():
                    await self._do(step)
        except (AssertionError, BusError, OSError) as error:
            where = f"step {step.name}" if step else "its creation"
            facts = await diagnosis.facts(self.caller, self.path)
            lines = await asyncio.to_thread(
                lambda: list(diagnosis.look_inside(self.caller.vfsd, self.life.name))
            )
            self.caller.tally.blame("\n".join([f"{self.life}: in {where}: {error}", facts, *lines]))
        finally:
            self._readers.close()
            await self.remove()

    async def _do(self, step: Step) -> None:
        self.caller.tally.done[f"step {step.name} ({self.life.guest}, {self.life.scope})"] += 1
        self._draw = random.Random(step.seed)
        with contextlib.suppress(BusError):  # the tally has it
            await self._doing[step.name]()
        await self.settled()

    # what is done

    async def _pause(self) -> None:
        await self.run()
        await self.call("Pause")
        assert await self.state() == "paused"
        await asyncio.sleep(self._draw.uniform(0, 1))
        await self.call("Resume")
        await self.goes_on()

    async def _reset(self) -> None:
        await self.past_firmware()
        self.booting()
        await self.call("Reset")
        await self.boots_again()

    async def _plug(self) -> None:
        await self.run()
        if self.plugged:
            return
        if self.life.guest == BUILTIN:
            await self.ready()  # else nobody mounts it
        name = f"{self.life.name}.plug"
        source = self.folder / "plug"
        source.mkdir(exist_ok=True)
        source.chmod(0o777)
        (source / "file").write_text(name)
        options = {"MountPoint": Variant("s", "/plug")}
        self.plugged.append(name)
        await self.caller.call(
            ROOT, "CreateShare", "ssa{sv}", name, str(source), options, allowed=("ShareExists",)
        )
        await self.call("AttachShare", "sa{sv}", name, {}, allowed=OF_A_GUEST)
        if self.life.guest == BUILTIN:
            output = await self.run_in_guest("cat /plug/file || mount -t virtiofs")
            assert output == name.encode(), output
        if self._draw.random() < 0.3:
            return  # it stays until the end
        await self.call("DetachShare", "s", name, allowed=(*OF_A_GUEST, "ShareBusy"))
        await self.caller.call(ROOT, "RemoveShare", "s", name, allowed=("ShareBusy",))
        self.plugged.remove(name)

    async def _end_virtiofsd(self) -> None:
        await self.goes_on()  # a guest that boots still has no agent that could heal
        now = time.monotonic()
        self._ends = [end for end in self._ends if now - end < WINDOW + 10]
        if len(self._ends) >= ATTEMPTS:
            return  # it would be left alone, as it ought to
        share = self._draw.choice(await self.caller.get(self.path, "Shares"))
        pid, qemu = await self.caller.get(share, "MainPID"), await self.caller.get(self.path, "MainPID")
        if not pid or await self.state() != "running":
            return
        self._ends.append(now)
        self.log_is_open, self.ended_one = False, True
        os.kill(pid, signal.SIGKILL)
        policy = self.life.policy
        if policy == "heal" and self.life.guest == BUILTIN:
            await self._is_healed(share, pid)
            await self.goes_on()
        elif policy == "restart":
            self.booting()

            async def anew() -> bool:
                now = await self.caller.get(self.path, "MainPID")
                return await self.state() == "running" and now not in (0, qemu)

            await eventually(anew, "the machine is restarted")
            assert not process_exists(qemu)
            await self.goes_on()
        elif policy == "stop":

            async def stopped() -> bool:
                return await self.state() == "stopped"

            await eventually(stopped, "the machine is stopped")
        else:

            async def failed() -> bool:
                return bool(
                    await self.caller.get(share, "State") == "failed"
                    and await self.caller.get(self.path, "Degraded")
                )

            await eventually(failed, "the machine is degraded")
            await self.call("Kill")

    async def _is_healed(self, share: str, pid: int) -> None:
        async def healed() -> bool:
            reason = await self.caller.get(share, "Reason")
            assert "not healed" not in reason, reason
            return bool(
                await self.caller.get(share, "State") == "active"
                and await self.caller.get(share, "MainPID") not in (0, pid)
                and not await self.caller.get(self.path, "Degraded")
            )

        begun = time.monotonic()
        await eventually(healed, "the share is healed")
        self.caller.tally.took["healing"].append(time.monotonic() - begun)

    async def _refresh(self) -> None:
        await self.run()
        before = await self.caller.get(self.path, "MainPID")
        await self.call("Refresh", allowed=self._of_a_move)
        assert await self.caller.get(self.path, "MainPID") != before
        assert not process_exists(before)
        self.caller.tally.took["standing still in a refresh"].append(
            await self.caller.get(self.path, "RefreshDowntimeUSec") / 1e6
        )
        await self.goes_on()

    async def _suspend(self) -> None:
        await self.run()
        await self.call("Suspend", allowed=self._of_a_move)
        assert await self.caller.get(self.path, "Suspended")
        await asyncio.sleep(self._draw.uniform(0, 1))
        if self._draw.random() < 0.2:
            self.booting()
            await self.call("Kill")
            return
        await self.call("Thaw")
        await self.goes_on()

    @property
    def _of_a_move(self) -> tuple[str, ...]:
        """What a guest that is to be moved may be refused with: what was healed needs a reset first."""
        return (*RACES, "NotSupported") if self.ended_one else RACES

    async def _execute(self) -> None:
        await self.run()
        kind = self._draw.choice(("output", "input", "slow", "none"))
        if kind == "output":
            output = await self.run_in_guest("yes 0123456789abcdef | head -c 100000")
            assert len(output) == 100000
        elif kind == "input":
            data = self._draw.randbytes(20000)
            assert await self.run_in_guest("cat", data) == data
        elif kind == "slow":
            options = {"TimeoutUSec": Variant("t", 200_000)}
            await self.call("Execute", "asa{sv}", ["sleep", "2"], options, allowed=OF_A_GUEST)
        else:
            await self.call("Execute", "asa{sv}", ["there-is-none"], {}, allowed=(*OF_A_GUEST, "Failed"))

    async def _console(self) -> None:
        await self.run()
        count = self._draw.randint(1, 4)
        for _ in range(count):
            descriptor = await self.caller.console(self.path)
            self._readers.take(descriptor, stays=self._draw.random() < 0.3, reads=self._draw.random() < 0.7)
        self._readers.type(b"\r")
        await asyncio.sleep(self._draw.uniform(0, 0.5))
        self._readers.drop_some()

    async def _set(self) -> None:
        limit = self._draw.choice((0, 2 << 30, 3 << 30))
        await self.caller.set(self.path, "MemoryMax", Variant("t", limit))
        assert await self.caller.get(self.path, "MemoryMax") == limit
        await self.caller.set(self.path, "CPUs", Variant("u", self._draw.choice((1, 2))), allowed=RACES)

    async def _query(self) -> None:
        await self.run()
        await self.ready()
        await self.call("QueryGuest", allowed=OF_A_GUEST)

    async def _shut_down(self) -> None:
        await self.run()
        await self.call("Shutdown", "t", self._draw.choice((0, 3_000_000)))
        assert await self.settled() == "stopped"

    async def _kill(self) -> None:
        await self.run()
        await self.call("Kill")
        assert await self.state() == "stopped"

    async def _end_qemu(self) -> None:
        await self.run()
        pid = await self.caller.get(self.path, "MainPID")
        if not pid:
            return
        self.booting()
        os.kill(pid, self._draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGABRT)))

        async def failed() -> bool:
            return await self.state() == "failed"

        await eventually(failed, "the machine fails")

    async def _vanish(self) -> None:
        member = self._draw.choice(("Refresh", "Pause", "Suspend", "Kill", "Reset", "QueryGuest"))
        await (self.past_firmware() if member == "Reset" else self.run())
        if member in ("Kill", "Reset"):
            self.booting()
        await self.caller.vanish(self.path, member, self._draw.uniform(0.02, 0.5))
        with contextlib.suppress(BusError):
            await self.call("Resume")  # takes its turn after the other call, so that is over then
        if member == "Reset":
            await self.boots_again(perhaps=True)

    async def _refused(self) -> None:
        await self.run()
        for member in self._draw.sample(("Start", "Resume", "Thaw", "Remove"), 2):
            try:
                await self.call(member)
            except BusError as error:
                if error.name == "WrongState":
                    continue
                raise
            raise AssertionError(f"{member} of a machine that runs was not refused")

    async def _overlap(self) -> None:
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
        await (self.past_firmware() if "Reset" in members else self.run())
        calls = [self.call(member, allowed=self._of_a_move) for member in members]
        if {"Kill", "Reset"} & set(members):
            self.booting()
        await asyncio.gather(*calls, return_exceptions=True)
        if "Reset" in members:
            await self.boots_again()
