"""Where the QEMU that has a guest and the one that takes it over meet, though neither can reach the other's files.

Each runs as a user of its own. So there is a folder that nobody else gets to, in which everybody may make a socket and
connect to it; both QEMUs get a descriptor of it, and go through that (/proc/self/fd). QEMU 10.0 takes no socket that is
listened on already for this.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vfsd.qmp import Monitor


class Meeting:
    """One folder, as long as the context lasts."""

    def __init__(self, folder: Path) -> None:
        self._outer = folder
        self.folder = folder / "open"
        """What both QEMUs get."""

    def __enter__(self) -> Meeting:
        shutil.rmtree(self._outer, ignore_errors=True)  # of a vfsd that was killed
        self._outer.mkdir(mode=0o700)
        self.folder.mkdir()
        self.folder.chmod(0o777)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._outer, ignore_errors=True)

    async def invite(self, monitor: Monitor) -> str:
        """Let the QEMU that has the guest come; returns its name for the folder. :raise MonitorFailed."""
        folder = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            added = await monitor.add_fd(folder)
        finally:
            os.close(folder)
        return f"/proc/self/fd/{added.number}"
