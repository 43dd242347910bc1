"""`vfsctl machine`: QEMU machines and the shares that they see."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli.boot import SHARE_HELP, boot_options, machine_options
from vfsd.cli.common import add_method, add_remove, add_set, add_views
from vfsd.cli.edit import add_edit
from vfsd.cli.errors import CliError
from vfsd.cli.imports.command import import_machine
from vfsd.cli.lazy import Group
from vfsd.cli.objects import MACHINE, object_of, say, state_text, with_steps
from vfsd.cli.options import MACHINE_FLAGS, MACHINE_REST
from vfsd.cli.output import Column, clean, print_json, size
from vfsd.cli.progress import spinning
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.transfer import add_export
from vfsd.cli.values import Options, Typed, parse_timespan
from vfsd.model import MACHINE_OPTIONS

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client

IDLE = ("stopped", "failed")
START_TIMEOUT = 60.0
"""Seconds. Starting many shares on a busy host may take longer than a call should."""
REFRESH_TIMEOUT = 600.0
"""Seconds. Where memory has to be copied, that of a large guest takes its time; vfsd itself gives up at some point."""
POLL_INTERVAL = 5.0
"""Seconds between looks at a machine whose signals are awaited: vfsd may be restarted between them."""

COLUMNS = (
    Column("MACHINE"),
    Column("STATE"),
    Column("PID", right=True),
    Column("ACCEL"),
    Column("MEMORY", right=True),
    Column("CPUS", right=True),
    Column("SHARES"),
)


@click.group(cls=Group)
@global_options
def machine() -> None:
    """QEMU machines, each with the shares that its guest sees."""


@machine.command(epilog=f"{SHARE_HELP}\n{MACHINE_REST}")
@click.argument("name")
@boot_options(MACHINE_FLAGS)
@click.option("--persistent", is_flag=True, help="Keep the definition across a reboot.")
@global_options
@pass_session
def add(session: Session, /, name: str, persistent: bool, **given: Any) -> None:
    """Define the machine NAME; it is not started."""
    options = machine_options(MACHINE_FLAGS, given)
    if persistent:
        options["Persistent"] = Typed("b", True)

    async def body(client: Client) -> dict[str, Any]:
        (path,) = await client.manager("CreateMachine", "sa{sv}", name, options)
        return await client.properties(path, MACHINE.interface)

    made = session.run(body)
    if session.json:
        print_json(made)
    say(session, f'{name} is defined; "vfsctl {session.flag}machine start {name}" starts it.')


@machine.command()
@click.argument("name")
@global_options
@pass_session
def start(session: Session, name: str) -> None:
    """Start its shares and its QEMU; return when the guest's processors run."""

    async def body(client: Client) -> None:
        starting = client.manager("StartMachine", "s", name, within=START_TIMEOUT)
        await with_steps(client, session, name, f"Starting {name}", starting)

    session.run(body)


@machine.command()
@click.argument("name")
@click.option("--timeout", metavar="TIME", help="How long the guest has, such as 30s, before force is used.")
@click.option("--wait", is_flag=True, help="Return when it has stopped, not when the guest was asked.")
@global_options
@pass_session
def shutdown(session: Session, name: str, timeout: str | None, wait: bool) -> None:
    """Ask the guest to power off."""
    usec = parse_timespan(timeout) if timeout else 0

    async def body(client: Client) -> None:
        if not wait:
            await MACHINE.call(client, name, "Shutdown", "t", usec)
            return
        with spinning(f"Shutting down {name}", shown=session.interactive):
            async with client.signals() as queue:
                await MACHINE.call(client, name, "Shutdown", "t", usec)
                await wait_idle(client, name, queue)

    session.run(body)


