"""Who is let in when: turns, and what is too much."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dbus_next import MessageFlag

from vfsd.bus import limits
from vfsd.bus.limits import BYTES_MAX, CALL_MAX, CALLER, CALLS_MAX, RUNNING_MAX, FairSlots, Gate, Rounds
from vfsd.errors import VfsdError


@dataclass(eq=False)
class FakeCall:
    """What the gate knows of a call."""

    sender: str
    member: str = "Start"
    size: int = 200
    flags: MessageFlag = MessageFlag.NONE

    def forget_body(self) -> None:
        self.size = 0


class Setting:
    """A gate, and what it did."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.begun: list[FakeCall] = []
        self.refused: list[FakeCall] = []
        self.at_once = at_once
        self.unread: dict[str, int] = {}
        self.congested = False
        self.gate = Gate(self._begin, self._refuse, self._ask, lambda: self.congested)  # type: ignore[arg-type]

    def come(self, *calls: FakeCall) -> None:
        for call in calls:
            self.gate.let_in(call)  # type: ignore[arg-type]
        self.gate.serve()

    def finish(self, call: FakeCall, sent: int = 100) -> None:
        self.gate.done(call, sent)  # type: ignore[arg-type]

    def _begin(self, call: FakeCall) -> bool:
        self.begun.append(call)
        if self.at_once:
            self.finish(call)
        return not self.at_once

    def _refuse(self, call: FakeCall, _error: VfsdError) -> None:
        self.refused.append(call)
        self.finish(call)

    async def _ask(self, sender: str) -> int:
        return self.unread.get(sender, 0)


def senders(calls: list[FakeCall]) -> str:
    return "".join(call.sender for call in calls)


def test_owners_take_turns() -> None:
    rounds: Rounds[int] = Rounds()
    for owner, item in (("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)):
        rounds.put(owner, item)
    assert [rounds.take() for _ in range(6)] == [1, 4, 5, 2, 6, 3]
    assert not rounds


async def test_callers_take_turns() -> None:
    setting = Setting()
    setting.come(*(FakeCall("a") for _ in range(5)), FakeCall("b"), FakeCall("b"), FakeCall("c"))
    assert senders(setting.begun) == "abcabaaa"


async def test_only_so_many_of_one_caller_are_carried_out_at_once() -> None:
    setting = Setting(at_once=False)
    setting.come(*(FakeCall("a") for _ in range(RUNNING_MAX + 2)), FakeCall("b"))
    assert senders(setting.begun) == "ab" + "a" * (RUNNING_MAX - 1)
    setting.come(FakeCall("a"), FakeCall("b"))
    assert senders(setting.begun)[RUNNING_MAX + 1 :] == "b"
    setting.finish(setting.begun[0])
    await asyncio.sleep(0)
    assert senders(setting.begun)[RUNNING_MAX + 2 :] == "a"
    assert setting.refused == []


async def test_a_slow_call_makes_room() -> None:
    setting = Setting(at_once=False)
    limits_slow, limits.SLOW = limits.SLOW, 0.01
    try:
        setting.come(*(FakeCall("a") for _ in range(2 * RUNNING_MAX)))
        assert len(setting.begun) == RUNNING_MAX
        await asyncio.sleep(0.1)
    finally:
        limits.SLOW = limits_slow
    assert len(setting.begun) == 2 * RUNNING_MAX
    for call in setting.begun:
        setting.finish(call)


async def test_too_many_are_refused_in_turn() -> None:
    setting = Setting(at_once=False)
    calls = [FakeCall("a") for _ in range(CALLS_MAX + 3)]
    setting.come(*calls, FakeCall("b"))
    assert setting.refused == calls[CALLS_MAX:]
    assert "b" in senders(setting.begun)


async def test_those_that_want_no_reply_get_none() -> None:
    setting = Setting(at_once=False)
    setting.come(*(FakeCall("a", flags=MessageFlag.NO_REPLY_EXPECTED) for _ in range(CALLS_MAX + 3)))
    assert setting.refused == []
    for _ in range(CALLS_MAX):
        setting.finish(setting.begun.pop(), 0)
        await asyncio.sleep(0)
    assert setting.begun == []


async def test_bytes_count_too() -> None:
    setting = Setting(at_once=False)
    large = [FakeCall("a", size=CALL_MAX) for _ in range(BYTES_MAX // CALL_MAX + 1)]
    setting.come(*large, FakeCall("b", size=CALL_MAX + 1))
    assert setting.refused == [large[-1], setting.refused[1]]
    assert senders(setting.refused) == "ab"


async def test_nothing_is_begun_without_room_to_answer() -> None:
    setting = Setting()
    setting.congested = True
    setting.come(FakeCall("a"))
    assert setting.begun == []
    setting.congested = False
    setting.gate.serve()
    assert senders(setting.begun) == "a"


async def test_who_does_not_read_gets_no_more() -> None:
    setting = Setting(at_once=False)
    setting.unread["a"] = limits.UNREAD_MAX
    first, second = FakeCall("a"), FakeCall("a")
    setting.come(first)
    setting.finish(first, limits.UNREAD_MAX + 1)
    setting.come(second, FakeCall("b"))
    assert senders(setting.begun) == "ab"
    setting.unread["a"] = 0
    for _ in range(100):
        await asyncio.sleep(0.01)
        if second in setting.begun:
            break
    assert senders(setting.begun) == "aba"
    await setting.gate.close(VfsdError("going down"))


async def test_nothing_is_begun_any_more() -> None:
    """A machine that is started while vfsd goes down is left half started."""
    setting = Setting(at_once=False)
    first, second = FakeCall("a"), FakeCall("a")
    setting.come(first)
    await setting.gate.close(VfsdError("going down"))
    setting.come(second)
    assert (setting.begun, setting.refused) == ([first], [second])
    setting.finish(first)


async def test_slots_are_given_in_turns() -> None:
    slots = FairSlots(1)
    order: list[str] = []

    async def work(caller: str) -> None:
        CALLER.set(caller)
        async with slots:
            order.append(caller)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work(caller)) for caller in "aaaabbc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert "".join(order) == "abcaba"
    async with slots:
        pass
