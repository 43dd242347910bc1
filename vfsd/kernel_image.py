"""Inside a Linux kernel file: its version, its configuration, its text.

Formats: x86 bzImage (Documentation/arch/x86/boot.rst: setup header, boot protocol 2.08 and later), EFI zboot
(drivers/firmware/efi/libstub/zboot-header.S), arm64 and RISC-V Image, ELF vmlinux, and any of them compressed
as a whole. What Python can't decompress is handed to `zstd` and `lz4`, if they are installed.
"""

from __future__ import annotations

import bz2
import functools
import importlib
import lzma
import os
import re
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_LARGEST_FILE = 256 << 20
_LARGEST_TEXT = 512 << 20
_TOOL_TIMEOUT = 3.0
# Behind payload_length
_SETUP_HEADER_END = 0x250

_VERSION_STRING = re.compile(rb"Linux version (\d+\.\d+[^\s\0]*) ")


@dataclass(frozen=True)
class KernelImage:
    """One kernel file, held in memory."""

    content: bytes
    payload: bytes
    """The compressed kernel, or the whole file where nothing wraps it."""
    header_version: str
    """From the header, which costs nothing to read; empty if there is none."""
    is_kernel: bool

    @functools.cached_property
    def _text(self) -> bytes:
        return decompress(self.payload)

    def text(self) -> bytes:
        """The decompressed kernel; empty if the means to decompress it are missing."""
        return self._text

    @property
    def version(self) -> str:
        """As uname -r would say it; empty if unknown."""
        if self.header_version or not self.is_kernel:
            return self.header_version
        found = _VERSION_STRING.search(self.text())
        return found.group(1).decode("ascii", "replace") if found else ""

    def embedded_config(self) -> str:
        """The configuration that CONFIG_IKCONFIG puts into the kernel; empty if there is none."""
        text = self.text()
        # kernel/configs.c: the marker, then a gzip stream
        start = text.find(b"IKCFG_ST\x1f\x8b")
        if start < 0:
            return ""
        return _gzip(text[start + 8 :]).decode(errors="replace")


def read_image(path: Path) -> KernelImage:
    """Read a kernel file.

    :raises OSError: it can't be read.
    """
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE)
    return parse_image(content)


def parse_image(content: bytes) -> KernelImage:
    """Find out what kind of kernel file this is, without unpacking it unless the whole is compressed."""
    if content[0x202:0x206] == b"HdrS" and len(content) >= _SETUP_HEADER_END:
        return KernelImage(content, _bzimage_payload(content), _bzimage_version(content), is_kernel=True)
    if content[4:8] == b"zimg" and len(content) >= 16:
        offset, size = struct.unpack_from("<II", content, 8)
        return KernelImage(content, content[offset : offset + size], "", is_kernel=True)
    if _plain_kernel(content):
        return KernelImage(content, content, "", is_kernel=True)
    if _decompressor(content):
        text = decompress(content)
        # What can't be decompressed gets the benefit of the doubt
        return KernelImage(content, text, "", is_kernel=not text or _plain_kernel(text))
    return KernelImage(content, b"", "", is_kernel=False)


def _plain_kernel(content: bytes) -> bool:
    arm64 = content[0x38:0x3C] == b"ARM\x64"
    riscv = content[0x38:0x3C] == b"RSC\x05"
    return arm64 or riscv or (content.startswith(b"\x7fELF") and bool(_VERSION_STRING.search(content)))


def _bzimage_payload(content: bytes) -> bytes:
    (protocol,) = struct.unpack_from("<H", content, 0x206)
    if protocol < 0x208:
        return b""
    sectors = content[0x1F1] or 4
    offset, size = struct.unpack_from("<II", content, 0x248)
    start = (sectors + 1) * 512 + offset
    return content[start : start + size]


def _bzimage_version(content: bytes) -> str:
    (pointer,) = struct.unpack_from("<H", content, 0x20E)
    if not pointer:
        return ""
    text = content[pointer + 0x200 : pointer + 0x200 + 256].split(b"\0", 1)[0]
    word = text.split(b" ", 1)[0].decode("ascii", "replace")
    # It becomes part of a file name
    return word if re.fullmatch(r"\d+\.\d[\w.+~-]*", word) else ""


def decompress(data: bytes) -> bytes:
    """Unpack a compressed kernel; data that is not compressed comes back as it is.

    Garbage behind the stream (the size that the kernel's build appends, a signature) is ignored. Empty if
    the data is damaged, or the tool for this format is missing.
    """
    decompressor = _decompressor(data)
    if decompressor is None:
        return data
    try:
        return decompressor(data)
    except (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError):
        return b""


def _gzip(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(data, _LARGEST_TEXT)


def _lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor().decompress(data, _LARGEST_TEXT)


def _bzip2(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, _LARGEST_TEXT)


def _zstd(data: bytes) -> bytes:
    try:
        # In the standard library since Python 3.14
        module = importlib.import_module("compression.zstd")
    except ImportError:
        return _tool("zstd", "-dcq", data)
    text: bytes = module.ZstdDecompressor().decompress(data, _LARGEST_TEXT)
    return text


def _lz4(data: bytes) -> bytes:
    return _tool("lz4", "-dcq", data)


def _tool(name: str, options: str, data: bytes) -> bytes:
    with open(os.memfd_create("kernel"), "w+b") as source:  # noqa: PTH123  # a descriptor, not a path
        source.write(data)
        source.seek(0)
        with subprocess.Popen(
            [name, options], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            limit = threading.Timer(_TOOL_TIMEOUT, process.kill)
            limit.start()
            try:
                # The unpacked size, which the kernel's build appends, is garbage to these tools, but they
                # complain only after they have written everything: the exit status says nothing
                return process.stdout.read(_LARGEST_TEXT) if process.stdout else b""
            finally:
                limit.cancel()
                process.kill()


_DECOMPRESSORS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b\x08": _gzip,
    b"\xfd7zXZ\0": _lzma,
    b"\x5d\0\0": _lzma,
    b"BZh": _bzip2,
    b"\x28\xb5\x2f\xfd": _zstd,
    # The legacy frame that the kernel's build uses, and the present one
    b"\x02\x21\x4c\x18": _lz4,
    b"\x04\x22\x4d\x18": _lz4,
}


def _decompressor(data: bytes) -> Callable[[bytes], bytes] | None:
    return next((function for magic, function in _DECOMPRESSORS.items() if data.startswith(magic)), None)
