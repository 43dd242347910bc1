"""A guest of one disk sector: up in a second, idle, no kernel. For tests that need a guest, but nothing of Linux.

It says that it is up on its serial console, gives back there what it reads, and powers off when the power button
is pressed, saying so. A stubborn one ignores the button.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from tests.integration.harness import MACHINE, Client, Signals

HELLO = "tiny guest is up"
BUTTON = "tiny guest: power button"

_CODE_BEFORE_BUTTON = bytes.fromhex(
    "31c0 8ed8 8ed0 bc007c"  # %ds = %ss = 0, %sp = 0x7c00
    "ba0206 b8"  # outw to ACPI's PM1 enable register of the machine q35 …
)
_ENABLED, _DISABLED = bytes.fromhex("0001"), bytes.fromhex("0000")  # … bit 8, the power button
_CODE = bytes.fromhex(
    "ef be5e7c e82c00"  # print the greeting
    "fb f4 bafd03 ec a801 7409"  # sti; 1: hlt; does the serial port have a byte? if not, go to 2
    "baf803 ec e82600 ebee"  # read it, write it back; go to 1
    "ba0006 ed f6c401 74e5"  # 2: PM1 status, bit 8; not set: go to 1
    "be717c e80a00 ba0406 b80020 ef f4 ebfd"  # print; PM1 control = SLP_EN: off
    "ac 84c0 7405 e80300 ebf6 c3"  # print: until a NUL
    "88c4 bafd03 ec a820 74fb 88e0 baf803 ee c3"  # write one byte once the port has sent the last
)
_SECTOR = 512
DISK = 1 << 20
"""Bytes. SeaBIOS boots from no disk that is much smaller."""


def boot_sector(*, stubborn: bool = False) -> bytes:
    """The first sector of the guest's disk."""
    code = _CODE_BEFORE_BUTTON + (_DISABLED if stubborn else _ENABLED) + _CODE
    text = f"{HELLO}\r\n\0{BUTTON}\r\n\0".encode()
    return (code + text).ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"


def make_image(path: Path, *, stubborn: bool = False) -> Path:
    """Write the disk image; anybody may write to it."""
    path.write_bytes(boot_sector(stubborn=stubborn).ljust(DISK, b"\0"))
    path.chmod(0o666)
    return path


async def tiny_machine(
    client: Client,
    folder: Path,
    name: str = "tiny",
    *,
    shares: list[Path] | None = None,
    stubborn: bool = False,
    **options: tuple[str, Any],
) -> str:
    """Create a machine with the tiny guest and return its path."""
    image = make_image(folder / f"{name}.img", stubborn=stubborn)
    defaults: dict[str, tuple[str, Any]] = {
        "Image": ("s", str(image)),
        "Memory": ("t", 32 << 20),
        "Network": ("s", "none"),
        "Accelerator": ("s", "tcg"),
        "Shares": ("a(ssa{sv})", [[str(share), "", {}] for share in shares or []]),
    }
    return await client.create_machine(name, **{**defaults, **options})


async def started(client: Client, folder: Path, name: str = "tiny", **options: Any) -> str:
    """The same, running."""
    path = await tiny_machine(client, folder, name, **options)
    await client.call(path, MACHINE, "Start")
    return path


def walked(signals: Signals, path: str) -> list[str]:
    """The states that an object went through, each checked to follow from the one before."""
    changes = signals.states(path)
    for (_, before, _), (old, _, _) in itertools.pairwise(changes):
        assert old == before, changes
    assert all(old != new for old, new, _ in changes), changes
    return [new for _, new, _ in changes]
