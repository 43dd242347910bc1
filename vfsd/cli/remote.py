"""`--host`: the bus of another host, through ssh and systemd-stdio-bridge, as systemctl has it."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
from typing import NamedTuple

import click

from vfsd.cli.errors import CliError, Exit, Unreachable
from vfsd.names import Scope

SSH = "SYSTEMD_SSH"
"""Environment: what is run for ssh (systemd's docs/ENVIRONMENT.md)."""
KEY = "vfsd.host"
"""Where click keeps the host for the command that runs."""
BRIDGE = "systemd-stdio-bridge"
_USERS_ADDRESS = "${DBUS_SESSION_BUS_ADDRESS:-unix:path=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}/bus}"
_USERS_BUS = f'exec {BRIDGE} --bus-path="{_USERS_ADDRESS}"'
"""What a shell there runs. The bridge's own --user goes to the system bus (systemd 257)."""
END_TIMEOUT = 2.0
"""Seconds that ssh has to end when the connection has."""
_HOST = re.compile(
    r"(?!-)(?P<host>(?:[^@/\s]+@)?(?:\[[0-9a-fA-F:.%\w]+\]|(?!-)[^:@/\s\[\]]+))(?::(?P<port>\d+))?"
)


def named() -> str:
    """What --host was given to the command that runs; "" if it was not."""
    context = click.get_current_context(silent=True)
    return str(context.meta.get(KEY, "")) if context else ""


class Bridge(NamedTuple):
    """A connection that ends in another host's bus."""

    socket: socket.socket
    process: subprocess.Popen[bytes]

    def end(self) -> int:
        """Have ssh end, and return its exit code."""
        try:
            return self.process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            return self.process.wait()


def check(host: str) -> str:
    """A host as it was given. :raise CliError: it is none."""
    if not _HOST.fullmatch(host):
        raise CliError(f'"{host}" names no host', "write HOST, USER@HOST or USER@HOST:PORT.", Exit.USAGE)
    return host


def ssh_command(host: str, command: str) -> list[str]:
    """How a command is run on a host, by a shell."""
    port, name = _port_and_name(host)
    return [os.environ.get(SSH) or "ssh", "-xT", *port, "--", name, command]


def login(host: str) -> str:
    """What a person types behind "ssh" to get to a host."""
    port, name = _port_and_name(host)
    return shlex.join([*port, name])


def _port_and_name(host: str) -> tuple[list[str], str]:
    """ssh's option for the port, and the host without it."""
    match = _HOST.fullmatch(host)
    assert match is not None  # noqa: S101  # it was checked
    return ["-p", match["port"]] if match["port"] else [], match["host"].replace("[", "").replace("]", "")


def bridge(host: str, scope: Scope) -> Bridge:
    """Connect to the bus of a scope there. ssh asks on the terminal, and tells on standard error what is wrong.

    :raise Unreachable: there is no ssh.
    """
    command = shlex.join(["sh", "-c", _USERS_BUS]) if scope is Scope.USER else BRIDGE
    mine, its = socket.socketpair()
    with its:
        try:
            process = subprocess.Popen(ssh_command(host, command), stdin=its.fileno(), stdout=its.fileno())
        except OSError as error:
            mine.close()
            raise Unreachable(f"ssh can't be run: {error.strerror}", "install OpenSSH's client.") from None
    return Bridge(mine, process)


def unreachable(host: str, scope: Scope, code: int) -> Unreachable:
    """What is to be said when ssh ended before there was a bus."""
    whose = "user's bus" if scope is Scope.USER else "system bus"
    if code == 127:  # the shell's, for a command that is not there
        return Unreachable(
            f"there is no {BRIDGE} on {host}", "it is part of systemd, in some distributions apart."
        )
    return Unreachable(
        f"the {whose} of {host} can't be reached",
        f'try "ssh {login(host)} {BRIDGE} --version", which tells what is missing.',
    )
