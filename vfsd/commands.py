"""Argument lists of virtiofsd and QEMU: pure functions of what is wanted.

An argument list is built with option and value on one line. Nothing here asks the host anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfsd import devices, image
from vfsd.credentials import FW_CFG_FOLDER, NOTHING, Passed
from vfsd.forward import Forward
from vfsd.image import Layer
from vfsd.model import Display, MachineSpec, ShareSpec
from vfsd.opened import Opened

FIRST_PASSED_FD = 3
"""Where systemd puts the first descriptor that it passes (sd_listen_fds(3), SD_LISTEN_FDS_START)."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""QEMU's own system call filter (qemu(1), -sandbox)."""
SANDBOX_WITH_HELPER = "on,obsolete=deny,resourcecontrol=deny"
"""The same where QEMU must start the setuid qemu-bridge-helper."""

NETWORK = "net0"
"""QEMU's name of the guest's network."""
AGENT = "agent"
"""QEMU's name of the character device, and of the port, of the guest's agent."""
PANIC_DEVICE = "pvpanic-pci"
"""By which the guest's kernel tells that it panicked (QEMU's docs/specs/pvpanic; since 6.0)."""
VSOCK_DEVICE = "vhost-vsock-pci"
"""By which guest and host talk without a network (QEMU's hw/virtio/vhost-vsock-pci.c; since 2.8)."""
_FLASH = ("pflash0", "pflash1")
"""The machine's properties for its firmware and that's variables, and QEMU's names of what they are read from."""
TAP = "tap"
"""The end of the console that is vfsd's."""
HISTORY = "history"
"""QEMU's name of the character device that keeps what the console said last."""
HISTORY_SIZE = 64 << 10
"""Bytes; a power of two, as QEMU wants it."""


def virtiofsd_arguments(virtiofsd: str, spec: ShareSpec, shared_dir: Path) -> list[str]:
    """The command line of one virtiofsd, for version 1.10 and later.

    :param virtiofsd: absolute path of the binary.
    :param shared_dir: where this process sees the source.
    """
    arguments = [
        virtiofsd,
        f"--fd={FIRST_PASSED_FD}",
        f"--shared-dir={shared_dir}",
        f"--sandbox={spec.sandbox}",
        f"--cache={spec.cache}",
        f"--inode-file-handles={spec.inode_file_handles}",
        f"--thread-pool-size={spec.thread_pool_size}",
        f"--log-level={spec.log_level}",
    ]
    flags = {
        "--readonly": spec.read_only,
        "--writeback": spec.writeback,
        "--allow-direct-io": spec.direct_io,
        "--xattr": spec.xattr or spec.posix_acl,
        "--posix-acl": spec.posix_acl,
        "--no-announce-submounts": not spec.announce_submounts,
        "--killpriv-v2": spec.kill_priv,
        "--security-label": spec.security_label,
    }
    arguments += [flag for flag, wanted in flags.items() if wanted]
    arguments += [f"--translate-uid={rule}" for rule in spec.translate_uid]
    arguments += [f"--translate-gid={rule}" for rule in spec.translate_gid]
    arguments += [f"--uid-map={rule}" for rule in spec.uid_map]
    arguments += [f"--gid-map={rule}" for rule in spec.gid_map]
    # virtiofsd does not start without a capability that it wants to keep and was not given
    allowed = {"mknod": spec.allow_device_nodes, "setfcap": spec.allow_setuid}
    if unwanted := [f"-{name}" for name, wanted in allowed.items() if not wanted]:
        arguments.append(f"--modcaps={':'.join(unwanted)}")
    if spec.announce_tag:
        arguments.append(f"--tag={spec.tag}")
    if spec.xattr_map:
        arguments.append(f"--xattrmap={spec.xattr_map}")
    if spec.limit_nofile:
        arguments.append(f"--rlimit-nofile={spec.limit_nofile}")
    return arguments


