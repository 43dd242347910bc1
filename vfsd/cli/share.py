"""`vfsctl share`: directories behind a virtiofsd socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vfsd.cli.common import add_method, add_remove, add_set, add_views
from vfsd.cli.edit import add_edit
from vfsd.cli.lazy import Group
from vfsd.cli.objects import HIDDEN, SHARE, object_of, say
from vfsd.cli.options import SHARE_FLAGS, SHARE_REST, collect, property_options
from vfsd.cli.output import Column, print_json, size
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.transfer import add_export, add_import
from vfsd.cli.values import Typed, absolute
from vfsd.model import SHARE_OPTIONS

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client

COLUMNS = (
    Column("SHARE"),
    Column("STATE"),
    Column("MACHINE"),
    Column("MODE"),
    Column("PID", right=True),
    Column("SOURCE", path=True),
)


@click.group(cls=Group)
@global_options
def share() -> None:
    """Directories of this host, each behind one virtiofsd socket.

    A share that no machine uses listens for any VMM, on the SocketPath that "vfsctl share show NAME" prints.
    """


@share.command(epilog=SHARE_REST)
@click.argument("name")
@click.argument("source")
@property_options(SHARE_FLAGS, SHARE_OPTIONS)
@click.option("--persistent", is_flag=True, help="Keep the definition across a reboot.")
@global_options
@pass_session
def add(session: Session, /, name: str, source: str, persistent: bool, **given: Any) -> None:
    """Share the directory SOURCE under NAME and listen for a client."""
    options = collect(SHARE_FLAGS, SHARE_OPTIONS, given)
    if persistent:
        options["Persistent"] = Typed("b", True)
    folder = absolute(source)

    async def body(client: Client) -> dict[str, Any]:
        (path,) = await client.manager("CreateShare", "ssa{sv}", name, folder, options)
        return await client.properties(path, SHARE.interface)

    made = session.run(body)
    if session.json:
        print_json(made)
    say(session, f"{made['Name']} listens on {made['SocketPath']}")


add_method(share, SHARE, "Start", "Listen again on a stopped share's socket.")
add_method(share, SHARE, "Stop", "Stop listening and end its virtiofsd; the share stays defined.")
add_remove(share, SHARE, "Stop shares and forget them; the directories stay untouched.")


add_set(
    share,
    SHARE,
    SHARE_OPTIONS,
    "Change options of a share that is stopped; limits of one that is used, too. An empty value empties a list.",
)


@share.command()
@click.argument("name")
@global_options
@pass_session
def space(session: Session, name: str) -> None:
    """Size and free space of the file system that the share's source lies on."""

    async def body(client: Client) -> list[Any]:
        return await client.call(await SHARE.path(client, name), SHARE.interface, "GetSpace")

    total, free = session.run(body)
    if session.json:
        print_json({"Size": total, "Free": free})
    else:
        click.echo(f"{size(total)}, {size(free)} free")


add_edit(share, SHARE)
add_export(share, SHARE)
add_import(share)


def share_row(item: dict[str, Any]) -> list[str]:
    """A share's line in a table of `COLUMNS`."""
    return [
        item["Name"],
        item["State"],
        object_of(item["Machine"])[1] or "-",
        "ro" if item["ReadOnly"] else "rw",
        str(item["MainPID"] or "-"),
        item.get("Source", HIDDEN),
    ]


add_views(share, SHARE, COLUMNS, share_row)
