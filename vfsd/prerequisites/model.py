"""What a check is made of: its result, and the host that it looks at."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from vfsd.binaries import QemuBinary, ToolOutput, VirtiofsdBinary, run_tool
from vfsd.discovery import SearchPaths

Scope = Literal["user", "system"]


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105  # not a password
    WARN = "warn"
    """Something works less well, or not for everyone; shares and machines run."""
    FAIL = "fail"
    """Shares or machines can't run."""
    SKIP = "skip"
    """Does not apply here, or can't be told."""


@dataclass(frozen=True, slots=True)
class Result:
    """One prerequisite, in words for the user. The fields are those of Manager.Check() on the bus."""

    id: str
    status: Status
    found: str
    required: str
    remedy: str
    """What to do about it; empty if nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found; the check's id and requirement are added to it."""

    status: Status
    found: str
    remedy: str = ""


def passed(found: str, remedy: str = "") -> Finding:
    """The requirement is met."""
    return Finding(Status.PASS, found, remedy)


def warned(found: str, remedy: str) -> Finding:
    """It is met in part."""
    return Finding(Status.WARN, found, remedy)


def failed(found: str, remedy: str) -> Finding:
    """It is not met."""
    return Finding(Status.FAIL, found, remedy)


def skipped(found: str) -> Finding:
    """It does not apply."""
    return Finding(Status.SKIP, found)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@dataclass(frozen=True)
class Environment:
    """The host, as far as the checks look at it; the defaults are this process's own."""

    root: Path = Path("/")
    """The folder under which /etc, /proc, /dev, /run and /usr are looked for."""
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    uid: int = field(default_factory=os.getuid)
    user: str = field(default_factory=_user_name)

    def search(self, scope: Scope) -> SearchPaths:
        """Where binaries are looked for."""
        return SearchPaths.from_environment(self.environ, user=scope == "user")

    def read(self, path: str) -> str:
        """The text of a file, stripped; empty if it can't be read. The path is relative to `root`."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        """The number that a file holds."""
        text = self.read(path)
        return int(text) if text.isdigit() else None

    def exists(self, *paths: str) -> bool:
        """Whether one of these is there."""
        return any((self.root / path).exists() for path in paths)

    def run(self, *command: str, timeout: float = 2.0) -> ToolOutput:
        """Run a helper, found in this environment's PATH. See `vfsd.binaries.run_tool`."""
        return run_tool(command, timeout=timeout, environ=self.environ)


@dataclass(frozen=True)
class Context:
    """What the probes of one run share."""

    scope: Scope
    kernel: Path | None
    host: Environment
    qemu_search: Future[QemuBinary]
    virtiofsd_search: Future[VirtiofsdBinary]

    def qemu(self) -> QemuBinary:
        """This host's QEMU.

        :raises BinaryNotFound: there is none.
        """
        return self.qemu_search.result()

    def virtiofsd(self) -> VirtiofsdBinary:
        """This host's virtiofsd.

        :raises BinaryNotFound: there is none.
        """
        return self.virtiofsd_search.result()
