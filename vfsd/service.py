"""Composition: puts the parts together, comes up, says so to systemd, and goes down."""

from __future__ import annotations

import vfsd.lean  # before asyncio

# isort: split

import asyncio
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from systemd import daemon

import vfsd
from vfsd import host_proc, journal, names, open_files
from vfsd.bus import interface
from vfsd.bus.callers import Caller
from vfsd.bus.connection import CallError, Connection
from vfsd.bus.dispatcher import Dispatcher
from vfsd.bus.guard import Guard
from vfsd.bus.objects import BusView, ManagerObject
from vfsd.bus.tree import Tree
from vfsd.context import Context, Thing
from vfsd.errors import VfsdError
from vfsd.host import Host
from vfsd.host_shutdown import HostShutdown
from vfsd.journal import INFO, NOTICE, WARNING, Journal, MessageId, Pace, log_to_journal
from vfsd.login1 import Login1
from vfsd.machined import Machined
from vfsd.names import Scope
from vfsd.paths import Paths
from vfsd.registry import Registry
from vfsd.share import Share
from vfsd.store import Store
from vfsd.systemd1 import Systemd
from vfsd.upkeep import Upkeep

if TYPE_CHECKING:
    from vfsd.open_files import Use
    from vfsd.watch import FileWatch

_DO_NOT_QUEUE = 4
_PRIMARY_OWNER = 1
_LABEL_MAX = 3 * 128
"""Characters in the path of an object with the longest name, each of them escaped."""
EXIT_NO_BUS, EXIT_NAME_TAKEN = 3, 4


_SHARE_MESSAGES = {"failed": MessageId.SHARE_FAILED, "unavailable": MessageId.SOURCE_GONE}


class StateJournal:
    """Writes each state change to the journal; a listener of the context."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def added(self, thing: Thing) -> None:
        """Creation shows as the first state change."""

    def removed(self, thing: Thing) -> None:
        """Removal shows as the last state change."""

    def changed(self, thing: Thing) -> None:
        """Only states are told."""

    def state_changed(self, thing: Thing, old: str, new: str, reason: str) -> None:
        failed = new == "failed"
        # a lone share whose virtiofsd ended abnormally listens again, and says why
        worrying = failed or new == "unavailable" or (new == "listening" and reason != "")
        if isinstance(thing, Share):
            kind, unit = "share", thing.service_unit
            message_id = _SHARE_MESSAGES.get(new, MessageId.SHARE_STATE)
            who = {"share": thing.name, "machine": thing.machine.name if thing.machine else ""}
        else:
            kind, unit = "machine", thing.unit
            message_id = MessageId.MACHINE_FAILED if failed else MessageId.MACHINE_STATE
            who = {"machine": thing.name}
        text = f"{kind} {thing.name} is {new}" + (f": {reason}" if reason else "")
        self._journal.write(
            message_id,
            WARNING if worrying else INFO,
            text,
            unit=unit,
            old_state=old,
            new_state=new,
            reason=reason,
            **who,
        )

    def files_running_out(self, share: Share, use: Use) -> None:
        remedy = "set a larger LimitNOFILE" if share.spec.limit_nofile else "let the system allow more"
        self._journal.write(
            MessageId.FILES_RUNNING_OUT,
            WARNING,
            f"share {share.name}: virtiofsd has {use.open} of {use.limit} files open; {remedy}, or InodeFileHandles",
            unit=share.service_unit,
            share=share.name,
            machine=share.machine.name if share.machine else "",
        )


def find_interfaces() -> Path:
    """The folder with the interface XML: installed beside lib/, by a package or by pip, or the dbus/ of a checkout."""
    package = Path(__file__).resolve().parent
    prefixes = package.parents[2:4]  # of lib/vfsd, and of lib/python3.x/site-packages
    candidates = (*(prefix / "share/dbus-1/interfaces" for prefix in prefixes), package.parent / "dbus")
    for folder in candidates:
        if (folder / "org.vfsd1.Manager.xml").exists():
            return folder
    raise FileNotFoundError(f"the interface files are in none of {', '.join(map(str, candidates))}")


class NoBus(Exception):
    """The bus can't be reached."""

    def __init__(self, scope: Scope, why: Exception) -> None:
        super().__init__(f"the {scope} bus can't be reached: {why}")


