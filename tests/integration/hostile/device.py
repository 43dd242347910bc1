"""A driver of a virtio-fs device's in user space: it says to virtiofsd what no kernel would.

As far as needed of virtio 1.2 (4.1 PCI, 2.7 split virtqueues, 5.11 file system device) and linux/fuse.h. It polls,
and has one request under way at a time.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import time
from pathlib import Path

PAGE = mmap.PAGESIZE
COMMON, NOTIFY, DEVICE = 1, 2, 4
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
NEXT, WRITE = 1, 2
SIZE = 16
"""Descriptors of a queue: with both rings they fit in one page."""
AVAILABLE, USED = 1024, 2048
"""Where the rings are in that page."""
REQUESTS = 1
"""The queue; 0 is the one for what is urgent."""
HEADER = 40
"""Bytes of struct fuse_in_header; that of an answer has 16."""
INIT = 26
TIMEOUT = 20.0


class Silence(Exception):
    """No answer came."""


class Device:
    """A share's device, taken away from the guest's kernel."""

    def __init__(self, tag: str) -> None:
        known = Path("/sys/fs/virtiofs")
        [found] = [path for path in known.iterdir() if (path / "tag").read_text().strip() == tag]
        self._pci = (found / "device").resolve().parent
        Path("/sys/bus/pci/drivers/virtio-pci/unbind").write_text(self._pci.name)
        (self._pci / "enable").write_text("1")
        with (self._pci / "config").open("r+b", buffering=0) as file:
            self._config = file.read()
            file.seek(4)
            file.write(
                struct.pack("<H", struct.unpack_from("<H", self._config, 4)[0] | 6)
            )  # memory, bus master
        self._bars: dict[int, mmap.mmap] = {}
        self._at = {kind: place for kind, *place in self._capabilities()}
        self._unique = 0
        self.start()

    def _capabilities(self) -> list[tuple[int, int, int, int]]:
        """Type, BAR, offset, multiplier (of the one for notifications)."""
        found = []
        place = self._config[0x34]
        while place:
            kind, after, _, which, bar = struct.unpack_from("<BBBBB", self._config, place)
            if kind == 9:
                offset, _, multiplier = struct.unpack_from("<III", self._config, place + 8)
                found.append((which, bar, offset, multiplier))
            place = after
        return found

    def _register(
        self, kind: int, offset: int, width: type[ctypes._SimpleCData[int]]
    ) -> ctypes._SimpleCData[int]:
        bar, base, _ = self._at[kind]
        if bar not in self._bars:
            with (self._pci / f"resource{bar}").open("r+b") as file:
                self._bars[bar] = mmap.mmap(file.fileno(), 0)
        return width.from_buffer(self._bars[bar], base + offset)

    def _set(self, offset: int, value: int, width: type[ctypes._SimpleCData[int]]) -> None:
        self._register(COMMON, offset, width).value = value

    def start(self) -> None:
        """Reset it, and have it serve two empty queues."""
        self._set(20, 0, ctypes.c_uint8)
        while self._register(COMMON, 20, ctypes.c_uint8).value:
            time.sleep(0.01)
        self._set(20, ACKNOWLEDGE | DRIVER, ctypes.c_uint8)
        for word, features in enumerate((0, 1)):  # VIRTIO_F_VERSION_1
            self._set(8, word, ctypes.c_uint32)
            self._set(12, features, ctypes.c_uint32)
        self._set(20, ACKNOWLEDGE | DRIVER | FEATURES_OK, ctypes.c_uint8)
        self.rings = [Memory(), Memory()]
        self.question, self.answer = Memory(), Memory()
        self._told = 0
        for number, ring in enumerate(self.rings):
            self._set(22, number, ctypes.c_uint16)
            self._set(24, SIZE, ctypes.c_uint16)
            for place, offset in ((32, 0), (40, AVAILABLE), (48, USED)):
                self._set(place, (ring.address + offset) & 0xFFFFFFFF, ctypes.c_uint32)
                self._set(place + 4, (ring.address + offset) >> 32, ctypes.c_uint32)
            self._set(28, 1, ctypes.c_uint16)
        self._notify_at = int(self._register(COMMON, 30, ctypes.c_uint16).value) * self._at[NOTIFY][2]
        self._set(20, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, ctypes.c_uint8)

    def chain(self, *parts: tuple[int, int, int, int], timeout: float = TIMEOUT) -> bytes:
        """Put descriptors (address, length, flags, next) into the queue; returns what was answered."""
        ring = self.rings[REQUESTS].bytes
        for number, part in enumerate(parts):
            struct.pack_into("<QIHH", ring, 16 * number, *part)
        struct.pack_into("<H", ring, AVAILABLE + 4 + 2 * (self._told % SIZE), 0)
        self._told += 1
        struct.pack_into("<H", ring, AVAILABLE + 2, self._told & 0xFFFF)
        self._register(NOTIFY, self._notify_at, ctypes.c_uint16).value = REQUESTS
        end = time.monotonic() + timeout
        while struct.unpack_from("<H", ring, USED + 2)[0] != self._told & 0xFFFF:
            if time.monotonic() > end:
                raise Silence
            time.sleep(0.001)
        return bytes(self.answer.bytes)

    def raw(self, message: bytes, timeout: float = TIMEOUT) -> tuple[int, bytes]:
        """Ask anything; returns the error's number, and what follows the header."""
        self.question.bytes[: len(message)] = message
        self.answer.bytes[:] = bytes(PAGE)
        parts = (self.question.address, len(message), NEXT, 1), (self.answer.address, PAGE, WRITE, 0)
        answer = self.chain(*parts, timeout=timeout)
        length, error, _ = struct.unpack_from("<IiQ", answer)
        return -error, answer[16:length]

    def ask(self, opcode: int, node: int, body: bytes = b"") -> tuple[int, bytes]:
        """Ask as root would."""
        return self.raw(self.message(opcode, node, body, HEADER + len(body)))

    def message(self, opcode: int, node: int, body: bytes, length: int) -> bytes:
        """:param length: what it says that it has."""
        self._unique += 1
        return struct.pack("<IIQQIIIHH", length, opcode, self._unique, node, 0, 0, 0, 0, 0) + body

    def begin(self) -> int:
        """What a kernel begins with."""
        return self.ask(INIT, 0, struct.pack("<IIII", 7, 38, 0, 0) + bytes(48))[0]


class Memory:
    """A page, and where the device finds it."""

    def __init__(self) -> None:
        self.bytes = mmap.mmap(-1, PAGE)
        self.bytes[:] = bytes(PAGE)
        here = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        ctypes.CDLL(None).mlock(ctypes.c_void_p(here), PAGE)
        with Path("/proc/self/pagemap").open("rb") as file:
            file.seek(here // PAGE * 8)
            frame = struct.unpack("<Q", file.read(8))[0] & ((1 << 55) - 1)
        self.address = frame * PAGE