@dataclass(frozen=True, slots=True)
class MachineArchitecture:
    """What differs between the machines that QEMU emulates."""

    machine: str
    console: str
    """The kernel's name of the first serial port."""
    bridged: bool = False
    """Whether ACPI can plug devices into the slots of a bridge. If not, each needs a PCIe root port of its own."""
    smbios: bool = False
    """Whether a kernel that is booted directly sees SMBIOS tables: elsewhere only UEFI shows them."""
    command_line_size: int = 2048
    """Bytes of the kernel's command line with the terminating NUL (COMMAND_LINE_SIZE in arch/*/include/asm/setup.h)."""

    @classmethod
    def of(cls, qemu_name: str) -> MachineArchitecture:
        """By the last part of the binary's name: x86_64, aarch64, …"""
        return {
            "aarch64": cls("virt,gic-version=max", "ttyAMA0"),
            "riscv64": cls("virt", "ttyS0", command_line_size=1024),
        }.get(qemu_name, cls("q35", "ttyS0", bridged=True, smbios=True))


@dataclass(frozen=True, slots=True)
class ShareDevice:
    """A share as QEMU's command line has it."""

    tag: str
    slot: int
    socket: Opened

    @property
    def chardev(self) -> str:
        connected = self.socket.descriptor
        return f"path={escape(str(self.socket.path))}" if connected is None else f"fd={connected}"


@dataclass(frozen=True, slots=True)
class VsockDevice:
    """The guest's end of vsock: its context id, and /dev/vhost-vsock."""

    cid: int
    device: Opened


@dataclass(frozen=True, slots=True)
class UefiFirmware:
    """Firmware code, and the machine's own copy of its variables."""

    code: Opened
    variables: Opened


@dataclass(frozen=True, slots=True)
class Boot:
    """What the machine boots."""

    kernel: Opened | None = None
    initrd: Opened | None = None
    arguments: str = ""
    disk: Sequence[Layer] = ()
    uefi: UefiFirmware | None = None
    credentials: Passed = NOTHING


@dataclass(frozen=True, slots=True)
class MachineSockets:
    """Descriptors of the listening sockets that systemd passes to QEMU, by what they are for."""

    monitor: int
    stop_monitor: int
    console: int
    console_tap: int
    agent: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """A guest that a QEMU does not boot, but takes over from another one."""

    machine_type: str
    """That of the other one: its versioned name, as q35 stands for another one in each version of QEMU."""
    channels: Sequence[str]
    """Where its state comes from: addresses as `-incoming` has them."""
    sets: Sequence[str] = ()
    """Arguments by which QEMU has the descriptors that these name."""


@dataclass(frozen=True, slots=True)
class QemuPlan:
    """Everything that QEMU's command line is made of."""

    binary: str
    architecture: MachineArchitecture
    accelerator: str
    boot: Boot
    shares: Sequence[ShareDevice]
    slots: int
    """Places for shares, those that are free for further ones included."""
    sockets: MachineSockets
    has_hub: bool
    """Whether this QEMU has the `hub` character device, with which the console has a socket too."""
    has_panic_device: bool
    """Whether it can be told of a panic of the guest's kernel."""
    has_panic_exit: bool
    """Whether it can end with another exit code then, by which systemd too sees that something failed."""
    display: Path
    has_shared_ram: bool = False
    """Whether this QEMU can hand all of the guest's memory on to another one (since 10.0)."""
    incoming: Incoming | None = None
    vsock: VsockDevice | None = None
    mac: str = ""
    """Address of the guest's network card; "" for QEMU's own default, which is the same for all."""


def escape(value: str) -> str:
    """Double the commas: QEMU's own escape in option values (qemu(1))."""
    return value.replace(",", ",,")


