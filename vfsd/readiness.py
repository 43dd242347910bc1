"""Whether one machine's guest is up, as its own systemd says over vsock."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vfsd import vsock
from vfsd.context import Context
from vfsd.vsock import Address, Notice

if TYPE_CHECKING:
    from vfsd.lifecycle import Lifecycle


class Readiness:
    """What the guest of one machine has said since it booted. A guest can lie."""

    def __init__(self, context: Context, machine: Lifecycle) -> None:
        self._context = context
        self._machine = machine
        self._cid = 0
        self.ready = False
        """Whether its systemd said READY=1."""
        self.ssh = False
        """Whether it said that its SSH server listens, over vsock too."""

    @property
    def ssh_address(self) -> str:
        """Where the SSH server listens over vsock; "" if it did not say so."""
        return f"vsock:{self._cid}" if self._cid and self.ssh else ""

    @property
    def has_address(self) -> bool:
        """Whether the running guest can be reached over vsock."""
        return bool(self._cid)

    async def prepare(self) -> Address | None:
        """An address for a QEMU that is about to be started: the machine's last one, unless somebody has it.

        None if it can have none: this host has no vsock, or the user may not use it; or the guest would do nothing
        with it, or has some of its own.
        """
        spec, memory = self._machine.spec, self._machine.memory
        if spec.builtin or any("vsock" in argument for argument in spec.extra_arguments):
            return None
        try:
            cid = await asyncio.to_thread(vsock.choose_cid, memory.cid, self._context.notifications.cids)
            return Address(cid, self._context.notifications.listen(memory.notify_port))
        except OSError:
            return None

    def begin(self, address: Address | None) -> None:
        """The machine is started, with this address."""
        self.ready = self.ssh = False
        self._cid = address.cid if address else 0
        port = address.port if address else self._machine.memory.notify_port
        self._machine.remember(cid=self._cid, notify_port=port, said_ready=False, said_ssh=False)
        self._expect()

    def adopt(self) -> None:
        """Take over a machine that runs, with what it has said to an earlier vfsd."""
        memory = self._machine.memory
        self._cid, self.ready, self.ssh = memory.cid, memory.said_ready, memory.said_ssh
        if self._cid:
            try:
                self._context.notifications.listen(memory.notify_port)
            except OSError:
                return
            self._expect()

    def move(self, address: Address) -> None:
        """Another QEMU carries the guest on, which has this address from now on; what it said holds."""
        self._context.notifications.forget(self._cid)
        self._cid = address.cid
        self._machine.remember(cid=address.cid, notify_port=address.port)
        self._expect()
        self._machine.changed()

    def reset(self) -> None:
        """The guest begins anew."""
        self._set(ready=False, ssh=False)

    def end(self) -> None:
        """The guest is gone."""
        self._context.notifications.forget(self._cid)
        self.reset()
        self._cid = 0

    def _expect(self) -> None:
        if self._cid:
            self._context.notifications.expect(self._cid, self._hear)

    def _hear(self, notice: Notice) -> None:
        self._set(
            ready=self.ready if notice.ready is None else notice.ready,
            ssh=self.ssh if notice.ssh is None else notice.ssh,
        )

    def _set(self, *, ready: bool, ssh: bool) -> None:
        if (ready, ssh) != (self.ready, self.ssh):
            self.ready, self.ssh = ready, ssh
            self._machine.remember(said_ready=ready, said_ssh=ssh)
            self._machine.changed()
