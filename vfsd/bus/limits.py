"""How much of vfsd one caller can have: calls that are pending, their bytes, replies that it has not read.

Callers take turns, so that one who floods waits for the answers to its own calls and the others do not. Root is a
caller like any other: a bug in a program of root's floods as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Generic, TypeVar

from dbus_next import MessageFlag

from vfsd.bus.incoming import Incoming
from vfsd.errors import LimitsExceeded, VfsdError

CALLS_MAX = 512
"""Calls of one caller that are pending: waiting for their turn, for authorisation, or carried out. The system bus lets
a caller wait for 128 replies; calls that want none it does not count, and a session bus allows 50,000."""
RUNNING_MAX = 16
"""Calls of one caller that are carried out at once, those apart that take longer than SLOW; the others wait."""
SLOW = 1.0
"""Seconds after which a call makes room for the next one: it waits for a guest or a disk, and costs nobody anything."""
SURPLUS_MAX = 4096
"""Calls of one caller that are too many and wait to be refused in their turn. Refused at once, they would be made again
at once, and all that others say, systemd too, would stand behind them in the bus's queue."""
BYTES_MAX = 16 << 20
"""Bytes in the pending calls of one caller."""
CALL_MAX = 4 << 20
"""Bytes in the arguments of one call: Execute takes 1 MiB of input, CreateMachine 1 MiB of credentials."""
CROWD_CALLS, CROWD_BYTES = 4096, 64 << 20
"""From so many pending calls of all callers on, or bytes in them, each may have only a few more."""
FEW_CALLS, FEW_BYTES = 16, 64 << 10
UNREAD_MAX = 8 << 20
"""Bytes of replies that one caller may leave unread before it gets no more. dbus-daemon keeps them, and counts them
against vfsd: at 127 MiB on the system bus (max_incoming_bytes) it takes nothing more from vfsd, for anybody."""
CROWD_UNREAD, FEW_UNREAD = 32 << 20, 128 << 10
"""When all callers together may have left so much unread, each may leave only a little."""
REMEMBERED_MAX = 4096
"""Callers whose unread replies are remembered; the bus allows 256 connections for each user."""
TURN = 0.005
"""Seconds for answering calls before other events have their turn."""
_ASK_AGAIN = (0.01, 1.0)
"""Seconds between questions whether a caller reads: at first, and at most."""

CALLER: ContextVar[str] = ContextVar("CALLER", default="")
"""For whom the current task works: a connection's unique name; "" for nobody in particular."""

_Item = TypeVar("_Item")


class Rounds(Generic[_Item]):
    """Items of many owners, of whom each has its turn; those of one owner stay in order."""

    def __init__(self) -> None:
        self._items: dict[str, deque[_Item]] = {}

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, owner: str, item: _Item) -> None:
        """Add an item behind its owner's others."""
        if (own := self._items.get(owner)) is None:
            own = self._items[owner] = deque()
        own.append(item)

    def take(self) -> _Item:
        """The first item of the owner whose turn it is. :raise StopIteration: there is none."""
        owner = next(iter(self._items))
        own = self._items.pop(owner)
        item = own.popleft()
        if own:
            self._items[owner] = own  # behind the others
        return item

    def take_all(self, owner: str) -> deque[_Item]:
        """All items of one owner."""
        return self._items.pop(owner, deque())


