"""Plugging a share's device into a running QEMU, and taking it out again.

QEMU never opens a share's socket itself: vfsd connects, which makes systemd start virtiofsd, and passes the
connection on. So QEMU needs no right to reach it, whoever it runs as.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vfsd import devices
from vfsd.commands import MachineArchitecture
from vfsd.context import Context
from vfsd.devices import Plug
from vfsd.errors import GuestTimeout, MonitorFailed, NotSupported, UnitFailed, VfsdError
from vfsd.mounting import guest_options
from vfsd.turns import finish

if TYPE_CHECKING:
    from vfsd.inside import GuestMount
    from vfsd.lifecycle import Lifecycle
    from vfsd.machine import Machine
    from vfsd.share import Share

UNPLUG_TIMEOUT = 5.0
"""Seconds in which a guest gives a device back; Linux on TCG takes 25 ms."""
_CONNECT_TIMEOUT = 5.0
"""Seconds in which a socket on this host takes a connection."""


async def attach(context: Context, machine: Machine, share: Share) -> None:
    """Give a share to a running guest, mounted if it has a mount point and the guest an agent.

    :raise VfsdError: it could not be, and everything is as it was.
    """
    plugged = None
    share.attach(machine)
    try:
        await find_strays(machine)
        if machine.layout.has_tag(share.spec.tag):
            raise NotSupported(
                f'the guest of machine "{machine.name}" has a device with the tag "{share.spec.tag}" already, which'
                " it did not give back; reset the machine, or set another Tag"
            )
        await share.listen_for(machine.place)
        plugged = await plug(context, machine, share, share.spec.tag)
        if share.spec.mount_point and await machine.inside.has_agent():
            await machine.inside.mount(plugged.tag, share.spec.mount_point, guest_options(share.spec))
    except BaseException:
        await finish(_undo(machine, share, plugged))
        share.attach(None)
        context.spawn(share.listen_again())
        raise


async def detach(machine: Lifecycle, share: Share) -> None:
    """Take a share from a running guest, unmounted first if the guest has an agent.

    :raise VfsdError: it could not be, and everything is as it was.
    """
    plugged = machine.layout.of(share.name)
    if plugged is None:
        return
    taken: list[GuestMount] = []
    try:
        if await machine.inside.has_agent():
            await machine.inside.query_mounts()
            mounts = [mount for mount in machine.inside.mounts if mount.tag == plugged.tag]
            for mount in reversed(mounts):  # what was mounted last may lie inside of the others
                await machine.inside.unmount(mount.mount_point)
                taken.append(mount)
        share.parting = True
        await unplug(machine, plugged)
    except BaseException:
        share.parting = False
        await finish(_mount_again(machine, plugged.tag, taken))
        raise
    await share.release()


async def replace(context: Context, machine: Machine, shares: Sequence[Share]) -> None:
    """Give shares new devices with their own tags, in a guest that is about to boot: it is reset for that.

    Devices that belong to no share any more are taken out.

    :raise VfsdError: it could not be; the guest boots with what there is.
    """
    execute = machine.qemu.execute
    machine.frozen = True
    try:
        await execute("stop")
        for orphan in machine.orphans:
            await _unplug_by_reset(machine, orphan)
        for share in shares:
            share.parting = True
            for plugged in [plug for plug in machine.layout.plugs if plug.share == share.name]:
                await _unplug_by_reset(machine, plugged)
        for share in shares:
            share.parting = False
            await share.listen_anew(machine.place)
            await plug(context, machine, share, share.spec.tag)
    finally:
        for share in shares:
            share.parting = False
        await execute("cont")
        machine.frozen = False


async def _unplug_by_reset(machine: Lifecycle, plugged: Plug) -> None:
    """What the guest does not give back a reset takes from it. :raise GuestTimeout, MonitorFailed."""
    gone = machine.qemu.expect(("DEVICE_DELETED",), devices.device_id(plugged.slot))
    try:
        await machine.qemu.execute("device_del", id=devices.device_id(plugged.slot))
        await machine.qemu.execute("system_reset")
        async with asyncio.timeout(UNPLUG_TIMEOUT):
            await gone
    except TimeoutError:
        raise GuestTimeout(f'the device of share "{plugged.share}" outlived a reset') from None
    finally:
        gone.cancel()
    await forget(machine, plugged)


async def _undo(machine: Lifecycle, share: Share, plugged: Plug | None) -> None:
    with contextlib.suppress(VfsdError):
        # a guest that asks something of a dead device would wait for ever to give it back: the next reset takes it
        if plugged is not None and not share.lost:
            await unplug(machine, plugged)
    with contextlib.suppress(VfsdError):
        await share.release()


async def _mount_again(machine: Lifecycle, tag: str, mounts: Sequence[GuestMount]) -> None:
    for mount in reversed(mounts):
        with contextlib.suppress(VfsdError):
            await machine.inside.mount(tag, mount.mount_point, mount.options)


async def find_strays(machine: Lifecycle) -> None:
    """Note devices which a vfsd plugged that was ended before it could say so. :raise MonitorFailed."""
    execute = machine.qemu.execute
    known = {plug.slot for plug in machine.layout.plugs}
    for chardev in await execute("query-chardev"):
        label = str(chardev.get("label"))
        slot = devices.slot_of(label)
        if slot is None or slot in known:
            continue
        try:
            await execute("chardev-remove", id=label)
        except MonitorFailed:  # the device uses it
            path = f"/machine/peripheral/{devices.device_id(slot)}"
            tag = await execute("qom-get", path=path, property="tag")
            machine.set_layout(machine.layout.plugged(Plug("", slot, str(tag))))


async def plug(context: Context, machine: Lifecycle, share: Share, tag: str) -> Plug:
    """Connect a share that listens to a running machine, under a tag that no other device has.

    :raise NotSupported: no slot is free. UnitFailed: the share takes no connection. MonitorFailed: QEMU refused.
    """
    slot = machine.layout.free
    if slot is None:
        raise NotSupported(
            f'machine "{machine.name}" has no free port for share "{share.name}"; shut it down, raise SparePorts'
            " and start it again"
        )
    qemu = await context.host.qemu()
    properties = devices.properties(slot, tag, bridged=MachineArchitecture.of(qemu.arch).bridged)
    chardev = devices.chardev_id(slot)
    execute = machine.qemu.execute
    with _connection(share.name, share.socket_path) as descriptor:
        await machine.qemu.monitor.pass_fd(chardev, descriptor)
    try:
        address = {"type": "fd", "data": {"str": chardev}}
        await execute(
            "chardev-add",
            id=chardev,
            backend={"type": "socket", "data": {"addr": address, "server": False}},
        )
    except BaseException:
        with contextlib.suppress(MonitorFailed):
            await execute("closefd", fdname=chardev)
        raise
    try:
        await execute("device_add", driver="vhost-user-fs-pci", **properties)
    except BaseException:
        with contextlib.suppress(MonitorFailed):
            await execute("chardev-remove", id=chardev)
        raise
    made = Plug(share.name, slot, tag)
    machine.set_layout(machine.layout.plugged(made))
    return made


async def unplug(machine: Lifecycle, plugged: Plug) -> None:
    """Take a device out of a running machine; the guest has to give it back.

    :raise GuestTimeout: it did not; the device is there still. MonitorFailed: QEMU refused.
    """
    device = devices.device_id(plugged.slot)
    gone = machine.qemu.expect(("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"), device)
    try:
        await machine.qemu.execute("device_del", id=device)
        async with asyncio.timeout(UNPLUG_TIMEOUT):
            event = await gone
    except TimeoutError:
        event = ""
    finally:
        gone.cancel()
    if event != "DEVICE_DELETED":
        raise GuestTimeout(
            f'the guest of machine "{machine.name}" did not give share "{plugged.share}" back; it is attached still'
        )
    await forget(machine, plugged)


async def forget(machine: Lifecycle, plugged: Plug) -> None:
    """Clear up after a device that is gone: its connection to virtiofsd, its slot."""
    machine.set_layout(machine.layout.unplugged(plugged.slot))
    with contextlib.suppress(MonitorFailed):
        await machine.qemu.execute("chardev-remove", id=devices.chardev_id(plugged.slot))


@contextlib.contextmanager
def _connection(share: str, path: Path) -> Iterator[int]:
    """A connected descriptor; ours is closed afterwards. :raise UnitFailed: nobody takes the connection."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_CONNECT_TIMEOUT)
        try:
            client.connect(str(path))
        except OSError as error:
            raise UnitFailed(f'share "{share}" takes no connection: {error.strerror or error}') from None
        yield client.fileno()
