"""The host's shutdown: guests are asked to power off before it begins, while all that they use is there.

Their units would ask them too, but together with the end of everything else; and they do, with the guest's own time,
for those that take longer than the host waits here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from vfsd.errors import VfsdError
from vfsd.journal import NOTICE, MessageId

if TYPE_CHECKING:
    from vfsd.context import Context, Thing
    from vfsd.machine import Machine
    from vfsd.open_files import Use
    from vfsd.share import Share

REASON = "the host is shutting down"


class Inhibitor(Protocol):
    """What delays the host's shutdown, and tells of it."""

    on_shutdown: Callable[[], None] | None
    """Called when the host is about to shut down; it waits for a while, until the lock is let go."""

    def want(self, wanted: bool) -> None:
        """Hold the lock, or let it go. Works in the background and never fails: the journal tells why there is none."""


class HostShutdown:
    """Has the host's shutdown wait for machines; a listener of the context."""

    def __init__(
        self, context: Context, machines: Callable[[], Iterable[Machine]], inhibitor: Inhibitor
    ) -> None:
        self._context = context
        self._machines = machines
        self._inhibitor = inhibitor
        inhibitor.on_shutdown = self._shut_down

    def begin(self) -> None:
        """Hold the lock while a machine runs."""
        self._inhibitor.want(any(not machine.state.idle for machine in self._machines()))

    def added(self, thing: Thing) -> None:
        """It does not run yet."""

    def removed(self, thing: Thing) -> None:
        """It does not run any more."""

    def changed(self, thing: Thing) -> None:
        """Only states matter."""

    def state_changed(self, thing: Thing, old: str, new: str, reason: str) -> None:  # noqa: ARG002
        """A machine may be the first that runs, or the last."""
        self.begin()

    def files_running_out(self, share: Share, use: Use) -> None:
        """Not of interest here."""

    def _shut_down(self) -> None:
        live = [machine for machine in self._machines() if machine.live]
        text = f"The host is shutting down; guests that are asked to power off: {len(live)}"
        self._context.journal.write(MessageId.HOST_SHUTDOWN, NOTICE, text)
        for machine in live:
            self._context.spawn(self._ask(machine))

    async def _ask(self, machine: Machine) -> None:
        try:
            await machine.shut_down_because(REASON, again=False)
        except VfsdError as error:
            self._context.journal.write(
                MessageId.REFUSED, NOTICE, str(error), unit=machine.unit, machine=machine.name
            )
