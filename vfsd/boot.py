"""What a machine is about to be started with: everything checked, every file in place, every unit described."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfsd import commands, ctrl_alt_del, hardening, image, mac, power_off, root_share, told, units
from vfsd.commands import (
    Boot,
    Incoming,
    MachineArchitecture,
    QemuPlan,
    ShareDevice,
    UefiFirmware,
    VsockDevice,
)
from vfsd.context import Context
from vfsd.devices import Layout
from vfsd.errors import InvalidArgs, PrerequisiteMissing
from vfsd.files import link as make_link
from vfsd.image import Layer
from vfsd.migration import Channels
from vfsd.model import Display, Firmware
from vfsd.mounting import own_options
from vfsd.names import FIRST
from vfsd.opened import Opened, Openings
from vfsd.paths import MachinePaths
from vfsd.share import Share
from vfsd.units import FIRST_OPENED_FD, SOCKETS, Place, Property, Unit
from vfsd.vsock import DEVICE, Address

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
    openings: Openings
    """What QEMU gets opened."""
    vsock: Address | None = None
    """The guest's address there, and the port to which it speaks."""


@dataclass(frozen=True, slots=True)
class Predecessor:
    """What is known of a QEMU whose guest another one is about to take over."""

    machine_type: str
    """That of the other one: its versioned name, as q35 stands for another one in each version of QEMU."""
    source: Path
    """Where its guest comes from: a file, or a folder in which the other one is met."""
    layout: Layout
    accelerator: str
    suffix: str = FIRST
    """What the units of the other one will end in."""
    vsock: bool = False
    """Whether it has a vsock device."""
    lives: bool = False
    """Whether it runs still, and holds the ports of the host that lead to its guest."""
    shared: bool = False
    """Whether its memory is handed over, and not copied."""


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
    openings = Openings(FIRST_OPENED_FD, opens=context.supervisor.version >= OPEN_FILE_SINCE)
    cold = Layout.cold(((share.name, share.spec.tag) for share in machine.shares), spec.spare_ports)
    layout = before.layout if before else cold
    architecture = MachineArchitecture.of(qemu.arch)
    has_vsock = before.vsock if before else qemu.vsock_device
    vsock = await machine.readiness.prepare() if has_vsock else None
    shares = _devices(context, layout, suffix, openings)
    vsock_device = VsockDevice(vsock.cid, openings.add(DEVICE, writable=True)) if vsock else None
    boot = await _boot(context, machine, architecture, vsock, openings)
    lives = before is not None and before.lives
    plan = QemuPlan(
        binary=str(qemu.path),
        architecture=architecture,
        accelerator=accelerator,
        boot=boot,
        shares=shares,
        slots=layout.slots,
        sockets=SOCKETS,
        has_hub=qemu.chardev_hub,
        has_panic_device=qemu.panic_device,
        has_panic_exit=qemu.panic_exit,
        display=_display(context, machine, paths, openings),
        has_shared_ram=qemu.shared_ram,
        incoming=_incoming(before, openings) if before else None,
        vsock=vsock_device,
        mac=mac.address(mac.host_id(), os.getuid(), spec.name),
    )
    stop = units.stop_command(sys.executable, Path(power_off.__file__), paths, spec.shutdown_timeout_usec)
    unit, aux = units.machine_units(
        spec,
        commands.qemu_arguments(dataclasses.replace(spec, forward=()) if lives else spec, plan),
        stop,
        [plug.share for plug in layout.plugs],
        context.scope,
        context.paths,
        await _sandbox(context, machine, paths, accelerator, openings),
        open_files=openings.entries,
        suffix=suffix,
        reboot_command=await _prepare_leader(context, spec.name, paths),
        umask=0 if lives else units.UMASK,
    )
    return Launch(
        unit=unit,
        aux=[*aux, *share_units],
        accelerator=accelerator,
        console=qemu.chardev_hub,
        layout=layout,
        openings=openings,
        vsock=vsock,
    )


async def _sandbox(
    context: Context, machine: Lifecycle, paths: MachinePaths, accelerator: str, openings: Openings
) -> list[Property]:
    group = await context.host.kvm_group() if accelerator == "kvm" else 0
    return hardening.qemu(
        machine.spec, context.scope, paths, accelerator, opens=openings.opens, kvm_group=group
    )


def _devices(context: Context, layout: Layout, suffix: str, openings: Openings) -> list[ShareDevice]:
    return [
        ShareDevice(
            plug.tag, plug.slot, openings.add(context.paths.share_socket(plug.share, suffix), writable=True)
        )
        for plug in layout.plugs
    ]


def _incoming(before: Predecessor, openings: Openings) -> Incoming:
    source = openings.add(before.source)
    if before.lives:
        return Incoming(before.machine_type, Channels.below(source.readable, shared=before.shared).incoming)
    return Incoming(before.machine_type, [f"file:{source.block}"], source.set_arguments)


