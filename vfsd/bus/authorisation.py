"""Which of polkit's actions each member needs. Only data and what computes; `guard` asks.

On the system bus everybody may call vfsd, and whoever is not root needs the action of the member. What no table here
mentions is for those who have one: a new method can't be called, a new property not be read, before it stands here.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from vfsd.names import MACHINE_INTERFACE, MANAGER_INTERFACE, SHARE_INTERFACE


class Action(StrEnum):
    """Actions, as dbus/org.vfsd1.policy describes them to people."""

    INSPECT = "org.vfsd1.inspect"
    MANAGE_SHARES = "org.vfsd1.manage-shares"
    MANAGE_MACHINES = "org.vfsd1.manage-machines"
    CONSOLE = "org.vfsd1.console"
    CONFIGURE = "org.vfsd1.configure"


class About(NamedTuple):
    """What a call is about, as rules of polkit see it; "" for what there is not."""

    kind: str = "service"
    """share, machine or service: vfsd as a whole."""
    name: str = ""
    verb: str = ""
    """The member as the object itself has it: Start for Manager's StartMachine too; Set and Get for properties."""
    source: str = ""
    """The directory of the share that the call is about."""
    share: str = ""
    """A share that a machine gets or loses."""
    property: str = ""

    def details(self) -> dict[str, str]:
        """What there is, for polkit."""
        return {key: value for key, value in self._asdict().items() if value}

    def __str__(self) -> str:
        what = (
            f' {self.property} of {self.kind} "{self.name}"'
            if self.property
            else f' {self.kind} "{self.name}"'
        )
        return f"{self.verb}{what}" if self.name else self.verb


METHODS: Mapping[str, Mapping[str, Action | None]] = {
    MANAGER_INTERFACE: {
        "CreateShare": Action.MANAGE_SHARES,
        "CreateMachine": Action.MANAGE_MACHINES,
        "GetShare": None,
        "GetMachine": None,
        "ListShares": None,  # without the sources, for whoever may not see them
        "ListMachines": None,
        "StartMachine": Action.MANAGE_MACHINES,
        "ShutdownMachine": Action.MANAGE_MACHINES,
        "KillMachine": Action.MANAGE_MACHINES,
        "RemoveShare": Action.MANAGE_SHARES,
        "RemoveMachine": Action.MANAGE_MACHINES,
        "Check": Action.INSPECT,
        "Reload": Action.CONFIGURE,
    },
    SHARE_INTERFACE: {
        "Start": Action.MANAGE_SHARES,
        "Stop": Action.MANAGE_SHARES,
        "Remove": Action.MANAGE_SHARES,
        "GetSpace": Action.INSPECT,
    },
    MACHINE_INTERFACE: {
        "Start": Action.MANAGE_MACHINES,
        "Shutdown": Action.MANAGE_MACHINES,
        "Kill": Action.MANAGE_MACHINES,
        "Pause": Action.MANAGE_MACHINES,
        "Resume": Action.MANAGE_MACHINES,
        "Reset": Action.MANAGE_MACHINES,
        "Remove": Action.MANAGE_MACHINES,
        "AttachShare": Action.MANAGE_MACHINES,
        "DetachShare": Action.MANAGE_MACHINES,
        "OpenConsole": Action.CONSOLE,
        "Refresh": Action.MANAGE_MACHINES,
        "Execute": Action.CONSOLE,
        "QueryGuest": Action.INSPECT,
        "Suspend": Action.MANAGE_MACHINES,
        "Thaw": Action.MANAGE_MACHINES,
    },
}
"""By interface and member; None for what everybody may call."""

SETTING: Mapping[str, Action] = {
    SHARE_INTERFACE: Action.MANAGE_SHARES,
    MACHINE_INTERFACE: Action.MANAGE_MACHINES,
}
"""What it takes to set a property, by interface."""

_LIMITS = ("MemoryMax", "CPUQuotaPerSecUSec", "IOWeight", "TasksMax")

OPEN: Mapping[str, frozenset[str]] = {
    MANAGER_INTERFACE: frozenset(("Version", "QemuVersion", "VirtiofsdVersion", "Scope")),
    SHARE_INTERFACE: frozenset(
        (
            *("Name", "State", "Reason", "SocketUnit", "ServiceUnit", "Machine", "MountedAt", "GuestOptions"),
            *("Owner", "MainPID", "Restarts", "StateChangedUSec", "Persistent", "OpenFiles"),
            *("Tag", "MountPoint", "MountOptions", "ReadOnly", "Cache", "Writeback", "DirectIO", "XAttr"),
            *("PosixACL", "AnnounceSubmounts", "AnnounceTag", "InodeFileHandles", "ThreadPoolSize"),
            *("Sandbox", "TranslateUID", "TranslateGID", "UIDMap", "GIDMap", "XAttrMap", "KillPriv"),
            *("SecurityLabel", "AllowDeviceNodes", "AllowSetuid", "SocketGroup", "LogLevel", "LimitNOFILE"),
            *_LIMITS,
        )
    ),
    MACHINE_INTERFACE: frozenset(
        (
            *("Name", "State", "Reason", "Unit", "Slice", "Owner", "MainPID", "Shares", "Degraded"),
            *("GuestReady", "GuestSystem", "NeedsRefresh", "RefreshDowntimeUSec", "Suspended", "SSHAddress"),
            *("AcceleratorInUse", "StateChangedUSec", "Persistent"),
            *("Memory", "CPUs", "RootShare", "RootOverlay", "Firmware", "Accelerator", "Builtin", "Network"),
            *("Forward", "Display", "OnShareFailure", "Autostart", "SSH", "SparePorts"),
            *("ShutdownTimeoutUSec", *_LIMITS),
        )
    ),
}
"""Properties that everybody may read, and that signals carry. The others tell of paths on the host, of a console or of
what a guest is given to know: they are for the object's Owner and whoever may inspect."""


def is_open(interface: str, name: str) -> bool:
    """Whether everybody may read a property."""
    return name in OPEN[interface]


def plain_source(path: str) -> str:
    """A path as rules may compare it; "" for one that another path stands for, so that no rule takes it for allowed."""
    plain = path.rstrip("/") or "/"
    means_itself = path.startswith("/") and plain == posixpath.normpath(path) and plain.isprintable()
    return plain if means_itself and len(plain.encode()) < _PATH_MAX else ""


_PATH_MAX = 4096
"""Bytes in a path, with the terminating NUL (limits.h)."""
