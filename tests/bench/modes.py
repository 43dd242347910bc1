"""The same machine, started and ended in several ways: by raw systemd calls, by vfsd, and bare (`bare`)."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dbus_next import Variant

from tests.bench.bare import END_TIMEOUT, own_sockets
from tests.bench.bus import MANAGER, ROOT, SYSTEMD, VFSD, CallFailed, Client, Gone
from tests.bench.qmp import Qmp
from tests.bench.setting import NAME, PREFIX, Plan, bench_paths, clean_units, vfsd_halted
from vfsd import commands, hardening, names, units
from vfsd.commands import FIRST_PASSED_FD
from vfsd.model import MACHINE_OPTIONS, ShareSpec
from vfsd.names import Scope
from vfsd.opened import Openings
from vfsd.units import Property

SIGKILL = int(signal.SIGKILL)


class Mode(Protocol):
    """One way to run a machine."""

    console: Path
    """Where its console can be reached while it runs."""

    async def start(self) -> float:
        """Start and return the seconds until the guest's processors run."""

    async def kill(self) -> float:
        """Kill QEMU; returns the seconds until all is gone."""

    async def quit(self) -> float:
        """Tell QEMU to quit; returns the seconds until all is gone."""

    async def abandon(self) -> None:
        """End whatever is left, after a failure too."""


@dataclass(frozen=True, slots=True)
class RawForm:
    """How the raw units are written."""

    sandboxed: bool = True
    """With vfsd's sandboxing properties."""
    wants: bool = False
    """Start each virtiofsd beside QEMU, instead of by QEMU's connection."""
    whole: bool = False
    """All units as vfsd makes them, with slice, socket of the machine, ExecStop= and all the rest."""


