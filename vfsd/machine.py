"""One machine: its definition and its shares, and what can be done with it; its life is the Lifecycle's."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfsd.console import Console
from vfsd.context import Context
from vfsd.errors import (
    InvalidArgs,
    MonitorFailed,
    NoSuchMachine,
    NoSuchShare,
    NotSupported,
    ShareBusy,
    WrongState,
)
from vfsd.lifecycle import Lifecycle
from vfsd.model import MachineSpec, MachineState, ShareSpec
from vfsd.share import Share
from vfsd.store import Definition, Kind


class Machine(Lifecycle):
    """A machine and the shares that belong to it or are attached to it."""

    def __init__(self, context: Context, spec: MachineSpec, owner: int) -> None:
        super().__init__(context, spec, owner)
        self.own_shares = [Share(context, share, owner, self) for share in spec.shares]
        self.console = Console(context, spec.name, self._qemu.execute)
        self.configured = False
        """Whether a file in a configuration folder defines it."""

    # operations

    async def pause(self) -> None:
        """Stop the guest's processors. :raise WrongState, MonitorFailed."""
        async with self._turns.take():
            self._require(MachineState.RUNNING, "paused")
            await self._execute("stop")
            self._set_live_state(MachineState.PAUSED)

    async def resume(self) -> None:
        """Let the guest's processors go on. :raise WrongState, MonitorFailed."""
        async with self._turns.take():
            self._require(MachineState.PAUSED, "resumed")
            await self._execute("cont")
            self._set_live_state(MachineState.RUNNING)

    async def reset(self) -> None:
        """Reset the guest. :raise WrongState, MonitorFailed."""
        async with self._turns.take():
            self._require_live("reset")
            await self._execute("system_reset")

    async def open_console(self) -> int:
        """A descriptor of the guest's console, which is the caller's. Waits for a start, for nothing else.

        :raise WrongState, NotSupported, LimitsExceeded, MonitorFailed.
        """
        if self.state is MachineState.STARTING:
            async with self._turns.take():
                pass
        if self.state.idle:
            raise WrongState(
                f'machine "{self.name}" is {self.state}; only one that runs has a console, so start it first'
            )
        if not self.console_path:
            raise NotSupported(
                f'the QEMU of machine "{self.name}" is older than 10.0 and shares its console with nobody; '
                "read it in the journal"
            )
        return await self.console.open()

    async def remove(self) -> None:
        """Forget the definition; the registry forgets the object. :raise WrongState."""
        async with self._turns.take():
            if not self.state.idle:
                raise WrongState(f'machine "{self.name}" is {self.state}; shut it down or kill it first')
            self._remember(removing=True)
            await self.forget()
            self._turns.close(NoSuchMachine(f'machine "{self.name}" was removed meanwhile'))

    async def forget(self) -> None:
        """Take away everything that was kept for the machine."""
        for share in self.attached:
            share.attach(None)
        for share in self.own_shares:
            share.unlink()
        paths = self._context.paths
        for folder in (paths.machine(self.name).folder, paths.machine_state(self.name)):
            await asyncio.to_thread(_remove_folder, folder)
        self._context.store.remove(
            Kind.MACHINE, self.name
        )  # last: what was begun before is ended after a kill

    async def set_option(self, dbus_name: str, signature: str, value: Any) -> None:
        """Change an option. :raise VfsdError: malformed, or the machine runs."""
        async with self._turns.take():
            self._require_idle(f"set {dbus_name}")
            self._change(self.spec.with_option(dbus_name, signature, value))

    async def attach_share(self, share: Share, options: Mapping[str, tuple[str, Any]]) -> None:
        """Attach a share that belongs to no machine. :raise VfsdError: see the interface."""
        async with self._turns.take():
            if not self.state.idle:
                raise NotSupported(
                    f'machine "{self.name}" is {self.state}; shares can be attached while it is stopped'
                )
            if share.machine is not None:
                raise ShareBusy(
                    f'share "{share.name}" is attached to machine "{share.machine.name}"; detach it there'
                )
            unknown = set(options) - {"MountPoint"}
            if unknown:
                raise InvalidArgs(
                    f'"{min(unknown)}" is no option here; only MountPoint is, set others on the share'
                )
            self.check_tag(share.spec.tag)
            if "MountPoint" in options:
                spec = share.spec.with_option("MountPoint", *options["MountPoint"])
                share.spec = spec
                share.save()
            self._change(dataclasses.replace(self.spec, attached=(*self.spec.attached, share.name)))
            self.attached.append(share)
            share.attach(self)
            self._changed()

    async def detach_share(self, name: str) -> Share:
        """Detach a share and return it; one of the machine's own is to be removed by the registry."""
        async with self._turns.take():
            share = next((share for share in self.shares if name in (share.name, share.spec.tag)), None)
            if share is None:
                raise NoSuchShare(f'machine "{self.name}" has no share "{name}"; its Shares are listed there')
            if not self.state.idle:
                raise NotSupported(
                    f'machine "{self.name}" is {self.state}; shares can be detached while it is stopped'
                )
            if self.spec.root_share in (share.name, share.spec.tag):
                raise InvalidArgs(
                    f'machine "{self.name}" boots from share "{share.name}"; set another RootShare first'
                )
            if share in self.own_shares:
                kept = tuple(spec for spec in self.spec.shares if spec.name != share.name)
                self._change(dataclasses.replace(self.spec, shares=kept))
                self.own_shares.remove(share)
                share.unlink()
            else:
                kept_names = tuple(other for other in self.spec.attached if other != share.name)
                self._change(dataclasses.replace(self.spec, attached=kept_names))
                self.attached.remove(share)
                share.attach(None)
            self._changed()
            return share

    # for its shares

    def check_tag(self, tag: str, besides: str = "") -> None:
        """:raise InvalidArgs: another share of the machine has the tag."""
        taken = next(
            (share for share in self.shares if share.spec.tag == tag and share.name != besides), None
        )
        if taken is not None:
            raise InvalidArgs(
                f'tag "{tag}" is that of share "{taken.name}" on machine "{self.name}"; set another Tag'
            )

    def own_share_changed(self, spec: ShareSpec) -> None:
        """Keep the changed definition of one of the machine's own shares."""
        shares = tuple(spec if share.name == spec.name else share for share in self.spec.shares)
        self._change(dataclasses.replace(self.spec, shares=shares))

    # inner workings

    def _changed(self) -> None:
        self._context.changed(self)

    def _state_changed(self, old: MachineState, new: MachineState, reason: str) -> None:
        if new is MachineState.STARTING:
            self.console.forget()
        elif new.idle:
            self.console.ended()
        self._context.state_changed(self, old, new, reason)

    async def _execute(self, command: str) -> None:
        try:
            await self._qemu.execute(command)
        except MonitorFailed as error:
            log = self._context.scope.hint("journalctl", f"-u {self.unit}")
            raise MonitorFailed(f'machine "{self.name}": {error}; see {log}') from None

    def _change(self, spec: MachineSpec) -> None:
        """Keep a changed definition. :raise OSError: it can't be written, and nothing changed."""
        if not self.configured:
            self._context.store.save(Definition(spec, self.owner))
        self.spec = spec
        self._changed()

    def _require(self, state: MachineState, what: str) -> None:
        if self.state is not state:
            raise WrongState(f'machine "{self.name}" is {self.state}; only one that is {state} can be {what}')

    def _require_idle(self, what: str) -> None:
        if not self.state.idle:
            raise WrongState(f'machine "{self.name}" is {self.state}; shut it down to {what}')


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