def _display(context: Context, machine: Lifecycle, paths: MachinePaths, openings: Openings) -> Path:
    """Where QEMU makes the socket of its display."""
    if machine.spec.display is Display.NONE or not hardening.has_own_user(
        context.scope, opens=openings.opens
    ):
        return paths.display
    made = Path("/run") / paths.display_folder / "socket"
    make_link(paths.display, made)
    return made


async def _boot(
    context: Context,
    machine: Lifecycle,
    architecture: MachineArchitecture,
    vsock: Address | None,
    openings: Openings,
) -> Boot:
    spec = machine.spec
    if spec.builtin:
        boot, what = await _builtin(context, machine, openings), told.Told()
    else:
        root = root_share.find(machine)
        shares = [share.spec for share in machine.shares]
        what = told.tell(spec, shares, root.spec if root else None, architecture)
        boot = await _own_boot(context, machine, root, what.arguments, openings)
    keys = [await context.host.ssh_key()] if spec.ssh else []
    folder = context.paths.machine(spec.name).credentials
    passed = await told.pass_credentials(spec, what, keys, vsock, architecture, folder)
    return dataclasses.replace(boot, credentials=passed.through(openings))


async def _own_boot(
    context: Context, machine: Lifecycle, root: Share | None, arguments: str, openings: Openings
) -> Boot:
    """What the user gave to be booted."""
    spec = machine.spec
    files = _Files(context.paths.machine(spec.name), spec.name, openings)
    uefi = None
    if spec.firmware is Firmware.UEFI:
        folder = context.paths.machine_state(spec.name) if spec.persistent else files.paths.folder
        code, variables = await context.host.uefi(folder / "uefi-variables.fd")
        uefi = UefiFirmware(
            openings.add(files.link("firmware", code)),
            openings.add(files.link("uefi-variables", variables), writable=True),
        )
    kernel = initrd = None
    if spec.kernel:
        kernel = await files.open("kernel", spec.kernel)
        made = await root_share.initrd(context, machine, root) if root else None
        if made:
            initrd = openings.add(files.link("initrd", made))
        elif spec.initrd:
            initrd = await files.open("initrd", spec.initrd)
    elif spec.root_share:
        raise InvalidArgs(f'machine "{spec.name}" boots from share "{spec.root_share}"; set Kernel too')
    return Boot(kernel, initrd, arguments, await _disk(context, machine, files), uefi)


async def _disk(context: Context, machine: Lifecycle, files: _Files) -> list[Layer]:
    spec = machine.spec
    if not spec.image:
        return []
    files.check("image", spec.image)
    qemu, state = (await context.host.qemu()).path, context.paths.machine_state(spec.name)
    try:
        found = await asyncio.to_thread(image.look, Path(spec.image), state, spec.name, qemu)
    except OSError as error:
        raise InvalidArgs(
            f'"{error.filename}", of the image of machine "{spec.name}", can\'t be used: {error.strerror}'
        ) from None
    linked = [
        dataclasses.replace(
            file,
            path=files.link(f"image{number or ''}", file.path),
            data=files.link(f"image{number or ''}-data", file.data) if file.data else None,
        )
        for number, file in enumerate(found)
    ]
    return image.layers(linked, files.openings)


async def _builtin(context: Context, machine: Lifecycle, openings: Openings) -> Boot:
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
    files = _Files(context.paths.machine(machine.name), machine.name, openings)
    return Boot(
        await files.open("kernel", str(built.kernel)),
        await files.open("initrd", str(built.initrd)),
        " ".join(arguments),
    )


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


@dataclass(frozen=True, slots=True)
class _Files:
    """The user's files that a machine boots, under names that units may hold."""

    paths: MachinePaths
    machine: str
    openings: Openings

    def check(self, what: str, target: str) -> None:
        """:raise InvalidArgs: it can't be used."""
        if not os.access(target, os.R_OK) or Path(target).is_dir():
            raise InvalidArgs(
                f'"{target}", the {what} of machine "{self.machine}", is no file that can be read; name another'
            )

    def link(self, what: str, target: Path) -> Path:
        """Make a link."""
        return make_link(self.paths.link(what), target)

    async def open(self, what: str, target: str) -> Opened:
        """Have a file opened that QEMU reads as it starts. :raise InvalidArgs: it can't be used."""
        self.check(what, target)
        path = (
            await asyncio.to_thread(self._readable, what, Path(target))
            if self.openings.opens
            else Path(target)
        )
        return self.openings.add(self.link(what, path))

    def _readable(self, what: str, target: Path) -> Path:
        """The file, or a copy: QEMU opens its descriptor once more, which it may only if everybody may."""
        if target.stat().st_mode & stat.S_IROTH:
            return target
        self.paths.private.mkdir(mode=0o700, exist_ok=True)
        copy = self.paths.private / what
        copy.unlink(missing_ok=True)
        shutil.copyfile(target, copy)
        copy.chmod(0o444)
        return copy