class Raw:
    """One StartTransientUnit over dbus-next: QEMU's service as the unit, all the others as auxiliary ones."""

    def __init__(self, plan: Plan, client: Client, form: RawForm) -> None:
        self._plan = plan
        self._client = client
        self._form = form
        self._paths = bench_paths()
        self._own = self._paths.machine(NAME)
        self.console = self._own.console
        self._monitor: Qmp | None = None
        self._running: list[str] = []

    async def start(self) -> float:
        with vfsd_halted():
            begin = time.perf_counter()
            machine, aux = self._whole_units() if self._form.whole else self._units()
            self._running = [machine[0], *(name for name, _ in aux)]
            body = [machine[0], "fail", machine[1], aux]
            await self._client.call(*SYSTEMD, "StartTransientUnit", "ssa(sv)a(sa(sv))", *body)
            self._monitor = Qmp.until_running(self._own.monitor)
            return time.perf_counter() - begin

    async def kill(self) -> float:
        with vfsd_halted():
            gone = Gone(self._client, self._running)
            begin = time.perf_counter()
            await self._client.call(*SYSTEMD, "KillUnit", "ssi", self._running[0], "all", SIGKILL)
            return await self._gone(gone, begin)

    async def quit(self) -> float:
        assert self._monitor
        with vfsd_halted():
            gone = Gone(self._client, self._running)
            begin = time.perf_counter()
            self._monitor.send("quit")
            return await self._gone(gone, begin)

    async def abandon(self) -> None:
        self._forget()
        if self._running:
            clean_units()
            self._running = []

    async def _gone(self, gone: Gone, begin: float) -> float:
        end = await gone.wait(END_TIMEOUT)
        left = list(self._paths.shares.glob("*.sock"))
        if left:
            raise AssertionError(f"the units are gone, these are not: {left}")
        self._running = []
        self._forget()
        return end - begin

    def _forget(self) -> None:
        if self._monitor:
            self._monitor.close()
            self._monitor = None
        for path in self._own.folder.iterdir():
            path.unlink()

    def _units(self) -> tuple[list[Any], list[list[Any]]]:
        plan, form, paths = self._plan, self._form, self._paths
        sockets, services, aux, opened = [], [], [], []
        # a confined QEMU can't bind its monitors and the console: a socket unit of its own does
        own = [str(path) for path in own_sockets(self._own)] if form.sandboxed else []
        openings = Openings(FIRST_PASSED_FD + len(own), opens=True)
        for number, share in enumerate(plan.spec.shares):
            path = str(paths.share_socket(share.name))
            base = f"{PREFIX}{number}"
            sockets.append(f"{base}.socket")
            services.append(f"{base}.service")
            opened.append(openings.add(Path(path), writable=True))
            aux.append([sockets[-1], variants(share_socket(path, stop_when_unneeded=True))])
            aux.append([services[-1], variants(self._service(share))])
        fds = [file.descriptor or -1 for file in opened]
        if own:
            sockets.append(f"{PREFIX}machine.socket")
            listening = [
                ("Listen", "a(ss)", [["Stream", path] for path in own]),
                *share_socket("", stop_when_unneeded=True)[1:],
            ]
            aux.append([sockets[-1], variants(listening)])
            passed = range(FIRST_PASSED_FD, FIRST_PASSED_FD + len(own))
            arguments = plan.qemu_arguments(fds, commands.MachineSockets(*passed), openings)
        else:
            made = dict(zip(range(-1, -6, -1), own_sockets(self._own), strict=True))
            arguments = plan.qemu_arguments(fds, commands.MachineSockets(*made))
            for fd, path_of in made.items():
                arguments = [word.replace(f"fd={fd},", f"path={path_of},") for word in arguments]
        properties: list[Property] = [
            ("Type", "s", "exec"),
            ("ExecStartEx", "a(sasas)", units.command(arguments)),
            ("Wants", "as", [*sockets, *(services if form.wants else [])]),
            ("After", "as", [*sockets, *services]),
            ("CollectMode", "s", "inactive-or-failed"),
            ("OpenFile", "a(sst)", [list(entry) for entry in openings.entries]),
            *(self._sandbox() if form.sandboxed else []),
        ]
        return [f"{PREFIX}machine.service", variants(properties)], aux

    def _sandbox(self) -> list[Property]:
        return hardening.qemu(self._plan.spec, Scope.SYSTEM, self._own, "tcg", opens=True)

    def _service(self, share: ShareSpec) -> list[Property]:
        plan, paths = self._plan, self._paths
        if not self._form.sandboxed:
            return share_service(plan.virtiofsd_arguments(share, 3, Path(share.source)))
        link = paths.source_link(share.name)
        if not link.is_symlink():
            link.symlink_to(share.source)
        arguments = plan.virtiofsd_arguments(share, 3, paths.mount)
        return [*share_service(arguments), *hardening.virtiofsd(share, Scope.SYSTEM, paths, arguments[0])]

    def _whole_units(self) -> tuple[list[Any], list[list[Any]]]:
        plan, paths = self._plan, self._paths
        spec = plan.spec
        aux: list[units.Unit] = []
        for share in spec.shares:
            link = paths.source_link(share.name)
            if not link.is_symlink():
                link.symlink_to(share.source)
            arguments = commands.virtiofsd_arguments(str(plan.virtiofsd), share, paths.mount)
            aux += units.share_units(share, arguments, Scope.SYSTEM, paths, units.Place(spec.name))
        openings = Openings(units.FIRST_OPENED_FD, opens=True)
        opened = [openings.add(paths.share_socket(share.name), writable=True) for share in spec.shares]
        arguments = plan.qemu_arguments([file.descriptor or -1 for file in opened], units.SOCKETS, openings)
        stop = units.stop_command(
            "/usr/bin/python3", Path("/dev/null"), self._own, spec.shutdown_timeout_usec
        )
        shares = [share.name for share in spec.shares]
        machine, own = units.machine_units(
            spec,
            arguments,
            stop,
            shares,
            Scope.SYSTEM,
            paths,
            self._sandbox(),
            open_files=openings.entries,
        )
        made = [[_renamed(unit.name), variants(unit.properties)] for unit in (machine, *own, *aux)]
        return made[0], made[1:]


def share_socket(path: str, *, stop_when_unneeded: bool = False) -> list[Property]:
    """A raw share's socket."""
    return [
        ("Listen", "a(ss)", [["Stream", path]]),
        ("SocketMode", "u", 0o600),
        ("RemoveOnStop", "b", True),
        ("FlushPending", "b", True),
        ("CollectMode", "s", "inactive-or-failed"),
        ("StopWhenUnneeded", "b", stop_when_unneeded),
    ]


def share_service(arguments: list[str]) -> list[Property]:
    """A raw share's service, without sandboxing."""
    return [
        ("Type", "s", "exec"),
        ("ExecStartEx", "a(sasas)", units.command(arguments)),
        ("KillSignal", "i", 2),
        ("StartLimitIntervalUSec", "t", 0),
        ("CollectMode", "s", "inactive-or-failed"),
    ]


