"""What this host offers: binaries, KVM, firmware, the built-in guest. Asked in a thread, since the answers block."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vfsd.binaries import QemuBinary, VirtiofsdBinary
from vfsd.discovery import BinaryNotFound, find_qemu, find_virtiofsd
from vfsd.errors import PrerequisiteMissing
from vfsd.kvm import KvmVerdict, kvm_works
from vfsd.paths import Paths
from vfsd.ssh import public_key

if TYPE_CHECKING:
    from vfsd.guest import BuiltinGuest
    from vfsd.kernel import KernelReport

_FIRMWARE_FOLDERS = (
    Path("/etc/qemu/firmware"),
    Path("/usr/local/share/qemu/firmware"),
    Path("/usr/share/qemu/firmware"),
)
_Answer = TypeVar("_Answer")
FOUND_FOR = 1.0
"""Seconds for which a binary that was found is not looked for again: a machine with many shares asks for each."""
BUILT_FOR = 60.0
"""Seconds for which the built-in guest is not made anew, which would hash its ingredients, unless its files change."""

Stamp = tuple[int, int, int]
"""What tells a file from another one in its place: inode, size, time of change in ns."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Of the binaries that the next machine and share run; "" where there is none."""

    qemu: str = ""
    virtiofsd: str = ""


class Host:
    """Answers for one vfsd. :raise PrerequisiteMissing: by each question whose answer is "nothing"."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._kvm: KvmVerdict | None = None
        self._kvm_asked = asyncio.Lock()
        self._key_asked = asyncio.Lock()
        self._found: dict[Callable[[], Any], tuple[float, Any]] = {}
        self._builtin: tuple[float, BuiltinGuest | None, list[Stamp]] = (0.0, None, [])
        self._kernels: dict[Path, tuple[Stamp, KernelReport]] = {}
        self.versions = Versions()
        self.on_versions: Callable[[], None] = lambda: None

    async def qemu(self) -> QemuBinary:
        """The QEMU to run."""
        binary = await self._find(find_qemu)
        if not binary.vhost_user_fs:
            raise PrerequisiteMissing(
                f"QEMU {binary.version_text} has no vhost-user-fs-pci; install a full QEMU ≥ 4.2"
            )
        self._learn(Versions(_dotted(binary.version), self.versions.virtiofsd))
        return binary

    async def virtiofsd(self) -> VirtiofsdBinary:
        """The virtiofsd to run."""
        binary = await self._find(find_virtiofsd)
        self._learn(Versions(self.versions.qemu, _dotted(binary.version)))
        return binary

    async def learn_versions(self) -> None:
        """Ask for both binaries, so that their versions are known."""
        for ask in (self.qemu, self.virtiofsd):
            try:
                await ask()
            except PrerequisiteMissing:
                continue

    async def accelerator(self, wanted: str) -> str:
        """kvm or tcg, for a machine that wants auto, kvm or tcg.

        :raise PrerequisiteMissing: kvm is wanted and no guest runs on it here.
        """
        if wanted == "tcg":
            return "tcg"
        verdict = await self._ask_kvm()
        if verdict.usable:
            return "kvm"
        if wanted == "kvm":
            raise PrerequisiteMissing(
                f"KVM does not work on this host: {verdict.reason}; set Accelerator to tcg or auto"
            )
        return "tcg"

    @property
    def binaries(self) -> list[Path]:
        """The QEMU and the virtiofsd that were found last."""
        return [found.path for _, found in self._found.values()]

    def forget_binaries(self) -> None:
        """Look for them again next time."""
        self._found.clear()

    def forget_kvm(self) -> None:
        """Ask again next time: /dev/kvm came or went."""
        self._kvm = None

    async def kvm_group(self) -> int:
        """The group whose /dev/kvm is, 0 if everybody may use it."""
        status = await asyncio.to_thread(Path("/dev/kvm").stat)
        return 0 if status.st_mode & 0o006 == 0o006 else status.st_gid

    async def uefi(self, variables: Path) -> tuple[Path, Path]:
        """UEFI firmware for this architecture, and the machine's own variables, made at the given path."""
        binary = await self.qemu()
        return await asyncio.to_thread(_uefi, binary, variables)

    async def builtin(self) -> BuiltinGuest:
        """The built-in guest, made or found in its folder."""
        made_at, known, stamps = self._builtin
        if known is not None and time.monotonic() - made_at < BUILT_FOR and _stamps(known) == stamps:
            return known
        guest = await asyncio.to_thread(_build, self._paths.builtin)
        self._builtin = (time.monotonic(), guest, _stamps(guest))
        return guest

    async def kernel(self, path: Path) -> KernelReport:
        """What is known of a kernel file; it is looked into again when it changes. :raise OSError: it can't be read."""
        stamp = _stamp(path)
        known_stamp, report = self._kernels.get(path, (None, None))
        if report is None or stamp != known_stamp:
            report = await asyncio.to_thread(_inspect, path)
            self._kernels[path] = (stamp, report)
        return report

    async def overlay(self, kernel: KernelReport, source: Path) -> Path:
        """The initial RAM file system with which that kernel boots from a directory, and leaves it as it is."""
        return await asyncio.to_thread(_overlay, kernel, source, self._paths.builtin)

    async def ssh_key(self) -> str:
        """The public half of vfsd's own SSH key, made when it is asked for first."""
        async with self._key_asked:
            return await asyncio.to_thread(public_key, self._paths.ssh_key)

    async def _ask_kvm(self) -> KvmVerdict:
        async with self._kvm_asked:
            if self._kvm is None:
                verdict = await asyncio.to_thread(kvm_works, await self.qemu())
                if not verdict.conclusive:
                    return verdict
                self._kvm = verdict
            return self._kvm

    async def _find(self, find: Callable[[], _Answer]) -> _Answer:
        found_at, known = self._found.get(find, (-FOUND_FOR, None))
        if known is not None and time.monotonic() - found_at < FOUND_FOR:
            return cast("_Answer", known)
        try:
            answer = await asyncio.to_thread(find)
        except BinaryNotFound as error:
            raise PrerequisiteMissing(f"{error} {error.remedy}") from None
        self._found[find] = (time.monotonic(), answer)
        return answer

    def _learn(self, versions: Versions) -> None:
        if versions != self.versions:
            self.versions = versions
            self.on_versions()


