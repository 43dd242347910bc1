"""The same machine by bare processes: no systemd, no vfsd."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.bench.qmp import Qmp
from tests.bench.setting import NAME, RUNTIME, Plan, bench_paths
from vfsd import commands
from vfsd.model import ShareSpec
from vfsd.paths import MachinePaths

END_TIMEOUT = 20.0


def own_sockets(own: MachinePaths) -> tuple[Path, ...]:
    """Those of `commands.MachineSockets`, in its order."""
    return (own.monitor, own.stop_monitor, own.console, own.console_tap, own.agent)


def fresh(path: Path) -> Path:
    """A path at which nothing is."""
    path.unlink(missing_ok=True)
    return path


def listening(path: Path) -> socket.socket:
    """A listening socket that children inherit."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(fresh(path)))
    made.listen(16)
    made.set_inheritable(True)
    return made


def connected(path: Path) -> socket.socket:
    """A connected socket that children inherit."""
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    made.set_inheritable(True)
    return made


def spawn(arguments: list[str], fds: Iterable[int], standard_input: int) -> subprocess.Popen[bytes]:
    """A process of its own session, with some descriptors."""
    return subprocess.Popen(
        arguments,
        pass_fds=tuple(fds),
        stdin=standard_input,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def serve(plan: Plan, share: ShareSpec, path: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A virtiofsd on a socket that is bound before it, and a connection to it."""
    with listening(path) as server:
        fd = server.fileno()
        arguments = plan.virtiofsd_arguments(share, fd, Path(share.source))
        return spawn(arguments, [fd], subprocess.DEVNULL), connected(path)


def spawn_qemu(
    plan: Plan, own: MachinePaths, clients: Sequence[socket.socket], further: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """A QEMU with its own sockets in a folder, and connections to its virtiofsds, which are closed here.

    :param further: arguments besides those that vfsd gives.
    """
    servers = [listening(path) for path in own_sockets(own)]
    # QEMU's console ends with its standard input, so that must not end
    standard_input, kept = os.pipe()
    fds = [server.fileno() for server in servers]
    share_fds = [client.fileno() for client in clients]
    arguments = plan.qemu_arguments(share_fds, commands.MachineSockets(*fds))
    process = spawn([*arguments, *further], [*fds, *share_fds, kept], standard_input)
    for descriptor in (standard_input, kept):
        os.close(descriptor)
    for each in (*servers, *clients):
        each.close()
    return process


class Bare:
    """A script: it binds the sockets, spawns each virtiofsd and one QEMU, and waits for them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._own = bench_paths().machine(NAME)
        self.console = self._own.console
        self._processes: list[subprocess.Popen[bytes]] = []
        self._monitor: Qmp | None = None

    async def start(self) -> float:
        begin = time.perf_counter()
        plan, paths = self._plan, bench_paths()
        clients = []
        for share in plan.spec.shares:
            process, client = serve(plan, share, paths.share_socket(share.name))
            self._processes.append(process)
            clients.append(client)
        self._processes.append(spawn_qemu(plan, self._own, clients))
        self._monitor = Qmp.until_running(self._own.monitor)
        return time.perf_counter() - begin

    async def kill(self) -> float:
        begin = time.perf_counter()
        self._processes[-1].kill()
        return await self._gone(begin)

    async def quit(self) -> float:
        assert self._monitor
        begin = time.perf_counter()
        self._monitor.send("quit")
        return await self._gone(begin)

    async def abandon(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(END_TIMEOUT)
        self._forget()

    async def _gone(self, begin: float) -> float:
        for process in self._processes:
            process.wait(END_TIMEOUT)
        for path in (*RUNTIME.glob("share/*.sock"), *self._own.folder.iterdir()):
            path.unlink()
        end = time.perf_counter()
        self._forget()
        return end - begin

    def _forget(self) -> None:
        self._processes.clear()
        if self._monitor:
            self._monitor.close()
            self._monitor = None
