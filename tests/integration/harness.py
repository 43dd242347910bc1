"""One vfsd as its users reach it: busctl, systemctl and journalctl, on the system bus or a user's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbus_next import BusType, Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

TESTER = "tester"
ROOT = "/org/vfsd1"
MANAGER, SHARE, MACHINE = (f"org.vfsd1.{name}" for name in ("Manager", "Share", "Machine"))


class CommandFailed(AssertionError):
    """A command ended with another exit code than 0."""


class BusError(Exception):
    """A D-Bus call was answered with an error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name.removeprefix("org.vfsd1.Error.").removeprefix("org.freedesktop.DBus.Error.")
        self.message = message


@dataclass
class Vfsd:
    """A vfsd in one scope."""

    scope: str
    """`system` or `user`."""

    @property
    def flag(self) -> str:
        """The option of busctl, systemctl, journalctl and vfsctl."""
        return f"--{self.scope}"

    @property
    def runtime(self) -> Path:
        return Path("/run/vfsd") if self.scope == "system" else Path(f"/run/user/{self._uid}/vfsd")

    @property
    def state(self) -> Path:
        home = Path(pwd.getpwnam(TESTER).pw_dir)
        return Path("/var/lib/vfsd") if self.scope == "system" else home / ".local/state/vfsd"

    @property
    def config(self) -> Path:
        home = Path(pwd.getpwnam(TESTER).pw_dir)
        return Path("/etc/vfsd") if self.scope == "system" else home / ".config/vfsd"

    @property
    def _uid(self) -> int:
        return pwd.getpwnam(TESTER).pw_uid

    @property
    def owner_uid(self) -> int:
        """Whose objects are made by this scope's callers."""
        return 0 if self.scope == "system" else self._uid

    def bus_address(self) -> str:
        return (
            "unix:path=/run/dbus/system_bus_socket"
            if self.scope == "system"
            else f"unix:path=/run/user/{self._uid}/bus"
        )

    # commands

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command as the scope's user runs it."""
        if self.scope == "system":
            return list(command)
        runtime = f"/run/user/{self._uid}"
        environment = [
            f"HOME={pwd.getpwnam(TESTER).pw_dir}",
            f"USER={TESTER}",
            "PATH=/usr/bin:/bin:/usr/sbin",
            "LANG=C.UTF-8",
            f"XDG_RUNTIME_DIR={runtime}",
            f"DBUS_SESSION_BUS_ADDRESS=unix:path={runtime}/bus",
        ]
        ids = [f"--reuid={self._uid}", f"--regid={self._uid}", "--init-groups"]
        return ["setpriv", *ids, "env", "-i", *environment, *command]

    def run(self, *command: str, check: bool = True, timeout: float = 60, **options: Any) -> str:
        """Run a command as the scope's user; returns its standard output."""
        done = subprocess.run(
            self.argv(command), capture_output=True, text=True, timeout=timeout, check=False, **options
        )
        if check and done.returncode:
            raise CommandFailed(f"{shlex.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return str(done.stdout)

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.run("systemctl", self.flag, *arguments, check=check)

    def unit_property(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", "-p", name, unit).strip()

    def journal(self, *matches: str, since: float = 0) -> list[dict[str, Any]]:
        """Entries of the whole journal, as root reads it; `since` is seconds since the epoch."""
        command = ["journalctl", "-o", "json", "--all", *matches]
        if since:
            command.append(f"--since=@{since:.6f}")
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        return [json.loads(line) for line in out.splitlines()]

    # the bus, through busctl

    def call(self, path: str, interface: str, member: str, signature: str = "", *arguments: str) -> Any:
        """Call through busctl; returns the plain value of a single result, else the list of results."""
        command = ["busctl", self.flag, "--json=short", "call", "org.vfsd1", path, interface, member]
        if signature:
            command += (
                [signature, "--", *arguments]
                if any(a.startswith("-") for a in arguments)
                else [signature, *arguments]
            )
        data = json.loads(self.run(*command) or "{}").get("data", [])
        return data[0] if len(data) == 1 else data

    def manager(self, member: str, signature: str = "", *arguments: str) -> Any:
        return self.call(ROOT, MANAGER, member, signature, *arguments)

    def get(self, path: str, interface: str, name: str) -> Any:
        """One property, through busctl."""
        out = self.run(
            "busctl", self.flag, "--json=short", "get-property", "org.vfsd1", path, interface, name
        )
        return json.loads(out)["data"]

    # the service

    def restart(self) -> None:
        self.systemctl("restart", "vfsd.service")

    def crash(self, pid: int | None = None) -> None:
        """Kill vfsd, and have it started again by hand, if systemd did not.

        :param pid: its process, if that is known already; to ask systemd takes a while.
        """
        pid = pid or self.main_pid()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.main_pid() != pid, "systemd notices")
        self.systemctl("reset-failed", "vfsd.service", check=False)
        self.systemctl("start", "vfsd.service")

    def main_pid(self) -> int:
        return int(self.unit_property("vfsd.service", "MainPID"))

    def units(self) -> list[str]:
        """vfsd's transient units that are loaded, slices of machines too."""
        out = self.systemctl("list-units", "--all", "--plain", "--no-legend", "--full", "vfsd-*")
        loaded = {line.split()[0] for line in out.splitlines() if line.strip()}
        return sorted(loaded - {"vfsd-vsock.socket"})  # the daemon's own

    def leftovers(self) -> list[str]:
        """What there should be nothing of once every object is removed."""
        left = [f"unit {unit}" for unit in self.units()]
        for folder in ("share", "source", "machine", "definitions"):
            left += [f"file {path}" for path in (self.runtime / folder).glob("*")]
        definitions = self.state / "definitions"
        left += [f"file {path}" for path in definitions.glob("*")]
        return left


@dataclass
class Signals:
    """Signals of one vfsd, in the order in which they came."""

    seen: list[Message] = field(default_factory=list)

    def states(self, path: str) -> list[tuple[str, str, str]]:
        """StateChanged of one object: old, new, reason."""
        return [tuple(m.body) for m in self.seen if m.member == "StateChanged" and m.path == path]

    def changes(self, path: str, name: str) -> list[Any]:
        """Values of one property, as PropertiesChanged told them."""
        told = (m for m in self.seen if m.member == "PropertiesChanged" and m.path == path)
        return [m.body[1][name].value for m in told if name in m.body[1]]

    def invalidations(self, path: str) -> list[str]:
        """Properties of one object of which PropertiesChanged told that, but not how, they changed."""
        told = (m for m in self.seen if m.member == "PropertiesChanged" and m.path == path)
        return [name for message in told for name in message.body[2]]

    def members(self) -> list[str]:
        return [message.member for message in self.seen]


class Client:
    """A D-Bus client of its own for what busctl can't do: signals, many calls at once, wrong types."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus
        self.signals = Signals()
        bus.add_message_handler(self._on_message)

    @classmethod
    async def connect(
        cls, vfsd: Vfsd, *, listen: bool = True, descriptors: bool = False, uid: int | None = None
    ) -> Client:
        """:param descriptors: whether results may be file descriptors.

        :param uid: who connects; default: the scope's user.
        """
        kind = BusType.SYSTEM if vfsd.scope == "system" else BusType.SESSION
        uid = vfsd.owner_uid if uid is None else uid
        # a user's bus lets in nobody else, root neither; the bus sees who connects, once
        os.setresuid(uid, uid, 0)
        try:
            bus = MessageBus(bus_address=vfsd.bus_address(), bus_type=kind, negotiate_unix_fd=descriptors)
            client = cls(await bus.connect())
        finally:
            os.setresuid(0, 0, 0)
        if not listen:
            return client
        await client.raw(
            "org.freedesktop.DBus",
            "/org/freedesktop/DBus",
            "org.freedesktop.DBus",
            "AddMatch",
            "s",
            ["type='signal',sender='org.vfsd1'"],
        )
        return client

    def _on_message(self, message: Message) -> bool:
        if message.message_type is MessageType.SIGNAL and (message.path or "").startswith(ROOT):
            self.signals.seen.append(message)
        return False

    async def raw(
        self,
        destination: str,
        path: str,
        interface: str | None,
        member: str,
        signature: str,
        body: list[Any],
        flags: MessageFlag = MessageFlag.NONE,
    ) -> list[Any]:
        """:raise BusError: the reply is an error."""
        reply = await self.bus.call(
            Message(
                destination=destination,
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=body,
                flags=flags,
            )
        )
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            raise BusError(reply.error_name, str(reply.body[0]) if reply.body else "")
        return list(reply.body)

    async def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        """Call vfsd; returns the single result, or None. :raise BusError."""
        results = await self.raw("org.vfsd1", path, interface, member, signature, list(body))
        return results[0] if results else None

    async def descriptor(self, path: str, interface: str, member: str) -> int:
        """Call vfsd; returns the file descriptor that it gives. :raise BusError."""
        message = Message(destination="org.vfsd1", path=path, interface=interface, member=member)
        reply = await self.bus.call(message)
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            raise BusError(reply.error_name, str(reply.body[0]))
        assert (reply.signature, len(reply.unix_fds)) == ("h", 1)
        return int(reply.unix_fds[reply.body[0]])

    async def manager(self, member: str, signature: str = "", *body: Any) -> Any:
        return await self.call(ROOT, MANAGER, member, signature, *body)

    async def create_share(self, name: str, source: Path | str, **options: tuple[str, Any]) -> str:
        given = {key: Variant(*value) for key, value in options.items()}
        return str(await self.manager("CreateShare", "ssa{sv}", name, str(source), given))

    async def create_machine(self, name: str, **options: tuple[str, Any]) -> str:
        given = {key: Variant(*value) for key, value in options.items()}
        return str(await self.manager("CreateMachine", "sa{sv}", name, given))

    async def get(self, path: str, interface: str, name: str) -> Any:
        value = await self.call(path, "org.freedesktop.DBus.Properties", "Get", "ss", interface, name)
        return value.value

    async def objects(self) -> dict[str, dict[str, dict[str, Variant]]]:
        managed = "org.freedesktop.DBus.ObjectManager"
        return dict(await self.call(ROOT, managed, "GetManagedObjects"))

    async def close(self) -> None:
        """End the connection; dbus-next leaves its socket open."""
        self.bus.disconnect()
        with contextlib.suppress(Exception):
            await self.bus.wait_for_disconnect()
        self.bus._stream.close()
        self.bus._sock.close()


async def until(condition: Callable[[], Any], what: str, timeout: float = 20) -> Any:
    """Wait until a condition holds, and return its value; it is asked again as the event loop turns."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        await asyncio.sleep(0.01)
    return value


def wait_for(condition: Callable[[], Any], what: str, timeout: float = 20) -> Any:
    """The same, outside an event loop."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        time.sleep(0.05)
    return value


@contextlib.contextmanager
def reconfigured(vfsd: Vfsd, text: str) -> Iterator[Path]:
    """vfsd with this in its service's section, by a drop-in, whose folder is returned; afterwards as it was."""
    folder = Path(f"/run/systemd/{vfsd.scope}/vfsd.service.d")
    folder.mkdir(parents=True)
    (folder / "test.conf").write_text(f"[Service]\n{text}")
    try:
        vfsd.systemctl("daemon-reload")
        vfsd.restart()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        vfsd.systemctl("daemon-reload")
        vfsd.restart()


def clean(vfsd: Vfsd) -> None:
    """End and forget everything, through the bus."""
    for name, state, _ in vfsd.manager("ListMachines"):
        if state not in ("stopped", "failed"):
            vfsd.run(
                "busctl", vfsd.flag, "call", "org.vfsd1", ROOT, MANAGER, "KillMachine", "s", name, check=False
            )
        vfsd.run(
            "busctl", vfsd.flag, "call", "org.vfsd1", ROOT, MANAGER, "RemoveMachine", "s", name, check=False
        )
    for _, state, _, path in vfsd.manager("ListShares"):
        if state in ("active", "listening"):
            vfsd.run("busctl", vfsd.flag, "call", "org.vfsd1", path, SHARE, "Stop", check=False)
        vfsd.run("busctl", vfsd.flag, "call", "org.vfsd1", path, SHARE, "Remove", check=False)


def scrub(vfsd: Vfsd) -> None:
    """Take away by force what a test that failed left behind, so that the next one is not blamed for it."""
    if not (left := vfsd.leftovers()):
        return
    vfsd.systemctl("stop", "vfsd.service", check=False)
    units = [item.removeprefix("unit ") for item in left if item.startswith("unit ")]
    vfsd.systemctl("stop", *units, check=False)
    vfsd.systemctl("reset-failed", *units, check=False)
    for path in (Path(item.removeprefix("file ")) for item in left if item.startswith("file ")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    vfsd.systemctl("start", "vfsd.service")


def process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
