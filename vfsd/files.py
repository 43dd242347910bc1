"""Small text files in places where anything may stand: what is none is an error, and nothing is waited for."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

LIMIT = 16 << 20
"""Bytes. vfsd writes no larger one: a machine's credentials have 1 MiB at most, and six times that in JSON."""


def read_text(path: Path) -> str:
    """The content. :raise OSError: it can't be read. UnicodeDecodeError: it is no UTF-8."""
    # a FIFO without a writer would be waited for
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        content = file.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise OSError(errno.EFBIG, f"it has more than {LIMIT >> 20} MiB")
    return content.decode()


def link(path: Path, target: Path) -> Path:
    """Make a symbolic link in place of one that may be there; returns its path."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    return path


def replace(path: Path, text: str, *, sync: bool) -> None:
    """Write a file, whatever stood there but a folder; the old one stays until the new one is whole.

    :param sync: wait until it is on the disk.
    :raise OSError: it can't be written.
    """
    if len(text) > LIMIT:
        raise OSError(errno.EFBIG, f"it has more than {LIMIT >> 20} MiB")  # and would not be read again
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
