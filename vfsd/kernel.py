"""Does a kernel have virtio-fs: the running one, and the kernel file that a guest is to boot.

The truth about a kernel file is, in this order: the configuration beside it whose name carries its exact
version, the configuration that it contains (CONFIG_IKCONFIG), an unversioned configuration beside it, the
tree of its modules, and at last the names of the drivers in its own text. `KernelReport.source_used` says
which one answered. Nothing here writes, and no function raises over a strange file: it reports `unknown`.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from vfsd.kernel_image import KernelImage, read_image

_OPTION_LINE = re.compile(r"^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$", re.MULTILINE)

# Options that decide whether a guest boots from a share and is seen to do so, with the module of each
_MODULES: Mapping[str, str] = {
    "FUSE_FS": "kernel/fs/fuse/fuse.ko",
    "VIRTIO_FS": "kernel/fs/fuse/virtiofs.ko",
    "VIRTIO": "kernel/drivers/virtio/virtio.ko",
    "VIRTIO_PCI": "kernel/drivers/virtio/virtio_pci.ko",
    "VIRTIO_BLK": "kernel/drivers/block/virtio_blk.ko",
    "VIRTIO_NET": "kernel/drivers/net/virtio_net.ko",
    "VIRTIO_CONSOLE": "kernel/drivers/char/virtio_console.ko",
    "SERIAL_8250": "kernel/drivers/tty/serial/8250/8250.ko",
    "SERIAL_AMBA_PL011": "kernel/drivers/tty/serial/amba-pl011.ko",
}
# What such a driver leaves in the text of a kernel that has it built in; absence proves only "not built in"
_TRACES: Mapping[str, bytes] = {
    "VIRTIO_FS": b"\0virtiofs\0",
    "VIRTIO_PCI": b"\0virtio-pci\0",
}
_MODULE_SUFFIXES = ("", ".xz", ".zst", ".gz")


class Presence(StrEnum):
    """How a kernel has a driver."""

    BUILTIN = "y"
    MODULE = "m"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What is known about one kernel."""

    path: Path | None
    """The file; None for the running kernel."""
    version: str
    """As uname -r would say it, empty if unknown."""
    source_used: str
    """Where the answer comes from, as a clause; empty if nothing answered."""
    modules_dir: Path | None
    """The folder of its modules (that with modules.builtin), if it was found."""
    is_kernel: bool = True
    """False: the file is readable but does not look like a Linux kernel."""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Option without CONFIG_ → `y`, `m`, `n`, or the value; only what `source_used` knows."""

    def presence(self, option: str) -> Presence:
        """How the kernel has an option, given with or without CONFIG_."""
        value = self.options.get(option.removeprefix("CONFIG_"))
        match value:
            case "y":
                return Presence.BUILTIN
            case "m":
                return Presence.MODULE
            case "n":
                return Presence.MISSING
        # A whole configuration leaves out what depends on something that is off
        complete = "VIRTIO_MENU" in self.options or "MODULES" in self.options
        return Presence.MISSING if complete else Presence.UNKNOWN

    def builtin(self, option: str) -> bool:
        """Whether the option is compiled in (`=y`); False if that is unknown."""
        return self.presence(option) is Presence.BUILTIN

    @property
    def virtio_fs(self) -> Presence:
        """The virtio-fs driver, in Linux since 5.4."""
        return self.presence("VIRTIO_FS")

    @property
    def virtio_pci(self) -> Presence:
        """The bus by which QEMU offers the share."""
        return self.presence("VIRTIO_PCI")

    @property
    def serial(self) -> Presence:
        """A driver of the serial port that is the guest's console: x86's, or Arm's."""
        found = [self.presence(option) for option in ("SERIAL_8250", "SERIAL_AMBA_PL011")]
        order = (Presence.BUILTIN, Presence.MODULE, Presence.UNKNOWN, Presence.MISSING)
        return min(found, key=order.index)


def parse_config(text: str) -> dict[str, str]:
    """A kernel configuration as option → value, `n` for one that is explicitly not set."""
    options = {}
    for name, value, unset in _OPTION_LINE.findall(text):
        if unset:
            options[unset] = "n"
        else:
            options[name] = value.strip('"')
    return options


