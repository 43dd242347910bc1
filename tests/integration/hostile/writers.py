"""Many processes at once, and the ways of writing that get around caches.

Arguments: how many writers, seconds of renaming.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import time
from pathlib import Path

from tests.integration.hostile.attack import SHARES, outcome, tell

COUNT, SECONDS = int(sys.argv[1]), float(sys.argv[2])
SHARE = SHARES / "rw"
LINE = 64
"""Bytes."""


def writers() -> dict[str, int]:
    """All of them are there before the first one writes."""
    waiting, go = os.pipe()
    shared = os.open(SHARE / "appended", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    children = []
    for number in range(COUNT):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(waiting, 1)
            told = outcome(os.write, shared, (b"%d" % number).ljust(LINE - 1) + b"\n")
            os._exit(told != "done")
        children.append(child)
    os.close(go)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    return {"writers": len(children), "failed": failed}


def direct(tag: str) -> dict[str, str]:
    path = SHARES / tag / "direct"
    buffer = mmap.mmap(-1, 8192)
    buffer.write(b"D" * 8192)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    found = {
        "aligned": outcome(os.write, descriptor, buffer),
        "unaligned": outcome(os.pwrite, descriptor, b"u" * 100, 8192),
    }
    os.close(descriptor)
    found["size"] = str(path.stat().st_size)
    return found


def mapped(tag: str) -> str:
    """A mapping that is shared by two processes and the file."""
    path = SHARES / tag / "mapped"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file:
        try:
            memory = mmap.mmap(file.fileno(), 8192)
        except OSError as error:
            return os.strerror(error.errno or 0)
        child = os.fork()
        if child == 0:
            memory[4096:4101] = b"child"
            memory.flush()
            os._exit(0)
        os.waitpid(child, 0)
        memory[0:6] = b"parent"
        memory.flush()
    return path.read_bytes().replace(b"\0", b"").decode()


def locks() -> dict[str, str]:
    """Two processes of the guest; the host is another matter."""
    found = {}
    for name, take in {
        "flock": lambda file: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "fcntl": lambda file: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "OFD": lambda file: fcntl.fcntl(file, fcntl.F_OFD_SETLK, b"\1" + bytes(31)),
    }.items():
        path = SHARE / f"locked-{name}"
        path.write_text("")
        held = path.open("r+")
        mine = outcome(take, held)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with path.open("r+") as file:
                os.write(write, outcome(take, file).encode())
            os._exit(0)
        os.waitpid(child, 0)
        found[name] = f"{mine}, {os.read(read, 20).decode()}"
        os.close(read)
        os.close(write)
        held.close()
    return found


def storm() -> dict[str, int]:
    """Four processes rename, replace and remove the same few names."""
    folder = SHARE / "storm"
    for name in ("a", "b", "a/x", "b/y"):
        (folder / name).mkdir(parents=True)
    end = time.monotonic() + SECONDS
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            while time.monotonic() < end:
                for one, other in (
                    ("a/x", "b/x"),
                    ("b/x", "b/y/x"),
                    ("b/y/x", "a/x"),
                    ("a/f", "b/f"),
                    ("b/f", "a/f"),
                ):
                    with contextlib.suppress(OSError):
                        (folder / one).rename(folder / other)
                with contextlib.suppress(OSError):
                    (folder / "a/f").write_text(str(number))
            os._exit(0)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    files = [Path(at, name) for at, _, names in os.walk(folder) for name in names]
    return {"failed": sum(code != 0 for code in ends), "files": len(files)}


tell(
    {
        "writers": writers(),
        "direct": {tag: direct(tag) for tag in ("rw", "uncached")},
        "mapped": {tag: mapped(tag) for tag in ("rw", "uncached")},
        "locks": locks(),
        "storm": storm(),
    }
)
