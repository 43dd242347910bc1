"""What the command line said for every command: which bus, and how to print."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from vfsd.cli.errors import CliError, Exit
from vfsd.names import Scope

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client

P = ParamSpec("P")
T = TypeVar("T")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def default_scope() -> Scope:
    """The user's own vfsd; the system's for root."""
    return Scope.SYSTEM if os.geteuid() == 0 else Scope.USER


@dataclass
class Session:
    """The global options."""

    chosen: Scope | None = None
    json: bool = False
    legend: bool = True
    host: str = ""
    """[USER@]HOST whose vfsd is meant; "" for this host."""
    ask: bool = True
    """Whether somebody may be asked to authenticate."""
    failure_code: int | None = None
    """The exit code of any failure, if this command's own codes need another than usual."""

    @property
    def scope(self) -> Scope:
        """Whose vfsd is meant."""
        return self.chosen or self._default

    @property
    def flag(self) -> str:
        """The options that name the bus in a command line which is shown to be copied; "" for the default."""
        host = f"--host {self.host} " if self.host else ""
        return host + (f"--{self.scope.value} " if self.scope is not self._default else "")

    @property
    def login(self) -> str:
        """What ssh is given to get to the host whose vfsd is meant; "" for this one."""
        if not self.host:
            return ""
        from vfsd.cli import remote  # noqa: PLC0415

        return remote.login(self.host)

    @property
    def _default(self) -> Scope:
        """As with systemctl, another host's system is meant, whoever calls."""
        return Scope.SYSTEM if self.host else default_scope()

    def require_here(self, what: str, why: str, instead: str = "") -> None:
        """Refuse what can't be done on another host. :param instead: a command that can be run there.

        :raise CliError: --host was given.
        """
        if self.host:
            whose = f" --{self.scope.value}" if self.chosen else ""
            hint = f'"ssh -t {self.login} vfsctl{whose} {instead}" does it there.' if instead else ""
            raise CliError(f"{what} can't be done over --host: {why}", hint, Exit.USAGE)

    @property
    def interactive(self) -> bool:
        """Whether a person looks at stderr, where progress is shown."""
        return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def run(self, body: Callable[[Client], Coroutine[Any, Any, T]], *, descriptors: bool = False) -> T:
        """Connect to the bus and run `body` with the connection.

        :param descriptors: whether answers may be file descriptors.
        :raise CallFailed, Unreachable: as the calls in it.
        """
        # dbus_next and asyncio cost as much as the rest of vfsctl together; only who calls the bus pays.
        from vfsd.cli import proxy, terminal_agent  # noqa: PLC0415

        ask = self.ask and not self.host
        agent = terminal_agent.listening() if terminal_agent.wanted(self.scope, ask) else nullcontext()
        with agent:
            return proxy.run(self.scope, body, descriptors=descriptors, ask=ask, host=self.host)


pass_session = click.make_pass_decorator(Session, ensure=True)


def _choose_scope(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        scope = Scope(param.name or "")
        session = ctx.ensure_object(Session)
        if session.chosen not in (None, scope):
            raise click.UsageError("--user and --system exclude each other.", ctx)
        session.chosen = scope


def _choose_flag(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        session = ctx.ensure_object(Session)
        if param.name == "json":
            session.json = True
        elif param.name == "no_ask_password":
            session.ask = False
        else:
            session.legend = False


def _choose_host(ctx: click.Context, param: click.Parameter, value: str | None) -> None:  # noqa: ARG001  # click's
    if value is not None:  # an empty one must not be this host: somebody's variable was empty
        from vfsd.cli import remote  # noqa: PLC0415

        ctx.ensure_object(Session).host = ctx.meta[remote.KEY] = remote.check(value)


def global_options(command: Decorated) -> Decorated:
    """The options that stand before and, because people type them there, after the command."""
    for flag, help_text, callback in (
        ("--no-ask-password", "Never ask for a password (of the system's vfsd).", _choose_flag),
        ("--no-legend", "Print tables without head.", _choose_flag),
        ("--json", "Print JSON, with the names that the bus uses.", _choose_flag),
        ("--system", "Talk to the system's vfsd (the default for root).", _choose_scope),
        ("--user", "Talk to the user's own vfsd (the default for others).", _choose_scope),
    ):
        command = click.option(
            flag, is_flag=True, expose_value=False, is_eager=True, help=help_text, callback=callback
        )(command)
    return click.option(
        "--host", "-H", metavar="[USER@]HOST", expose_value=False, is_eager=True, callback=_choose_host,
        help="Talk to the vfsd of another host, through ssh.",
    )(command)  # fmt: skip
