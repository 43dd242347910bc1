"""Lets callers do what they may: root everything, others what polkit says; on a user's bus that user alone."""

from __future__ import annotations

import os

from vfsd.bus.authorisation import About, Action
from vfsd.bus.callers import Caller, Callers
from vfsd.bus.connection import Connection
from vfsd.bus.polkit import Answer, Polkit, PolkitUnavailable
from vfsd.errors import AccessDenied, InteractiveAuthorizationRequired
from vfsd.names import Scope

_HOW = (
    "an administrator can allow it with a rule in /etc/polkit-1/rules.d (see vfsd(8)), or call it as root; your own "
    "vfsd, on your session bus, needs no rights"
)


class Guard:
    """Who may do what, on one bus."""

    def __init__(self, scope: Scope, connection: Connection) -> None:
        self._system = scope is Scope.SYSTEM
        self._own = os.geteuid()
        self._callers = Callers(connection)
        self._polkit = Polkit(connection, self._callers)

    @property
    def discreet(self) -> bool:
        """Whether others than those who may see everything receive the signals."""
        return self._system

    def known(self, sender: str) -> Caller | None:
        """Who calls, if it has called before and may call at all."""
        caller = self._callers.known(sender)
        return caller if caller is not None and self._may_call(caller) else None

    async def admit(self, sender: str) -> Caller:
        """Who calls. :raise AccessDenied: it may not call at all. CallerGone: nobody does any more."""
        caller = await self._callers.find(sender)
        if not self._may_call(caller):
            raise AccessDenied(f"this vfsd obeys its own user (uid {self._own}), not uid {caller.uid}")
        return caller

    def trusts(self, caller: Caller) -> bool:
        """Whether a caller may do everything."""
        return caller.uid in (0, self._own)

    async def authorise(self, caller: Caller, action: Action, about: About, *, ask: bool) -> None:
        """Return if a caller may do something.

        :param ask: whether a person may be asked to authenticate.
        :raise AccessDenied, InteractiveAuthorizationRequired: it may not. LimitsExceeded: too many are being asked.
        :raise CallerGone: nobody calls any more.
        """
        if self.trusts(caller):
            return
        try:
            answer = await self._polkit.check(caller, action, about.details(), ask=ask)
        except PolkitUnavailable as error:
            raise AccessDenied(f"{about}: only root may do this now, for {error}") from None
        match answer:
            case Answer.NO:
                raise AccessDenied(f"{about}: uid {caller.uid} may not ({action}); {_HOW}")
            case Answer.DISMISSED:
                raise AccessDenied(f"{about}: the authentication for {action} was cancelled")
            case Answer.AFTER_AUTHENTICATION:
                remedy = (
                    "no authentication agent runs in the caller's session; start one, such as pkttyagent(1)"
                    if ask
                    else "allow it in the call (ALLOW_INTERACTIVE_AUTHORIZATION), as vfsctl on a terminal does"
                )
                raise InteractiveAuthorizationRequired(f"{about}: {action} needs authentication; {remedy}")

    async def may(self, caller: Caller, action: Action, about: About) -> bool:
        """Whether a caller may do something without asking anybody. :raise CallerGone: nobody calls any more."""
        try:
            await self.authorise(caller, action, about, ask=False)
        except (AccessDenied, InteractiveAuthorizationRequired):
            return False
        return True

    def _may_call(self, caller: Caller) -> bool:
        return self._system or caller.uid == self._own
