"""What the attacks have in common. They run in the guest, as its root, with the shares at /mnt/TAG."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARES = Path("/mnt")


def outcome(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Try it: the name of the error, or "done"."""
    try:
        call(*arguments, **options)
    except OSError as error:
        return name_of(error)
    return "done"


def name_of(error: OSError) -> str:
    """As errno.h has it."""
    return errno.errorcode.get(error.errno or 0, str(error.errno))


def content(path: str | Path, folder: int | None = None) -> str:
    """What is read there, or the error."""
    try:
        descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    except OSError as error:
        return name_of(error)
    try:
        return os.read(descriptor, 4096).decode(errors="replace")
    except OSError as error:
        return name_of(error)
    finally:
        os.close(descriptor)


def tell(found: dict[str, Any]) -> None:
    """Say what came of it."""
    print(json.dumps(found))
