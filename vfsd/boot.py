"""What a machine is about to be started with: everything checked, every file in place, every unit described."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vfsd import commands, ctrl_alt_del, power_off, root_share, ssh, told, units
from vfsd.commands import Boot, Incoming, MachineArchitecture, QemuPlan, ShareDevice, VsockDevice
from vfsd.context import Context
from vfsd.devices import Layout
from vfsd.errors import InvalidArgs, PrerequisiteMissing
from vfsd.model import Firmware
from vfsd.mounting import own_options
from vfsd.names import FIRST
from vfsd.paths import MachinePaths
from vfsd.share import Share
from vfsd.units import FIRST_SHARE_FD, SOCKETS, Place, Unit
from vfsd.vsock import Address

if TYPE_CHECKING:
    from vfsd.lifecycle import Lifecycle

_INTERFACES = Path("/sys/class/net")
OPEN_FILE_SINCE = 253
"""systemd's version that has OpenFile= (systemd.service(5))."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One call to systemd, and what will be in use once it was made."""

    unit: Unit
    aux: list[Unit]
    accelerator: str
    console: bool
    """Whether the console has a socket."""
    layout: Layout
    """Where the shares' devices stand."""
    ssh_address: str = ""
    """Where the guest's SSH server will be reached; "" if nowhere."""
    vsock: Address | None = None
    """The guest's address there, and the port to which it speaks."""
    reserved: list[socket.socket] = field(default_factory=list)
    """What keeps ports from others until QEMU has them; to be closed then."""


@dataclass(frozen=True, slots=True)
class Predecessor:
    """What is known of a QEMU whose guest another one is about to take over."""

    incoming: Incoming
    layout: Layout
    accelerator: str
    suffix: str = FIRST
    """What the units of the other one will end in."""
    vsock: bool = False
    """Whether it has a vsock device."""
    lives: bool = False
    """Whether it runs still, and holds the ports of the host that lead to its guest."""


async def prepare(context: Context, machine: Lifecycle, before: Predecessor | None = None) -> Launch:
    """Check and set up all that the machine needs; starts nothing.

    :param before: whose guest it takes over; without, it boots.
    :raise InvalidArgs: there is nothing to boot, or a file that it names can't be used.
    :raise SourceNotFound, PrerequisiteMissing, NotSupported: something is missing.
    """
    spec = machine.spec
    if not spec.boots:
        raise InvalidArgs(f'machine "{spec.name}" has nothing to boot; set Kernel, Image or Builtin')
    _check_interface(machine)
    qemu = await context.host.qemu()
    suffix = before.suffix if before else FIRST
    accelerator = before.accelerator if before else await context.host.accelerator(spec.accelerator)
    place = Place(spec.name, suffix=suffix)
    share_units = [unit for share in machine.shares for unit in await share.units(place)]
    paths = context.paths.machine(spec.name, suffix)
    paths.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    open_files = context.supervisor.version >= OPEN_FILE_SINCE
    cold = Layout.cold(((share.name, share.spec.tag) for share in machine.shares), spec.spare_ports)
    layout = before.layout if before else cold
    architecture = MachineArchitecture.of(qemu.arch)
    has_vsock = before.vsock if before else qemu.vsock_device
    vsock = await machine.readiness.prepare() if has_vsock else None
    boot = await _boot(context, machine, architecture, vsock)
    lives = before is not None and before.lives
    ssh_address, reserved = (machine.ssh_address, []) if lives else await _ssh_address(machine)
    plan = QemuPlan(
        binary=str(qemu.path),
        architecture=architecture,
        accelerator=accelerator,
        boot=boot,
        shares=_devices(context, layout, suffix, open_files=open_files),
        slots=layout.slots,
        sockets=SOCKETS,
        has_hub=qemu.chardev_hub,
        has_panic_device=qemu.panic_device,
        has_panic_exit=qemu.panic_exit,
        display=paths.display,
        forward=[] if lives else ssh.own_forward(spec, ssh_address),
        has_shared_ram=qemu.shared_ram,
        incoming=before.incoming if before else None,
        vsock=_vsock_device(vsock, layout, open_files=open_files),
    )
    stop = units.stop_command(sys.executable, Path(power_off.__file__), paths, spec.shutdown_timeout_usec)
    unit, aux = units.machine_units(
        spec,
        commands.qemu_arguments(dataclasses.replace(spec, forward=()) if lives else spec, plan),
        stop,
        [plug.share for plug in layout.plugs],
        context.scope,
        context.paths,
        open_files=open_files,
        suffix=suffix,
        reboot_command=await _prepare_leader(context, spec.name, paths),
        vsock=vsock is not None,
    )
    return Launch(
        unit=unit,
        aux=[*aux, *share_units],
        accelerator=accelerator,
        console=qemu.chardev_hub,
        layout=layout,
        ssh_address=ssh_address,
        vsock=vsock,
        reserved=reserved,
    )


