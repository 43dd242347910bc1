"""One machine's console for many readers.

QEMU has two ends of the console for vfsd: a socket, the tap, and a ring with what the guest wrote since the ring
was read last. The first reader makes vfsd connect to the tap and read the ring, so a console that nobody looked at
costs nothing; what was read of the ring is kept in a file, since the ring forgets it and vfsd may be restarted.

From then on vfsd stays connected until the machine ends. QEMU's hub loses what the guest writes between the moment
at which one of its sockets is closed and that at which QEMU notices, for the journal too (QEMU 10.0, hub_chr_write
returns at the first error), so readers that come and go must not be what QEMU sees.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from vfsd.commands import HISTORY, TAP
from vfsd.console.ends import Hangups, Reader, Tap
from vfsd.console.history import LIMIT, Kept, Seam, Tail
from vfsd.context import Context
from vfsd.errors import LimitsExceeded, MonitorFailed, NotSupported, VfsdError, WrongState
from vfsd.paths import MachinePaths

log = logging.getLogger(__name__)

READERS_MAX = 64
"""Of one machine: each holds a descriptor of vfsd's and may have a backlog of 128 KiB."""
CONNECT_TIMEOUT = 5.0
"""Seconds until QEMU must have taken vfsd's connection."""
CONNECT_INTERVAL = 0.02
JOIN_TRIES = 8
"""How often the ring is read until it is known where the tap goes on; each time takes about a millisecond."""

Execute = Callable[..., Awaitable[Any]]
"""Runs a command on QEMU's monitor. It raises MonitorFailed."""


