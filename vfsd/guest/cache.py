"""Files that are made of others, kept under a name with a hash of what went in.

Several processes may be at the same folder: a file is replaced at once, and used only if its length and hash are
right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_KEEP_SECONDS = 24 * 3600.0
"""QEMU reads its files before the guest runs, so any may go; those of another kernel stay for a while."""
_PATTERNS = ("builtin-*", "overlay-*", "vmlinux-*", ".new-*")


def cached(path: Path, make: Callable[[], bytes]) -> Path:
    """The file at *path* if it is whole, else a new one with what *make* returns."""
    record = path.with_name(f"{path.name}.sum")
    with contextlib.suppress(OSError, ValueError):
        length, digest = record.read_text(encoding="ascii").split()
        # piece by piece: of some 20 MiB, read whole at each start, each thread would keep the room
        with path.open("rb") as file:
            whole = os.fstat(file.fileno()).st_size == int(length)
            if whole and hashlib.file_digest(file, "sha256").hexdigest() == digest:
                for each in (path, record):
                    os.utime(each)
                return path
    content = make()
    _write(path, content)
    _write(record, f"{len(content)} {hashlib.sha256(content).hexdigest()}\n".encode())
    return path


def _write(path: Path, content: bytes) -> None:
    """Replace a file at once; blocks of zeros become holes, of which a kernel has a third."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
            view = memoryview(content)
            zeros = bytes(1 << 16)
            for start in range(0, len(content), len(zeros)):
                block = view[start : start + len(zeros)]
                if block == zeros[: len(block)]:
                    file.seek(len(block), os.SEEK_CUR)
                else:
                    file.write(block)
            file.truncate(len(content))
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remove_old(cache: Path) -> None:
    """Remove what has not been used for a day."""
    oldest = time.time() - _KEEP_SECONDS
    for pattern in _PATTERNS:
        for file in cache.glob(pattern):
            # Another process may be at the same
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                if stat.S_ISREG(status.st_mode) and status.st_mtime < oldest:
                    file.unlink()
