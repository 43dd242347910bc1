"""A control group of its own for each lab, so that what nspawn leaves behind can be found again.

Only for hosts whose PID 1 is no systemd: nspawn then makes its groups wherever it was started, and
nobody removes them. A systemd gives the lab a scope instead and cleans that up by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path


def own(mountinfo: str, membership: str) -> list[Path]:
    """Return the calling process's groups in the hierarchies which systemd uses.

    `mountinfo` and `membership` are the texts of /proc/self/mountinfo and /proc/self/cgroup.
    """
    paths: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    groups = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        if kind == "cgroup2":
            controllers = ""
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            controllers = "name=systemd"
        else:
            continue
        if controllers not in paths:
            continue
        below = os.path.relpath(paths[controllers], root)
        groups.append(Path(point) if below.startswith("..") else Path(point) / below)
    return list(dict.fromkeys(groups))


def create(name: str) -> list[Path]:
    """Make the lab's groups and return them."""
    groups = [
        group / name
        for group in own(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    ]
    for group in groups:
        group.mkdir(exist_ok=True)
    return groups


def destroy(groups: list[Path], patience: float = 5.0) -> None:
    """Kill whatever is left in the groups and remove them."""
    deadline = time.monotonic() + patience
    while True:
        left = [group for group in groups if group.is_dir()]
        for group in left:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
                    continue
                for pid in _members(Path(folder)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        if not any(group.is_dir() for group in left) or time.monotonic() > deadline:
            return
        time.sleep(0.02)


def _members(group: Path) -> list[int]:
    try:
        return [pid for pid in map(int, (group / "cgroup.procs").read_text().split()) if pid > 0]
    except OSError:
        return []
