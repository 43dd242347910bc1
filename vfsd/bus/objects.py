"""vfsd's objects on the bus. They translate, and hold no logic."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dbus_next import Variant

import vfsd
from vfsd import names, open_files
from vfsd.bus.authorisation import About, plain_source
from vfsd.bus.callers import Caller
from vfsd.bus.interface import Interface
from vfsd.bus.tree import Tree
from vfsd.bus.wire import PropertyValue
from vfsd.context import Context, Thing
from vfsd.errors import NotSupported, without_path
from vfsd.machine import Machine
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS
from vfsd.open_files import Use
from vfsd.registry import Registry
from vfsd.share import Share

_OF_PROPERTIES = ("Get", "Set")

Handler = Callable[..., Awaitable[list[Any] | None]]


def typed(options: Mapping[str, Variant]) -> dict[str, tuple[str, Any]]:
    """Options as the domain takes them: signature and value by name, nested ones too."""
    return {name: (value.signature, _plain(value.value)) for name, value in options.items()}


def _plain(value: Any) -> Any:
    """A value without D-Bus's variants: a dictionary of them becomes one of (signature, value)."""
    if isinstance(value, dict):
        return typed(value) if all(isinstance(item, Variant) for item in value.values()) else value
    return [_plain(item) for item in value] if isinstance(value, list) else value


def path_of(thing: Thing) -> str:
    """Where an object is shown."""
    return names.share_path(thing.name) if isinstance(thing, Share) else names.machine_path(thing.name)


def _only_source(shares: Variant | None) -> str:
    """The source of a machine's own share, if it is to have one; rules can't decide on several."""
    match shares:
        case Variant(signature="a(ssa{sv})", value=[[source, _, _]]):
            return plain_source(source)
    return ""


def _public(scope: names.Scope, thing: Thing, text: str) -> str:
    """A text as everybody may read it: on the system bus, where others listen, without the sources of shares."""
    if scope is names.Scope.SYSTEM and text:
        for share in [thing] if isinstance(thing, Share) else thing.shares:
            source = share.spec.source
            text = without_path(text, source).replace(f'"{source}"', "the source")
    return text


class ShareObject:
    """A share on the bus."""

    def __init__(self, interface: Interface, scope: names.Scope, registry: Registry, share: Share) -> None:
        self.interface = interface
        self._scope = scope
        self.path = names.share_path(share.name)
        self._share = share
        self._methods: dict[str, Handler] = {
            "Start": share.start,
            "Stop": share.stop,
            "Remove": lambda: registry.remove_share(share),
            "GetSpace": share.space,
        }

    def values(self) -> dict[str, PropertyValue]:
        share = self._share
        machine = names.machine_path(share.machine.name) if share.machine else "/"
        return {
            "Name": ("s", share.name),
            "State": ("s", share.state.value),
            "Reason": ("s", _public(self._scope, share, share.reason)),
            "Source": ("s", share.spec.source),
            "SocketPath": ("s", str(share.socket_path)),
            "SocketUnit": ("s", share.socket_unit),
            "ServiceUnit": ("s", share.service_unit),
            "Machine": ("o", machine),
            "MountedAt": ("s", share.mounted_at),
            "GuestOptions": ("s", share.guest_options),
            "Owner": ("u", share.owner),
            "MainPID": ("u", share.main_pid),
            "Restarts": ("u", share.restarts),
            "StateChangedUSec": ("t", share.state_changed_usec),
            "Persistent": ("b", share.spec.persistent),
            **{
                name: (option.signature, option.to_dbus(share.spec)) for name, option in SHARE_OPTIONS.items()
            },
        }

    def looked_up(self) -> dict[str, PropertyValue]:
        share = self._share
        found = open_files.count(share.main_pid) if share.main_pid else 0
        return {"OpenFiles": ("u", share.open_files if found is None else found)}

    def about(self, member: str, arguments: list[Any]) -> About:
        share = self._share
        changed = arguments[0] if member in _OF_PROPERTIES and arguments else ""
        return About("share", share.name, member, plain_source(share.spec.source), property=changed)

    async def call(self, member: str, arguments: list[Any], caller: Caller, *, sees_all: bool) -> list[Any]:  # noqa: ARG002
        return await self._methods[member](*arguments) or []

    async def set(self, name: str, value: PropertyValue) -> None:
        await self._share.set_option(name, *value)