def _build(folder: Path) -> BuiltinGuest:
    from vfsd import guest  # noqa: PLC0415  # most machines never need it

    return guest.build(guest.find_kernel(), folder)


def _inspect(path: Path) -> KernelReport:
    from vfsd.kernel import inspect_kernel  # noqa: PLC0415  # most machines never need it

    return inspect_kernel(path)


def _overlay(kernel: KernelReport, source: Path, folder: Path) -> Path:
    from vfsd.guest import overlay  # noqa: PLC0415  # most machines never need it

    return overlay.build(kernel, source, folder)


def _stamps(guest: BuiltinGuest) -> list[Stamp]:
    try:
        return [_stamp(path) for path in (guest.kernel, guest.initrd)]
    except OSError:
        return []


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _uefi(qemu: QemuBinary, variables: Path) -> tuple[Path, Path]:
    """Choose by QEMU's firmware descriptions (docs/interop/firmware.json): the first without Secure Boot's keys.

    QEMU's own lie beside it, which is the only place where there are any on NixOS.
    """
    architecture = qemu.arch
    files: dict[str, Path] = {}
    for folder in (*_FIRMWARE_FOLDERS, qemu.path.parent.parent / "share/qemu/firmware"):
        for path in sorted(folder.glob("*.json")):
            files.setdefault(path.name, path)
    for _, path in sorted(files.items()):
        try:
            described = json.loads(path.read_text())
            fits = "uefi" in described["interface-types"] and any(
                target["architecture"] == architecture for target in described["targets"]
            )
            mapping = described["mapping"]
            flash = fits and mapping["device"] == "flash" and mapping["executable"]["format"] == "raw"
            # the other features, such as amd-sev, are what it can do, not what it needs
            if not flash or {"secure-boot", "requires-smm"} & set(described["features"]):
                continue
            code, template = (
                Path(mapping["executable"]["filename"]),
                Path(mapping["nvram-template"]["filename"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not variables.exists():
            variables.parent.mkdir(parents=True, exist_ok=True)
            new = variables.with_name(f".{variables.name}.new")
            shutil.copyfile(template, new)
            new.replace(variables)
        return code, variables
    raise PrerequisiteMissing(
        f"no UEFI firmware for {architecture} was found; install OVMF (Debian: ovmf) or use Firmware bios"
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
