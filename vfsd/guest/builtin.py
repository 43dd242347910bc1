"""The built-in guest: an initramfs made of the host's busybox, and a kernel that the host has anyway.

From QEMU's start to the guest's prompt it takes 2.9 s with QEMU 10.0 on TCG (2.4 GHz, one CPU of type
`max`, 256 MiB, Debian 13's 6.12 cloud kernel): 4.0 s if the guest has to unpack its kernel (`build`,
*direct*), and 0.75 s more without the argument `cryptomgr.notests`. Of it, 0.2 s are ours, and 25 ms for each
share. Powering off takes 0.2 s. Not compressing the image makes it 0.1 s faster: it has only 2.5 MB.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vfsd.errors import PrerequisiteMissing
from vfsd.guest import cpio, inner_agent, script
from vfsd.guest.cache import cached, remove_old
from vfsd.guest.modules import ModuleTree, ModuleUnreadable
from vfsd.kernel import KernelReport, Presence, inspect_kernel
from vfsd.kernel_image import read_image

_FORMAT = "1"
"""Part of the cache's key: raise it when an image of the same ingredients changes."""

_MODULES: Mapping[str, tuple[str, ...]] = {
    "shares": ("virtio_pci", "virtiofs"),
    # ACPI's button, that of Arm's virt machine, and the device files by which they are read
    "button": ("button", "gpio_pl061", "gpio_keys", "evdev"),
    "agent": ("virtio_console",),
    "panic": ("pvpanic_pci",),
    "network": ("virtio_net", "af_packet"),
}
_NEEDED_APPLETS = {
    *("awk", "base64", "cat", "cttyhack", "dd", "env", "insmod", "ip", "mkdir", "mount", "poweroff"),
    *("printf", "reboot", "rm", "setsid", "sh", "sleep", "tr", "udhcpc", "umount", "wc"),
}
_BUSYBOX_NAMES = ("busybox", "busybox.static", "busybox-static")
_MORE_FOLDERS = ("/usr/bin", "/bin", "/usr/local/bin", "/run/current-system/sw/bin")
_KERNELS = (
    "boot/vmlinuz-*",
    "boot/vmlinux-*",
    "lib/modules/*/vmlinuz",
    "run/booted-system/kernel",
    "run/current-system/kernel",
)
_INSTALL_BUSYBOX = (
    "Install a statically linked busybox (Debian, Ubuntu: busybox-static; Fedora: busybox; NixOS:"
    " pkgsStatic.busybox), or set VFSD_GUEST_BUSYBOX to its path."
)
_INSTALL_KERNEL = (
    "Install one (Debian: linux-image-cloud-amd64 or linux-image-cloud-arm64), or set VFSD_GUEST_KERNEL to"
    " the path of a kernel with CONFIG_VIRTIO_FS that vfsd may read."
)


