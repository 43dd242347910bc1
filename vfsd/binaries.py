"""What one QEMU or one virtiofsd can do, asked of the binary itself and remembered until the file changes.

So the daemon pays once, and an upgrade is noticed. The path in an answer is absolute and has no symbolic
link in it: what was checked here is what a unit runs later, whatever PATH the unit's manager has.

All functions block, each within a time limit, and may be called from any thread.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

PROBE_TIMEOUT = 2.0
"""Seconds in which one binary has to answer everything; a healthy one needs 0.05 to 0.2."""


_VERSION = re.compile(r"\d+(?:\.\d+)+")
_LONG_OPTION = re.compile(r"^\s+(?:-\w, +)?--([a-z][a-z0-9-]*)", re.MULTILINE)
_C_VIRTIOFSD = re.compile(r"^virtiofsd version \d|FUSE kernel interface", re.MULTILINE)
_DEVICE = re.compile(r'^name "([^"]+)"', re.MULTILINE)

_QEMU_ARCHITECTURES = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
    "riscv64": "riscv64",
    "ppc64": "ppc64",
    "ppc64le": "ppc64",
    "s390x": "s390x",
}


OPTION_SINCE: Mapping[str, str] = {
    "modcaps": "1.2.0",
    "posix-acl": "1.2.0",
    "security-label": "1.4.0",
    "gid-map": "1.6.0",
    "no-announce-submounts": "1.6.0",
    "uid-map": "1.6.0",
    "preserve-noatime": "1.7.0",
    "tag": "1.9.0",
    "allow-mmap": "1.11.0",
    "migration-mode": "1.11.0",
    "readonly": "1.13.0",
    "translate-gid": "1.13.0",
    "translate-uid": "1.13.0",
}
"""The virtiofsd that first had an option, read from the release commits of virtiofsd's own history.

For messages only: whether *this* binary has it, `VirtiofsdBinary.options` says. What is not named here is
in every Rust release since 1.0.0, `--fd` among it.
"""


class ProbeError(Exception):
    """A binary did not run, or gave no sensible answer in time. The message is a clause, without a path."""


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a helper program said."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class QemuBinary:
    """One QEMU system emulator and what is compiled into it."""

    path: Path
    version: tuple[int, ...]
    version_text: str
    """The first line of `--version`, the distribution's own version included."""
    arch: str
    """QEMU's name of the architecture: x86_64, aarch64, …"""
    devices: frozenset[str]
    chardevs: frozenset[str]
    objects: frozenset[str]
    accelerators: frozenset[str]

    @property
    def vhost_user_fs(self) -> bool:
        """It has the virtio-fs device (upstream since 4.2.0, but a build may leave it out)."""
        device = "vhost-user-fs-ccw" if self.arch == "s390x" else "vhost-user-fs-pci"
        return device in self.devices

    @property
    def chardev_hub(self) -> bool:
        """`-chardev hub` (since 10.0): one console, several readers."""
        return "hub" in self.chardevs or self.version >= (10, 0)

    @property
    def panic_device(self) -> bool:
        """The guest's kernel can tell that it panicked (since 6.0)."""
        return "pvpanic-pci" in self.devices

    @property
    def panic_exit(self) -> bool:
        """It can end with an exit code of its own when the guest panics (`-action panic=exit-failure`, since 7.1)."""
        return self.panic_device and self.version >= (7, 1)

    @property
    def shared_ram(self) -> bool:
        """It can hand all of a guest's memory on to another one, without a copy (`aux-ram-share`, since 10.0)."""
        return self.version >= (10, 0)

    @property
    def vsock_device(self) -> bool:
        """The guest can talk to this host without a network (since 2.8, but a build may leave it out)."""
        return "vhost-vsock-pci" in self.devices

    @property
    def memory_backend_memfd(self) -> bool:
        """Shared guest memory without a file system behind it."""
        return "memory-backend-memfd" in self.objects

    @property
    def kvm(self) -> bool:
        """KVM support is compiled in, which says nothing about the host."""
        return "kvm" in self.accelerators


@dataclass(frozen=True, slots=True)
class VirtiofsdBinary:
    """One virtiofsd and what it understands."""

    path: Path
    version: tuple[int, ...]
    version_text: str
    is_rust: bool
    """False: the C implementation that QEMU before 8.0 shipped, which vfsd does not use."""
    features: frozenset[str]
    """From `--print-capabilities`, as docs/interop/vhost-user.json defines them."""
    options: frozenset[str]
    """Its long options, without the dashes, from `--help`."""

    def has(self, option: str) -> bool:
        """Whether it knows the option, given with or without its leading dashes."""
        return option.lstrip("-") in self.options

    def missing(self, arguments: Iterable[str]) -> list[str]:
        """The long options among command line arguments that this virtiofsd does not know."""
        names = (word[2:].partition("=")[0] for word in arguments if word.startswith("--"))
        return [name for name in dict.fromkeys(names) if name and name not in self.options]


