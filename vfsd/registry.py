"""Who exists: all shares and machines of one vfsd, by name, and the operations that make or forget one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from vfsd import config, files, leftovers, names
from vfsd.context import Context
from vfsd.errors import (
    InvalidArgs,
    LimitsExceeded,
    MachineExists,
    NoSuchMachine,
    NoSuchShare,
    ShareExists,
    SourceNotFound,
    VfsdError,
)
from vfsd.journal import INFO, NOTICE, WARNING, MessageId
from vfsd.machine import Machine
from vfsd.model import MachineSpec, ShareSpec
from vfsd.share import Share
from vfsd.store import Definition, Kind
from vfsd.supervisor import UnitStatus

OBJECTS_MAX = 4096
"""Shares and machines that one owner can make over the bus: GetManagedObjects tells them all in one message."""

Options = Mapping[str, tuple[str, Any]]


class Registry:
    """Shares and machines by name. A machine's own shares stand among the shares too."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.shares: dict[str, Share] = {}
        self.machines: dict[str, Machine] = {}
        self._by_unit: dict[str, Share | Machine] = {}
        self._reserved: set[tuple[Kind, str]] = set()
        """Names whose objects are being made."""
        self._configuring = asyncio.Lock()
        self._owned: Counter[int] = Counter()
        """How many objects there are of each owner."""

    # finding

    def share(self, name: str) -> Share:
        """:raise NoSuchShare: none has that name."""
        try:
            return self.shares[name]
        except KeyError:
            raise NoSuchShare(f'there is no share "{name}"; ListShares tells which there are') from None

    def machine(self, name: str) -> Machine:
        """:raise NoSuchMachine: none has that name."""
        try:
            return self.machines[name]
        except KeyError:
            raise NoSuchMachine(f'there is no machine "{name}"; ListMachines tells which there are') from None

    # making and forgetting

    async def create_share(self, name: str, source: str, options: Options, owner: int) -> Share:
        """Define a share and start listening. :raise VfsdError: nothing is left behind."""
        spec = ShareSpec.from_options(name, source, self._context.scope, options)
        self._check_share_paths(name)
        self._check_room(owner, 1)
        self._reserve(Kind.SHARE, name)
        try:
            share = Share(self._context, spec, owner)
            await share.check()
            self._save(spec, owner)
            self._add_share(share, announce=False)
            try:
                await share.start()
            except BaseException:
                self._drop_share(share, announce=False)
                share.unlink()
                self._context.forget(Kind.SHARE, name)
                raise
            self._context.added(share)
        finally:
            self._reserved.discard((Kind.SHARE, name))
        return share

    async def create_machine(self, name: str, options: Options, owner: int) -> Machine:
        """Define a machine. :raise VfsdError: nothing is left behind."""
        spec = MachineSpec.from_options(name, self._context.scope, options)
        wanted = [spec.name, *(share.name for share in spec.shares)]
        for share in spec.shares:
            self._check_share_paths(share.name)
        self._check_machine_paths(name)
        self._check_room(owner, len(wanted))
        reserved: list[tuple[Kind, str]] = []
        try:
            for kind, item in zip([Kind.MACHINE, *[Kind.SHARE] * len(spec.shares)], wanted, strict=True):
                self._reserve(kind, item)
                reserved.append((kind, item))
            machine = Machine(self._context, spec, owner)
            for own in machine.own_shares:
                await own.check()
            self._save(spec, owner)
            self._add_machine(machine)
        finally:
            self._reserved.difference_update(reserved)
        return machine

    async def remove_share(self, share: Share) -> None:
        """Stop and forget a share. :raise ShareBusy, UnitFailed."""
        if share.configured:
            raise InvalidArgs(f'share "{share.name}" is defined by a file; remove that and call Reload')
        await share.remove()
        self._drop_share(share)

    async def remove_machine(self, machine: Machine) -> None:
        """Forget a machine and its own shares. :raise WrongState."""
        if machine.configured:
            raise InvalidArgs(f'machine "{machine.name}" is defined by a file; remove that and call Reload')
        await machine.remove()
        self._drop_machine(machine)

    async def attach_share(self, machine: Machine, name: str, options: Options) -> None:
        """Attach a share to a machine that does not run. :raise VfsdError: see the interface."""
        await machine.attach_share(self.share(name), options)

    async def detach_share(self, machine: Machine, name: str) -> None:
        """Detach a share from a machine that does not run. :raise VfsdError: see the interface."""
        share = await machine.detach_share(name)
        if share.owned:
            self._drop_share(share)

    # coming up, and reading the configuration again

    async def adopt(self) -> None:
        """Find everything again, from the definitions and from systemd. Starts and stops nothing."""
        self._context.supervisor.watcher = self._unit_changed
        removing = []
        for definition in self._context.store.load(self._bad_file):
            thing = self._adopt_definition(definition)
            if thing is not None and thing.memory.removing:
                removing.append(thing)
        await self.read_configuration()
        for machine in self.machines.values():
            for name in machine.spec.attached:
                if name in self.shares and self.shares[name].machine is None:
                    self.shares[name].machine = machine
                    machine.attached.append(self.shares[name])
        await asyncio.gather(*(machine.adopt() for machine in self.machines.values()))
        for share in self.shares.values():
            if not share.in_use:
                share.adopt()
        for thing in removing:
            await self._finish_removing(thing)
        leftovers.sweep(self._context, self.shares, self.machines)
        if self.shares or self.machines:
            told = f"Found {len(self.shares)} shares and {len(self.machines)} machines again"
            self._context.journal.write(MessageId.ADOPTED, INFO, told)

    async def begin(self) -> None:
        """Start what ought to run and does not: shares that stand alone and, after a boot or the start of the user's
        systemd, machines with Autostart."""
        await self._context.sources.begin()
        await self._listen_alone()
        for machine in self.machines.values():
            if machine.memory.restart and machine.state.idle:
                self._context.spawn(self._autostart(machine))
        life = self._context.supervisor.life
        if not self._has_begun(life):
            wanted = [
                machine for machine in self.machines.values() if machine.spec.autostart and machine.state.idle
            ]
            await asyncio.gather(*(self._autostart(machine) for machine in wanted))
            with contextlib.suppress(OSError):  # it is full: at the next start they are looked at again
                # last: a vfsd that is killed before begins anew
                files.replace(self._context.paths.begun, life, sync=False)

    async def reload(self) -> None:
        """Read the configuration folders again; what runs is not touched, and no machine started."""
        await self.read_configuration()
        await self._listen_alone()
        await self.examine()

    async def examine(self) -> None:
        """Find out which machines a Refresh would change; shares without a client need none."""
        await asyncio.gather(*(machine.examine() for machine in self.machines.values() if machine.live))
        for share in list(self.shares.values()):
            await share.follow_virtiofsd()

    async def read_configuration(self) -> None:
        """Make objects of what the configuration folders define, and forget idle ones whose file is gone."""
        async with self._configuring:
            shares, machines = await asyncio.to_thread(self._load_configuration)
            for path, spec in shares:
                await self._try_file(path, self._configure_share(spec))
            for path, machine_spec in machines:
                await self._try_file(path, self._configure_machine(machine_spec))
            defined = {spec.name for _, spec in shares}
            for share in [s for s in self.shares.values() if s.configured and s.name not in defined]:
                if await share.retire():
                    self._context.forget(Kind.SHARE, share.name)
                    self._drop_share(share)
            defined = {spec.name for _, spec in machines}
            for machine in [m for m in self.machines.values() if m.configured and m.name not in defined]:
                if machine.state.idle:
                    await machine.forget()
                    self._drop_machine(machine)

    # inner workings

    def _has_begun(self, life: str) -> bool:
        """Whether the machines with Autostart were started already in this life of systemd's."""
        try:
            return files.read_text(self._context.paths.begun) in (life, "")
        except (OSError, UnicodeDecodeError):
            return False

    async def _listen_alone(self) -> None:
        alone = [share for share in self.shares.values() if not (share.owned or share.in_use)]
        await asyncio.gather(*(share.listen_again() for share in alone))

    def _load_configuration(self) -> tuple[list[tuple[Path, ShareSpec]], list[tuple[Path, MachineSpec]]]:
        context = self._context
        folders = context.paths.config
        return (
            list(config.load_shares(folders, context.scope, self._bad_file)),
            list(config.load_machines(folders, context.scope, self._bad_file)),
        )

    async def _try_file(self, path: Path, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except VfsdError as error:
            self._bad_file(path, str(error))

    async def _configure_share(self, spec: ShareSpec) -> None:
        """:raise VfsdError: the file can't be used."""
        self._check_share_paths(spec.name)
        known = self.shares.get(spec.name)
        if known is not None and not known.configured:
            raise _exists(Kind.SHARE, spec.name)
        spec = dataclasses.replace(spec, persistent=True)
        if known is not None and known.spec.source == spec.source:
            known.configure(spec)
            return
        if known is not None:
            # what never changes on the bus has changed: for the bus it is another share
            if not await known.retire():
                return
            self._drop_share(known)
        share = Share(self._context, spec, os.getuid())
        share.configured = True
        self._add_share(share)

    async def _configure_machine(self, spec: MachineSpec) -> None:
        """:raise VfsdError: the file can't be used."""
        self._check_machine_paths(spec.name)
        known = self.machines.get(spec.name)
        if known is not None and not known.configured:
            raise _exists(Kind.MACHINE, spec.name)
        for own in spec.shares:
            self._check_share_paths(own.name)
            taken = self.shares.get(own.name)
            if taken is not None and not (taken.owned and taken.machine is known):
                raise _exists(Kind.SHARE, own.name)
        spec = dataclasses.replace(spec, persistent=True)
        if known is not None:
            if not known.state.idle:
                known.reconfigure(spec)
                return
            if known.spec == spec or known.suspended:
                return
            for share in known.attached:
                share.attach(None)
            for share in known.own_shares:
                share.unlink()
            self._drop_machine(known)
        machine = Machine(self._context, spec, os.getuid())
        machine.configured = True
        self._add_machine(machine)

    def _adopt_definition(self, definition: Definition) -> Share | Machine | None:
        spec, context = definition.spec, self._context
        if isinstance(spec, ShareSpec):
            if spec.name in self.shares:
                return None
            share = Share(context, spec, definition.owner)
            self._add_share(share)
            return share
        if spec.name in self.machines or any(own.name in self.shares for own in spec.shares):
            return None
        machine = Machine(context, spec, definition.owner)
        self._add_machine(machine)
        return machine

    async def _finish_removing(self, thing: Share | Machine) -> None:
        """Complete a removal in whose middle vfsd was killed."""
        try:
            if isinstance(thing, Share):
                await self.remove_share(thing)
            else:
                await self.remove_machine(thing)
        except (VfsdError, OSError) as error:
            self._context.journal.write(MessageId.REFUSED, WARNING, str(error))

    async def _autostart(self, machine: Machine) -> None:
        try:
            await (machine.thaw() if machine.suspended else machine.start())
        except (VfsdError, OSError) as error:
            text = f'machine "{machine.name}" was not started automatically: {error}'
            self._context.journal.write(
                MessageId.MACHINE_FAILED, WARNING, text, unit=machine.unit, machine=machine.name
            )
            if isinstance(error, SourceNotFound):
                machine.remember(restart=True)  # once it is there

    def _save(self, spec: ShareSpec | MachineSpec, owner: int) -> None:
        self._context.store.save(Definition(spec, owner))

    def _check_room(self, owner: int, more: int) -> None:
        if self._owned[owner] + len(self._reserved) + more > OBJECTS_MAX:
            raise LimitsExceeded(
                f"user {owner} has {self._owned[owner]} shares and machines; {OBJECTS_MAX} are the most, so remove some"
            )

    def _reserve(self, kind: Kind, name: str) -> None:
        taken = name in (self.shares if kind is Kind.SHARE else self.machines)
        if taken or (kind, name) in self._reserved:
            raise _exists(kind, name)
        self._reserved.add((kind, name))

    def _check_share_paths(self, name: str) -> None:
        _check_socket_path(name, self._context.paths.share_socket(name))

    def _check_machine_paths(self, name: str) -> None:
        _check_socket_path(name, self._context.paths.machine(name).stop_monitor)

    def _add_share(self, share: Share, *, announce: bool = True) -> None:
        self.shares[share.name] = share
        self._owned[share.owner] += 1
        for unit in names.share_units(share.name):
            self._by_unit[unit] = share
        self._context.sources.follow(share)
        if announce:
            self._context.added(share)

    def _drop_share(self, share: Share, *, announce: bool = True) -> None:
        if self.shares.pop(share.name, None) is not None:
            self._owned[share.owner] -= 1
        self._context.sources.leave(share)
        for unit in names.share_units(share.name):
            self._by_unit.pop(unit, None)
        if announce:
            self._context.removed(share)

    def _add_machine(self, machine: Machine) -> None:
        self.machines[machine.name] = machine
        self._owned[machine.owner] += 1
        for unit in names.machine_units(machine.name):
            self._by_unit[unit] = machine
        for share in machine.own_shares:
            self._add_share(share)
        self._context.added(machine)

    def _drop_machine(self, machine: Machine) -> None:
        for share in machine.own_shares:
            self._drop_share(share)
        if self.machines.pop(machine.name, None) is not None:
            self._owned[machine.owner] -= 1
        for unit in names.machine_units(machine.name):
            self._by_unit.pop(unit, None)
        self._context.removed(machine)

    def _unit_changed(self, unit: str, status: UnitStatus) -> None:
        thing = self._by_unit.get(unit)
        if thing is not None:
            thing.unit_changed(unit, status)

    def _bad_file(self, path: Path, reason: str) -> None:
        text = f"{path} can't be used: {reason}"
        self._context.journal.write(MessageId.BAD_FILE, NOTICE, text, file=path, reason=reason)


def _check_socket_path(name: str, path: Path) -> None:
    if len(str(path).encode()) > names.SOCKET_PATH_MAX:
        raise InvalidArgs(f'"{name}" is too long for the path of a socket; use a shorter name')


def _exists(kind: Kind, name: str) -> VfsdError:
    error = ShareExists if kind is Kind.SHARE else MachineExists
    return error(f'there is a {kind} "{name}" already; choose another name, or remove that one')
