"""Which QEMU and which virtiofsd this host has, and where.

What a binary can do is asked of it by `vfsd.binaries`; here is only the order in which places are searched.
Everything blocks, within a time limit for each candidate, and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vfsd.binaries import (
    PROBE_TIMEOUT,
    ProbeError,
    QemuBinary,
    VirtiofsdBinary,
    host_architecture,
    probe_qemu,
    probe_virtiofsd,
)

__all__ = [
    "BinaryNotFound",
    "QemuBinary",
    "SearchPaths",
    "VirtiofsdBinary",
    "described_binaries",
    "find_qemu",
    "find_virtiofsd",
]

_Binary = TypeVar("_Binary", QemuBinary, VirtiofsdBinary)


class BinaryNotFound(Exception):
    """A program that vfsd needs is missing, unusable or of the wrong kind.

    `what` is `qemu` or `virtiofsd`; `message` is a whole sentence; `remedy` says what to do about it.
    """

    def __init__(self, what: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.what = what
        self.message = message
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class SearchPaths:
    """Where binaries are looked for; `from_environment` gives what this process would use."""

    path: tuple[Path, ...]
    """The folders of PATH."""
    descriptions: tuple[Path, ...]
    """The folders of vhost-user descriptions, the most specific first."""
    virtiofsd_folders: tuple[Path, ...]
    """Where distributions put virtiofsd outside PATH."""
    qemu_files: tuple[Path, ...]
    """QEMU under another name, after PATH."""
    virtiofsd_override: Path | None = None
    qemu_override: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, user: bool = True) -> SearchPaths:
        """The places that apply to this process.

        The description folders are those of QEMU's docs/interop/vhost-user.json; those of XDG_DATA_DIRS
        come in addition, because on NixOS /usr/share does not exist.

        :param user: also look into the user's own XDG_CONFIG_HOME.
        """
        env = os.environ if environ is None else environ
        suffix = Path("qemu/vhost-user")
        descriptions = []
        if user and (config := env.get("XDG_CONFIG_HOME") or _under_home(env, ".config")):
            descriptions.append(Path(config) / suffix)
        descriptions += [Path("/etc") / suffix, Path("/usr/share") / suffix]
        data = env.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        descriptions += [folder / suffix for folder in _folders(data)]
        descriptions.append(Path("/run/current-system/sw/share") / suffix)
        return cls(
            path=tuple(_folders(env.get("PATH") or os.defpath)),
            descriptions=tuple(dict.fromkeys(descriptions)),
            virtiofsd_folders=_VIRTIOFSD_FOLDERS,
            qemu_files=_QEMU_FILES,
            virtiofsd_override=_absolute(env.get("VFSD_VIRTIOFSD")),
            qemu_override=_absolute(env.get("VFSD_QEMU")),
        )


# Debian and Fedora: /usr/libexec; Arch and Alpine: /usr/lib; QEMU < 8 and old Debian: /usr/lib/qemu
_VIRTIOFSD_FOLDERS = tuple(
    Path(folder)
    for folder in (
        "/usr/libexec",
        "/usr/libexec/virtiofsd",
        "/usr/lib/virtiofsd",
        "/usr/lib",
        "/usr/lib/qemu",
        "/usr/libexec/qemu",
        "/usr/local/libexec",
        "/usr/local/bin",
        "/run/current-system/sw/bin",
        "/run/current-system/sw/libexec",
        "/usr/bin",
    )
)
# Fedora and RHEL name their only supported QEMU qemu-kvm
_QEMU_FILES = (Path("/usr/libexec/qemu-kvm"), Path("/usr/bin/qemu-kvm"))


def find_qemu(search: SearchPaths | None = None, *, timeout: float = PROBE_TIMEOUT) -> QemuBinary:
    """The QEMU of this host's architecture.

    In this order: $VFSD_QEMU, qemu-system-ARCH in PATH, then the other names that distributions use.

    :param timeout: seconds for each candidate.
    :raises BinaryNotFound: there is none, or none that answers.
    """
    search = search or SearchPaths.from_environment()
    name = f"qemu-system-{host_architecture()}"
    remedy = f"Install QEMU ({name}), or set VFSD_QEMU to the path of its binary."
    if search.qemu_override:
        return _overridden("qemu", "VFSD_QEMU", search.qemu_override, probe_qemu, timeout)
    unusable = ""
    for candidate in _executables((*(folder / name for folder in search.path), *search.qemu_files)):
        try:
            return probe_qemu(candidate, timeout=timeout)
        except ProbeError as error:
            unusable = unusable or f"{candidate} is not a usable QEMU: {error}."
    raise BinaryNotFound("qemu", unusable or f"{name} is not installed.", remedy)


def find_virtiofsd(search: SearchPaths | None = None, *, timeout: float = PROBE_TIMEOUT) -> VirtiofsdBinary:
    """The Rust virtiofsd of this host.

    In this order: $VFSD_VIRTIOFSD, the vhost-user descriptions, PATH, distributions' libexec folders. The C
    implementation is recognised and passed over.

    :param timeout: seconds for each candidate.
    :raises BinaryNotFound: there is none, none that answers, or only the C implementation.
    """
    search = search or SearchPaths.from_environment()
    if search.virtiofsd_override:
        return _overridden(
            "virtiofsd", "VFSD_VIRTIOFSD", search.virtiofsd_override, _probe_rust_virtiofsd, timeout
        )
    candidates = (
        *described_binaries(search.descriptions),
        *(folder / "virtiofsd" for folder in (*search.path, *search.virtiofsd_folders)),
    )
    message = ""
    for candidate in _executables(candidates):
        try:
            return _probe_rust_virtiofsd(candidate, timeout=timeout)
        except ProbeError as error:
            message = message or f"{candidate} is not usable: {error}."
    raise BinaryNotFound(
        "virtiofsd",
        message or "virtiofsd is not installed.",
        "Install the Rust virtiofsd (1.10 or later), or set VFSD_VIRTIOFSD to the path of its binary.",
    )


def described_binaries(folders: Sequence[Path], pattern: str = "*virtiofsd*.json") -> list[Path]:
    """The virtio-fs daemons that vhost-user descriptions name, the preferred one first.

    The rules of QEMU's docs/interop/vhost-user.json: a file overrides those of the same name in less
    specific folders, a zero-length one hides them, and the rest is ordered by file name over all folders. A
    file that can't be read or is no such description is passed over, as QEMU's own clients do.

    :param folders: the most specific first.
    """
    chosen: dict[str, Path] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            for file in folder.glob(pattern):
                chosen.setdefault(file.name, file)
    found = (_described_binary(chosen[name]) for name in sorted(chosen))
    return list(dict.fromkeys(binary for binary in found if binary))


def _described_binary(file: Path) -> Path | None:
    try:
        description = json.loads(file.read_bytes() or b"null")
    except (OSError, ValueError):
        return None
    if not isinstance(description, dict) or description.get("type") != "fs":
        return None
    binary = description.get("binary")
    # A relative path would depend on the folder that the daemon happens to run in
    return Path(binary) if isinstance(binary, str) and binary.startswith("/") else None


def _probe_rust_virtiofsd(path: Path, *, timeout: float) -> VirtiofsdBinary:
    binary = probe_virtiofsd(path, timeout=timeout)
    if not binary.is_rust:
        raise ProbeError(
            f"it is the C virtiofsd of QEMU {'.'.join(map(str, binary.version))}, which is no longer"
            " maintained; vfsd needs the Rust one"
        )
    return binary


def _overridden(
    what: str, variable: str, path: Path, probe: Callable[..., _Binary], timeout: float
) -> _Binary:
    # An explicit choice that does not work must not silently become another one
    try:
        if not _is_executable(path):
            raise ProbeError("there is no executable file of that name")
        return probe(path, timeout=timeout)
    except ProbeError as error:
        message = f"{variable} names {path}, but {error}."
        raise BinaryNotFound(what, message, f"Correct {variable}, or unset it.") from error


def _executables(candidates: Iterable[Path]) -> Iterator[Path]:
    """Each executable file once, in order."""
    seen: set[Path] = set()
    for candidate in candidates:
        if not _is_executable(candidate):
            continue
        real = candidate.resolve()
        if real not in seen:
            seen.add(real)
            yield real


def _is_executable(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode) and os.access(path, os.X_OK)
    except OSError:
        return False


def _folders(variable: str) -> list[Path]:
    # An empty or relative entry means the working directory, which a service has no business searching
    return [Path(folder) for folder in variable.split(os.pathsep) if folder.startswith("/")]


def _absolute(value: str | None) -> Path | None:
    return Path(value).absolute() if value else None


def _under_home(env: Mapping[str, str], name: str) -> str:
    home = env.get("HOME", "")
    return f"{home}/{name}" if home.startswith("/") else ""
