"""From the definition that is to the one that is wanted: which calls, in which order, and what must wait for a stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vfsd.cli import definition
from vfsd.cli.definition import Known
from vfsd.cli.errors import NO_SUCH_SHARE, CallFailed, CliError
from vfsd.cli.objects import MACHINE, SHARE, Kind
from vfsd.cli.values import Options, Typed
from vfsd.errors import InvalidArgs
from vfsd.limits import LIMITS
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec, ShareSpec
from vfsd.names import Scope, make_name
from vfsd.options import Option

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client

IDLE = ("stopped", "failed")


class Setting(NamedTuple):
    """One property to be set."""

    path: str
    kind: Kind
    option: str
    value: Typed
    about: str
    """As people read it."""
    waits: bool
    """Whether what is defined must be stopped for it."""


@dataclass
class Changes:
    """What is to be done."""

    settings: list[Setting] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    """A machine's own shares that go."""
    added: list[ShareSpec] = field(default_factory=list)
    """Shares that a machine is to have besides."""

    @property
    def waiting(self) -> list[str]:
        """What must wait for a stop."""
        return [setting.about for setting in self.settings if setting.waits]

    @property
    def done_now(self) -> list[str]:
        """What can be done at once."""
        return [
            *(setting.about for setting in self.settings if not setting.waits),
            *(f"without share {name}" for name in self.removed),
            *(f"with share {share.tag}" for share in self.added),
        ]


def changes(known: Known, wanted: ShareSpec | MachineSpec) -> Changes:
    """:raise CliError: the one can't become the other."""
    if isinstance(wanted, ShareSpec):
        assert isinstance(known.spec, ShareSpec)  # noqa: S101  # a share stays one
        if wanted.source != known.spec.source:
            raise CliError(
                f"the source of share {wanted.name} is {known.spec.source} as long as there is the share",
                f'put that back; "vfsctl share add" makes another share of {wanted.source}.',
            )
        # one that nobody is connected to can be stopped for a moment
        occupied = known.state in ("active", "stopping") or (
            known.state == "listening" and known.machine != ""
        )
        return Changes(_share_settings(known.path, known.spec, wanted, "", occupied))
    assert isinstance(known.spec, MachineSpec)  # noqa: S101  # a machine stays one
    return _machine_changes(known, known.spec, wanted)


def _machine_changes(known: Known, before: MachineSpec, wanted: MachineSpec) -> Changes:
    runs = known.state not in IDLE
    result = Changes()
    options = _changed(MACHINE_OPTIONS, before, dataclasses.replace(wanted, shares=()))
    # the order must be one in which each step is a machine that can be
    for option, value in _ordered(dataclasses.replace(before, shares=()), options):
        result.settings.append(
            Setting(known.path, MACHINE, option, value, option, runs and option not in LIMITS)
        )
    pairs = _pairs(before.shares, wanted.shares)
    for old, new in pairs:
        if new is None:
            result.removed.append(old.name)
        else:
            about = f"share {old.tag}: "
            result.settings += _share_settings(known.own[old.name], old, new, about, runs)
    kept = {id(new) for _, new in pairs}
    result.added = [share for share in wanted.shares if id(share) not in kept]
    return result


def _pairs(
    before: Sequence[ShareSpec], wanted: Sequence[ShareSpec]
) -> list[tuple[ShareSpec, ShareSpec | None]]:
    """Each share that there is, and what becomes of it: it has the same directory and, if one has, the same tag."""
    left = list(wanted)
    pairs: list[tuple[ShareSpec, ShareSpec | None]] = []
    for same_tag in (True, False):
        for old in before:
            if any(old is done for done, _ in pairs):
                continue
            new = next(
                (one for one in left if one.source == old.source and (one.tag == old.tag or not same_tag)),
                None,
            )
            if new is not None:
                left.remove(new)
            if new is not None or not same_tag:
                pairs.append((old, new))
    return pairs


def _share_settings(
    path: str, before: ShareSpec, wanted: ShareSpec, about: str, occupied: bool
) -> list[Setting]:
    options = _changed(SHARE_OPTIONS, before, wanted)
    return [
        Setting(path, SHARE, option, value, f"{about}{option}", occupied and option not in LIMITS)
        for option, value in _ordered(before, options)
    ]


def _changed(table: Mapping[str, Option], before: object, wanted: object) -> Options:
    return {
        name: Typed(option.signature, option.to_dbus(wanted))
        for name, option in table.items()
        if option.to_dbus(wanted) != option.to_dbus(before)
    }


def _ordered(spec: ShareSpec | MachineSpec, options: Options) -> list[tuple[str, Typed]]:
    """The options in an order in which each step is valid. :raise CliError: there is none."""
    left, ordered = dict(options), []
    while left:
        for option, value in left.items():
            try:
                spec = spec.with_option(option, *value)
            except InvalidArgs as error:
                why = error
                continue
            ordered.append((option, value))
            del left[option]
            break
        else:
            raise CliError(
                f"{', '.join(left)} can't be changed one by one: {why}", "change them in two steps."
            )
    return ordered


async def apply(client: Client, known: Known, todo: Changes, scope: Scope) -> None:
    """Do what does not wait. :raise CallFailed: vfsd refused something; what came before it is done."""
    settings = [setting for setting in todo.settings if not setting.waits]
    alone = known.kind is SHARE and known.state == "listening"
    stopped = alone and any(setting.option not in LIMITS for setting in settings)
    if stopped:
        await client.call(known.path, SHARE.interface, "Stop")
    try:
        for setting in settings:
            await client.set(setting.path, setting.kind.interface, setting.option, setting.value)
    finally:
        if stopped:
            await client.call(known.path, SHARE.interface, "Start")
    for name in todo.removed:
        await _remove(client, known, name)
    for share in todo.added:
        await _add(client, known, share, scope)


async def _remove(client: Client, known: Known, name: str) -> None:
    """Take a share from a machine: one that was made with it goes with that, one that `_add` made is left over."""
    await client.call(known.path, MACHINE.interface, "DetachShare", "s", name)
    try:
        await client.manager("RemoveShare", "s", name)
    except CallFailed as error:
        if error.name != NO_SUCH_SHARE:
            raise


async def _add(client: Client, known: Known, share: ShareSpec, scope: Scope) -> None:
    """Give a machine a share more: only one of its own can be made with it, so this one is made by itself."""
    name = f"{known.spec.name}.{make_name(share.tag)}"
    made = dataclasses.replace(share, name=name)
    await definition.create(client, made, scope, persistent=known.spec.persistent)
    try:
        await client.call(known.path, MACHINE.interface, "AttachShare", "sa{sv}", name, {})
    except CallFailed:
        await client.manager("RemoveShare", "s", name)
        raise