class FairSlots:
    """A semaphore for which callers wait in turns: one who makes much work keeps nobody else from doing a little."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: Rounds[asyncio.Future[None]] = Rounds()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(CALLER.get(), future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._waiting:
            future = self._waiting.take()
            if not future.done():
                future.set_result(None)
                return
        self._free += 1


class _Pending:
    """What one caller has."""

    __slots__ = ("bytes", "calls", "running")

    def __init__(self) -> None:
        self.calls = 0
        self.bytes = 0
        self.running = 0
        """Of the calls, those that were begun and are not slow."""


class Gate:
    """Lets calls in, in turns, and turns away those of a caller who has too many."""

    def __init__(
        self,
        begin: Callable[[Incoming], bool],
        refuse: Callable[[Incoming, VfsdError], None],
        unread: Callable[[str], Awaitable[int]],
        congested: Callable[[], bool],
    ) -> None:
        """
        :param begin: answers a call; returns whether it will only be done() later.
        :param refuse: answers it with an error, now.
        :param unread: how many bytes a caller has not read yet; 0 if it is gone or nobody knows.
        :param congested: whether there is no room to send more.
        """
        self._begin = begin
        self._refuse = refuse
        self._ask_unread = unread
        self._congested = congested
        self._waiting: Rounds[Incoming] = Rounds()
        self._surplus: Rounds[tuple[Incoming, str]] = Rounds()
        """Calls to be refused, and why."""
        self._pending: dict[str, _Pending] = {}
        self._calls = self._bytes = 0
        self._unread: dict[str, int] = {}
        """Bytes of replies that callers may not have read, the caller longest without one first."""
        self._all_unread = 0
        self._withheld: dict[str, deque[Incoming]] = {}
        """Calls of those who have to read first, or of whom enough is carried out."""
        self._deaf: set[str] = set()
        """Those who have to read first."""
        self._running: dict[Incoming, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._closed: VfsdError | None = None

    def let_in(self, call: Incoming) -> None:
        """Take a call that came; serve() begins it. Each call that was taken has to be done() once."""
        own = self._pending.get(call.sender)
        if own is None:
            own = self._pending[call.sender] = _Pending()
        own.calls += 1
        own.bytes += call.size
        self._calls += 1
        self._bytes += call.size
        if self._closed is not None:
            self._refuse(call, self._closed)
        elif too_much := self._too_much(call, own):
            self._turn_away(call, own, too_much)
        elif (withheld := self._withheld.get(call.sender)) is not None:
            withheld.append(call)
        else:
            self._waiting.put(call.sender, call)

    def serve(self) -> None:
        """Begin calls that wait, one of each caller in turn, for a while and as long as there is room for replies."""
        self._scheduled = False
        loop = asyncio.get_running_loop()
        end = loop.time() + TURN
        while (self._waiting or self._surplus) and not self._congested():
            if self._waiting:
                call = self._waiting.take()
                if self._begin(call):
                    self._pending[call.sender].running += 1
                    self._running[call] = loop.call_later(SLOW, self._no_longer_runs, call)
                    self._withhold(call.sender)
            if self._surplus:
                self._refuse_one()
            if loop.time() > end:
                self._serve_soon()
                return

    def done(self, call: Incoming, sent: int) -> None:
        """A call was answered, by so many bytes."""
        if (timer := self._running.get(call)) is not None:
            timer.cancel()
            self._no_longer_runs(call)
        own = self._pending[call.sender]
        own.calls -= 1
        own.bytes -= call.size
        self._calls -= 1
        self._bytes -= call.size
        if not own.calls:
            del self._pending[call.sender]
        if sent:
            self._count_unread(call.sender, sent)

    async def close(self, error: VfsdError) -> None:
        """Refuse what was not begun, and what comes from now on."""
        self._closed = error
        for calls in self._withheld.values():
            for call in calls:
                self._refuse(call, error)
        self._withheld.clear()
        while self._surplus:
            self._refuse_one()
        while self._waiting:
            self._refuse(self._waiting.take(), error)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _too_much(self, call: Incoming, own: _Pending) -> str:
        """Why a call, which is counted already, is one too many; "" if it is not."""
        if call.size > CALL_MAX:
            return f"the arguments of {call.member} have {call.size} bytes; a call may have {CALL_MAX}"
        crowd = self._calls > CROWD_CALLS or self._bytes > CROWD_BYTES
        calls, size = (FEW_CALLS, FEW_BYTES) if crowd else (CALLS_MAX, BYTES_MAX)
        if own.calls <= calls and (own.bytes <= size or own.calls == 1):
            return ""
        return "you have too many calls pending; wait for replies before you call again"

    def _turn_away(self, call: Incoming, own: _Pending, why: str) -> None:
        if call.flags & MessageFlag.NO_REPLY_EXPECTED:
            self.done(call, 0)
        elif own.calls > CALLS_MAX + SURPLUS_MAX:
            self._refuse(call, LimitsExceeded(why))
        else:
            own.bytes -= call.size
            self._bytes -= call.size
            call.forget_body()
            self._surplus.put(call.sender, (call, why))

    def _refuse_one(self) -> None:
        call, why = self._surplus.take()
        self._refuse(call, LimitsExceeded(why))

    # who has to wait

    def _no_longer_runs(self, call: Incoming) -> None:
        """A call is done, or takes long."""
        del self._running[call]
        self._pending[call.sender].running -= 1
        self._let_go(call.sender)

    def _may_begin(self, sender: str) -> bool:
        own = self._pending.get(sender)
        return sender not in self._deaf and (own is None or own.running < RUNNING_MAX)

    def _withhold(self, sender: str) -> None:
        if sender not in self._withheld and not self._may_begin(sender):
            self._withheld[sender] = self._waiting.take_all(sender)

    def _let_go(self, sender: str) -> None:
        if sender in self._withheld and self._may_begin(sender):
            for call in self._withheld.pop(sender):
                self._waiting.put(sender, call)
            self._serve_soon()

    # replies that nobody reads

    def _count_unread(self, sender: str, sent: int) -> None:
        unread = self._unread.pop(sender, 0) + sent
        self._unread[sender] = unread
        self._all_unread += sent
        if len(self._unread) > REMEMBERED_MAX:
            self._forget(next(iter(self._unread)))
        if unread > self._unread_max() and sender not in self._deaf:
            self._deaf.add(sender)
            self._withhold(sender)
            task = asyncio.get_running_loop().create_task(self._wait_until_read(sender))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _wait_until_read(self, sender: str) -> None:
        delay, longest = _ASK_AGAIN
        with contextlib.suppress(asyncio.CancelledError):
            while (unread := await self._ask_unread(sender)) > self._unread_max() // 2:
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest)
            self._forget(sender)
            self._unread[sender] = unread
            self._all_unread += unread
            self._deaf.discard(sender)
            self._let_go(sender)

    def _unread_max(self) -> int:
        return FEW_UNREAD if self._all_unread > CROWD_UNREAD else UNREAD_MAX

    def _forget(self, sender: str) -> None:
        self._all_unread -= self._unread.pop(sender, 0)

    def _serve_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self.serve)