def _renamed(unit: str) -> str:
    """A unit name under which vfsd does not take the unit for its own."""
    return unit.replace("vfsd-", PREFIX, 1)


def variants(properties: list[Property]) -> list[list[Any]]:
    """As the call takes them, and with the names of vfsd's units replaced."""
    made = []
    for name, signature, value in properties:
        if name in ("Requires", "Wants", "After"):
            value = [_renamed(unit) for unit in value]  # noqa: PLW2901
        elif name == "Slice":
            value = _renamed(value) if value != names.ROOT_SLICE else value  # noqa: PLW2901
        made.append([name, Variant(signature, value)])
    return made


@dataclass
class Vfsd:
    """A machine of vfsd: StartMachine until its reply, KillMachine or the end of QEMU until all is gone."""

    plan: Plan
    client: Client
    options: dict[str, Variant] = field(default_factory=dict)
    """In place of Kernel, Initrd and Append."""
    further: dict[str, Variant] = field(default_factory=dict)
    """Options besides all these."""
    console: Path = Path("/run/vfsd/machine") / NAME / "console"

    async def define(self) -> None:
        """Create the machine, which is no part of what is measured."""
        spec = self.plan.spec
        shares = [[str(source), "", {}] for source in self.plan.sources]
        wanted = self.options or {name: _option(spec, name) for name in ("Kernel", "Initrd", "Append")}
        options = {
            "Memory": _option(spec, "Memory"),
            "Accelerator": _option(spec, "Accelerator"),
            "Shares": Variant("a(ssa{sv})", shares),
            "SparePorts": _option(spec, "SparePorts"),
            **wanted,
            **self.further,
        }
        await self._manager("CreateMachine", "sa{sv}", NAME, options)

    async def remove(self) -> None:
        await self._manager("RemoveMachine", "s", NAME)

    async def start(self) -> float:
        await self._settled()
        await self.define()
        begin = time.perf_counter()
        await self._manager("StartMachine", "s", NAME)
        return time.perf_counter() - begin

    async def kill(self) -> float:
        async def answered() -> float:
            await self._manager("KillMachine", "s", NAME)
            return time.perf_counter()

        gone = self._watch()
        begin = time.perf_counter()
        reply = asyncio.create_task(answered())
        end = max(await gone.wait(END_TIMEOUT), await reply)
        return await self._finish(end - begin)

    async def quit(self) -> float:
        gone = self._watch()
        monitor = Qmp.until_running(self.console.with_name("qmp-stop"))
        begin = time.perf_counter()
        monitor.send("quit")
        end = await gone.wait(END_TIMEOUT)
        monitor.close()
        return await self._finish(end - begin)

    async def abandon(self) -> None:
        for member in ("KillMachine", "RemoveMachine"):
            try:
                await self._manager(member, "s", NAME)
            except (CallFailed, TimeoutError):
                continue

    async def _finish(self, seconds: float) -> float:
        left = [share.name for share in self.plan.spec.shares if vfsd_socket(share.name).exists()]
        if left:
            raise AssertionError(f"the units are gone, the sockets of these are not: {left}")
        await self.remove()
        return seconds

    def _watch(self) -> Gone:
        shares = [share.name for share in self.plan.spec.shares]
        expected = [
            names.machine_unit(NAME),
            names.machine_socket_unit(NAME),
            names.machine_slice(NAME),
            *map(names.share_socket_unit, shares),
            *map(names.share_service_unit, shares),
        ]
        return Gone(self.client, expected, names.machine_path(NAME))

    async def _settled(self) -> None:
        """Wait until vfsd has worked off what the turns before gave it to read."""
        await self.client.call(VFSD, ROOT, "org.freedesktop.DBus.Peer", "Ping")

    async def _manager(self, member: str, signature: str, *body: Any) -> list[Any]:
        return await self.client.call(VFSD, ROOT, MANAGER, member, signature, *body)


def vfsd_socket(share: str) -> Path:
    """Where a share of vfsd's listens."""
    return Path("/run/vfsd/share") / f"{share}.sock"


def _option(spec: Any, name: str) -> Variant:
    known = MACHINE_OPTIONS[name]
    return Variant(known.signature, known.to_dbus(spec))