async def wait_idle(client: Client, name: str, queue: asyncio.Queue[Any]) -> dict[str, Any]:
    """Wait until a machine runs no longer, and return its properties.

    :param queue: vfsd's signals. They only say when to look again, so a restarted vfsd loses nothing.
    :raise CallFailed: the machine is gone.
    """
    while True:
        found = await MACHINE.show(client, name)
        if found["State"] in IDLE:
            return found
        try:
            async with asyncio.timeout(POLL_INTERVAL):
                while object_of((await queue.get()).path) not in ((MACHINE.noun, name), ("service", "")):
                    pass
        except TimeoutError:
            continue


add_method(machine, MACHINE, "Kill", "End its QEMU at once; the guest loses what it has not written.")
add_method(
    machine, MACHINE, "Suspend", "Save the running guest to disk and end its QEMU; thaw goes on with it."
)
add_method(machine, MACHINE, "Thaw", "Go on with a guest that was suspended; kill forgets it.")
add_method(machine, MACHINE, "Pause", "Stop the guest's processors.")
add_method(machine, MACHINE, "Resume", "Let the guest's processors go on.")
add_method(machine, MACHINE, "Reset", "Reset the guest as the reset button does.")


@machine.command()
@click.argument("name")
@global_options
@pass_session
def refresh(session: Session, name: str) -> None:
    """Replace its QEMU and virtiofsd under the running guest, by those that are installed now."""

    async def body(client: Client) -> dict[str, Any]:
        path = await MACHINE.path(client, name)
        with spinning(f"Refreshing {name}", shown=session.interactive):
            await client.call(path, MACHINE.interface, "Refresh", within=REFRESH_TIMEOUT)
        return await client.properties(path, MACHINE.interface)

    found = session.run(body)
    still = f"; the guest stood still for {found['RefreshDowntimeUSec'] / 1000:.1f} ms"
    say(session, f"{name} is refreshed{still if found['State'] == 'running' else ''}.")


@machine.command("query-guest")
@click.argument("name")
@global_options
@pass_session
def query_guest(session: Session, name: str) -> None:
    """Ask the guest, through its agent, which system it is and what it has mounted."""

    async def body(client: Client) -> dict[str, Any]:
        await MACHINE.call(client, name, "QueryGuest")
        return await MACHINE.show(client, name)

    found = session.run(body)
    if session.json:
        print_json(found)
    else:
        click.echo(clean(found["GuestSystem"] or "its agent answers"))


add_set(
    machine,
    MACHINE,
    MACHINE_OPTIONS,
    "Change options of a machine that does not run; limits of one that runs, too. An empty value empties a list.",
)
add_remove(machine, MACHINE, "Forget machines that do not run, and the shares made with them.")


@machine.command()
@click.argument("name")
@click.argument("share")
@click.option("--mount-point", metavar="DIR", help="Where the guest mounts it.")
@global_options
@pass_session
def attach(session: Session, name: str, share: str, mount_point: str | None) -> None:
    """Give the machine NAME the SHARE, which no machine has yet."""
    options: Options = {}
    if mount_point:
        if not mount_point.startswith("/"):
            raise CliError(f'the mount point "{mount_point}" is not an absolute path')
        options["MountPoint"] = Typed("s", mount_point)
    session.run(lambda client: MACHINE.call(client, name, "AttachShare", "sa{sv}", share, options))


@machine.command()
@click.argument("name")
@click.argument("share")
@global_options
@pass_session
def detach(session: Session, name: str, share: str) -> None:
    """Take the SHARE from the machine NAME; one made with the machine is removed."""
    session.run(lambda client: MACHINE.call(client, name, "DetachShare", "s", share))


add_edit(machine, MACHINE)
add_export(machine, MACHINE)
machine.add_command(import_machine)


def machine_row(item: dict[str, Any]) -> list[str]:
    """A machine's line in a table of `COLUMNS`."""
    shares = [object_of(path)[1].removeprefix(f"{item['Name']}.") for path in item["Shares"]]
    return [
        item["Name"],
        state_text(item),
        str(item["MainPID"] or "-"),
        item["AcceleratorInUse"] or "-",
        size(item["Memory"]),
        str(item["CPUs"]),
        ", ".join(shares) or "-",
    ]


add_views(machine, MACHINE, COLUMNS, machine_row)
