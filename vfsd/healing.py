"""What is done when a share's virtiofsd ends under a running guest (OnShareFailure).

QEMU cannot connect a virtio-fs device a second time. So a share is healed by a second device with another tag, on which
a fresh virtiofsd serves, and which the guest's agent mounts in place of the first. The first one stays where it is
until the guest reboots: a guest that was inside a request when virtiofsd died waits for the answer for ever, and
would do so when it is asked to give the device back, with all further plugging behind it. A reboot is also when the
share gets its own tag back, by which the guest mounts it as it boots.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from vfsd import hotplug
from vfsd.context import Context
from vfsd.errors import NotSupported, VfsdError
from vfsd.journal import NOTICE, WARNING, MessageId
from vfsd.model import FailurePolicy, MachineState, fit_tag
from vfsd.names import TAG_MAX
from vfsd.turns import finish

if TYPE_CHECKING:
    from vfsd.devices import Plug
    from vfsd.machine import Machine
    from vfsd.share import Share

ATTEMPTS = 3
"""How often within WINDOW seconds a share is healed, or its machine started again, before it is left alone."""
WINDOW = 60.0
AGENT_TIMEOUT = 10.0
"""Seconds to wait for the agent of a guest that vfsd has only just found again."""
_INTERRUPTED = "vfsd ended as it was healed"
_HUNG = "guest processes that were inside a request hang until the guest reboots"


class Healer:
    """Reacts to the failures of one machine's shares."""

    def __init__(self, context: Context, machine: Machine) -> None:
        self._context = context
        self._machine = machine
        self._attempts: dict[str, deque[float]] = {}

    def react(self, share: Share) -> None:
        """A share has just failed under the running guest."""
        policy = self._machine.spec.on_share_failure
        if policy is FailurePolicy.HEAL and share.gone:
            return  # until it is back there is nothing to heal with
        if policy is FailurePolicy.HEAL:
            self._begin(share)
        elif policy is FailurePolicy.RESTART:
            self._context.spawn(self._end(share, again=True))
        elif policy is FailurePolicy.STOP:
            self._context.spawn(self._end(share, again=False))

    def source_is_back(self, share: Share) -> None:
        """The running guest has what was there before, which is dead, or on its way out."""
        if self._machine.spec.on_share_failure is FailurePolicy.HEAL:
            self._begin(share)
        else:
            share.stay_stale()

    def go_on(self) -> None:
        """Begin again what a vfsd was ended in: what it plugged serves, and may be mounted nowhere."""
        names = self._machine.memory.healing.split()
        self._machine.remember(healing="")
        for share in self._machine.shares:
            if share.name in names and not share.ails:
                share.lose(_INTERRUPTED)

    async def guest_reboots(self) -> None:
        """Give the shares their own tags back before the guest looks for them."""
        machine = self._machine
        healed = [share for share in machine.shares if self._is_healed(share)]
        if not healed and not machine.orphans:
            return
        try:
            async with machine.turn():
                if machine.live:
                    await hotplug.replace(self._context, machine, healed)
        except VfsdError as error:
            self._write(f"shares keep the tags that they were healed with: {error}", WARNING)

    def _is_healed(self, share: Share) -> bool:
        plugged = self._machine.layout.of(share.name)
        return plugged is not None and plugged.tag != share.spec.tag

    def _begin(self, share: Share) -> None:
        share.begin_recovery()
        self._remember(share, healing=True)
        self._context.spawn(self._heal(share))

    def _remember(self, share: Share, *, healing: bool) -> None:
        names = set(self._machine.memory.healing.split())
        (names.add if healing else names.discard)(share.name)
        self._machine.remember(healing=" ".join(sorted(names)))

    async def _heal(self, share: Share) -> None:
        problem = share.last_failure or share.gone
        begun = time.monotonic()
        try:
            self._count(share.name)
            async with self._machine.turn():
                if not self._machine.live:
                    return
                await self._machine.inside.wait_ready(AGENT_TIMEOUT)
                places = await self._replace(share)
        except VfsdError as error:
            reason = f"{problem}; it was not healed: {error}"
            self._remember(share, healing=False)
            share.end_recovery(problem, reason)
            self._write(reason, WARNING, share)
            return
        where = f"mounted again at {', '.join(places)}" if places else "it was not mounted"
        reason = f"healed after {problem}: {where}; {_HUNG}"
        self._remember(share, healing=False)
        share.end_recovery("", reason)
        self._context.sources.follow(share)  # it may have gone again
        self._write(f"{reason} ({time.monotonic() - begun:.1f} s)", NOTICE, share)

    async def _replace(self, share: Share) -> list[str]:
        """Serve the guest anew; returns where it is mounted. :raise VfsdError: it can't be, nothing is left."""
        machine = self._machine
        if machine.state is not MachineState.RUNNING:
            raise NotSupported("the guest is paused")
        if not machine.inside.ready:
            raise NotSupported("the guest has no agent")
        await share.check()  # what the guest may still have is not ended for nothing
        # the guest may have what any of them served: a vfsd that healed it may have been ended in between
        old = [plug.tag for plug in machine.layout.plugs if plug.share == share.name]
        problem = share.last_failure
        if not problem or self._context.supervisor.status(share.service_unit).active == "active":
            await share.end_virtiofsd()  # it keeps the file system that is gone, or is mounted nowhere
            if problem:
                share.lose(problem)
        await hotplug.find_strays(machine)
        await share.listen_anew(machine.place)
        plugged = await hotplug.plug(self._context, machine, share, self._new_tag(share))
        try:
            return await machine.inside.remount(old or [share.spec.tag], plugged.tag)
        except BaseException:
            await finish(self._take_back(plugged))
            raise

    async def _take_back(self, plugged: Plug) -> None:
        try:
            await hotplug.unplug(self._machine, plugged)
        except VfsdError as error:
            self._write(f"a device could not be taken back: {error}", WARNING)

    def _new_tag(self, share: Share) -> str:
        number = 1
        while True:
            suffix = f".{number}"
            tag = fit_tag(share.spec.tag, TAG_MAX - len(suffix)) + suffix
            if not self._machine.layout.has_tag(tag):
                return tag
            number += 1

    async def _end(self, share: Share, *, again: bool) -> None:
        """Shut the machine down, since it can't go on without a share, and start it again if that is wanted."""
        machine = self._machine
        why = machine.reason or share.complaint
        try:
            if again:
                self._count("")
            await machine.shut_down_because(f"{'restarted' if again else 'stopped'}: {why}", again=again)
        except VfsdError as error:
            self._write(f"{why}; it was not {'restarted' if again else 'stopped'}: {error}", WARNING, share)
            return
        if again:
            await self.start_again()

    async def start_again(self) -> None:
        """Start the machine once its shutdown, which is under way, is done."""
        machine = self._machine
        await machine.wait_idle()
        if machine.memory.restart:  # a Kill takes it back
            try:
                await machine.start()
            except VfsdError as error:
                self._write(f"it was not started again: {error}", WARNING)

    def _count(self, what: str) -> None:
        """:raise NotSupported: it failed too often in a short time."""
        now = time.monotonic()
        attempts = self._attempts.setdefault(what, deque(maxlen=ATTEMPTS))
        if len(attempts) == ATTEMPTS and now - attempts[0] < WINDOW:
            raise NotSupported(f"it failed {ATTEMPTS + 1} times within {WINDOW:.0f} s")
        attempts.append(now)

    def _write(self, text: str, priority: int, share: Share | None = None) -> None:
        name = share.name if share else ""
        who = f'share "{name}"' if share else f'machine "{self._machine.name}"'
        self._context.journal.write(
            MessageId.HEALING,
            priority,
            f"{who}: {text}",
            unit=self._machine.unit,
            machine=self._machine.name,
            share=name,
        )
