"""polkit: may this caller do that?

A check may take as long as a person needs to type a password. It therefore waits beside vfsd's other calls, not among
them; it ends when the caller's connection does; and if polkitd ends meanwhile, it is asked once more, of the next one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from enum import Enum, auto
from typing import Any

from dbus_next import Variant

from vfsd.bus.callers import Caller, Callers
from vfsd.bus.connection import CallError, Connection
from vfsd.bus.limits import FairSlots
from vfsd.errors import LimitsExceeded

_AUTHORITY = (
    "org.freedesktop.PolicyKit1",
    "/org/freedesktop/PolicyKit1/Authority",
    "org.freedesktop.PolicyKit1.Authority",
)
_ALLOW_USER_INTERACTION = 1
"""A flag of CheckAuthorization."""
_DISMISSED = "polkit.dismissed"
"""A key of the answer's details: the person closed the dialog."""

TIMEOUT = 20.0
"""Seconds for a check that asks nobody; less than a caller usually waits (25 s)."""
PERSON_TIMEOUT = 300.0
"""Seconds that a person has to authenticate."""
RESTART_DELAY = 1.0
"""Seconds for systemd to notice that polkitd has ended: until then a start that the bus asks for comes to nothing, and
the bus waits 25 s for it."""
_QUICK_MAX = 16
"""Checks at once that ask nobody; the others wait."""
PERSONS_MAX, OF_USER_MAX = 32, 8
"""Checks at once that ask somebody: of all callers, and of one user's. With the connection's own calls these are fewer
than the pending replies that the bus allows."""

_NO_REPLY = "org.freedesktop.DBus.Error.NoReply"
_MISSING = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.Spawn.",
    "org.freedesktop.systemd1.",
)
"""How the names of errors begin that say that polkit is not installed, or masked."""


class Answer(Enum):
    """What polkit says."""

    YES = auto()
    NO = auto()
    AFTER_AUTHENTICATION = auto()
    """Somebody would have to authenticate, and nobody could be asked."""
    DISMISSED = auto()


class PolkitUnavailable(Exception):
    """There is no answer; the message says why."""


class Polkit:
    """A client of polkit's authority."""

    def __init__(self, connection: Connection, callers: Callers) -> None:
        self._connection = connection
        self._callers = callers
        self._quick = FairSlots(_QUICK_MAX)
        self._asked: Counter[int] = Counter()
        self._numbers = itertools.count(1)

    async def check(self, caller: Caller, action: str, details: Mapping[str, str], *, ask: bool) -> Answer:
        """Whether a caller may do something.

        :param details: what rules can look up.
        :param ask: whether a person may be asked to authenticate.
        :raise PolkitUnavailable: polkit is not there, or does not answer. CallerGone: the caller is not there any more.
        :raise LimitsExceeded: too many persons are being asked.
        """
        if not ask:
            async with self._quick:
                return await self._callers.while_there(caller, self._ask(caller, action, details, ask=False))
        if self._asked[caller.uid] >= OF_USER_MAX or self._asked.total() >= PERSONS_MAX:
            raise LimitsExceeded(
                "too many calls wait for somebody to authenticate; answer or cancel some first"
            )
        self._asked[caller.uid] += 1
        try:
            return await self._callers.while_there(caller, self._ask(caller, action, details, ask=True))
        finally:
            self._asked[caller.uid] -= 1

    async def _ask(self, caller: Caller, action: str, details: Mapping[str, str], *, ask: bool) -> Answer:
        try:
            async with asyncio.timeout(PERSON_TIMEOUT if ask else TIMEOUT):
                try:
                    return await self._ask_once(caller, action, details, ask=ask)
                except CallError as error:
                    if error.name != _NO_REPLY:
                        raise
                # That polkitd has ended; the bus has another started
                await asyncio.sleep(RESTART_DELAY)
                return await self._ask_once(caller, action, details, ask=ask)
        except TimeoutError:
            raise PolkitUnavailable("polkit did not answer in time") from None
        except CallError as error:
            if error.name.startswith(_MISSING):
                raise PolkitUnavailable("polkit, which decides for others, is not there") from None
            raise PolkitUnavailable(f"polkit could not decide: {error.message}") from None

    async def _ask_once(
        self, caller: Caller, action: str, details: Mapping[str, str], *, ask: bool
    ) -> Answer:
        number = f"vfsd-{next(self._numbers)}" if ask else ""
        subject = ["system-bus-name", {"name": Variant("s", caller.name)}]
        flags = _ALLOW_USER_INTERACTION if ask else 0
        arguments: list[Any] = [subject, action, dict(details), flags, number]
        try:
            [[allowed, challenge, told]] = await self._connection.call(
                *_AUTHORITY,
                "CheckAuthorization",
                "(sa{sv})sa{ss}us",
                arguments,
                timeout=None,
                slots=nullcontext(),
            )
        except asyncio.CancelledError:
            if number:
                self._connection.tell(*_AUTHORITY, "CancelCheckAuthorization", "s", number)
            raise
        if allowed:
            return Answer.YES
        if _DISMISSED in told:
            return Answer.DISMISSED
        return Answer.AFTER_AUTHENTICATION if challenge else Answer.NO
