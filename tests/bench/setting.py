"""What all modes of one machine have in common: sources, definition, command lines. And the cleaning up."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vfsd import commands, guest
from vfsd.commands import Boot, MachineArchitecture, MachineSockets, QemuPlan, ShareDevice
from vfsd.discovery import find_qemu, find_virtiofsd
from vfsd.guest.command_line import escape
from vfsd.model import SPARE_PORTS, MachineSpec, ShareSpec
from vfsd.names import Scope
from vfsd.opened import Opened, Openings
from vfsd.paths import Paths

SOURCES = Path("/srv/vfsd-bench")
RUNTIME = Path("/run/vfsd-bench")
CACHE = Path("/var/cache/vfsd-bench")
"""Not below /tmp: QEMU has one of its own."""
PREFIX = "vfsdbench-"
"""Of units that the bench makes by itself; not `vfsd-`, which vfsd would look at."""
NAME = "bench"
"""Of the machine, and the beginning of the names of shares."""
MEMORY = 256 << 20
MARKER = b"vfsd built-in guest, Linux"
"""The built-in guest prints it on the console once it has mounted all shares."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One machine as every mode starts it."""

    spec: MachineSpec
    sources: list[Path]
    kernel: Path
    initrd: Path
    qemu: Path
    architecture: str
    virtiofsd: Path

    @classmethod
    def make(cls, shares: int, command: str | None = None, spare_ports: int = SPARE_PORTS) -> Plan:
        """:param command: what the guest runs in place of its shell."""
        sources = [SOURCES / f"s{number}" for number in range(shares)]
        for source in sources:
            source.mkdir(parents=True, exist_ok=True)
        built = guest.build(guest.find_kernel(), CACHE / "guest")
        qemu, virtiofsd = find_qemu(), find_virtiofsd()
        mounts = [guest.Mount(source.name) for source in sources]
        append = guest.kernel_arguments(mounts) + ([f"vfsd.exec={escape(command)}"] if command else [])
        spec = MachineSpec.from_options(
            NAME,
            Scope.SYSTEM,
            {
                "Memory": ("t", MEMORY),
                "Kernel": ("s", str(built.kernel)),
                "Initrd": ("s", str(built.initrd)),
                "Append": ("s", " ".join(append)),
                "Accelerator": ("s", "tcg"),
                "SparePorts": ("u", spare_ports),
                "Shares": ("a(ssa{sv})", [[str(source), "", {}] for source in sources]),
            },
        )
        return cls(spec, sources, built.kernel, built.initrd, qemu.path, qemu.arch, virtiofsd.path)

    def virtiofsd_arguments(self, share: ShareSpec, fd: int, shared_dir: Path) -> list[str]:
        """As vfsd's own, with another descriptor."""
        arguments = commands.virtiofsd_arguments(str(self.virtiofsd), share, shared_dir)
        return [f"--fd={fd}" if word.startswith("--fd=") else word for word in arguments]

    def qemu_arguments(
        self, share_fds: Sequence[int], sockets: MachineSockets, openings: Openings | None = None
    ) -> list[str]:
        """As vfsd's own.

        :param openings: takes what the guest boots, if systemd opens that for QEMU.
        """
        kernel, initrd = map(openings.add if openings else Opened, (self.kernel, self.initrd))
        architecture = MachineArchitecture.of(self.architecture)
        spec = self.spec
        append = commands.kernel_arguments(spec, architecture.console, "", root_read_only=False)
        shares = zip(spec.shares, range(len(spec.shares)), share_fds, strict=True)
        plan = QemuPlan(
            binary=str(self.qemu),
            architecture=architecture,
            accelerator="tcg",
            boot=Boot(kernel, initrd, append),
            shares=[ShareDevice(share.tag, slot, Opened(Path(), fd)) for share, slot, fd in shares],
            slots=len(spec.shares) + spec.spare_ports,
            sockets=sockets,
            has_hub=True,
            has_panic_device=True,
            has_panic_exit=True,
            has_shared_ram=True,
            display=Path(),
        )
        return commands.qemu_arguments(spec, plan)


def bench_paths() -> Paths:
    """Paths for raw units, apart from vfsd's own."""
    paths = Paths(RUNTIME, CACHE, ())
    for folder in (paths.shares, paths.sources, paths.mount, paths.machine(NAME).folder):
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    return paths


def systemctl(*arguments: str, timeout: float = 60) -> str:
    """Run systemctl; its failure is no error."""
    done = subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    return done.stdout


def vfsd_pid() -> int:
    """Main process of vfsd.service, 0 if it does not run."""
    return int(systemctl("show", "-P", "MainPID", "vfsd.service").strip() or 0)


@contextlib.contextmanager
def vfsd_halted() -> Iterator[None]:
    """Keep vfsd from running, so that it takes no time from what is measured beside it.

    It follows the signals of all units: in a raw turn it would work for nothing, and make the raw form slower.
    """
    pid = vfsd_pid()
    if pid:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def call_vfsd(*arguments: str) -> str:
    """A call through busctl; its failure is no error."""
    command = ["busctl", "--timeout=30", "call", "org.vfsd1", "/org/vfsd1", "org.vfsd1.Manager", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


def clean_vfsd() -> None:
    """Remove what the bench made with vfsd."""
    call_vfsd("KillMachine", "s", NAME)
    call_vfsd("RemoveMachine", "s", NAME)
    listed = call_vfsd("ListShares").split()
    names = [word.strip('"') for word in listed if word.startswith(f'"{NAME}-')]
    for name in names:
        call_vfsd("RemoveShare", "s", name)


def clean_units() -> None:
    """Stop all raw units."""
    listed = systemctl("list-units", "--all", "--plain", "--no-legend", "--full", f"{PREFIX[:-1]}*")
    units = [line.split()[0] for line in listed.splitlines() if line.strip()]
    for kind in (".service", ".socket", ".slice"):
        some = [unit for unit in units if unit.endswith(kind)]
        for start in range(0, len(some), 200):
            systemctl("kill", "--signal=KILL", *some[start : start + 200]) if kind == ".service" else None
            systemctl("stop", *some[start : start + 200])
            systemctl("reset-failed", *some[start : start + 200])


def clean() -> None:
    """Leave nothing behind: objects, units, files. Processes of the bare mode are ended by that itself."""
    clean_vfsd()
    clean_units()
    for folder in (SOURCES, RUNTIME, CACHE):
        shutil.rmtree(folder, ignore_errors=True)