class Service:
    """One running vfsd."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        try:
            self._connection = Connection(scope)
            self._calls = Connection(scope)
            """For what vfsd asks others: the answers don't wait in the bus behind all that vfsd is asked."""
        except OSError as error:
            raise NoBus(scope, error) from None
        self._systemd = Systemd(self._calls)
        paths = Paths.of(scope)
        self._journal = Journal(scope)
        problem = paths.make()
        if problem:
            text = f"What is persistent can't be changed: {problem}"
            self._journal.write(MessageId.NOT_WRITTEN, WARNING, text, reason=problem)
        self._context = Context(scope, paths, self._systemd, Store(paths, scope), self._journal, Host(paths))
        self._machined = Machined(self._calls, self._systemd, self._context)
        self._context.registrar = self._machined
        self._login1 = Login1(self._context)
        self._registry = Registry(self._context)
        self._upkeep = Upkeep(self._context, self._registry)
        self._watch: FileWatch | None = None
        self._refusals = Pace(count=1000, window=30.0)

    async def run(self) -> int:
        """Serve until SIGTERM or the bus is gone; returns the exit code. :raise NoBus: there is none."""
        try:
            await asyncio.gather(self._connection.connect(), self._calls.connect())
        except (OSError, EOFError) as error:
            raise NoBus(self._scope, error) from None
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        dispatcher = await self._come_up()
        if dispatcher is None:
            print(f"vfsd: another vfsd serves the {self._scope} bus", file=sys.stderr)  # noqa: T201
            return EXIT_NAME_TAKEN
        self._context.spawn(self._settle())
        watchdog = asyncio.create_task(_feed_watchdog())
        gone = [asyncio.create_task(bus.wait_for_disconnect()) for bus in (self._connection, self._calls)]
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((*gone, stopped), return_when=asyncio.FIRST_COMPLETED)
        if any(bus.done() for bus in gone):
            # without the bus nothing can be undone: what was begun the next vfsd finds, as after a kill
            journal.flush()
            os._exit(EXIT_NO_BUS)
        daemon.notify("STOPPING=1\nSTATUS=Going down; what runs goes on")
        watchdog.cancel()
        await dispatcher.close()
        await self._context.close()
        self._login1.close()
        for bus in (self._connection, self._calls):
            bus.flush()
            bus.disconnect()
        await asyncio.gather(*gone, return_exceptions=True)
        return 0

    async def _come_up(self) -> Dispatcher | None:
        """Find everything again, then take the name: callers get in as soon as the name exists.

        Another vfsd that has the name already is left alone: to find things again is to speak to each QEMU, and to
        clean up.
        """
        [taken] = await self._connection.call_bus("NameHasOwner", "s", names.BUS_NAME)
        if taken:
            return None
        await asyncio.gather(self._systemd.subscribe(), self._machined.subscribe())
        await self._systemd.enumerate()
        notifications = self._context.notifications
        passed = daemon.listen_fds(unset_environment=False)
        notifications.inherit(found for found in passed if found != host_proc.descriptor())
        notifications.on_listen = _keep
        await self._registry.adopt()
        notifications.begin()
        interfaces = interface.load(find_interfaces())
        manager = ManagerObject(interfaces[names.MANAGER_INTERFACE], self._context, self._registry)
        guard = Guard(self._scope, self._connection)
        tree = Tree(self._connection, manager, discreet=guard.discreet)
        dispatcher = Dispatcher(self._connection, guard, tree, self._refused)
        shutdown = HostShutdown(self._context, self._registry.machines.values, self._login1)
        watch = open_files.Watch(self._context, self._registry.shares.values)
        self._context.listeners = [
            StateJournal(self._journal),
            BusView(interfaces, self._scope, tree, self._registry),
            watch,
            shutdown,
            self._upkeep,
        ]
        watch.begin()
        shutdown.begin()
        self._context.host.on_versions = lambda: tree.changed(names.ROOT_PATH)
        [reply] = await self._connection.call_bus("RequestName", "su", names.BUS_NAME, _DO_NOT_QUEUE)
        if reply != _PRIMARY_OWNER:
            return None
        self._tell_status()
        daemon.notify("READY=1")
        return dispatcher

    async def _settle(self) -> None:
        """What need not be done before the first call is answered."""
        self._watch_devices()
        self._upkeep.begin()
        self._context.spawn(self._registry.examine())
        self._context.spawn(self._registry.begin())
        await self._context.host.learn_versions()
        self._watch_binaries()
        await asyncio.to_thread(
            importlib.import_module, "qemu.qmp"
        )  # the first machine's start needn't wait for it
        self._tell_status()

    def _watch_binaries(self) -> None:
        """Notice when QEMU or virtiofsd is upgraded."""
        from vfsd.watch import FileWatch  # noqa: PLC0415  # not needed to come up

        if self._watch is None:
            self._watch = FileWatch(self._binaries_change)
        self._watch.watch(self._context.host.binaries)

    def _binaries_change(self) -> None:
        self._context.spawn(self._look_at_binaries())

    async def _look_at_binaries(self) -> None:
        self._context.host.forget_binaries()
        await self._context.host.learn_versions()
        self._watch_binaries()
        await self._registry.examine()

    def _watch_devices(self) -> None:
        from vfsd.udev import DeviceMonitor  # noqa: PLC0415  # not needed to come up

        DeviceMonitor(self._device_changed, self._context.sources.device_changed).start()

    def _device_changed(self, device: str, action: str) -> None:
        if device == "kvm":
            self._context.host.forget_kvm()
            self._journal.write(MessageId.KVM_CHANGED, NOTICE, f"/dev/{device}: {action}")

    def _tell_status(self) -> None:
        shares, machines = len(self._registry.shares), len(self._registry.machines)
        daemon.notify(f"STATUS=Serving the {self._scope} bus: {machines} machines, {shares} shares")

    def _refused(self, path: str, member: str, text: str, caller: Caller | None) -> None:
        # journald drops what comes too fast, state changes with it (RateLimitBurst= is 10,000 in 30 s)
        text = self._refusals.pace(text)
        if not text:
            return
        kind, _, label = path.removeprefix(names.ROOT_PATH).strip("/").partition("/")
        name = names.label_unescape(label) if len(label) <= _LABEL_MAX else ""
        unit_of = {"share": names.share_service_unit, "machine": names.machine_unit}.get(kind)
        who = {kind: name} if unit_of and name else {}
        unit = unit_of(name) if unit_of and name else ""
        self._journal.write(
            MessageId.REFUSED,
            INFO,
            f"{member} refused: {text}",
            unit=unit,
            reason=text,
            caller_uid=caller.uid if caller else "",
            caller_pid=caller.pid if caller else "",
            **who,
        )


