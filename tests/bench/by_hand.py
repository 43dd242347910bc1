"""What vfsd does to a running machine, done by hand: processes of one's own, and words to QEMU and the guest's agent.

Nothing is checked that need not be, and nothing is waited for longer than it takes: this is the floor for vfsd.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import time
from collections.abc import Collection

from tests.bench.bare import END_TIMEOUT, serve, spawn_qemu
from tests.bench.guest_agent import Agent
from tests.bench.qmp import Qmp
from tests.bench.setting import NAME, Plan, bench_paths
from vfsd import devices
from vfsd.commands import MachineArchitecture
from vfsd.model import ShareSpec

MOUNT = """
[ -d "$2" ] || mkdir -p "$2"
left=50
until mount -t virtiofs "$1" "$2" 2>/dev/null; do
	[ $((left -= 1)) -gt 0 ] || exit
	sleep 0.02
done
"""
"""A device that was plugged just now may not be known to the guest's file system yet."""
REMOUNT = (
    """
mounted() {
	while read -r _ where _; do [ "$where" = "$1" ] && return; done </proc/mounts
	return 1
}
umount -l "$2" &
while mounted "$2"; do sleep 0.01; done
"""
    + MOUNT
)
"""umount waits for ever for the last word of a file system that is dead; the mount has gone before."""


class ByHand:
    """One QEMU and its virtiofsds."""

    def __init__(self, plan: Plan, folder: str = NAME) -> None:
        """:param folder: name of the one for its sockets, which another one that runs does not have."""
        self.plan = plan
        self._paths = bench_paths()
        self.own = self._paths.machine(folder)
        self.own.folder.mkdir(exist_ok=True)
        self.qemu: subprocess.Popen[bytes] | None = None
        self._served: dict[int, subprocess.Popen[bytes]] = {}
        """The virtiofsd behind the device in each slot."""
        self._dead: set[int] = set()
        """Slots with a device whose virtiofsd died."""
        self._monitor: Qmp | None = None
        self._agent: Agent | None = None

    @property
    def monitor(self) -> Qmp:
        assert self._monitor
        return self._monitor

    @property
    def agent(self) -> Agent:
        assert self._agent
        return self._agent

    def spawn(self, *further: str) -> None:
        """Start the processes. :param further: arguments of QEMU besides those that vfsd gives."""
        clients = []
        for slot, share in enumerate(self.plan.spec.shares):
            self._served[slot], client = serve(self.plan, share, self._paths.share_socket(share.name))
            clients.append(client)
        self.qemu = spawn_qemu(self.plan, self.own, clients, further)

    def connect(self) -> None:
        """Reach QEMU's monitor."""
        self._monitor = Qmp.open(self.own.monitor)

    def connect_ahead(self) -> None:
        """Reach the monitor of a QEMU that is not up yet. The first that is wanted of it must be an event."""
        self._monitor = Qmp.ahead(self.own.monitor)

    def greet(self) -> None:
        """Wait until the guest's agent answers."""
        self._agent = Agent(self.own.agent)
        self._agent.greet()

    def attach(self, share: ShareSpec, mount_point: str) -> float:
        """Plug a share in and mount it; returns the seconds."""
        begin = time.perf_counter()
        self._plug(share, self._free_slot, share.tag)
        self.agent.shell(MOUNT, share.tag, mount_point)
        return time.perf_counter() - begin

    def detach(self, mount_point: str) -> float:
        """Unmount the share that was plugged last, and unplug it; returns the seconds."""
        slot = max(self._served)
        begin = time.perf_counter()
        self.agent.shell('umount "$1"', mount_point)
        self.monitor.execute("device_del", id=devices.device_id(slot))
        self.monitor.wait_for("DEVICE_DELETED", device=devices.device_id(slot))
        self.monitor.execute("chardev-remove", id=devices.chardev_id(slot))
        self._served.pop(slot).wait(END_TIMEOUT)
        return time.perf_counter() - begin

    def kill_and_heal(self, share: ShareSpec, slot: int, mount_point: str) -> tuple[int, float]:
        """Kill the virtiofsd behind a device, and mount another device when it is dead.

        :return: the other one's slot, and the seconds.
        """
        process = self._served.pop(slot)
        self._dead.add(slot)
        descriptor = os.pidfd_open(process.pid)
        try:
            begin = time.perf_counter()
            os.kill(process.pid, signal.SIGKILL)
            select.select([descriptor], [], [], END_TIMEOUT)
            free = self._free_slot
            tag = f"{share.tag}.{free}"
            self._plug(share, free, tag)
            self.agent.shell(REMOUNT, tag, mount_point)
            seconds = time.perf_counter() - begin
        finally:
            os.close(descriptor)
        process.wait(END_TIMEOUT)
        return free, seconds

    def read(self, path: str) -> bytes:
        """A file in the guest."""
        return self.agent.shell('cat "$1"', path)

    def end(self) -> None:
        """Tell QEMU to quit, and wait for it and its virtiofsds."""
        self.monitor.send("quit")
        for process in self._processes:
            process.wait(END_TIMEOUT)
        self.abandon()

    def abandon(self) -> None:
        """End whatever is left."""
        for connection in (self._agent, self._monitor):
            if connection:
                connection.close()
        for process in self._processes:
            process.kill()
            process.wait(END_TIMEOUT)
        self._agent, self._monitor, self.qemu = None, None, None
        self._served.clear()

    @property
    def _processes(self) -> list[subprocess.Popen[bytes]]:
        return [*([self.qemu] if self.qemu else []), *self._served.values()]

    @property
    def _free_slot(self) -> int:
        return free_slot(self._dead.union(self._served))

    def _plug(self, share: ShareSpec, slot: int, tag: str) -> None:
        execute = self.monitor.execute
        chardev = devices.chardev_id(slot)
        self._served[slot], client = serve(self.plan, share, self._paths.share_socket(share.name))
        with client:
            self.monitor.pass_fd(chardev, client.fileno())
        connection = {"addr": {"type": "fd", "data": {"str": chardev}}, "server": False}
        execute("chardev-add", id=chardev, backend={"type": "socket", "data": connection})
        place = devices.place(slot, bridged=MachineArchitecture.of(self.plan.architecture).bridged)
        names = {"id": devices.device_id(slot), "chardev": chardev, "tag": tag}
        execute("device_add", driver="vhost-user-fs-pci", **names, **place)


def free_slot(taken: Collection[int]) -> int:
    """The first slot that nothing stands in."""
    return next(slot for slot in itertools.count() if slot not in taken)