class MachineObject:
    """A machine on the bus."""

    def __init__(
        self, interface: Interface, scope: names.Scope, registry: Registry, machine: Machine
    ) -> None:
        self.interface = interface
        self._scope = scope
        self.path = names.machine_path(machine.name)
        self._machine = machine
        self._registry = registry
        self._methods: dict[str, Handler] = {
            "Start": machine.start,
            "Shutdown": machine.shutdown,
            "Kill": machine.kill,
            "Pause": machine.pause,
            "Resume": machine.resume,
            "Reset": machine.reset,
            "Remove": lambda: registry.remove_machine(machine),
            "AttachShare": lambda share, options: registry.attach_share(machine, share, typed(options)),
            "DetachShare": lambda share: registry.detach_share(machine, share),
            "OpenConsole": self._open_console,
            "Refresh": machine.refresh,
            "Execute": lambda arguments, options: machine.execute(arguments, typed(options)),
            "QueryGuest": machine.query_guest,
            "Suspend": machine.suspend,
            "Thaw": machine.thaw,
        }

    def values(self) -> dict[str, PropertyValue]:
        machine = self._machine
        return {
            "Name": ("s", machine.name),
            "State": ("s", machine.state.value),
            "Reason": ("s", _public(self._scope, machine, machine.reason)),
            "Unit": ("s", machine.unit),
            "Slice": ("s", machine.slice),
            "Owner": ("u", machine.owner),
            "MainPID": ("u", machine.main_pid),
            "Shares": ("ao", [names.share_path(share.name) for share in machine.shares]),
            "Degraded": ("b", machine.degraded),
            "GuestReady": ("b", machine.guest_ready),
            "GuestSystem": ("s", machine.inside.system),
            "NeedsRefresh": ("b", machine.needs_refresh),
            "RefreshDowntimeUSec": ("t", machine.refresh_downtime_usec),
            "Suspended": ("b", machine.suspended),
            "SSHAddress": ("s", machine.ssh_reached_at),
            "ConsolePath": ("s", machine.console_path),
            "DisplayPath": ("s", machine.display_path),
            "AcceleratorInUse": ("s", machine.accelerator),
            "StateChangedUSec": ("t", machine.state_changed_usec),
            "Persistent": ("b", machine.spec.persistent),
            **{
                name: (option.signature, option.shown(machine.spec))
                for name, option in MACHINE_OPTIONS.items()
            },
        }

    def looked_up(self) -> dict[str, PropertyValue]:
        return {}

    def about(self, member: str, arguments: list[Any]) -> About:
        name = self._machine.name
        if member in ("AttachShare", "DetachShare"):
            share = self._registry.share(arguments[0])
            return About("machine", name, member, plain_source(share.spec.source), share.name)
        changed = arguments[0] if member in _OF_PROPERTIES and arguments else ""
        return About("machine", name, member, property=changed)

    async def call(self, member: str, arguments: list[Any], caller: Caller, *, sees_all: bool) -> list[Any]:  # noqa: ARG002
        return await self._methods[member](*arguments) or []

    async def set(self, name: str, value: PropertyValue) -> None:
        await self._machine.set_option(name, *value)

    async def _open_console(self) -> list[Any]:
        return [await self._machine.open_console()]


