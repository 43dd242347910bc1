"""What the domain knows of a register of the host's machines, which is not vfsd's own: systemd-machined."""

from __future__ import annotations

from typing import Protocol


class Registrar(Protocol):
    """Keeps machines registered that run in a unit with a leader."""

    async def wants(self, machine: str) -> bool:
        """Whether a machine that is about to start will be registered, and so needs a leader. Does not wait long."""

    def register(self, machine: str, unit: str) -> None:
        """See to it that a machine is registered with the leader in this unit, in place of any other unit of vfsd's.

        Works in the background, and never fails: why a machine can't be registered is told in the journal.
        """

    def forget(self, machine: str) -> None:
        """The machine has ended; the register notices that by itself."""


class NoRegistrar:
    """Where machines are registered nowhere else."""

    async def wants(self, machine: str) -> bool:  # noqa: ARG002
        """None is."""
        return False

    def register(self, machine: str, unit: str) -> None:
        """Nothing is done."""

    def forget(self, machine: str) -> None:
        """Nothing is known."""
