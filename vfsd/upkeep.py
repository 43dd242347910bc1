"""Puts back what somebody took away from the runtime folder: a socket, a definition, or all of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vfsd import virtiofsd
from vfsd.context import Context, Thing
from vfsd.errors import VfsdError
from vfsd.journal import WARNING, MessageId, Pace
from vfsd.model import ShareState
from vfsd.share import Share
from vfsd.store import Kind
from vfsd.watch import LossWatch

if TYPE_CHECKING:
    from vfsd.open_files import Use
    from vfsd.registry import Registry

QUIET = 0.2
"""Seconds without a loss until it is looked what is missing: whoever empties the folder is to come to an end."""


class Upkeep:
    """Cares for the runtime folder of one vfsd; a listener of the context too."""

    def __init__(self, context: Context, registry: Registry) -> None:
        self._context = context
        self._registry = registry
        self._watch: LossWatch | None = None
        self._looking = asyncio.Lock()
        self._pace = Pace()

    def begin(self) -> None:
        """Look what is missing, now and whenever something is taken away."""
        self._watch = LossWatch(self._look_soon, QUIET)
        self._look_soon()

    def added(self, thing: Thing) -> None:
        """A new object has all its files."""

    def removed(self, thing: Thing) -> None:
        """An object that is gone has none."""

    def changed(self, thing: Thing) -> None:
        """A share whose socket was taken away while it served a client is noticed when it listens again."""
        if isinstance(thing, Share) and thing.state is ShareState.LISTENING and thing.unreachable:
            self._look_soon()

    def state_changed(self, thing: Thing, old: str, new: str, reason: str) -> None:
        """changed() was called already."""

    def files_running_out(self, share: Share, use: Use) -> None:
        """That is no loss."""

    def _look_soon(self) -> None:
        self._context.spawn(self._look())

    async def _look(self) -> None:
        if self._watch is None:
            return
        paths = self._context.paths
        async with self._looking:
            try:
                paths.make()
                self._write_again()
            except (OSError, VfsdError) as error:
                self._tell(f"what is missing in {paths.runtime} can't be put back: {error}; restart vfsd")
                return
            self._watch.watch((paths.runtime, paths.shares, paths.runtime_definitions, paths.sources))
            lost = [share for share in self._registry.shares.values() if share.unreachable]
            await asyncio.gather(*(self._renew(share) for share in lost))

    def _write_again(self) -> None:
        """What is only in vfsd's memory now. :raise VfsdError: it can't be."""
        store = self._context.store
        things: list[Thing] = [*self._registry.machines.values(), *self._registry.shares.values()]
        for thing in things:
            if thing.memory.removing:
                continue
            if not (thing.configured or store.has(thing.spec)) and not (
                isinstance(thing, Share) and thing.owned
            ):
                thing.save()
                kind = Kind.SHARE if isinstance(thing, Share) else Kind.MACHINE
                self._context.remember(kind, thing.name, thing.memory)
                self._tell(f"the definition of {kind} {thing.name} was taken away, and is written again")
            link = self._context.paths.source_link(thing.name)
            if isinstance(thing, Share) and thing.state.serves and not link.is_symlink():
                virtiofsd.make_links(self._context, thing.spec)

    async def _renew(self, share: Share) -> None:
        try:
            if await share.renew():
                self._tell(f"the socket or service of share {share.name} was taken away, and is made again")
        except VfsdError as error:
            self._tell(str(error))

    def _tell(self, text: str) -> None:
        if told := self._pace.pace(text):
            self._context.journal.write(MessageId.PUT_BACK, WARNING, told)
