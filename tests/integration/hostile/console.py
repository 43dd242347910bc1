"""Writes to the console what terminals and journals fear, for so many seconds (the argument)."""

from __future__ import annotations

import os
import sys
import time

from tests.integration.hostile.attack import tell

CHUNKS = (
    b"\x1b[2J\x1b]0;title\x07\x1b[1;31m\x1b[999;999H" * 100,
    b"\0" * 4096,
    bytes(range(256)) * 16,
    b"no newline " * 400,
    b"\n" * 2000,
    b"\xff\xfe\xed\xa0\x80" * 800,
    b"VFSD_MACHINE=other\nPRIORITY=0\nMESSAGE=forged\n" * 50,
)
end, written = time.monotonic() + float(sys.argv[1]), 0
console = os.open("/dev/ttyS0", os.O_WRONLY | os.O_NOCTTY)
while time.monotonic() < end:
    written += os.write(console, CHUNKS[written % len(CHUNKS)])
tell({"written": written})
