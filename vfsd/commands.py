"""Argument lists of virtiofsd and QEMU: pure functions of what is wanted.

An argument list is built with option and value on one line. Nothing here asks the host anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfsd.model import Display, Forward, MachineSpec, ShareSpec

FIRST_PASSED_FD = 3
"""Where systemd puts the first descriptor that it passes (sd_listen_fds(3), SD_LISTEN_FDS_START)."""

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""QEMU's own system call filter (qemu(1), -sandbox)."""
SANDBOX_WITH_HELPER = "on,obsolete=deny,resourcecontrol=deny"
"""The same where QEMU must start the setuid qemu-bridge-helper."""


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
    if not spec.allow_device_nodes:
        arguments.append("--modcaps=-mknod")
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

    @classmethod
    def of(cls, qemu_name: str) -> MachineArchitecture:
        """By the last part of the binary's name: x86_64, aarch64, …"""
        return {
            "aarch64": cls("virt,gic-version=max", "ttyAMA0"),
            "riscv64": cls("virt", "ttyS0"),
        }.get(qemu_name, cls("q35", "ttyS0"))


@dataclass(frozen=True, slots=True)
class ShareDevice:
    """A share as QEMU's command line has it: a connected descriptor, or a path for systemd before 253."""

    tag: str
    fd: int | None
    path: Path

    @property
    def chardev(self) -> str:
        return f"fd={self.fd}" if self.fd is not None else f"path={escape(str(self.path))}"


@dataclass(frozen=True, slots=True)
class UefiFirmware:
    """Firmware code, and the machine's own copy of its variables."""

    code: Path
    variables: Path


@dataclass(frozen=True, slots=True)
class Boot:
    """What the machine boots, as files that its unit may name."""

    kernel: Path | None = None
    initrd: Path | None = None
    arguments: str = ""
    image: Path | None = None
    image_format: str = "raw"
    uefi: UefiFirmware | None = None


@dataclass(frozen=True, slots=True)
class QemuPlan:
    """Everything that QEMU's command line is made of."""

    binary: str
    architecture: MachineArchitecture
    accelerator: str
    boot: Boot
    shares: Sequence[ShareDevice]
    monitor_fd: int
    stop_monitor_fd: int
    console_fd: int | None
    """A listening socket for the console; None where QEMU has no `hub` character device."""
    display: Path


def escape(value: str) -> str:
    """Double the commas: QEMU's own escape in option values (qemu(1))."""
    return value.replace(",", ",,")


def qemu_arguments(spec: MachineSpec, plan: QemuPlan) -> list[str]:
    """The command line of one QEMU."""
    needs_helper = spec.network.startswith("bridge:")
    return [
        plan.binary,
        *("-name", f"guest={spec.name},debug-threads=on"),
        *("-machine", f"{plan.architecture.machine},accel={plan.accelerator},memory-backend=mem"),
        *("-cpu", "host" if plan.accelerator == "kvm" else "max"),
        *("-smp", str(spec.cpus)),
        *("-m", f"{spec.memory}b"),
        *("-object", f"memory-backend-memfd,id=mem,size={spec.memory},share=on"),
        "-nodefaults",
        "-no-user-config",
        *("-sandbox", SANDBOX_WITH_HELPER if needs_helper else SANDBOX),
        *_monitor("monitor", plan.monitor_fd),
        *_monitor("stop-monitor", plan.stop_monitor_fd),
        *_console(plan.console_fd),
        *_display(spec.display, plan.display),
        *("-device", "virtio-rng-pci"),
        *_boot(plan.boot),
        *_network(spec),
        *(argument for number, share in enumerate(plan.shares) for argument in _share(number, share)),
        *spec.extra_arguments,
    ]


def _monitor(name: str, fd: int) -> list[str]:
    return [
        *("-chardev", f"socket,id={name},fd={fd},server=on,wait=off"),
        *("-mon", f"chardev={name},mode=control"),
    ]


def _console(fd: int | None) -> list[str]:
    if fd is None:
        return ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    return [
        *("-chardev", "stdio,id=journal,signal=off"),
        *("-chardev", f"socket,id=terminal,fd={fd},server=on,wait=off"),
        *("-chardev", "hub,id=console,chardevs.0=journal,chardevs.1=terminal"),
        *("-serial", "chardev:console"),
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
        for unit, (path, read_only) in enumerate(((boot.uefi.code, "on"), (boot.uefi.variables, "off"))):
            drive = f"if=pflash,format=raw,unit={unit},readonly={read_only},file={escape(str(path))}"
            arguments += ["-drive", drive]
    if boot.kernel:
        arguments += ["-kernel", str(boot.kernel)]
        if boot.initrd:
            arguments += ["-initrd", str(boot.initrd)]
        if boot.arguments:
            arguments += ["-append", boot.arguments]
    if boot.image:
        disk = {
            "driver": boot.image_format,
            "node-name": "disk0",
            "file": {"driver": "file", "filename": str(boot.image)},
        }
        arguments += ["-blockdev", json.dumps(disk)]
        arguments += ["-device", "virtio-blk-pci,drive=disk0,bootindex=1"]
    return arguments


def _network(spec: MachineSpec) -> list[str]:
    kind, _, interface = spec.network.partition(":")
    if kind == "none":
        return ["-nic", "none"]
    backend = {
        "user": "user,id=net0" + "".join(f",hostfwd={_forward(text)}" for text in spec.forward),
        "bridge": f"bridge,id=net0,br={interface}",
        "tap": f"tap,id=net0,ifname={interface},script=no,downscript=no",
    }[kind]
    # romfile= leaves out the PXE ROM, which a machine with a disk or a kernel never runs
    return ["-netdev", backend, "-device", "virtio-net-pci,netdev=net0,romfile="]


def _forward(text: str) -> str:
    forward = Forward.parse(text)
    return f"{forward.protocol}:{forward.host_address}:{forward.host_port}-:{forward.guest_port}"


def _share(number: int, share: ShareDevice) -> list[str]:
    return [
        *("-chardev", f"socket,id=share{number},{share.chardev}"),
        *("-device", f"vhost-user-fs-pci,id=fs{number},chardev=share{number},tag={escape(share.tag)}"),
    ]


def kernel_arguments(spec: MachineSpec, console: str, root_tag: str, root_read_only: bool) -> str:
    """Arguments for a kernel that is booted directly: console, root share, then what the user appends."""
    arguments = [f"console={console}"]
    if root_tag:
        arguments += [f"root={root_tag}", "rootfstype=virtiofs", "ro" if root_read_only else "rw"]
    if spec.append:
        arguments.append(spec.append)
    return " ".join(arguments)
