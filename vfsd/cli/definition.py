"""A share's or a machine's definition: from what the bus tells, and as the options that make it anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vfsd import document
from vfsd.cli.errors import CliError
from vfsd.cli.objects import SHARE, Kind, object_of
from vfsd.cli.values import Options, Typed
from vfsd.errors import VfsdError
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec, Sandbox, ShareSpec
from vfsd.names import Scope
from vfsd.options import Option

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client


class Known(NamedTuple):
    """A share or a machine as vfsd has it."""

    kind: Kind
    spec: ShareSpec | MachineSpec
    path: str
    state: str
    machine: str
    """That which has a share; "" if none has, and for a machine."""
    own: Mapping[str, str]
    """Object paths of a machine's own shares, by name."""
    attached: tuple[str, ...]
    """Names of a machine's other shares."""

    def text(self, scope: Scope) -> str:
        """Its definition as TOML."""
        return write(self.spec, scope)

    @property
    def secrets(self) -> list[str]:
        """Names of the credentials whose contents vfsd tells nobody."""
        return [name for name, _ in self.spec.credentials] if isinstance(self.spec, MachineSpec) else []


async def fetch(client: Client, kind: Kind, name: str, scope: Scope) -> Known:
    """:raise CallFailed: there is none. CliError: this user may not see what defines it."""
    found = await kind.show_all(client, name)
    path = await kind.path(client, name)
    state = str(found["State"])
    try:
        if kind is SHARE:
            spec = _share_spec(found, name, scope)
            return Known(kind, spec, path, state, object_of(found["Machine"])[1], {}, ())
        paths = {object_of(share)[1]: share for share in found["Shares"]}
        own = {share: path for share, path in paths.items() if share.startswith(f"{name}.")}
        shares = [_share_spec(await SHARE.show_all(client, share), share, scope) for share in own]
        machine = MachineSpec.from_options(name, scope, _options(MACHINE_OPTIONS, found, "Kernel", name))
        machine = dataclasses.replace(machine, persistent=found["Persistent"], shares=tuple(shares))
        return Known(kind, machine, path, state, "", own, tuple(share for share in paths if share not in own))
    except VfsdError as error:
        raise CliError(f"this vfsctl does not understand the definition of {name}: {error}") from None


def read(kind: Kind, text: str, name: str, scope: Scope) -> ShareSpec | MachineSpec:
    """:raise document.BadDocument: it defines no such thing."""
    return (document.read_share if kind is SHARE else document.read_machine)(text, name, scope)


def write(spec: ShareSpec | MachineSpec, scope: Scope) -> str:
    """A definition as TOML."""
    if isinstance(spec, ShareSpec):
        return document.write_share(spec, scope)
    return document.write_machine(spec, scope)


def share_options(spec: ShareSpec, scope: Scope) -> Options:
    """The options of CreateShare; those that have their default are left out."""
    default = ShareSpec(name=spec.name, source="/", sandbox=Sandbox.default(scope))
    return _changed(SHARE_OPTIONS, default, spec)


def machine_options(spec: MachineSpec, scope: Scope) -> Options:
    """The options of CreateMachine, its shares among them."""
    options = _changed(MACHINE_OPTIONS, MachineSpec(name=spec.name), spec)
    shares = [
        [share.source, "", share_options(share, scope) | {"Tag": Typed("s", share.tag)}]
        for share in spec.shares
    ]
    return options | ({"Shares": Typed("a(ssa{sv})", shares)} if shares else {})


async def create(client: Client, spec: ShareSpec | MachineSpec, scope: Scope, *, persistent: bool) -> str:
    """Make it, and return its object path. :raise CallFailed: it can't be made."""
    kept = {"Persistent": Typed("b", True)} if persistent else {}
    if isinstance(spec, ShareSpec):
        options = share_options(spec, scope) | kept
        (path,) = await client.manager("CreateShare", "ssa{sv}", spec.name, spec.source, options)
    else:
        options = machine_options(spec, scope) | kept
        (path,) = await client.manager("CreateMachine", "sa{sv}", spec.name, options)
    return str(path)


def _changed(table: Mapping[str, Option], before: object, after: object) -> Options:
    return {
        name: Typed(option.signature, option.to_dbus(after))
        for name, option in table.items()
        if option.to_dbus(after) != option.to_dbus(before)
    }


def _share_spec(found: Mapping[str, Any], name: str, scope: Scope) -> ShareSpec:
    options = _options(SHARE_OPTIONS, found, "Source", name)
    spec = ShareSpec.from_options(name, found["Source"], scope, options)
    return dataclasses.replace(spec, persistent=found["Persistent"])


def _options(
    table: Mapping[str, Option], found: Mapping[str, Any], key: str, name: str
) -> dict[str, tuple[str, Any]]:
    """What stands in a vfsd that is older than this vfsctl is less; what is hidden from this user is too little."""
    if key not in found:
        raise CliError(
            f"you may not see the definition of {name}",
            "its owner and root may; vfsd(8) tells who else can be let.",
        )
    return {item: (option.signature, found[item]) for item, option in table.items() if item in found}
