"""A machine's sleep: its guest is saved to disk, and goes on later; what is saved is `saved`'s business."""

from __future__ import annotations

from vfsd import migration, saved
from vfsd.errors import WrongState
from vfsd.inside import AGENT_TIMEOUT
from vfsd.lifecycle import Lifecycle
from vfsd.model import MachineState
from vfsd.qmp import Monitor


class Sleep(Lifecycle):
    """How a machine falls asleep and wakes up."""

    async def suspend(self) -> None:
        """Save the running guest to disk, and end QEMU. :raise VfsdError: see the interface."""
        async with self._turns.take():
            self._require_live("suspended")
            await saved.suspend(self._context, self)

    async def thaw(self) -> None:
        """Go on with the guest that is saved. :raise VfsdError: see the interface."""
        async with self._turns.take():
            known = saved.read(self._context.paths.machine_state(self.name))
            if not self.state.idle or known is None:
                what = "has no guest that was suspended" if self.state.idle else f"is {self.state}"
                raise WrongState(f'machine "{self.name}" {what}; only one that is suspended can be thawed')
            self.paths.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            before = known.predecessor(saved.link(self._context, self))
            await self._come_up(before, self._take_in, self.spec.memory / saved.RATE)
            self._context.spawn(self._wake_up())

    async def _wake_up(self) -> None:
        """What a guest needs that was asleep, if it has an agent."""
        await self.inside.wait_ready(AGENT_TIMEOUT)
        await self.inside.set_time()
        await self.inside.touch_shares()

    async def kill(self) -> None:
        """End QEMU at once; or forget a guest that is saved. :raise WrongState, UnitFailed."""
        if not (self.state.idle and self.suspended):
            await super().kill()
            return
        async with self._turns.take():
            saved.forget(self._context.paths.machine_state(self.name))
            self.suspended = False
            self._set_state(MachineState.STOPPED, "what was suspended is forgotten")

    async def end_suspended(self, reason: str, monitor: Monitor) -> None:
        """End the QEMU whose guest is saved, and return when it is gone."""
        self._end = reason
        self.suspended = True
        self._set_state(MachineState.STOPPING, reason)
        await migration.end_sender(self._context.supervisor, monitor, self._units)

    async def _take_in(self, monitor: Monitor) -> None:
        """Let the guest that QEMU reads go on; what is saved is that guest no longer."""
        await migration.arrived(monitor)
        saved.forget(self._context.paths.machine_state(self.name))
        await monitor.execute("cont")
        self.suspended = False