def config_of_running_kernel(root: Path = Path("/"), release: str | None = None) -> KernelReport:
    """The kernel that runs here.

    :param root: the folder under which /proc, /boot, /lib and /run are looked for.
    :param release: as uname -r says it; the running one by default.
    """
    release = os.uname().release if release is None else release
    modules_dir = _first_modules_dir(_system_module_folders(root), release)
    for file in (
        root / "proc/config.gz",
        root / f"boot/config-{release}",
        *(folder / release / "config" for folder in _system_module_folders(root)),
        root / "run/booted-system/kernel/config",
    ):
        if options := _read_config(file):
            return KernelReport(None, release, f"/{file.relative_to(root)}", modules_dir, options=options)
    if modules_dir:
        options = options_of_modules(modules_dir)
        return KernelReport(None, release, "its tree of modules", modules_dir, options=options)
    return KernelReport(None, release, "", None)


def inspect_kernel(path: Path, root: Path = Path("/")) -> KernelReport:
    """A kernel file that a guest is to boot: bzImage, Image, vmlinux, or one of them compressed.

    Takes some 0.3 s for a kernel of 10 MB whose configuration does not lie beside it, far less otherwise.

    :param root: the folder under which the host's own module trees are looked for.
    :raises OSError: the file can't be read.
    """
    real = path.resolve(strict=True)
    image = read_image(real)
    version = image.version
    modules_dir = _modules_of(real, version, root)
    for source, options in _configurations(real, image, version, modules_dir):
        if options:
            return KernelReport(path, version, source, modules_dir, options=options)
    return KernelReport(path, version, "", modules_dir, is_kernel=image.is_kernel)


def _configurations(
    path: Path, image: KernelImage, version: str, modules_dir: Path | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Source and options, the most trustworthy first; lazy, for the kernel's own text is costly to unpack."""
    if not image.is_kernel:
        return
    if version:
        name = f"config-{version}"
        yield f"the file {name} beside it", _read_config(path.parent / name)
    embedded = image.embedded_config()
    yield "the configuration inside it", parse_config(embedded) if embedded else {}
    for name in ("config", ".config"):
        yield f"the file {name} beside it", _read_config(path.parent / name)
    if modules_dir:
        yield "its tree of modules", options_of_modules(modules_dir)
    text = image.text()
    yield "the names of drivers in it", {name: "y" for name, trace in _TRACES.items() if trace in text}


def options_of_modules(modules_dir: Path) -> dict[str, str]:
    """What a module tree tells about the options that matter here; empty if it is no such tree."""
    try:
        builtin = set((modules_dir / "modules.builtin").read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return {}
    options = {}
    for option, module in _MODULES.items():
        if module in builtin:
            options[option] = "y"
        elif any((modules_dir / f"{module}{suffix}").exists() for suffix in _MODULE_SUFFIXES):
            options[option] = "m"
        else:
            options[option] = "n"
    return options


def _read_config(file: Path) -> dict[str, str]:
    try:
        content = file.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, ValueError):
        return {}
    return parse_config(content.decode(errors="replace"))


def _system_module_folders(root: Path) -> tuple[Path, ...]:
    # The last two are NixOS's
    return (
        root / "lib/modules",
        root / "usr/lib/modules",
        root / "run/booted-system/kernel-modules/lib/modules",
        root / "run/current-system/kernel-modules/lib/modules",
    )


def _modules_of(path: Path, version: str, root: Path) -> Path | None:
    """The module tree of a kernel file: around it, beside it (NixOS, an unpacked package), or the host's."""
    if (path.parent / "modules.builtin").is_file():
        return path.parent
    if not version:
        return None
    beside = [parent / "lib/modules" for parent in (path.parent, path.parent.parent)]
    beside += [parent / "usr/lib/modules" for parent in (path.parent, path.parent.parent)]
    return _first_modules_dir((*beside, *_system_module_folders(root)), version)


def _first_modules_dir(folders: tuple[Path, ...], version: str) -> Path | None:
    candidates = (folder / version for folder in folders)
    return next((folder for folder in candidates if (folder / "modules.builtin").is_file()), None)
