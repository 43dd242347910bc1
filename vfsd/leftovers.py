"""What a vfsd that was killed while it removed something left behind."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Container
from pathlib import Path

from vfsd import names, saved
from vfsd.context import Context
from vfsd.store import Kind


def sweep(context: Context, shares: Container[str], machines: Container[str]) -> None:
    """Take away links, folders and memories of objects that do not exist and of which nothing runs.

    :param shares: the names of those that exist; likewise machines.
    """
    context.store.forget_all_but({Kind.SHARE: shares, Kind.MACHINE: machines})
    paths, status = context.paths, context.supervisor.status
    for link in [*_entries(paths.sources), *_entries(paths.mount_points)]:
        name = link.name
        if name not in shares and not any(status(unit).runs for unit in names.share_units(name)):
            with contextlib.suppress(OSError):
                link.unlink()
    for folder in _entries(paths.machine_states):
        if folder.name not in machines:
            saved.sweep(folder)
    for folder in _entries(paths.machines):
        name = folder.name
        if name not in machines and not any(status(unit).runs for unit in names.machine_units(name)):
            shutil.rmtree(folder, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
