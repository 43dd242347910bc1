"""The user's session in the desktop lab: programs in it, and pictures of it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from tests.integration.harness import TESTER, Vfsd

SCREENSHOTS = Path("/tmp/screenshots")
"""What is put there, `make test-desktop` fetches into build/screenshots. Everybody may write."""


def screenshots() -> Path:
    """The folder of pictures."""
    SCREENSHOTS.mkdir(exist_ok=True)
    SCREENSHOTS.chmod(0o1777)
    return SCREENSHOTS


class Session:
    """Programs that run in units of the user's service manager, as a desktop's do."""

    def __init__(self) -> None:
        self.user = Vfsd("user")
        """Runs commands as the user."""
        self._units: list[str] = []

    def start(self, unit: str, *command: str, environment: Mapping[str, str] | None = None) -> None:
        """Run a program in a unit of its own."""
        given = [f"--setenv={name}={value}" for name, value in (environment or {}).items()]
        self.user.run("systemd-run", "--user", "--quiet", "--collect", f"--unit={unit}", *given, *command)
        self._units.append(unit)

    def stop(self, unit: str) -> None:
        """End it, without asking for long."""
        self.user.systemctl("kill", "--signal=KILL", unit, check=False)
        self.user.systemctl("stop", unit, check=False)
        self.user.systemctl("reset-failed", unit, check=False)
        if unit in self._units:
            self._units.remove(unit)

    def close(self) -> None:
        """End all that was started."""
        for unit in reversed(self._units.copy()):
            self.stop(unit)

    def write(self, path: Path, text: str) -> None:
        """Write a file that is the user's, in folders that are."""
        user = pwd.getpwnam(TESTER)
        for folder in reversed([path.parent, *path.parent.parents]):
            if not folder.exists():
                folder.mkdir()
                os.chown(folder, user.pw_uid, user.pw_gid)
        path.write_text(text, encoding="utf-8")
        os.chown(path, user.pw_uid, user.pw_gid)

    def errors(self, unit: str, *words: str, since: float) -> list[str]:
        """What a program said since then that holds one of some words."""
        entries = self.user.journal(f"_SYSTEMD_USER_UNIT={unit}", since=since)
        return [
            str(entry["MESSAGE"]) for entry in entries if any(word in str(entry["MESSAGE"]) for word in words)
        ]
