"""`vfsctl console`: the console of a machine that runs, for as long as this command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vfsd.cli.session import Session, global_options, pass_session

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client


@click.command()
@click.argument("name")
@global_options
@pass_session
def console(session: Session, name: str) -> int:
    """The console of the machine NAME on this terminal.

    What the guest wrote last, up to 64 KiB, comes first. Any number may look
    at a console and type on it at once. Ctrl-] pressed three times within a
    second leaves it, and leaves the machine as it is; every other key is the
    guest's. Its terminal gets the size of this one if the guest has an agent.
    """

    session.require_here("console", "a file descriptor does not go through ssh", f"console {name}")

    async def body(client: Client) -> int:
        # asyncio is slow to import, and --help needs none.
        from vfsd.cli.visitor import Visitor  # noqa: PLC0415

        return await Visitor(client, name).run()

    return session.run(body, descriptors=True)
