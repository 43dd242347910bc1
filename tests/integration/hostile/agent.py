"""Takes the place of the guest's agent, and talks as none does, for so many seconds a way (the argument)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = float(sys.argv[1])


def endless(piece: bytes, begin: bytes = b"") -> Iterator[bytes]:
    yield begin
    while True:
        yield piece * (1 + 4096 // len(piece))


FAKE = json.dumps({"return": {"pid": 1, "exited": True, "exitcode": 0, "out-data": "A" * 4000, "id": "x"}})
WAYS = (
    endless(b'{"return": {}}\n'),
    endless(b"no newline "),
    endless(b"[", b'{"return": '),
    endless(b'{"return": "\xff\xfe\xed\xa0\x80"}\n'),
    endless(FAKE.encode() + b"\n\xff"),
    endless(b'{"event": "SHUTDOWN", "return": 1e999, "error": {"class": [], "desc": {}}}\n'),
    endless(b"\0\xff\n"),
)


def end_the_real_one() -> None:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"/.vfsd/agent" in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


end_the_real_one()
[name] = os.listdir("/sys/class/virtio-ports")
port = os.open(f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK)
for way in WAYS:
    end, rest = time.monotonic() + SECONDS, b""
    while time.monotonic() < end:
        rest = rest or next(way)
        try:
            rest = rest[os.write(port, rest) :]
        except BlockingIOError:
            time.sleep(0.01)
        with contextlib.suppress(BlockingIOError):
            os.read(port, 65536)
