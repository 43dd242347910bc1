"""Where vfsd keeps things. Modes: the runtime folder 0711, `definitions/` 0700, sockets by their units.

Units never name a path that a user chose: transient unit files are parsed again at each daemon-reload, and there
a space, quote or colon in a BindPaths= would bind another directory. What users name is reached through links
below the runtime folder, whose names are made of vfsd's own safe ones.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vfsd import files
from vfsd.names import FIRST, Scope


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders of one vfsd."""

    runtime: Path
    state: Path
    config: tuple[Path, ...]
    """Folders with shares/ and machines/, the first that has a name wins."""

    @classmethod
    def of(cls, scope: Scope) -> Paths:
        """The folders for a scope, as the contract has them."""
        if scope is Scope.SYSTEM:
            config = (Path("/etc/vfsd"), Path("/run/vfsd/config"), Path("/usr/lib/vfsd"))
            return cls(Path("/run/vfsd"), Path("/var/lib/vfsd"), config)
        home = Path.home()
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
        state = Path(os.environ.get("XDG_STATE_HOME") or home / ".local/state")
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return cls(runtime / "vfsd", state / "vfsd", (folder / "vfsd",))

    def make(self) -> str:
        """Make the folders that vfsd writes to; returns why nothing can be kept in the state folder, "" if it can.

        What needs none goes on without it. :raise OSError: the runtime folder can't be made.
        """
        for folder, mode in (
            (self.runtime, 0o711),
            (self.shares, 0o711),
            (self.sources, 0o711),
            (self.mount_points, 0o711),
            (self.machines, 0o711),
            (self.mount, 0o711),
            (self.runtime_definitions, 0o700),
        ):
            _make(folder, mode)
        try:
            for folder in (self.state, self.definitions):
                _make(folder, 0o700)
        except OSError as error:
            return str(error)
        writable = os.access(self.definitions, os.W_OK, effective_ids=True)
        return "" if writable else f"{self.definitions} can't be written to"

    @property
    def definitions(self) -> Path:
        """Persistent definitions."""
        return self.state / "definitions"

    @property
    def runtime_definitions(self) -> Path:
        """Definitions until the next reboot, and what is remembered of every object."""
        return self.runtime / "definitions"

    @property
    def begun(self) -> Path:
        """Says in which life of systemd's the machines with Autostart were started last (Supervisor.life)."""
        return self.runtime / "begun"

    @property
    def builtin(self) -> Path:
        """Where the built-in guest is kept."""
        return self.state / "builtin"

    @property
    def ssh_key(self) -> Path:
        """The key with which vfsctl ssh logs in; its public half has the suffix .pub."""
        return self.state / "ssh" / "id_ed25519"

    @property
    def shares(self) -> Path:
        """Share sockets."""
        return self.runtime / "share"

    @property
    def sources(self) -> Path:
        """Links to the shared directories."""
        return self.runtime / "source"

    @property
    def mount_points(self) -> Path:
        """Links to where the file systems of shares are mounted."""
        return self.runtime / "mount-point"

    @property
    def mount(self) -> Path:
        """Empty folder on which a confined virtiofsd sees its source."""
        return self.runtime / "mnt"

    @property
    def machines(self) -> Path:
        """One folder for each machine."""
        return self.runtime / "machine"

    def share_socket(self, name: str, suffix: str = FIRST) -> Path:
        """Socket of a share, by its units' suffix."""
        return self.shares / f"{name}.sock{suffix}"

    def source_link(self, name: str) -> Path:
        """Link to a share's source."""
        return self.sources / name

    def mount_point_link(self, name: str) -> Path:
        """Link to where its file system is mounted, unless that is the root file system."""
        return self.mount_points / name

    @property
    def machine_states(self) -> Path:
        """One folder for each machine that has something to keep."""
        return self.state / "machine"

    def machine_state(self, name: str) -> Path:
        """What a machine's guest has changed: the firmware's variables; and the guest itself while it is suspended."""
        return self.machine_states / name

    def machine(self, name: str, suffix: str = FIRST) -> MachinePaths:
        """Runtime files of a machine, by its units' suffix."""
        return MachinePaths(self.machines / name, suffix)


def _make(folder: Path, mode: int) -> None:
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) != mode:
        folder.chmod(mode)


@dataclass(frozen=True, slots=True)
class MachinePaths:
    """Runtime files of one machine, all in one folder; each set of its units has sockets of its own."""

    folder: Path
    suffix: str = FIRST

    @property
    def monitor(self) -> Path:
        """vfsd's own QMP monitor."""
        return self._own("qmp")

    @property
    def stop_monitor(self) -> Path:
        """The QMP monitor of the unit's ExecStop=, since a monitor has one client at a time."""
        return self._own("qmp-stop")

    @property
    def console(self) -> Path:
        """The guest's console."""
        return self._own("console")

    @property
    def console_tap(self) -> Path:
        """The same for vfsd alone, which lets many read."""
        return self._own("console-tap")

    @property
    def console_history(self) -> Path:
        """What the guest wrote on its console, as far as QEMU no longer has it."""
        return self.folder / "console-history"

    @property
    def agent(self) -> Path:
        """The guest's agent."""
        return self._own("agent")

    @property
    def console_input(self) -> Path:
        """FIFO on QEMU's standard input, which must never end."""
        return self._own("stdin")

    @property
    def leader_input(self) -> Path:
        """FIFO that the machine's leader reads, to which nobody writes."""
        return self.folder / "leader"

    @property
    def credentials(self) -> Path:
        """Those of the guest."""
        return self.private / "credentials"

    @property
    def display(self) -> Path:
        """The guest's display."""
        return self._own("display")

    @property
    def display_folder(self) -> str:
        """The folder below /run that is a confined QEMU's own, for its display's socket (RuntimeDirectory=)."""
        return f"vfsd-display{self.suffix}.{self.folder.name}"

    @property
    def private(self) -> Path:
        """Folder with what QEMU reads as it starts and nobody else may see."""
        return self.folder / "private"

    @property
    def meeting(self) -> Path:
        """Folder in which two QEMUs meet while the one takes the guest of the other over."""
        return self.folder / "meeting"

    @property
    def deadline(self) -> Path:
        """When a shutdown that is under way ends by force: µs of CLOCK_BOOTTIME, as text."""
        return self.folder / "deadline"

    def read_deadline(self) -> int:
        """That time, 0 if there is none."""
        try:
            return int(files.read_text(self.deadline))
        except (OSError, ValueError):
            return 0

    def _own(self, name: str) -> Path:
        return self.folder / f"{name}{self.suffix}"

    def link(self, what: str) -> Path:
        """Link to a file of the user's: kernel, initrd, image."""
        return self.folder / what
