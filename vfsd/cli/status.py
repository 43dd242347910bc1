"""`vfsctl status` and `vfsctl reload`: vfsd as a whole, or one share or machine in detail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli import resources
from vfsd.cli.errors import CallFailed, CliError, Exit, journal_command
from vfsd.cli.objects import HIDDEN, MACHINE, SHARE, Kind, object_of, property_text, state_text
from vfsd.cli.output import Column, clean, plural, print_details, print_json, print_table, size, state_colour
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.names import MANAGER_INTERFACE, ROOT_PATH

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client, Objects

MACHINE_COLUMNS = (
    Column("MACHINE"),
    Column("STATE"),
    Column("PID", right=True),
    Column("ACCEL"),
    Column("MEMORY", right=True),
    Column("SHARES"),
)
SHARE_COLUMNS = (
    Column("SHARE"),
    Column("STATE"),
    Column("MODE"),
    Column("PID", right=True),
    Column("SOURCE", path=True),
)

_VERSION = re.compile(r"\d+(?:\.\d+)+")

GUEST_TIMEOUT = 5.0
"""Seconds that a person waits for what the guest says, and its file systems."""
SPACE = "Space"
"""Size and free bytes, beside the properties of a share."""
USED = "Used"
"""What systemd counted, beside the properties of a machine or a share."""

Named = dict[str, dict[str, Any]]
"""Properties by name."""


@click.command()
@click.argument("name", required=False)
@global_options
@pass_session
def status(session: Session, name: str | None) -> int:
    """What there is and how it does; with NAME, one machine or share in detail.

    Of a NAME that both a machine and a share have, both are shown. The overview leaves out the shares that a
    machine has; "vfsctl share list" has all.
    """

    async def body(client: Client) -> tuple[dict[str, Any], Named, Named]:
        manager, objects = await asyncio.gather(
            client.properties(ROOT_PATH, MANAGER_INTERFACE), client.objects()
        )
        machines = MACHINE.named(objects)
        if name in machines and machines[name]["GuestReady"] and machines[name]["State"] == "running":
            objects = await _asked(client, name)
        machines, shares = MACHINE.named(objects), SHARE.named(objects)
        if name is not None:
            await _add_used(client, machines.get(name), shares.get(name))
        return manager, machines, shares

    session.ask = False  # it shows what may be seen
    manager, machines, shares = session.run(body)
    if name is not None:
        return _details(session, name, machines, shares)
    if session.json:
        print_json({"Manager": manager, "Machines": list(machines.values()), "Shares": list(shares.values())})
    else:
        _overview(session, manager, machines, shares)
    return Exit.DONE


@click.command()
@global_options
@pass_session
def reload(session: Session) -> None:
    """Read the configuration folders again; what runs is never touched."""
    session.run(lambda client: client.manager("Reload"))


async def _asked(client: Client, name: str) -> Objects:
    """All objects, once the guest of a machine was asked for its mounts, and the host for the space of its shares."""
    with contextlib.suppress(CallFailed):  # then what is known must do
        path = await MACHINE.path(client, name)
        await client.call(path, MACHINE.interface, "QueryGuest", within=GUEST_TIMEOUT)
    objects = await client.objects()

    async def add_space(path: str, share: dict[str, Any]) -> None:
        with contextlib.suppress(CallFailed):
            total, free = await client.call(path, SHARE.interface, "GetSpace", within=GUEST_TIMEOUT)
            share[SPACE] = total, free

    shares = ((path, item[SHARE.interface]) for path, item in objects.items() if SHARE.interface in item)
    await asyncio.gather(*(add_space(path, share) for path, share in shares if share["MountedAt"]))
    return objects


async def _add_used(client: Client, machine: dict[str, Any] | None, share: dict[str, Any] | None) -> None:
    """Add what of the host is used by a machine and by a share."""
    if machine and machine["MainPID"]:
        machine[USED] = await resources.used(client, machine["Slice"])
    if share and share["MainPID"]:
        share[USED] = await resources.used(client, share["ServiceUnit"])


def _overview(session: Session, manager: Mapping[str, Any], machines: Named, shares: Named) -> None:
    if session.legend:
        click.echo(headline(manager))
    alone = [item for item in shares.values() if item["Machine"] == "/"]
    for columns, rows in (
        (MACHINE_COLUMNS, [_machine_row(item) for item in machines.values()]),
        (SHARE_COLUMNS, [_share_row(item) for item in alone]),
    ):
        if rows:
            _gap(session)
            print_table(columns, rows, legend=session.legend)
    if session.legend:
        _gap(session)
        click.echo(f"{plural(len(machines), 'machine')}, {plural(len(shares), 'share')}.")


def _gap(session: Session) -> None:
    if session.legend:
        click.echo()


def headline(manager: Mapping[str, Any]) -> str:
    """Who answers and with what, in one line."""
    whose = "the system" if manager["Scope"] == "system" else "this user"
    qemu = _version("QEMU", manager["QemuVersion"])
    virtiofsd = _version("virtiofsd", manager["VirtiofsdVersion"])
    return clean(f"vfsd {manager['Version']} of {whose}, {qemu}, {virtiofsd}")


def _version(program: str, version: str) -> str:
    number = _VERSION.search(version)
    return f"{program} {number[0] if number else version}" if version else f"no {program} found yet"


def _machine_row(item: Mapping[str, Any]) -> list[str]:
    return [
        item["Name"],
        state_text(item),
        str(item["MainPID"] or "-"),
        item["AcceleratorInUse"] or "-",
        size(item["Memory"]),
        ", ".join(_own_names(item)) or "-",
    ]


def _own_names(machine: Mapping[str, Any]) -> Iterator[str]:
    """The names of a machine's shares, without the machine's own before them."""
    return (object_of(path)[1].removeprefix(f"{machine['Name']}.") for path in machine["Shares"])


def _share_row(item: Mapping[str, Any]) -> list[str]:
    mode = "ro" if item["ReadOnly"] else "rw"
    return [item["Name"], item["State"], mode, str(item["MainPID"] or "-"), item.get("Source", HIDDEN)]


def _details(session: Session, name: str, machines: Named, shares: Named) -> int:
    found = [(kind, table[name]) for kind, table in ((MACHINE, machines), (SHARE, shares)) if name in table]
    if not found:
        hint = f'"vfsctl {session.flag}status" shows what there is.'
        raise CliError(f'there is no machine or share "{name}"', hint, Exit.NO_SUCH)
    if session.json:
        print_json({kind.noun.capitalize(): item for kind, item in found})
        return Exit.DONE
    for number, (kind, item) in enumerate(found):
        if number:
            click.echo()
        _title(kind, item)
        pairs = machine_details(item, shares) if kind is MACHINE else share_details(item)
        unit = item["Unit"] if kind is MACHINE else item["ServiceUnit"]
        print_details([*pairs, ("Journal", _journal(session, name, unit))])
    return Exit.DONE


def _journal(session: Session, name: str, unit: str) -> str:
    """A command that shows it."""
    if session.host:
        return f"vfsctl {session.flag}logs {name}"
    return journal_command(session.scope, f"'{unit}'")


def _title(kind: Kind, item: Mapping[str, Any]) -> None:
    state = state_text(item)
    shown = state if os.environ.get("NO_COLOR") else click.style(state, fg=state_colour(state), bold=True)
    reason = f": {item['Reason']}" if item["Reason"] else ""
    click.echo(f"{kind.noun.capitalize()} {clean(item['Name'])} is {shown}{clean(reason)}")


def machine_details(item: Mapping[str, Any], shares: Named) -> Iterator[tuple[str, str]]:
    """What a person wants to know of a machine, as name and value; what does not apply is left out."""
    yield "Since", since(item["StateChangedUSec"])
    if item["MainPID"]:
        yield "Main PID", f"{item['MainPID']} (QEMU, {item['AcceleratorInUse']})"
    if item["GuestReady"]:
        yield "Guest", item["GuestSystem"] or "its agent answers"
    if item["NeedsRefresh"]:
        yield (
            "Outdated",
            f'"vfsctl machine refresh {item["Name"]}" replaces QEMU and virtiofsd under the guest',
        )
    yield "Boots", boots(item)
    yield "Memory", f"{size(item['Memory'])}, {plural(item['CPUs'], 'processor')}"
    yield "Network", ", ".join([item["Network"], *item["Forward"]])
    for path in item["Shares"]:
        name = object_of(path)[1]
        share = shares.get(name)
        yield "Share", f"{name} {_share_words(share)}" if share else name
    if item.get("ConsolePath"):
        yield "Console", item["ConsolePath"]
    if item.get("DisplayPath"):
        yield "Display", f"{item['DisplayPath']} ({item['Display']})"
    yield from _resources(item)
    yield "Kept", _kept(item)
    yield "Unit", item["Unit"]
    yield "Slice", item["Slice"]


def boots(item: Mapping[str, Any]) -> str:
    """What a machine boots."""
    if item["Builtin"]:
        return "the built-in guest"
    if "Kernel" not in item:
        return HIDDEN
    if item["Kernel"]:
        root = f", root from share {item['RootShare']}" if item["RootShare"] else ""
        return f"{item['Kernel']}{root}"
    return f"{item['Image']} ({item['Firmware']})" if item["Image"] else "nothing yet"


def _share_words(share: Mapping[str, Any]) -> str:
    where = f" at {share['MountPoint']}" if share["MountPoint"] else ""
    mode = ", read-only" if share["ReadOnly"] else ""
    mounted = f", mounted at {share['MountedAt']}" if share["MountedAt"] else ""
    if SPACE in share:
        total, free = share[SPACE]
        mounted += f" ({size(total - free)} used, {size(free)} free)"
    return f"({share['State']}): {share.get('Source', HIDDEN)}, tag {share['Tag']}{where}{mode}{mounted}"


def share_details(item: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a person wants to know of a share, as name and value; what does not apply is left out."""
    yield "Since", since(item["StateChangedUSec"])
    yield "Source", item.get("Source", HIDDEN)
    yield "Socket", item.get("SocketPath", HIDDEN)
    yield "Machine", object_of(item["Machine"])[1] or "none"
    if item["MainPID"]:
        yield "Main PID", f"{item['MainPID']} (virtiofsd)"
    if item["OpenFiles"]:
        yield (
            "Open files",
            f"{item['OpenFiles']}" + (f" of {item['LimitNOFILE']}" if item["LimitNOFILE"] else ""),
        )
    if item["Restarts"]:
        yield "Ended", f"abnormally {plural(item['Restarts'], 'time')}"
    yield "Tag", item["Tag"]
    if item["MountPoint"]:
        yield "Mount point", item["MountPoint"]
    if item["MountedAt"]:
        yield "Mounted at", f"{item['MountedAt']} ({item['GuestOptions']})"
    yield "Options", ", ".join(share_options(item)) or "all default"
    yield from _resources(item)
    yield "Kept", _kept(item)
    yield "Units", f"{item['SocketUnit']}, {item['ServiceUnit']}"