def qemu_arguments(spec: MachineSpec, plan: QemuPlan) -> list[str]:
    """The command line of one QEMU."""
    needs_helper = spec.network.startswith("bridge:")
    bridged = plan.architecture.bridged
    return [
        plan.binary,
        *("-name", f"guest={spec.name},debug-threads=on"),
        *("-machine", _machine(plan)),
        *("-accel", "tcg,split-wx=on" if plan.accelerator == "tcg" else plan.accelerator),
        *("-cpu", "host" if plan.accelerator == "kvm" else "max"),
        *("-smp", str(spec.cpus)),
        *("-m", f"{spec.memory}b"),
        *("-object", f"memory-backend-memfd,id=mem,size={spec.memory},share=on"),
        "-nodefaults",
        "-no-user-config",
        *("-sandbox", SANDBOX_WITH_HELPER if needs_helper else SANDBOX),
        *_monitor("monitor", plan.sockets.monitor),
        *_monitor("stop-monitor", plan.sockets.stop_monitor),
        *_console(plan.sockets, has_hub=plan.has_hub),
        *_display(spec.display, plan.display),
        *("-device", "virtio-rng-pci"),
        *(["-device", PANIC_DEVICE] if plan.has_panic_device else []),
        *(["-action", "panic=exit-failure"] if plan.has_panic_exit else []),
        *_agent(plan.sockets.agent),
        *_boot(plan.boot),
        *_credentials(plan.boot.credentials),
        *_network(spec, plan.mac),
        *_vsock(plan.vsock),
        *(
            argument
            for device in devices.places(plan.slots, bridged=bridged)
            for argument in ("-device", device)
        ),
        *(argument for share in plan.shares for argument in _share(share, bridged=bridged)),
        *spec.extra_arguments,
        *(_incoming(plan.incoming) if plan.incoming else []),
    ]


def _machine(plan: QemuPlan) -> str:
    kind, _, properties = plan.architecture.machine.partition(",")
    words = [plan.incoming.machine_type if plan.incoming else kind, *([properties] if properties else [])]
    words.append("memory-backend=mem")
    if plan.has_shared_ram:
        words.append("aux-ram-share=on")
    if plan.boot.uefi:
        words += [f"{flash}={flash}" for flash in _FLASH]
    return ",".join(words)


def _incoming(incoming: Incoming) -> list[str]:
    """It stands still with what it took over until it is told to go on."""
    return ["-S", *incoming.sets, *(word for channel in incoming.channels for word in ("-incoming", channel))]


def _monitor(name: str, fd: int) -> list[str]:
    return [
        *("-chardev", f"socket,id={name},fd={fd},server=on,wait=off"),
        *("-mon", f"chardev={name},mode=control"),
    ]


def _console(sockets: MachineSockets, *, has_hub: bool) -> list[str]:
    """The serial port: in the journal, at two sockets (anybody's, and vfsd's own), and kept by QEMU for later."""
    if not has_hub:
        return ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    ends = ("journal", "terminal", TAP, HISTORY)
    hub = ",".join(f"chardevs.{number}={name}" for number, name in enumerate(ends))
    return [
        *("-chardev", "stdio,id=journal,signal=off"),
        *("-chardev", f"socket,id=terminal,fd={sockets.console},server=on,wait=off"),
        *("-chardev", f"socket,id={TAP},fd={sockets.console_tap},server=on,wait=off"),
        *("-chardev", f"ringbuf,id={HISTORY},size={HISTORY_SIZE}"),
        *("-chardev", f"hub,id=console,{hub}"),
        *("-serial", "chardev:console"),
    ]


def _agent(fd: int) -> list[str]:
    """The port by which the guest's agent is reached (qemu-ga's default)."""
    return [
        *("-chardev", f"socket,id={AGENT},fd={fd},server=on,wait=off"),
        *("-device", "virtio-serial-pci,id=serial0"),
        *("-device", f"virtserialport,id={AGENT},bus=serial0.0,chardev={AGENT},name=org.qemu.guest_agent.0"),
    ]


