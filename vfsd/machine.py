"""One machine: its definition and its shares, and what can be done with it; its life is the Lifecycle's."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfsd import hotplug, refresh
from vfsd.adoption import Adoption
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
from vfsd.healing import Healer
from vfsd.limits import LIMITS
from vfsd.model import SHARES_MAX, USEC_PER_SEC, MachineSpec, MachineState, ShareSpec
from vfsd.options import check_text, require
from vfsd.outdated import is_outdated
from vfsd.serving import Serving
from vfsd.share import Share
from vfsd.store import Definition, Kind

_MOUNT_OPTIONS = ("MountPoint", "MountOptions")
"""What can be said of a share when it is attached."""


_EXECUTE_OPTIONS = {"Input": "ay", "Environment": "as", "TimeoutUSec": "t"}
INPUT_MAX = 1 << 20
"""Bytes of a program's standard input: the agent takes them in one piece."""
EXECUTE_TIMEOUT_USEC = 20 * USEC_PER_SEC
"""How long a program may run in the guest, unless it is told otherwise: less than a D-Bus client waits."""

_REBOOTED = "the guest rebooted"


class Machine(Adoption):
    """A machine and the shares that belong to it or are attached to it."""

    def __init__(self, context: Context, spec: MachineSpec, owner: int) -> None:
        super().__init__(context, spec, owner)
        self.own_shares = [Share(context, share, owner, self) for share in spec.shares]
        self.console = Console(context, spec.name, lambda: self.paths, self.qemu.execute)
        self._healer = Healer(context, self)
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

    async def refresh(self) -> None:
        """Replace QEMU and every virtiofsd under the running guest. :raise VfsdError: see the interface."""
        async with self._turns.take():
            self._require_live("refreshed")
            await refresh.refresh(self._context, self)
            self.console.moved()
            self._context.spawn(self.inside.touch_shares())
            await self.examine()

    async def examine(self) -> None:
        """Find out whether a Refresh would change anything."""
        self.needs_refresh = self.live and await is_outdated(self._context, self)
        self._changed()

    def reconfigure(self, spec: MachineSpec) -> None:
        """Note what changed of the definitions of its shares while it runs, as far as a Refresh can apply it."""
        wanted = {share.name: share for share in spec.shares}
        for share in self.own_shares:
            if share.name in wanted:
                share.configure(wanted[share.name])

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
            self._context.store.check_removable(Kind.MACHINE, self.name)
            self._remember(removing=True)
            await self.forget()
            self._turns.close(NoSuchMachine(f'machine "{self.name}" was removed meanwhile'))

    async def forget(self) -> None:
        """Take away everything that was kept for the machine."""
        for share in self.attached:
            share.attach(None)
        for share in self.own_shares:
            share.unlink()
        for folder in (self.paths.folder, self._context.paths.machine_state(self.name)):
            await asyncio.to_thread(_remove_folder, folder)
        self._context.forget(Kind.MACHINE, self.name)  # last: what was begun before is ended after a kill

    def save(self) -> None:
        """Write the definition. :raise NotWritten."""
        if not self.configured:
            self._context.store.save(Definition(self.spec, self.owner))

    async def set_option(self, dbus_name: str, signature: str, value: Any) -> None:
        """Change an option; of a machine that runs a limit only. :raise VfsdError: malformed, or the machine runs."""
        async with self._turns.take():
            if dbus_name not in LIMITS:
                self._require_idle(f"set {dbus_name}")
            spec = self.spec.with_option(dbus_name, signature, value)
            if dbus_name in LIMITS and self._context.supervisor.status(self.slice).runs:
                await self._context.limit(self.slice, dbus_name, spec, f'machine "{self.name}"')
            self._change(spec)

    async def attach_share(self, share: Share, options: Mapping[str, tuple[str, Any]]) -> None:
        """Attach a share that belongs to no machine. :raise VfsdError: see the interface."""
        async with self._turns.take():
            self._require_not_suspended("give it a share")
            if not self.state.idle:
                self._require(MachineState.RUNNING, "given a share")
            if share.machine is not None:
                raise ShareBusy(
                    f'share "{share.name}" is attached to machine "{share.machine.name}"; detach it there'
                )
            require(len(self.shares) < SHARES_MAX, f'machine "{self.name}" has {SHARES_MAX} shares already')
            before, spec = share.spec, _with_mount(share.spec, options)
            self.check_tag(spec.tag)
            share.spec = spec
            try:
                if self.live:
                    self._change(
                        self.spec
                    )  # rather than find that it can't be written when the guest has the device
                    await hotplug.attach(self._context, self, share)
                if spec != before:
                    share.save()
                self._change(dataclasses.replace(self.spec, attached=(*self.spec.attached, share.name)))
            except BaseException:
                share.spec = before
                raise
            self.attached.append(share)
            share.attach(self)
            self.inside.tell()
            if share.ails:
                self.share_changed(share)

    async def detach_share(self, name: str) -> Share:
        """Detach a share and return it; one of the machine's own is to be removed by the registry."""
        async with self._turns.take():
            share = next((share for share in self.shares if name in (share.name, share.spec.tag)), None)
            if share is None:
                raise NoSuchShare(f'machine "{self.name}" has no share "{name}"; its Shares are listed there')
            if self.spec.root_share in (share.name, share.spec.tag):
                raise InvalidArgs(
                    f'machine "{self.name}" boots from share "{share.name}"; set another RootShare first'
                )
            self._require_not_suspended("take a share from it")
            if not self.state.idle:
                self._require(MachineState.RUNNING, "relieved of a share")
                self._change(self.spec)
                await hotplug.detach(self, share)
            self._part(share)
            return share

    async def execute(self, arguments: list[str], options: Mapping[str, tuple[str, Any]]) -> list[Any]:
        """Run a program in the guest: exit code, output, errors. :raise VfsdError: see the interface."""
        self._require(MachineState.RUNNING, "told to run something")
        require(arguments, "there is nothing to run; name a program")
        for name, (signature, _) in options.items():
            wanted = _EXECUTE_OPTIONS.get(name)
            require(wanted == signature, f'"{name}" of type "{signature}" is no option of Execute')
        given = {name: value for name, (_, value) in options.items()}
        check_text("an argument", *arguments, *given.get("Environment", []))
        require(
            len(given.get("Input", b"")) <= INPUT_MAX,
            "Input has more than 1 MiB; put it into a shared directory instead",
        )
        done = await self.inside.execute(
            arguments,
            bytes(given.get("Input", b"")),
            given.get("Environment", []),
            given.get("TimeoutUSec", EXECUTE_TIMEOUT_USEC) / USEC_PER_SEC,
        )
        return [done.status, done.output, done.errors]

    async def query_guest(self) -> None:
        """Ask the guest's agent anew. :raise VfsdError: see the interface."""
        self._require(MachineState.RUNNING, "asked for its guest")
        await self.inside.query()

    # for its shares

    def share_changed(self, share: Serving) -> None:
        """A share began or ceased to fail; what OnShareFailure says is done."""
        super().share_changed(share)
        # one that is being attached is not yet known
        if (
            isinstance(share, Share)
            and share in self.shares
            and self.live
            and share.ails
            and not share.recovering
        ):
            self._healer.react(share)

    def source_is_back(self, share: Share) -> None:
        """What a share was served from is there again, or something else in its place."""
        if self.live and share in self.shares and not share.recovering:
            self._healer.source_is_back(share)
        elif self.state.idle and self.memory.restart:
            self._context.spawn(self._healer.start_again())

    async def adopt(self) -> None:
        """Take over the state in which systemd and QEMU have the machine, and care for what fails in it."""
        self.suffix = await refresh.settle(self._context, self)
        await super().adopt()
        if self.memory.restart and not self.state.idle:
            self._context.spawn(self._healer.start_again())
        if self.live:
            self._healer.go_on()
        for share in self.shares:
            if self.live and share.lost and not share.recovering:
                self._healer.react(share)

    def guest_resets(self, *, by_itself: bool) -> None:
        """The guest begins to boot again, because it wanted to, or because it was asked for."""
        if self.frozen:
            return
        self.readiness.reset()
        self._context.spawn(self._healer.guest_reboots())
        self.qemu_reports(_REBOOTED if by_itself else "it was reset on request")
        if by_itself and self.live and not self.degraded:
            self._set_state(self.state, _REBOOTED)

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

    def _part(self, share: Share) -> None:
        """Have a share no more."""
        if share in self.own_shares:
            kept = tuple(spec for spec in self.spec.shares if spec.name != share.name)
            self._change(dataclasses.replace(self.spec, shares=kept))
            self.own_shares.remove(share)
            share.unlink()
        else:
            names = tuple(other for other in self.spec.attached if other != share.name)
            self._change(dataclasses.replace(self.spec, attached=names))
            self.attached.remove(share)
            share.attach(None)
            self._context.spawn(share.listen_again())
        self._changed()

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
            await self.qemu.execute(command)
        except MonitorFailed as error:
            log = self._context.scope.hint("journalctl", f"-u {self.unit}")
            raise MonitorFailed(f'machine "{self.name}": {error}; see {log}') from None

    def _change(self, spec: MachineSpec) -> None:
        """Keep a changed definition. :raise NotWritten: nothing changed."""
        if not self.configured:
            self._context.store.save(Definition(spec, self.owner))
        self.spec = spec
        self._changed()

    def _require(self, state: MachineState, what: str) -> None:
        if self.state is not state:
            raise WrongState(f'machine "{self.name}" is {self.state}; only one that is {state} can be {what}')

    def _require_not_suspended(self, what: str) -> None:
        if self.suspended:
            raise WrongState(f'machine "{self.name}" is suspended; thaw it, or kill it, to {what}')

    def _require_idle(self, what: str) -> None:
        self._require_not_suspended(what)
        if not self.state.idle:
            raise WrongState(f'machine "{self.name}" is {self.state}; shut it down to {what}')


def _with_mount(spec: ShareSpec, options: Mapping[str, tuple[str, Any]]) -> ShareSpec:
    """A share's definition, with what was said of its mount when it was attached. :raise InvalidArgs."""
    for name, value in options.items():
        if name not in _MOUNT_OPTIONS:
            raise InvalidArgs(
                f'"{name}" is no option here; only {" and ".join(_MOUNT_OPTIONS)} are, set others on the share'
            )
        spec = spec.with_option(name, *value)
    return spec


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