class Console:
    """The readers of a machine's console, and what the guest wrote last."""

    def __init__(
        self, context: Context, name: str, paths: Callable[[], MachinePaths], execute: Execute
    ) -> None:
        """:param paths: tells those of the QEMU that runs."""
        self._paths = paths
        self._context = context
        self._name = name
        self._execute = execute
        self._lock = asyncio.Lock()
        self._tap: Tap | None = None
        self._readers: list[Reader] = []
        self._hangups: Hangups | None = None
        self._tail = Tail()
        self._runs = 0
        """How many QEMUs have ended."""

    @property
    def _kept(self) -> Kept:
        return Kept(self._paths().console_history)

    async def open(self) -> int:
        """Add a reader to a machine that runs; returns its descriptor, which is the caller's.

        :raise LimitsExceeded: there are too many.
        :raise NotSupported: this QEMU was started by a vfsd that could not do this.
        :raise WrongState: the machine ended meanwhile.
        :raise MonitorFailed: QEMU does not answer.
        """
        async with self._lock:
            if len(self._readers) >= READERS_MAX:
                raise LimitsExceeded(
                    f'the console of machine "{self._name}" is open {READERS_MAX} times; close some of them'
                )
            if self._tap is None:
                await self._attach()
            ours, theirs = socket.socketpair()
            reader = Reader(ours, self._type, self._left)
            if self._hangups is None:
                self._hangups = Hangups()
            self._hangups.watch(reader)
            self._readers.append(reader)
            reader.send(bytes(self._tail))
            reader.take_input(self._tap is not None and not self._tap.blocked)
            return theirs.detach()

    async def keep(self) -> None:
        """Save what only this QEMU knows, before another one takes its place; the guest should stand still."""
        async with self._lock:
            if self._tap is None:
                self._keep(self._kept.read() + await self._read_ring())

    def moved(self) -> None:
        """Another QEMU has taken this one's place, and the monitor is its own: readers go on there."""
        self._context.spawn(self._follow())

    def forget(self) -> None:
        """A new guest is about to start: what was before it is not replayed."""
        self._kept.forget()

    def ended(self) -> None:
        """The machine has ended: readers get what it wrote last, and then the end."""
        self._runs += 1
        self._drop_tap()
        readers, self._readers = self._readers, []
        for reader in readers:
            self._unwatch(reader)
            reader.finish()
        self._tail = Tail()
        self._kept.forget()

    # readers

    def _deliver(self, data: bytes) -> None:
        self._tail.add(data)
        for reader in list(self._readers):
            reader.send(data)

    def _type(self, data: bytes) -> None:
        """A reader typed something; it is asked for more when QEMU has taken that."""
        if self._tap is not None:
            self._tap.write(data)
            if self._tap.blocked:
                self._take_input(False)

    def _take_input(self, wanted: bool) -> None:
        for reader in self._readers:
            reader.take_input(wanted)

    def _left(self, reader: Reader) -> None:
        self._unwatch(reader)
        if reader in self._readers:
            self._readers.remove(reader)

    def _unwatch(self, reader: Reader) -> None:
        if self._hangups is not None:
            self._hangups.forget(reader)
            if not self._hangups:
                self._hangups.close()
                self._hangups = None

    # QEMU

    async def _attach(self) -> None:
        """Connect to the tap, and pass on what was written up to now."""
        run = self._runs
        known = self._kept.read()
        try:
            tap = await self._connect()
            try:
                fresh = await self._catch_up(tap, known)
                if run != self._runs:
                    raise WrongState(f'machine "{self._name}" ended meanwhile; it has no console now')
            except BaseException:
                tap.close()
                raise
        except MonitorFailed as error:
            raise MonitorFailed(f'the console of machine "{self._name}" can\'t be opened: {error}') from None
        self._tap = tap
        self._tail = Tail(known)
        self._deliver(fresh)
        tap.listen(self._deliver, self._tap_ended, lambda: self._take_input(True))
        self._take_input(True)

    async def _connect(self) -> Tap:
        """A connection to the tap that QEMU has accepted. :raise MonitorFailed."""
        path = self._paths().console_tap
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                # what vfsd, or a vfsd before it, has closed is known to QEMU a moment later
                await self._wait_for_tap(connected=False)
                tap = await Tap.open(path)
                try:
                    await self._wait_for_tap(connected=True)
                except BaseException:
                    tap.close()
                    raise
        except TimeoutError:
            raise MonitorFailed("QEMU does not take the connection to it") from None
        except OSError as error:
            raise MonitorFailed(f"QEMU can't be reached: {error.strerror}") from None
        return tap

    async def _wait_for_tap(self, *, connected: bool) -> None:
        while True:
            names = _filenames(await self._execute("query-chardev"), TAP)
            if not names:
                raise NotSupported(
                    f'machine "{self._name}" was started by an older vfsd; shut it down and start it again to '
                    "open its console, or connect to ConsolePath"
                )
            if connected is not names[0].startswith("disconnected:"):
                return
            await asyncio.sleep(CONNECT_INTERVAL)

    async def _catch_up(self, tap: Tap, known: bytes) -> bytes:
        """What was written after what is known: the ring's content, and all that came from the tap by now."""
        seam = Seam()
        stream = tap.drain()
        for _ in range(JOIN_TRIES):
            before = len(stream)
            piece = await self._read_ring()
            self._keep(known + seam.ring + piece)
            stream += tap.drain()
            if seam.narrow(piece, stream, before, len(stream)):
                break
        return seam.joined(stream)

    async def _read_ring(self) -> bytes:
        """What was written since the ring was read last, at most LIMIT bytes; the ring forgets it."""
        answer = await self._execute("ringbuf-read", device=HISTORY, size=LIMIT, format="base64")
        try:
            return base64.b64decode(answer, validate=True)[-LIMIT:]
        except (TypeError, ValueError, binascii.Error):
            raise MonitorFailed("QEMU answered ringbuf-read with what is no base64") from None

    def _keep(self, data: bytes) -> None:
        try:
            self._kept.write(data)
        except OSError as error:
            log.warning("What a guest wrote on its console is not kept: %s", error)

    def _drop_tap(self) -> None:
        """Pass on what the tap still has, and close it."""
        if self._tap is not None:
            tap, self._tap = self._tap, None
            self._deliver(tap.drain())
            tap.close()
            self._take_input(False)

    def _tap_ended(self) -> None:
        """QEMU is gone, and the ring with it; what comes next is ended() or moved()."""
        if self._tap is not None:
            self._drop_tap()
            self._keep(bytes(self._tail))

    async def _follow(self) -> None:
        async with self._lock:
            self._tap_ended()
            if not self._readers:
                return
            try:
                await self._attach()
            except VfsdError as error:
                log.warning("The readers of a console were left behind: %s", error)
                readers, self._readers = self._readers, []
                for reader in readers:
                    self._unwatch(reader)
                    reader.finish()


def _filenames(devices: Any, label: str) -> list[str]:
    """What an answer to query-chardev has as file name of the device of that label. :raise MonitorFailed."""
    try:
        return [str(device["filename"]) for device in devices if device["label"] == label]
    except (TypeError, KeyError):
        raise MonitorFailed("QEMU answered query-chardev with what is no list of devices") from None