def _resources(item: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for what, text in (
        ("Limits", resources.limits_text(item)),
        ("Uses", resources.used_text(item.get(USED, {}))),
    ):
        if text:
            yield what, text


def share_options(item: Mapping[str, Any]) -> Iterator[str]:
    """The options of a share that are set otherwise than by default."""
    # Only here: it costs as much as printing the overview.
    from vfsd.limits import LIMITS  # noqa: PLC0415
    from vfsd.model import SHARE_OPTIONS, Sandbox, ShareSpec  # noqa: PLC0415
    from vfsd.names import Scope  # noqa: PLC0415

    plain = ShareSpec(name="default", source="/")
    for name, option in SHARE_OPTIONS.items():
        if name in ("Tag", "MountPoint", *LIMITS) or name not in item:
            continue
        if name == "Sandbox" and item[name] in {Sandbox.default(scope) for scope in Scope}:
            continue
        if item[name] != option.to_dbus(plain):
            yield f"{name}={property_text(item[name])}"


def _kept(item: Mapping[str, Any]) -> str:
    return "across reboots" if item["Persistent"] else "until the next reboot"


def since(usec: int) -> str:
    """When, and how long ago, in the local time zone."""
    if not usec:
        return "unknown"
    then = datetime.fromtimestamp(usec / 1_000_000, UTC)
    passed = (datetime.now(UTC) - then).total_seconds()
    return f"{then.astimezone():%Y-%m-%d %H:%M:%S %Z}; {ago(passed)} ago"


def ago(seconds: float) -> str:
    """A duration in its two largest units, as systemctl shows it."""
    left = max(int(seconds), 0)
    if left == 0:
        return "less than 1s"
    words = []
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, length)
        if count:
            words.append(f"{count}{unit}")
    return " ".join(words[:2])