def _devices(context: Context, layout: Layout, suffix: str, *, open_files: bool) -> list[ShareDevice]:
    return [
        ShareDevice(
            tag=plug.tag,
            slot=plug.slot,
            fd=FIRST_SHARE_FD + number if open_files else None,
            path=context.paths.share_socket(plug.share, suffix),
        )
        for number, plug in enumerate(layout.plugs)
    ]


def _vsock_device(address: Address | None, layout: Layout, *, open_files: bool) -> VsockDevice | None:
    if address is None:
        return None
    return VsockDevice(address.cid, FIRST_SHARE_FD + len(layout.plugs) if open_files else None)


async def _boot(
    context: Context, machine: Lifecycle, architecture: MachineArchitecture, vsock: Address | None
) -> Boot:
    spec = machine.spec
    if spec.builtin:
        boot, what = await _builtin(context, machine), told.Told()
    else:
        root = root_share.find(machine)
        shares = [share.spec for share in machine.shares]
        what = told.tell(spec, shares, root.spec if root else None, architecture)
        boot = await _own_boot(context, machine, root, what.arguments)
    keys = [await context.host.ssh_key()] if spec.ssh else []
    folder = context.paths.machine(spec.name).credentials
    passed = await told.pass_credentials(spec, what, keys, vsock, architecture, folder)
    return dataclasses.replace(boot, credentials=passed)


async def _own_boot(context: Context, machine: Lifecycle, root: Share | None, arguments: str) -> Boot:
    """What the user gave to be booted."""
    spec = machine.spec
    paths = context.paths.machine(spec.name)
    uefi = None
    if spec.firmware is Firmware.UEFI:
        folder = context.paths.machine_state(spec.name) if spec.persistent else paths.folder
        uefi = await context.host.uefi(folder / "uefi-variables.fd")
    kernel = initrd = image = None
    image_format = "raw"
    if spec.kernel:
        kernel = _link(paths.link("kernel"), "kernel", spec.kernel, spec.name)
        initrd = _link(paths.link("initrd"), "initrd", spec.initrd, spec.name) if spec.initrd else None
        if root:
            initrd = await root_share.initrd(context, machine, root) or initrd
    elif spec.root_share:
        raise InvalidArgs(f'machine "{spec.name}" boots from share "{spec.root_share}"; set Kernel too')
    if spec.image:
        image = _link(paths.link("image"), "image", spec.image, spec.name)
        image_format = await context.host.image_format(image)
    return Boot(kernel, initrd, arguments, image, image_format, uefi)


async def _builtin(context: Context, machine: Lifecycle) -> Boot:
    from vfsd import guest  # noqa: PLC0415  # most machines never need it

    mounts = [
        guest.Mount(spec.tag, spec.mount_point, spec.read_only, ",".join(own_options(spec)))
        for spec in (share.spec for share in machine.shares)
    ]
    try:
        arguments = guest.kernel_arguments(mounts, append=machine.spec.append)
    except ValueError as error:
        raise InvalidArgs(f'machine "{machine.name}" can\'t boot the built-in guest: {error}') from None
    built = await context.host.builtin()
    return Boot(built.kernel, built.initrd, " ".join(arguments))


async def _ssh_address(machine: Lifecycle) -> tuple[str, list[socket.socket]]:
    """Where the guest's port 22 will be reached, and what keeps that port from others meanwhile."""
    spec = machine.spec
    address = ssh.forwarded(spec)
    if address or not spec.ssh or spec.network != "user":
        return address, []
    port = machine.memory.ssh.rpartition(":")[2]
    held = await asyncio.to_thread(ssh.reserve_port, int(port) if port.isdecimal() else 0)
    return f"{ssh.LOOPBACK}:{held.getsockname()[1]}", [held]


async def _prepare_leader(context: Context, name: str, paths: MachinePaths) -> list[str]:
    """What a leader that is to run beside QEMU runs for a reboot, its FIFO made; [] if none is to run."""
    if not await context.registrar.wants(name):
        return []
    with contextlib.suppress(FileExistsError):
        os.mkfifo(paths.leader_input, 0o600)
    return [sys.executable, "-I", "-S", ctrl_alt_del.__file__, str(paths.stop_monitor)]


def _check_interface(machine: Lifecycle) -> None:
    """:raise PrerequisiteMissing: the interface is not there; QEMU as root would make a tap that leads nowhere."""
    kind, _, interface = machine.spec.network.partition(":")
    if interface and not (_INTERFACES / interface).exists():
        raise PrerequisiteMissing(
            f'network interface "{interface}" of machine "{machine.name}" does not exist; make the {kind} first, '
            "or use another Network"
        )


def _link(link: Path, what: str, target: str, name: str) -> Path:
    """Make a link to a file of the user's, under a name that units may hold."""
    if not os.access(target, os.R_OK) or Path(target).is_dir():
        raise InvalidArgs(
            f'"{target}", the {what} of machine "{name}", is no file that can be read; name another'
        )
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link