def _display(display: Display, path: Path) -> list[str]:
    where = escape(str(path))
    match display:
        case Display.NONE:
            return ["-display", "none"]
        case Display.VNC:
            return ["-display", "none", "-vnc", f"unix:{where}", *_DISPLAY_DEVICES]
        case Display.SPICE:
            spice = f"unix=on,addr={where},disable-ticketing=on"
            return ["-display", "none", "-spice", spice, *_DISPLAY_DEVICES]


_DISPLAY_DEVICES = (
    *("-device", "virtio-vga"),
    *("-device", "virtio-keyboard-pci"),
    *("-device", "virtio-tablet-pci"),
)


def _boot(boot: Boot) -> list[str]:
    arguments = []
    if boot.uefi:
        arguments += image.flash(_FLASH[0], boot.uefi.code, read_only=True)
        arguments += image.flash(_FLASH[1], boot.uefi.variables, read_only=False)
    if boot.kernel:
        arguments += ["-kernel", boot.kernel.readable]
        if boot.initrd:
            arguments += ["-initrd", boot.initrd.readable]
        if boot.arguments:
            arguments += ["-append", boot.arguments]
    return [*arguments, *(image.arguments(boot.disk) if boot.disk else [])]


def _credentials(passed: Passed) -> list[str]:
    arguments = []
    for path in passed.smbios:
        arguments += ["-smbios", f"type=11,path={escape(path)}"]
    for name, path in passed.fw_cfg:
        arguments += ["-fw_cfg", f"name={FW_CFG_FOLDER}{escape(name)},file={escape(path)}"]
    return arguments


def _network(spec: MachineSpec, mac: str) -> list[str]:
    kind, _, interface = spec.network.partition(":")
    if kind == "none":
        return ["-nic", "none"]
    backend = {
        "user": f"user,id={NETWORK}" + "".join(f",hostfwd={forward_rule(text)}" for text in spec.forward),
        "bridge": f"bridge,id={NETWORK},br={interface}",
        "tap": f"tap,id={NETWORK},ifname={interface},script=no,downscript=no",
    }[kind]
    # romfile= leaves out the PXE ROM, which a machine with a disk or a kernel never runs
    address = f",mac={mac}" if mac else ""
    return ["-netdev", backend, "-device", f"virtio-net-pci,netdev={NETWORK},romfile={address}"]


def forward_rule(text: str) -> str:
    """A port that leads into the guest, in QEMU's words."""
    forward = Forward.parse(text)
    return f"{forward.protocol}:{forward.host_address}:{forward.host_port}-:{forward.guest_port}"


def _vsock(vsock: VsockDevice | None) -> list[str]:
    if vsock is None:
        return []
    opened = vsock.device.descriptor
    descriptor = "" if opened is None else f",vhostfd={opened}"
    return ["-device", f"{VSOCK_DEVICE},id=vsock0,guest-cid={vsock.cid}{descriptor}"]


def _share(share: ShareDevice, *, bridged: bool) -> list[str]:
    properties = devices.properties(share.slot, share.tag, bridged=bridged)
    device = ",".join(f"{key}={_value(value)}" for key, value in properties.items())
    return [
        *("-chardev", f"socket,id={devices.chardev_id(share.slot)},{share.chardev}"),
        *("-device", f"vhost-user-fs-pci,{device}"),
    ]


def _value(value: str | bool) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return escape(value)


def kernel_arguments(
    spec: MachineSpec, console: str, root_tag: str, root_read_only: bool, mounts: Sequence[str] = ()
) -> str:
    """Arguments for a kernel that is booted directly: console, root share, mounts, then what the user appends."""
    arguments = [f"console={console}"]
    if root_tag:
        arguments += [f"root={root_tag}", "rootfstype=virtiofs", "ro" if root_read_only else "rw"]
    arguments += mounts
    if spec.append:
        arguments.append(spec.append)
    return " ".join(arguments)