def _keep(descriptor: int) -> None:
    """Leave a socket with systemd, so that what comes while vfsd is started anew waits in it (FDSTORE=1)."""
    daemon.notify("FDSTORE=1\nFDNAME=vsock", fds=[descriptor])


async def _feed_watchdog() -> None:
    """Tell systemd regularly that the event loop turns (sd_watchdog_enabled(3))."""
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
    while interval:
        daemon.notify("WATCHDOG=1")
        await asyncio.sleep(interval / 2)


async def _serve(scope: Scope) -> int:
    return await Service(scope).run()


def main() -> int:
    """The command `vfsd`."""
    if sys.argv[1:] in (["--system"], ["--user"]):
        return _run(Scope(sys.argv[1].removeprefix("--")))  # as its units do: saves loading argparse
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="vfsd",
        description="Serves virtio-fs shares and virtual machines on D-Bus; usually started by systemd.",
        epilog=(
            f"Exit codes: 0 stopped on request; 1 failed; 2 wrong usage; {EXIT_NO_BUS} no bus; "
            f"{EXIT_NAME_TAKEN} another vfsd serves this bus."
        ),
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--system", action="store_true", help="serve the system bus (default for root)")
    which.add_argument("--user", action="store_true", help="serve the user's own bus (default for others)")
    parser.add_argument("--version", action="version", version=f"vfsd {vfsd.__version__}")
    arguments = parser.parse_args()
    system = arguments.system or (not arguments.user and os.geteuid() == 0)
    return _run(Scope.SYSTEM if system else Scope.USER)


def _run(scope: Scope) -> int:
    log_to_journal()
    try:
        return asyncio.run(_serve(scope))
    except NoBus as error:
        print(f"vfsd: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_NO_BUS
    except (OSError, CallError, VfsdError) as error:
        print(f"vfsd: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        journal.flush()
