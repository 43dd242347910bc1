"""What every share and machine works with: the outside systems, and who is told of changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from vfsd import limits
from vfsd.errors import UnitFailed
from vfsd.journal import WARNING, Journal, MessageId, Pace
from vfsd.names import Scope
from vfsd.notifications import Notifications
from vfsd.paths import Paths
from vfsd.registrar import NoRegistrar, Registrar
from vfsd.sources import Sources
from vfsd.store import Kind, Memory, Store
from vfsd.supervisor import Supervisor, SupervisorError

if TYPE_CHECKING:
    from vfsd.host import Host
    from vfsd.machine import Machine
    from vfsd.open_files import Use
    from vfsd.share import Share

Thing: TypeAlias = "Share | Machine"

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Is told of what happens, in order."""

    def added(self, thing: Thing) -> None:
        """A share or machine came into being."""

    def removed(self, thing: Thing) -> None:
        """A share or machine is gone."""

    def changed(self, thing: Thing) -> None:
        """Properties may have changed."""

    def state_changed(self, thing: Thing, old: str, new: str, reason: str) -> None:
        """The state changed; told after changed()."""

    def files_running_out(self, share: Share, use: Use) -> None:
        """A virtiofsd soon has as many files open as it may."""


@dataclass
class Context:
    """Shared by all shares and machines of one vfsd."""

    scope: Scope
    paths: Paths
    supervisor: Supervisor
    store: Store
    journal: Journal
    host: Host
    listeners: list[Listener] = field(default_factory=list)
    registrar: Registrar = field(default_factory=NoRegistrar)
    notifications: Notifications = field(init=False)
    sources: Sources = field(init=False)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _unwritten: dict[tuple[Kind, str], Memory] = field(default_factory=dict)
    """What could not be written."""
    _pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        self.notifications = Notifications(self.spawn)
        self.sources = Sources(self.scope, self.store, self.spawn)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run work in the background; it is cancelled when vfsd ends. A bug in it goes to the journal."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("Background work failed", exc_info=error)

    async def close(self) -> None:
        """Cancel what runs in the background and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def limit(self, unit: str, option: str, limited: limits.Limited, who: str) -> None:
        """Tell a unit of a changed limit. It must be loaded: what systemd is told of a slice that is not would outlive
        it. :raise UnitFailed: systemd refused.
        """
        try:
            await self.supervisor.set_properties(unit, [limits.changed(option, limited)])
        except SupervisorError as error:
            raise UnitFailed(f"{option} of {who} could not be set: {error}") from None

    def remember(self, kind: Kind, name: str, memory: Memory) -> None:
        """Write what is to be remembered until the reboot; what can't be written now is written next time.

        What happens is more important than that a vfsd which is started anew knows it.
        """
        self._unwritten[kind, name] = memory
        try:
            for known in list(self._unwritten):
                self.store.remember(*known, self._unwritten[known])
                del self._unwritten[known]
        except OSError as error:
            self.not_written(f"what happens can't be remembered in {self.paths.runtime}: {error.strerror}")

    def not_written(self, text: str) -> None:
        """Tell of something that is not essential and could not be written."""
        if told := self._pace.pace(text):
            self.journal.write(MessageId.NOT_WRITTEN, WARNING, told)

    def forget(self, kind: Kind, name: str) -> None:
        """Forget an object: its definition, and what is remembered of it. :raise OSError: it is still there."""
        self.store.remove(kind, name)
        self._unwritten.pop((kind, name), None)

    def added(self, thing: Thing) -> None:
        for listener in self.listeners:
            listener.added(thing)

    def removed(self, thing: Thing) -> None:
        for listener in self.listeners:
            listener.removed(thing)

    def changed(self, thing: Thing) -> None:
        for listener in self.listeners:
            listener.changed(thing)

    def state_changed(self, thing: Thing, old: str, new: str, reason: str) -> None:
        for listener in self.listeners:
            listener.changed(thing)
            listener.state_changed(thing, old, new, reason)

    def files_running_out(self, share: Share, use: Use) -> None:
        for listener in self.listeners:
            listener.files_running_out(share, use)


def now_usec() -> int:
    """µs since the epoch (CLOCK_REALTIME)."""
    return time.time_ns() // 1000
