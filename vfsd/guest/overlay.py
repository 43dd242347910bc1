"""A small initramfs for a root share that is to stay as it is: an overlay in the guest's memory takes the writes.

The kernel can mount a virtio-fs root by itself, but no overlay. So this runs before the tree's own init: it loads the
drivers that are modules, mounts the share read-only, a tmpfs, and overlayfs over both, and hands over.

A module comes from the kernel's module tree on this host, else from the root share's own. What lies there may have
been written by a guest, and whatever is put into the image is the guest's to read: so nothing is followed out of the
share, and no more is read than a module may have.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from vfsd.guest import cpio
from vfsd.guest.builtin import GuestUnavailable, applets_of, find_busybox
from vfsd.guest.cache import cached, remove_old
from vfsd.guest.modules import ModuleTree, ModuleUnreadable
from vfsd.kernel import KernelReport, Presence

_FORMAT = "1"
"""Part of the cache's key: raise it when an image of the same ingredients changes."""
_DRIVERS: Mapping[str, str] = {"virtio_pci": "VIRTIO_PCI", "virtiofs": "VIRTIO_FS", "overlay": "OVERLAY_FS"}
"""Modules in the order in which they are needed, each with its option in the kernel's configuration."""
_NEEDED_APPLETS = ("insmod", "mkdir", "mount", "poweroff", "sh", "switch_root")
_MODULE_FOLDERS = ("usr/lib/modules", "lib/modules")
_LARGEST_FILE = 16 << 20
"""Bytes of a file in a share's module tree: Debian's modules.dep has 0.6 MB, its largest module 6 MB."""

INIT = r"""#!/bin/busybox sh
export PATH=/bin
# Process 1 that just ends makes the kernel panic, and with panic= in Append do so again and again
fail() {
	echo "vfsd: $*" >/dev/console
	busybox poweroff -f
}

busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
	[ -e "$module" ] && busybox insmod "$module"
done

tag= init=
read -r line </proc/cmdline
set -f
for word in $line; do
	case $word in
	root=*) tag=${word#*=} ;;
	init=*) init=${word#*=} ;;
	esac
done
set +f
busybox mount -t virtiofs -o ro "$tag" /share || fail "the root share $tag can't be mounted"
busybox mount -t tmpfs -o mode=0755 tmpfs /memory || fail "there is no memory for the root's overlay"
busybox mkdir /memory/upper /memory/work
busybox mount -t overlay -o lowerdir=/share,upperdir=/memory/upper,workdir=/memory/work overlay /root ||
	fail "the root share $tag can't have an overlay"

# An absolute link can't be looked after from here
there() { [ -x "/root$1" ] || [ -L "/root$1" ]; }
for candidate in $init /sbin/init /lib/systemd/systemd /usr/lib/systemd/systemd /etc/init /bin/init; do
	there "$candidate" && break
	candidate=
done
[ "$candidate" ] || fail "the root share $tag has no init; name one with init= in Append"
[ -z "$init" ] || [ "$init" = "$candidate" ] || fail "the root share $tag has no $init, which init= names"
for name in proc sys dev; do
	[ -d "/root/$name" ] || busybox mkdir "/root/$name"
	busybox mount -o move "/$name" "/root/$name"
done
exec busybox switch_root /root "$candidate" "$@"
"""


def build(report: KernelReport, source: Path, cache: Path, *, busybox: Path | None = None) -> Path:
    """Make the initramfs for a kernel, or take it from *cache*, a folder that is made if it is missing.

    The same ingredients give the same bytes. It blocks.

    :param source: the directory that is to be the root.
    :param busybox: in place of what `find_busybox` finds.
    :raises GuestUnavailable: the kernel has no driver that it needs, there is no busybox, or the cache can't be
        written.
    """
    program = busybox or find_busybox()
    applets_of(program, _NEEDED_APPLETS)
    try:
        modules = _modules(report, source)
        content = program.read_bytes()
        cache.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        for part in (_FORMAT.encode(), INIT.encode(), content):
            digest.update(hashlib.sha256(part).digest())
        for name, module in modules.items():
            digest.update(name.encode() + b"\0" + hashlib.sha256(module).digest())
        path = cache / f"overlay-{digest.hexdigest()[:32]}.img"
        made = cached(path, lambda: cpio.archive(_entries(content, modules)))
        remove_old(cache)
    except ModuleUnreadable as error:
        raise GuestUnavailable(str(error), "Install zstd and xz-utils, or another kernel.") from error
    except OSError as error:
        raise GuestUnavailable(
            f"The overlay's initial RAM file system can't be made: {error.filename}: {error.strerror}.",
            "Make room, or correct the permissions.",
        ) from error
    return made


def _entries(busybox: bytes, modules: Mapping[str, bytes]) -> list[cpio.Entry]:
    folders = ("bin", "dev", "memory", "modules", "proc", "root", "share", "sys")
    return [
        *(cpio.directory(name) for name in folders),
        # The kernel opens it for process 1 before that can mount anything
        cpio.character_device("dev/console", 5, 1),
        cpio.file("bin/busybox", busybox, 0o755),
        cpio.file("init", INIT.encode(), 0o755),
        *(cpio.file(f"modules/{name}", content) for name, content in modules.items()),
    ]


def _modules(report: KernelReport, source: Path) -> dict[str, bytes]:
    """Name in the image → content, in the order of loading."""
    tree = _tree(report, source)
    for name, option in _DRIVERS.items():
        if name in tree.builtin or name in tree.files:
            continue
        presence = report.presence(option)
        if tree.builtin or presence in (Presence.MODULE, Presence.MISSING):
            raise GuestUnavailable(
                f"The kernel {report.path} has no driver {name} (CONFIG_{option}), or its modules are neither"
                " on this host nor in the root share.",
                f"Install its modules, lib/modules/{report.version or 'VERSION'}, or use another kernel.",
            )
    order = [module for name in _DRIVERS for module in tree.load_order(name)]
    return {f"{number:02}-{name}.ko": tree.content(name) for number, name in enumerate(dict.fromkeys(order))}


def _tree(report: KernelReport, source: Path) -> ModuleTree:
    """The kernel's modules; a tree that knows of none if they can't be found."""
    if report.modules_dir and not report.modules_dir.resolve().is_relative_to(source.resolve()):
        return ModuleTree.read(report.modules_dir)
    for folder in _MODULE_FOLDERS if report.version else ():
        try:
            tree = ModuleTree.read(source / folder / report.version, lambda path: _read_inside(source, path))
        except (OSError, ValueError):
            continue
        if tree.dependencies is not None:  # without, the whole tree would have to be searched
            return tree
    return ModuleTree(source)


def _read_inside(folder: Path, path: Path) -> bytes:
    """Read a file, if that is what it is and it lies in a folder, whatever links lead to it.

    :raises OSError: it is something else, lies elsewhere, or is too large.
    """
    # Opened so, a device or a FIFO does nothing
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status = os.fstat(found)
        handle = Path(f"/proc/self/fd/{found}")
        sound = stat.S_ISREG(status.st_mode) and status.st_size <= _LARGEST_FILE
        if not sound or not handle.readlink().is_relative_to(folder.resolve()):
            raise PermissionError(13, "it is no file of the root share", str(path))
        with handle.open("rb") as file:
            return file.read(_LARGEST_FILE)
    finally:
        os.close(found)