def version_tuple(text: str) -> tuple[int, ...]:
    """The first dotted number of a text as integers, `()` if there is none."""
    found = _VERSION.search(text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def host_architecture(machine: str | None = None) -> str:
    """QEMU's name of an architecture as uname(2) has it; of this host by default."""
    machine = platform.machine() if machine is None else machine
    return _QEMU_ARCHITECTURES.get(machine, machine)


_Binary = TypeVar("_Binary", QemuBinary, VirtiofsdBinary)


class _Remembered(Generic[_Binary]):
    """Answers by file identity; a file that was replaced or changed is asked again."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int, int, int, int], _Binary] = {}
        # One at a time: two probes of one binary at once would only slow each other
        self._lock = threading.Lock()

    def get(self, path: Path, ask: Callable[[Path], _Binary]) -> _Binary:
        try:
            real = path.resolve(strict=True)
            info = real.stat()
        except (OSError, RuntimeError) as error:
            raise ProbeError("the file can't be read") from error
        key = (str(real), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
        with self._lock:
            if key not in self._answers:
                self._answers[key] = ask(real)
            return self._answers[key]


_qemus: _Remembered[QemuBinary] = _Remembered()
_virtiofsds: _Remembered[VirtiofsdBinary] = _Remembered()


def probe_qemu(path: Path, *, timeout: float = PROBE_TIMEOUT) -> QemuBinary:
    """Ask one QEMU binary what it is.

    :raises ProbeError: it does not run, does not answer in `timeout` seconds, or is no QEMU.
    """
    return _qemus.get(path, functools.partial(_ask_qemu, timeout=timeout))


def _ask_qemu(path: Path, timeout: float) -> QemuBinary:
    ask = _asker(path, timeout)
    version = ask("--version")
    if "QEMU emulator" not in version.stdout or not version_tuple(version.stdout):
        raise ProbeError("it does not say that it is a QEMU emulator")

    def words(option: str) -> frozenset[str]:
        # Each list is one name a line, under headings that end in a colon
        lines = (line.strip() for line in ask(option, "help").stdout.splitlines())
        return frozenset(line.split()[0] for line in lines if line and not line.endswith(":"))

    _, _, arch = path.name.rpartition("qemu-system-")
    return QemuBinary(
        path=path,
        version=version_tuple(version.stdout),
        version_text=version.stdout.splitlines()[0].strip(),
        arch=arch if arch in _QEMU_ARCHITECTURES.values() else host_architecture(),
        devices=frozenset(_DEVICE.findall(ask("-device", "help").stdout)),
        chardevs=words("-chardev"),
        objects=words("-object"),
        accelerators=words("-accel"),
    )


def probe_virtiofsd(path: Path, *, timeout: float = PROBE_TIMEOUT) -> VirtiofsdBinary:
    """Ask one virtiofsd binary, of either implementation, what it is.

    :raises ProbeError: it does not run, does not answer in `timeout` seconds, or is no virtiofsd.
    """
    return _virtiofsds.get(path, functools.partial(_ask_virtiofsd, timeout=timeout))


def _ask_virtiofsd(path: Path, timeout: float) -> VirtiofsdBinary:
    ask = _asker(path, timeout)
    version = ask("--version").stdout
    if "virtiofsd" not in version or not version_tuple(version):
        raise ProbeError("it does not say that it is virtiofsd")
    # Rust: "virtiofsd 1.13.2", before 1.8 "virtiofsd backend 1.7.2"; C: "virtiofsd version 7.2.22 (Debian …)"
    is_rust = not _C_VIRTIOFSD.search(version)
    return VirtiofsdBinary(
        path=path,
        version=version_tuple(version),
        version_text=version.splitlines()[0].strip(),
        is_rust=is_rust,
        features=_features(ask("--print-capabilities").stdout),
        options=frozenset(_LONG_OPTION.findall(ask("--help").stdout)),
    )


def _features(capabilities: str) -> frozenset[str]:
    try:
        answer = json.loads(capabilities)
    except ValueError:
        return frozenset()
    features = answer.get("features", []) if isinstance(answer, dict) else []
    return frozenset(name for name in features if isinstance(name, str))


def _asker(path: Path, timeout: float) -> Callable[..., ToolOutput]:
    """Calls of one binary that share one time limit."""
    deadline = time.monotonic() + timeout

    def ask(*arguments: str) -> ToolOutput:
        return run_tool([str(path), *arguments], timeout=max(deadline - time.monotonic(), 0.01))

    return ask


def run_tool(
    command: Sequence[str], *, timeout: float, environ: Mapping[str, str] | None = None
) -> ToolOutput:
    """Run a helper to its end, in the C locale, without colours and with nothing on its standard input.

    It gets its own session, and all of that is killed at the time limit: a wrapper script's child must not
    keep the pipe open, and us waiting.

    :param timeout: seconds.
    :raises ProbeError: it can't be started, or did not end in time.
    """
    environment = {**(os.environ if environ is None else environ), "LC_ALL": "C", "SYSTEMD_COLORS": "0"}
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ProbeError(f"it does not start ({error.strerror})") from error
    with process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            raise ProbeError(f"it did not answer within {timeout:.1f} s") from error
    return ToolOutput(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
