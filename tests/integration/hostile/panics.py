"""Says by the device for panics that there was one, in ways that mean none. Argument: how many times."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from tests.integration.hostile.attack import tell

REDHAT, PVPANIC = "0x1b36", "0x0011"  # QEMU's docs/specs/pvpanic and pci-ids
LOADED, UNKNOWN = 2, 0xF0
[device] = [
    path
    for path in Path("/sys/bus/pci/devices").iterdir()
    if ((path / "vendor").read_text().strip(), (path / "device").read_text().strip()) == (REDHAT, PVPANIC)
]
(device / "enable").write_text("1") if (device / "enable").read_text().strip() == "0" else None
with (device / "resource0").open("r+b") as file:
    register = ctypes.c_uint8.from_buffer(mmap.mmap(file.fileno(), 0))
for _ in range(int(sys.argv[1])):
    register.value = LOADED
    register.value = UNKNOWN
tell({"told": int(sys.argv[1])})