class ManagerObject:
    """The root object."""

    path = names.ROOT_PATH

    def __init__(self, interface: Interface, context: Context, registry: Registry) -> None:
        self.interface = interface
        self._context = context
        self._registry = registry
        self._checking = asyncio.Lock()
        self._methods: dict[str, Handler] = {
            "CreateShare": self._create_share,
            "CreateMachine": self._create_machine,
            "GetShare": self._get_share,
            "GetMachine": self._get_machine,
            "ListShares": self._list_shares,
            "ListMachines": self._list_machines,
            "StartMachine": self._start_machine,
            "ShutdownMachine": self._shutdown_machine,
            "KillMachine": self._kill_machine,
            "RemoveShare": self._remove_share,
            "RemoveMachine": self._remove_machine,
            "Check": self._check,
            "Reload": self._reload,
        }

    def values(self) -> dict[str, PropertyValue]:
        versions = self._context.host.versions
        return {
            "Version": ("s", vfsd.__version__),
            "QemuVersion": ("s", versions.qemu),
            "VirtiofsdVersion": ("s", versions.virtiofsd),
            "Scope": ("s", self._context.scope.value),
        }

    def looked_up(self) -> dict[str, PropertyValue]:
        return {}

    def about(self, member: str, arguments: list[Any]) -> About:
        match member:
            case "CreateShare":
                name, source, _ = arguments
                known = name if names.is_share_name(name) else ""
                return About("share", known, member, plain_source(source))
            case "CreateMachine":
                name, options = arguments
                known = name if names.is_machine_name(name) else ""
                return About("machine", known, member, _only_source(options.get("Shares")))
            case "RemoveShare":
                share = self._registry.share(arguments[0])
                return About("share", share.name, "Remove", plain_source(share.spec.source))
            case "StartMachine" | "ShutdownMachine" | "KillMachine" | "RemoveMachine":
                machine = self._registry.machine(arguments[0])
                return About("machine", machine.name, member.removesuffix("Machine"))
        return About(verb=member)

    async def call(self, member: str, arguments: list[Any], caller: Caller, *, sees_all: bool) -> list[Any]:
        match member:
            case "CreateShare" | "CreateMachine":
                arguments = [*arguments, caller.uid]
            case "ListShares":
                arguments = [caller.uid, sees_all]
        return await self._methods[member](*arguments) or []

    async def set(self, name: str, value: PropertyValue) -> None:  # noqa: ARG002
        raise NotSupported(f"{name} can't be set")

    async def _create_share(
        self, name: str, source: str, options: dict[str, Variant], owner: int
    ) -> list[Any]:
        share = await self._registry.create_share(name, source, typed(options), owner)
        return [path_of(share)]

    async def _create_machine(self, name: str, options: dict[str, Variant], owner: int) -> list[Any]:
        machine = await self._registry.create_machine(name, typed(options), owner)
        return [path_of(machine)]

    async def _get_share(self, name: str) -> list[Any]:
        return [path_of(self._registry.share(name))]

    async def _get_machine(self, name: str) -> list[Any]:
        return [path_of(self._registry.machine(name))]

    async def _list_shares(self, uid: int, sees_all: bool) -> list[Any]:
        rows = []
        for name, share in sorted(self._registry.shares.items()):
            source = share.spec.source if sees_all or share.owner == uid else ""
            rows.append([name, share.state.value, source, path_of(share)])
        return [rows]

    async def _list_machines(self) -> list[Any]:
        machines = sorted(self._registry.machines.items())
        return [[[name, machine.state.value, path_of(machine)] for name, machine in machines]]

    async def _start_machine(self, name: str) -> None:
        await self._registry.machine(name).start()

    async def _shutdown_machine(self, name: str) -> None:
        await self._registry.machine(name).shutdown(0)

    async def _kill_machine(self, name: str) -> None:
        await self._registry.machine(name).kill()

    async def _remove_share(self, name: str) -> None:
        await self._registry.remove_share(self._registry.share(name))

    async def _remove_machine(self, name: str) -> None:
        await self._registry.remove_machine(self._registry.machine(name))

    async def _check(self) -> list[Any]:
        from vfsd.prerequisites import run_checks  # noqa: PLC0415  # not needed to come up

        async with self._checking:
            results = await asyncio.to_thread(run_checks, self._context.scope.value)
        return [[[r.id, r.status.value, r.found, r.required, r.remedy] for r in results]]

    async def _reload(self) -> None:
        await self._registry.reload()


class BusView:
    """Shows a registry on the bus; a listener of the context."""

    def __init__(
        self,
        interfaces: Mapping[str, Interface],
        scope: names.Scope,
        tree: Tree,
        registry: Registry,
    ) -> None:
        self._scope = scope
        self._interfaces = interfaces
        self._tree = tree
        self._registry = registry
        tree.add_folder(names.SHARE_ROOT)
        tree.add_folder(names.MACHINE_ROOT)
        for share in registry.shares.values():
            tree.add(self._object(share), announce=False)
        for machine in registry.machines.values():
            tree.add(self._object(machine), announce=False)

    def added(self, thing: Thing) -> None:
        self._tree.add(self._object(thing))

    def removed(self, thing: Thing) -> None:
        self._tree.remove(path_of(thing))

    def changed(self, thing: Thing) -> None:
        self._tree.changed(path_of(thing))

    def state_changed(self, thing: Thing, old: str, new: str, reason: str) -> None:
        self._tree.signal(
            path_of(thing), "StateChanged", str(old), str(new), _public(self._scope, thing, reason)
        )

    def files_running_out(self, share: Share, use: Use) -> None:
        self._tree.signal(path_of(share), "FilesRunningOut", use.open, use.limit)

    def _object(self, thing: Thing) -> ShareObject | MachineObject:
        if isinstance(thing, Share):
            return ShareObject(self._interfaces[names.SHARE_INTERFACE], self._scope, self._registry, thing)
        return MachineObject(self._interfaces[names.MACHINE_INTERFACE], self._scope, self._registry, thing)