class GuestUnavailable(PrerequisiteMissing):
    """The host lacks something that the built-in guest is made of.

    `message` is a sentence that says what; `remedy` one that says what to do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message} {remedy}")
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class BuiltinGuest:
    """Two files to give to QEMU as -kernel and -initrd."""

    kernel: Path
    initrd: Path
    missing: tuple[str, ...] = ()
    """Drivers that the kernel lacks and the guest can do without: `button`, `evdev`, `virtio_net`, …"""


def find_kernel(root: Path = Path("/")) -> Path:
    """The kernel that the built-in guest boots: $VFSD_GUEST_KERNEL, else the best that this host has.

    A kernel with virtio-fs built in (Debian's cloud kernels) is better than one with a module, which is
    better than one that doesn't tell; among equals the newest version wins.

    :param root: the folder under which /boot, /lib and /run are looked for.
    :raises GuestUnavailable: there is none that can be read and has virtio-fs.
    """
    if override := os.environ.get("VFSD_GUEST_KERNEL"):
        if not os.access(override, os.R_OK):
            raise GuestUnavailable(
                f"VFSD_GUEST_KERNEL names {override}, which can't be read.", "Correct it, or unset it."
            )
        return Path(override)
    best: tuple[tuple[int, list[tuple[int, str]]], Path] | None = None
    seen: set[Path] = set()
    unreadable = False
    for path in (path for pattern in _KERNELS for path in sorted(root.glob(pattern))):
        if not path.is_file() or path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            report = inspect_kernel(path, root)
        except OSError:
            unreadable = True
            continue
        rank = _rank(report)
        if rank and (best is None or (rank, _version_key(report.version)) > best[0]):
            best = ((rank, _version_key(report.version)), path)
    if best:
        return best[1]
    if unreadable:
        # Ubuntu's kernels are mode 0600
        raise GuestUnavailable("The kernels in /boot can be read by root only.", _INSTALL_KERNEL)
    raise GuestUnavailable("There is no kernel with virtio-fs on this host.", _INSTALL_KERNEL)


def find_busybox() -> Path:
    """A statically linked busybox: $VFSD_GUEST_BUSYBOX, else from PATH and the usual folders.

    :raises GuestUnavailable: there is none.
    """
    message = "busybox is not installed."
    if override := os.environ.get("VFSD_GUEST_BUSYBOX"):
        candidates = [override]
        message = f"VFSD_GUEST_BUSYBOX names {override}, which can't be read."
    else:
        folders = os.pathsep.join((os.environ.get("PATH", ""), *_MORE_FOLDERS))
        found = (shutil.which(name, path=folders) for name in _BUSYBOX_NAMES)
        candidates = [path for path in found if path]
        candidates += [f"{folder}/{name}" for folder in _MORE_FOLDERS for name in _BUSYBOX_NAMES]
    for candidate in candidates:
        try:
            content = Path(candidate).read_bytes()
        except OSError:
            continue
        if _is_static(content):
            return Path(candidate)
        message = f"{candidate} is not a statically linked program."
    raise GuestUnavailable(message, _INSTALL_BUSYBOX)


def build(kernel: Path, cache: Path, *, direct: bool = True, busybox: Path | None = None) -> BuiltinGuest:
    """Make the guest that boots *kernel*, or take it from *cache*, a folder that is made if it's missing.

    The same ingredients give the same bytes. What is in the cache is used only if its length and hash are
    right. Files there that have not been used for a day are removed. Takes some 0.5 s the first time, 0.15 s
    later, most of it for hashing; it blocks. The files take 40 MB, or 3 MB if not *direct*.

    :param direct: on x86-64, give QEMU the unpacked kernel, which it starts by its PVH entry, so that the
        guest needn't unpack it: 1.1 s less on TCG. Such a file can't be booted through UEFI, and the kernel
        is not at a random address. Otherwise, and where it can't be done, `kernel` is the file given.
    :param busybox: in place of what `find_busybox` finds.
    :raises GuestUnavailable: something is missing, or the cache can't be written.
    """
    try:
        report = inspect_kernel(kernel)
    except OSError as error:
        raise GuestUnavailable(
            f"The kernel {kernel} can't be read: {error.strerror}.", _INSTALL_KERNEL
        ) from error
    program = busybox or find_busybox()
    try:
        modules, missing = _modules(report)
        content = program.read_bytes()
        cache.mkdir(parents=True, exist_ok=True)
        initrd = _image(content, program, modules, cache)
        bootable = (_unpacked(kernel, cache) if direct else None) or kernel
        remove_old(cache)
    except ModuleUnreadable as error:
        raise GuestUnavailable(str(error), "Install zstd and xz-utils, or another kernel.") from error
    except OSError as error:
        raise GuestUnavailable(
            f"The built-in guest can't be made: {error.filename}: {error.strerror}.",
            "Make room, or correct the permissions.",
        ) from error
    return BuiltinGuest(bootable, initrd, missing)


def _rank(report: KernelReport) -> int:
    """The greater the better; 0: not usable."""
    drivers = {report.virtio_fs, report.virtio_pci}
    if not report.is_kernel or Presence.MISSING in drivers:
        return 0
    if drivers == {Presence.BUILTIN}:
        return 3
    if report.modules_dir:
        return 2
    return 0 if Presence.MODULE in drivers else 1


def _version_key(version: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[^\d.]+", version)]


def _modules(report: KernelReport) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Path in the image → content, in the order of loading in each group; and what the kernel lacks."""
    tree = ModuleTree(report.path or Path())
    if report.modules_dir:
        tree = ModuleTree.read(report.modules_dir)
    for name, presence in (("virtiofs", report.virtio_fs), ("virtio_pci", report.virtio_pci)):
        if presence is Presence.MISSING or (presence is Presence.MODULE and not tree.has(name)):
            raise GuestUnavailable(
                f"The kernel {report.path} has no driver {name}, or its modules are not installed.",
                _INSTALL_KERNEL,
            )
    files: dict[str, bytes] = {}
    loaded: set[str] = set()
    for group, names in _MODULES.items():
        order = [name for wanted in names for name in tree.load_order(wanted)]
        fresh = [name for name in dict.fromkeys(order) if name not in loaded]
        loaded.update(fresh)
        for number, name in enumerate(fresh):
            files[f"{script.HOME}/modules/{group}/{number:02}-{name}.ko"] = tree.content(name)
    wanted = ("button", "evdev", "virtio_net", "af_packet")
    return files, tuple(name for name in wanted if report.modules_dir and not tree.has(name))


def _image(busybox: bytes, program: Path, modules: Mapping[str, bytes], cache: Path) -> Path:
    digest = hashlib.sha256()
    scripts = (script.INIT, script.STOP, script.PROFILE, script.UDHCPC)
    agent = (inner_agent.AGENT, inner_agent.SHELL, inner_agent.AWK)
    for part in (_FORMAT.encode(), busybox, *(text.encode() for text in (*scripts, *agent))):
        digest.update(hashlib.sha256(part).digest())
    for name, content in modules.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    path = cache / f"builtin-{digest.hexdigest()[:32]}.img"
    return cached(
        path, lambda: cpio.archive(_entries(busybox, applets_of(program, _NEEDED_APPLETS), modules))
    )


def _entries(busybox: bytes, applets: Iterable[str], modules: Mapping[str, bytes]) -> list[cpio.Entry]:
    """What lies in the image; everything else that the guest has, its kernel mounts."""
    home = script.HOME
    folders = ["bin", "dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", home]
    folders += [f"{home}/{name}" for name in ("bin", "modules", *(f"modules/{group}" for group in _MODULES))]
    return [
        *(cpio.directory(name, 0o1777 if name == "tmp" else 0o755) for name in folders),
        # The kernel opens it for process 1 before that can mount anything
        cpio.character_device("dev/console", 5, 1),
        cpio.file(f"{home}/bin/busybox", busybox, 0o755),
        *(cpio.symlink(f"{home}/bin/{name}", "busybox") for name in sorted(applets) if name != "busybox"),
        cpio.symlink("bin/sh", f"/{home}/bin/busybox"),
        cpio.symlink("usr/bin/env", f"/{home}/bin/busybox"),
        cpio.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        cpio.file("etc/group", b"root:x:0:\n"),
        cpio.file("etc/hosts", b"127.0.0.1 localhost guest\n::1 localhost\n"),
        cpio.file("init", script.INIT.encode(), 0o755),
        cpio.file(f"{home}/stop", script.STOP.encode(), 0o755),
        cpio.file(f"{home}/agent", inner_agent.AGENT.encode(), 0o755),
        cpio.file(f"{home}/agent.sh", inner_agent.SHELL.encode()),
        cpio.file(f"{home}/agent.awk", inner_agent.AWK.encode()),
        cpio.file(f"{home}/profile", script.PROFILE.encode()),
        cpio.file(f"{home}/udhcpc", script.UDHCPC.encode(), 0o755),
        *(cpio.file(name, content) for name, content in modules.items()),
    ]


def applets_of(program: Path, needed: Iterable[str]) -> list[str]:
    """What this busybox can do; asked of it, for distributions configure it differently.

    :raises GuestUnavailable: it lacks what is needed.
    """
    try:
        done = subprocess.run([program, "--list"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise GuestUnavailable(f"{program} does not run on this host.", _INSTALL_BUSYBOX) from error
    applets = done.stdout.split()
    if lacking := set(needed).difference(applets):
        raise GuestUnavailable(f"{program} was built without {', '.join(sorted(lacking))}.", _INSTALL_BUSYBOX)
    return applets


def _is_static(content: bytes) -> bool:
    """An ELF program without an interpreter (PT_INTERP, elf(5)), that is, without libraries to find."""
    if content[:4] != b"\x7fELF":
        return False
    return not any(kind == 3 for kind, _, _ in _segments(content))


def _segments(content: bytes) -> list[tuple[int, int, int]]:
    """Type, offset and length in the file of each segment of an ELF file."""
    order = "<" if content[5] == 1 else ">"
    if content[4] == 2:
        (start,) = struct.unpack_from(f"{order}Q", content, 32)
        size, count = struct.unpack_from(f"{order}HH", content, 54)
        fields, offset_at, length_at = f"{order}IIQQQQQQ", 2, 5
    else:
        (start,) = struct.unpack_from(f"{order}I", content, 28)
        size, count = struct.unpack_from(f"{order}HH", content, 42)
        fields, offset_at, length_at = f"{order}IIIIIIII", 1, 4
    headers = (struct.unpack_from(fields, content, start + number * size) for number in range(count))
    return [(header[0], header[offset_at], header[length_at]) for header in headers]


def _unpacked(kernel: Path, cache: Path) -> Path | None:
    """The ELF file inside a bzImage; None if QEMU could not start it, or nothing here can unpack it."""
    image = read_image(kernel)
    # Only this architecture's file is a bzImage; the field is that of xloadflags, bit 0: a 64-bit kernel
    if image.content[0x202:0x206] != b"HdrS" or not image.content[0x236] & 1:
        return None
    path = cache / f"vmlinux-{hashlib.sha256(image.content).hexdigest()[:32]}"

    def content() -> bytes:
        text = image.text()
        return _trimmed(text) if text.startswith(b"\x7fELF") and _has_pvh_entry(text) else b""

    made = cached(path, content)
    return made if made.stat().st_size else None


def _has_pvh_entry(text: bytes) -> bool:
    """A note of the name Xen and the type 18, XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h)."""
    notes = (text[offset : offset + length] for kind, offset, length in _segments(text) if kind == 4)
    return any(struct.pack("<I", 18) + b"Xen\0" in note for note in notes)


def _trimmed(text: bytes) -> bytes:
    # Behind the segments lie section headers and relocations, which QEMU doesn't read
    return text[: max(offset + length for _, offset, length in _segments(text))]
