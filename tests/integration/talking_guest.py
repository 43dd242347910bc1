"""A guest of one disk sector that writes much: what is typed on its serial console comes back, and `!` makes it count.

It says that it is up. On `!` it writes the next COUNT numbers, 4 hexadecimal digits and a space each, so that each
byte of its output tells its place; a newline with each would be an entry in the journal with each.
"""

from __future__ import annotations

import re
from pathlib import Path

HELLO = b"talking guest is up\r\n"
COUNT = 0x8000
"""Numbers for each `!`."""
BYTES = 5 * COUNT

_CODE = bytes.fromhex(
    "31c0 8ed8 8ed0 bc007c 31db"  # %ds = %ss = 0, %sp = 0x7c00, %bx = 0: the next number
    "be627c ac 84c0 7405 e83b00 ebf6"  # print the greeting, which stands behind the code
    "fb f4 bafd03 ec a801 74f6"  # 1: sti; hlt; 2: does the serial port have a byte? if not, go to 1
    "baf803 ec 3c21 7405 e82400 ebeb"  # read it; is it "!"? if not, write it back and go to 2
    "b90080"  # COUNT times:
    "bf0400 c1c304 88d8 240f 3c0a 1c69 2f e80d00 4f 75ee"  # write the digits of %bx, the highest first
    "b020 e80500 43 e2e3 ebc9"  # write a space, add 1; go to 2
    "88c4 bafd03 ec a820 74fb 88e0 baf803 ee c3"  # write one byte once the port has sent the last
)
_DISK = 1 << 20


def make_image(folder: Path) -> Path:
    """Write the disk image; anybody may write to it."""
    sector = (_CODE + HELLO + b"\0").ljust(510, b"\0") + b"\x55\xaa"
    path = folder / "talking.img"
    path.write_bytes(sector.ljust(_DISK, b"\0"))
    path.chmod(0o666)
    return path


def numbers(begin: int, count: int = COUNT) -> bytes:
    """That many of the guest's numbers."""
    return b"".join(b"%04X " % (number % 0x10000) for number in range(begin, begin + count))


def break_in(text: bytes) -> str:
    """Where a part of the numbers has a gap or a repetition, to be shown; "" if nowhere."""
    begin = re.search(rb"[0-9A-F]{4} ", text)
    if begin is None:
        return "" if not text.strip(b"0123456789ABCDEF ") else f"{text[:40]!r}"
    place = begin.start()
    expected = numbers(int(begin[0], 16), (len(text) - place) // 5 + 1)[: len(text) - place]
    before = numbers(int(begin[0], 16) - 1, 1)[5 - place :] if place else b""
    if text == before + expected:
        return ""
    wrong = next(n for n, (got, due) in enumerate(zip(text[place:], expected, strict=True)) if got != due)
    return f"{text[max(place + wrong - 20, 0) : place + wrong + 20]!r} at {place + wrong}"
