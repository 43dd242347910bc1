"""What the domain knows of a service manager, whoever talks to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vfsd.units import Property, Unit

CLEANUP_TIMEOUT = 5.0
"""Seconds in which systemd forgets units that have stopped."""

MISSING = "missing"
"""UnitStatus.sub of a service that systemd does not know any more, though its socket listens."""


class SupervisorError(Exception):
    """The service manager refused, or a job failed."""

    def __init__(self, message: str, *, unit_exists: bool = False, no_such_unit: bool = False) -> None:
        super().__init__(message)
        self.unit_exists = unit_exists
        """The name is taken; also said of a masked unit, and of one that is not yet cleaned up."""
        self.no_such_unit = no_such_unit
        """The unit is not loaded."""


@dataclass(frozen=True, slots=True)
class UnitStatus:
    """What is known of a unit. The properties of a service stay at their defaults for other units."""

    active: str = "inactive"
    sub: str = "dead"
    main_pid: int = 0
    result: str = "success"
    exit_code: int = 0
    """CLD_EXITED (1), CLD_KILLED (2), CLD_DUMPED (3), or 0 while nothing ended."""
    exit_status: int = 0
    invocation: str = ""

    @property
    def runs(self) -> bool:
        """Whether the unit is up, coming up or going down."""
        return self.active not in ("inactive", "failed")


@dataclass(frozen=True, slots=True)
class Command:
    """With what and when a service's main process was started."""

    arguments: list[str]
    started_usec: int
    """µs since the epoch (CLOCK_REALTIME); 0 if it was not."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a unit."""

    pid: int
    command: str
    """Its command line, quoted where that is needed."""


UnitWatcher = Callable[[str, UnitStatus], None]
"""Called with a unit's name and its status; of a unit that systemd forgot, the last known, inactive."""


class Supervisor(Protocol):
    """The part of systemd's interface that vfsd lives on."""

    watcher: UnitWatcher | None

    @property
    def version(self) -> int:
        """systemd's version."""

    @property
    def life(self) -> str:
        """Differs from one boot to the next, and for a user's systemd from one login to the next."""

    def status(self, unit: str) -> UnitStatus:
        """What is known of a unit; a unit that is not loaded is inactive."""

    async def is_active(self, unit: str) -> bool:
        """Whether a unit is up, asked of the service manager itself, which tells of changes a little late."""

    async def start(self, unit: Unit, aux: Sequence[Unit]) -> None:
        """Make transient units in one call and wait until the first is started.

        :raise SupervisorError: nothing was made, or the start failed.
        """

    async def stop(self, unit: str) -> None:
        """Stop a unit and wait until it is stopped; no error if it is not loaded."""

    async def begin_stop(self, unit: str) -> None:
        """Ask for a unit's stop without waiting for its end. :raise SupervisorError: refused."""

    async def kill(self, unit: str, signal: int) -> None:
        """Send a signal to all processes of a unit; no error if it is not loaded."""

    async def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Change a loaded unit for as long as it is loaded; no error if it is not. :raise SupervisorError: refused."""

    async def command(self, unit: str) -> Command:
        """How a service was started. :raise SupervisorError: it is not loaded."""

    async def discard(self, units: Sequence[str]) -> None:
        """Have units forgotten that systemd keeps, since it does not know any more that it need not."""

    async def wait_gone(self, units: Sequence[str], timeout: float) -> bool:
        """Wait until none of the units is loaded, `timeout` seconds at most; whether that came true."""


async def start_units(supervisor: Supervisor, unit: Unit, aux: Sequence[Unit], before: Sequence[str]) -> None:
    """Start units, once those of an earlier run are cleaned up if systemd still has them.

    :param before: the names that the earlier run may still hold.
    :raise SupervisorError: nothing was made, or the start failed.
    """
    try:
        await supervisor.start(unit, aux)
    except SupervisorError as error:
        if not error.unit_exists:
            raise
        if not await supervisor.wait_gone(before, CLEANUP_TIMEOUT):
            await supervisor.discard(before)
            await supervisor.wait_gone(before, CLEANUP_TIMEOUT)
        await supervisor.start(unit, aux)
