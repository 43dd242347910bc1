"""`vfsctl ssh`: log in to a guest with the key that vfsd handed to it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vfsd.cli.errors import CliError
from vfsd.cli.objects import MACHINE
from vfsd.cli.session import Session, global_options, pass_session
from vfsd.cli.values import own_words
from vfsd.paths import Paths

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client

# The guest made its host key when it booted, so nobody can know it; vfsd holds the port on this host for it.
_OPTIONS = (
    "IdentitiesOnly=yes",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "GlobalKnownHostsFile=/dev/null",
    "LogLevel=ERROR",
)


@click.command("ssh", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@global_options
@pass_session
def ssh(session: Session, name: str, command: tuple[str, ...]) -> None:
    """Log in to the guest of the machine NAME as root, or run COMMAND there, by ssh(1).

    The machine must have been started with the option SSH, and its guest run an SSH server; one with systemd 252 or
    later takes the key by itself. A guest with systemd 256 or later is reached over vsock where this host has it, and
    others by a forwarded port. The exit code is that of ssh.
    """

    session.require_here("ssh", "the guest's port and the key are on that host", f"ssh {name}")

    async def body(client: Client) -> dict[str, Any]:
        return await MACHINE.show(client, name)

    found = session.run(body)
    if found["State"] != "running":
        raise CliError(
            f"machine {name} is {found['State']}", f'"vfsctl {session.flag}machine start {name}" starts it.'
        )
    if not found["SSH"]:
        raise CliError(
            f"machine {name} has no SSH", "its guest has no key of vfsd's; make the machine with --ssh."
        )
    if not found["SSHAddress"]:
        raise CliError(
            f"no way leads to the guest of {name}",
            "on a network of its own call ssh with the guest's address; otherwise use --network user, or wait "
            "until a guest with systemd 256 says over vsock that it listens.",
        )
    key = Paths.of(session.scope).ssh_key
    if not os.access(key, os.R_OK):
        raise CliError(f"the key for {name} can't be read", "call vfsctl as the user whose vfsd it is.")
    program = shutil.which("ssh")
    if program is None:
        raise CliError("ssh is not installed", "install OpenSSH's client (Debian: openssh-client).")
    sys.stdout.flush()
    os.execv(program, arguments(key, name, found["SSHAddress"], own_words(command)))  # noqa: S606  # no shell is wanted


def arguments(key: Path, name: str, address: str, command: tuple[str, ...]) -> list[str]:
    """The command line of ssh.

    :param address: vsock:CID, or HOST:PORT; an IPv6 address in brackets.
    :raise CliError: it is neither.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise CliError(
            f"machine {name} is at {address}, where this vfsctl can't go", "use one that is as new as vfsd."
        )
    words = [*_OPTIONS, f"HostKeyAlias=vfsd-{name}"]
    login = ["-l", "root", "-i", str(key)]
    if host == "vsock":
        words += [f"ProxyCommand={_proxy(port)}", "ProxyUseFdpass=yes"]
        host = f"vsock/{port}"
    else:
        login += ["-p", port]
    options = [word for option in words for word in ("-o", option)]
    return ["ssh", *options, *login, "--", host.strip("[]"), *command]


def _proxy(cid: str) -> str:
    """What connects ssh to a guest; ssh replaces % in it, and calls a shell."""
    program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("vsock_proxy.py")), cid, "22"]
    return shlex.join(program).replace("%", "%%")
