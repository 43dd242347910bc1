"""Looking into kernels: made here, byte by byte, and the real ones of this host."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vfsd.kernel import Presence, config_of_running_kernel, inspect_kernel, parse_config
from vfsd.kernel_image import decompress, parse_image

VERSION = "6.12.63-test"
CONFIG = """\
# Linux/x86 6.12.63 Kernel Configuration
CONFIG_MODULES=y
CONFIG_VIRTIO_FS=m
CONFIG_VIRTIO_PCI=y
CONFIG_SERIAL_8250=y
CONFIG_LOCALVERSION="-test"
# CONFIG_FUSE_FS is not set
"""


def vmlinux(config: str | None = CONFIG, text: bytes = b"") -> bytes:
    embedded = b"IKCFG_ST" + gzip.compress(config.encode()) + b"IKCFG_ED" if config else b""
    return b"\x7fELF" + bytes(200) + f"Linux version {VERSION} (x)".encode() + bytes(99) + text + embedded


def bzimage(payload: bytes, version: str = VERSION, protocol: int = 0x20F) -> bytes:
    """A bzImage by Documentation/arch/x86/boot.rst, four setup sectors and 33 bytes before the payload."""
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x400)
    banner = f"{version} (me) #".encode()
    setup[0x600 : 0x600 + len(banner)] = banner
    struct.pack_into("<II", setup, 0x248, 33, len(payload))
    return bytes(setup) + bytes(33) + payload + b"trailer"


def with_tool(*command: str) -> Callable[[bytes], bytes]:
    def run(data: bytes) -> bytes:
        if not shutil.which(command[0]):
            pytest.skip(f"{command[0]} is not installed here")
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    return run


# As the kernel's build makes them: each with the unpacked size behind it
@pytest.mark.parametrize(
    "compress",
    [
        pytest.param(gzip.compress, id="gzip"),
        pytest.param(lambda data: lzma.compress(data) + b"\1\2\3\4", id="xz"),
        pytest.param(lambda data: lzma.compress(data, lzma.FORMAT_ALONE), id="lzma"),
        pytest.param(lambda data: bz2.compress(data) + b"\1\2\3\4", id="bzip2"),
        pytest.param(lambda data: with_tool("zstd", "-q")(data) + b"\1\2\3\4", id="zstd"),
        pytest.param(lambda data: with_tool("lz4", "-l", "-q")(data) + b"\1\2\3\4", id="lz4"),
    ],
)
def test_configuration_inside_a_bzimage(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(bzimage(compress(vmlinux())))
    report = inspect_kernel(kernel, tmp_path)
    assert report.version == VERSION
    assert report.source_used == "the configuration inside it"
    assert report.virtio_fs is Presence.MODULE
    assert report.virtio_pci is Presence.BUILTIN
    assert report.serial is Presence.BUILTIN
    assert report.presence("CONFIG_FUSE_FS") is Presence.MISSING
    assert report.presence("BTRFS_FS") is Presence.MISSING
    assert report.builtin("VIRTIO_PCI")
    assert not report.builtin("VIRTIO_FS")
    assert report.options["LOCALVERSION"] == "-test"


def arm64(content: bytes) -> bytes:
    image = bytearray(64)
    image[0x38:0x3C] = b"ARM\x64"
    return bytes(image) + content


def zboot(content: bytes) -> bytes:
    payload = gzip.compress(content)
    return (b"MZ\0\0zimg" + struct.pack("<II", 64, len(payload))).ljust(64, b"\0") + payload


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(vmlinux(), id="vmlinux"),
        pytest.param(arm64(vmlinux()), id="arm64"),
        pytest.param(gzip.compress(arm64(vmlinux())), id="Image.gz"),
        pytest.param(zboot(arm64(vmlinux())), id="zboot"),
    ],
)
def test_other_formats(tmp_path: Path, image: bytes) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(image)
    report = inspect_kernel(kernel, tmp_path)
    assert (report.version, report.virtio_fs) == (VERSION, Presence.MODULE)


def test_configuration_beside_it_with_its_version_comes_first(tmp_path: Path) -> None:
    kernel = tmp_path / f"vmlinuz-{VERSION}"
    kernel.write_bytes(bzimage(gzip.compress(vmlinux())))
    (tmp_path / f"config-{VERSION}").write_text(CONFIG.replace("VIRTIO_FS=m", "VIRTIO_FS=y"))
    (tmp_path / "config-5.0").write_text("CONFIG_MODULES=y\n")
    report = inspect_kernel(kernel, tmp_path)
    assert report.source_used == f"the file config-{VERSION} beside it"
    assert report.builtin("VIRTIO_FS")


@pytest.mark.parametrize("name", ["config", ".config"])
def test_unversioned_configuration_comes_after_the_embedded_one(tmp_path: Path, name: str) -> None:
    kernel = tmp_path / "bzImage"
    (tmp_path / name).write_text("CONFIG_MODULES=y\nCONFIG_VIRTIO_FS=y\n")
    kernel.write_bytes(bzimage(gzip.compress(vmlinux())))
    assert inspect_kernel(kernel, tmp_path).virtio_fs is Presence.MODULE
    kernel.write_bytes(bzimage(gzip.compress(vmlinux(config=None))))
    assert inspect_kernel(kernel, tmp_path).virtio_fs is Presence.BUILTIN


def module_tree(
    folder: Path, builtin: str = "kernel/drivers/virtio/virtio_pci.ko", suffix: str = ".xz"
) -> Path:
    module = folder / f"kernel/fs/fuse/virtiofs.ko{suffix}"
    module.parent.mkdir(parents=True)
    module.touch()
    (folder / "modules.builtin").write_text(f"{builtin}\n")
    return folder


@pytest.mark.parametrize(
    ("kernel_name", "tree"),
    [
        # NixOS: /nix/store/…-linux-6.12/bzImage
        ("store/bzImage", f"store/lib/modules/{VERSION}"),
        # An unpacked package
        ("boot/vmlinuz", f"lib/modules/{VERSION}"),
        # Fedora: the kernel lies among its modules
        (f"lib/modules/{VERSION}/vmlinuz", f"lib/modules/{VERSION}"),
        ("elsewhere/vmlinuz", f"usr/lib/modules/{VERSION}"),
        ("elsewhere/vmlinuz", f"run/booted-system/kernel-modules/lib/modules/{VERSION}"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".xz", ".zst", ".gz"])
def test_module_tree(tmp_path: Path, kernel_name: str, tree: str, suffix: str) -> None:
    folder = module_tree(tmp_path / tree, suffix=suffix)
    kernel = tmp_path / kernel_name
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_bytes(bzimage(gzip.compress(vmlinux(config=None))))
    report = inspect_kernel(kernel, tmp_path)
    assert report.modules_dir == folder
    assert report.source_used == "its tree of modules"
    assert report.virtio_fs is Presence.MODULE
    assert report.builtin("VIRTIO_PCI")
    assert report.presence("VIRTIO_NET") is Presence.MISSING
    assert report.presence("EXT4_FS") is Presence.UNKNOWN


def test_names_of_drivers_are_the_last_resort(tmp_path: Path) -> None:
    kernel = tmp_path / "bzImage"
    kernel.write_bytes(bzimage(gzip.compress(vmlinux(config=None, text=b"\0virtiofs\0"))))
    report = inspect_kernel(kernel, tmp_path)
    assert report.source_used == "the names of drivers in it"
    assert (report.virtio_fs, report.virtio_pci) == (Presence.BUILTIN, Presence.UNKNOWN)


@pytest.mark.parametrize(
    ("content", "is_kernel"),
    [
        (b"", False),
        (b"#!/bin/sh\n", False),
        (b"\x7fELF" + bytes(500), False),
        (gzip.compress(b"not a kernel"), False),
        # Damaged, but made to be one
        (bzimage(b"\x1f\x8b\x08damaged", version="../../etc"), True),
        (bzimage(b""), True),
        (bzimage(gzip.compress(vmlinux()), protocol=0x205), True),
        (bzimage(b"")[:0x20A], False),
        (b"MZ\0\0zimg" + bytes(8), True),
    ],
)
def test_strange_files_never_raise(tmp_path: Path, content: bytes, is_kernel: bool) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(content)
    report = inspect_kernel(kernel, tmp_path)
    assert report.is_kernel is is_kernel
    assert report.virtio_fs is Presence.UNKNOWN
    assert "/" not in report.version


def test_damaged_stream_unpacks_to_nothing() -> None:
    assert decompress(b"\xfd7zXZ\0damaged") == b""
    assert decompress(b"plain") == b"plain"


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect_kernel(tmp_path / "missing")


def test_parse_config() -> None:
    assert parse_config('CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x y"\n# remark\nCONFIG_D=0x10\n') == {
        "A": "y",
        "B": "n",
        "C": "x y",
        "D": "0x10",
    }


@pytest.mark.parametrize(
    ("file", "compressed"),
    [
        ("proc/config.gz", True),
        ("boot/config-1.2", False),
        ("lib/modules/1.2/config", False),
        ("run/current-system/kernel-modules/lib/modules/1.2/config", False),
    ],
)
def test_running_kernel_by_configuration(tmp_path: Path, file: str, compressed: bool) -> None:
    config = tmp_path / file
    config.parent.mkdir(parents=True)
    config.write_bytes(gzip.compress(CONFIG.encode()) if compressed else CONFIG.encode())
    report = config_of_running_kernel(tmp_path, "1.2")
    assert (report.version, report.source_used, report.virtio_fs) == ("1.2", f"/{file}", Presence.MODULE)


def test_running_kernel_by_modules(tmp_path: Path) -> None:
    module_tree(tmp_path / "run/booted-system/kernel-modules/lib/modules/1.2")
    assert config_of_running_kernel(tmp_path, "1.2").virtio_fs is Presence.MODULE
    assert config_of_running_kernel(tmp_path, "1.3").virtio_fs is Presence.UNKNOWN


def test_real_running_kernel() -> None:
    report = config_of_running_kernel()
    assert report.version
    if report.source_used == "/proc/config.gz":
        # Whoever has this file was built with it
        assert report.builtin("IKCONFIG_PROC")


REAL = sorted(Path("/boot").glob("vmlinuz-*"))


@pytest.mark.parametrize("kernel", REAL)
def test_real_kernel(kernel: Path, tmp_path: Path) -> None:
    report = inspect_kernel(kernel)
    assert report.is_kernel
    assert report.version == kernel.name.removeprefix("vmlinuz-")
    if report.source_used == f"the file config-{report.version} beside it":
        expected = f"CONFIG_VIRTIO_FS={report.virtio_fs}\n"
        assert expected in kernel.with_name(f"config-{report.version}").read_text()
    alone = tmp_path / "vmlinuz"
    shutil.copy(kernel, alone)
    started = time.monotonic()
    copy = inspect_kernel(alone, tmp_path)
    # 0.3 s where nothing else runs
    assert time.monotonic() - started < 3
    assert copy.version == report.version
    if report.builtin("VIRTIO_FS") and parse_image(alone.read_bytes()).text():
        assert copy.builtin("VIRTIO_FS")
