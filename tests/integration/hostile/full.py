"""A disk that is full: who is told what."""

from __future__ import annotations

import mmap
import os

from tests.integration.hostile.attack import SHARES, name_of, outcome, tell

SHARE = SHARES / "full"
CHUNK = 1 << 20


def fill(name: str, flags: int = 0) -> tuple[str, int]:
    """Write until it ends: the error, and how many bytes were taken."""
    buffer = mmap.mmap(-1, CHUNK)  # aligned, as O_DIRECT wants it
    descriptor = os.open(SHARE / name, os.O_CREAT | os.O_WRONLY | flags)
    taken = 0
    try:
        for _ in range(100):
            taken += os.write(descriptor, buffer)
    except OSError as error:
        return name_of(error), taken
    finally:
        os.close(descriptor)
        os.unlink(SHARE / name)
    return "done", taken


def mapped() -> str:
    """Pages that are dirtied before anybody knows that there is no room."""
    descriptor = os.open(SHARE / "mapped", os.O_CREAT | os.O_RDWR)
    os.ftruncate(descriptor, 16 * CHUNK)
    with mmap.mmap(descriptor, 16 * CHUNK) as memory:
        for place in range(0, 16 * CHUNK, mmap.PAGESIZE):
            memory[place] = 1
        told = outcome(memory.flush)
        told = outcome(os.fsync, descriptor) if told == "done" else told
    os.close(descriptor)
    os.unlink(SHARE / "mapped")
    return told


found = {"write": fill("written"), "O_DIRECT": fill("direct", os.O_DIRECT), "O_SYNC": fill("sync", os.O_SYNC)}
descriptor = os.open(SHARE / "reserved", os.O_CREAT | os.O_RDWR)
found["fallocate"] = (outcome(os.posix_fallocate, descriptor, 0, 16 * CHUNK), 0)
os.close(descriptor)
os.unlink(SHARE / "reserved")
found["mmap"] = (mapped(), 0)
# and goes on once there is room
(SHARE / "after").write_text("room\n")
found["after"] = ((SHARE / "after").read_text(), os.statvfs(SHARE).f_blocks * os.statvfs(SHARE).f_frsize)
tell(found)
