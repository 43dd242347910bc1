"""What a share and a machine are: frozen values, checked when they are made.

Which of their fields are options, and what the outside calls them, stands with each field (`vfsd.options`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from vfsd import credentials, limits, names
from vfsd.errors import InvalidArgs
from vfsd.forward import Forward
from vfsd.options import (
    Option,
    check_path,
    check_size,
    check_text,
    option,
    options_of,
    pairs,
    parse_options,
    require,
)

GIB = 1 << 30
USEC_PER_SEC = 1_000_000
SPARE_PORTS = 8
"""PCI slots kept free for shares that are attached later. A bridge's cost nothing (HACKING.md has measurements)."""
SPARE_PORTS_MAX = 64
SHARES_MAX = 128  # of one machine: twice as many as can be plugged
NETWORK_INTERFACE_MAX = 15
"""Characters in the name of a network interface (IFNAMSIZ is 16 with the terminating NUL)."""


class ShareState(StrEnum):
    """State of a share, as on the bus."""

    STOPPED = "stopped"
    LISTENING = "listening"
    ACTIVE = "active"
    STOPPING = "stopping"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"

    @property
    def serves(self) -> bool:
        """Whether a client that has the share, or may connect, is served."""
        return self in (ShareState.LISTENING, ShareState.ACTIVE)


class MachineState(StrEnum):
    """State of a machine, as on the bus."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    FAILED = "failed"

    @property
    def idle(self) -> bool:
        """Whether no QEMU runs."""
        return self in (MachineState.STOPPED, MachineState.FAILED)


class Cache(StrEnum):
    AUTO = "auto"
    ALWAYS = "always"
    METADATA = "metadata"
    NEVER = "never"


class FileHandles(StrEnum):
    NEVER = "never"
    PREFER = "prefer"
    MANDATORY = "mandatory"


class Sandbox(StrEnum):
    NAMESPACE = "namespace"
    CHROOT = "chroot"
    NONE = "none"

    @staticmethod
    def default(scope: names.Scope) -> Sandbox:
        """chroot needs root; namespace lets a user's virtiofsd confine itself."""
        return Sandbox.CHROOT if scope is names.Scope.SYSTEM else Sandbox.NAMESPACE


class LogLevel(StrEnum):
    OFF = "off"
    ERROR = "error"
    WARN = "warn"
    INFO = "info"
    DEBUG = "debug"
    TRACE = "trace"


class Firmware(StrEnum):
    BIOS = "bios"
    UEFI = "uefi"


class Accelerator(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Display(StrEnum):
    NONE = "none"
    SPICE = "spice"
    VNC = "vnc"


class FailurePolicy(StrEnum):
    SIGNAL = "signal"
    HEAL = "heal"
    RESTART = "restart"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareSpec:
    """One host directory and how virtiofsd serves it."""

    name: str
    source: str
    persistent: bool = False
    sandbox: Sandbox = option("Sandbox", "s", Sandbox.NAMESPACE, Sandbox)
    tag: str = option("Tag", "s", "")
    mount_point: str = option("MountPoint", "s", "")
    mount_options: str = option("MountOptions", "s", "")
    read_only: bool = option("ReadOnly", "b", False)
    cache: Cache = option("Cache", "s", Cache.AUTO, Cache)
    writeback: bool = option("Writeback", "b", False)
    direct_io: bool = option("DirectIO", "b", False)
    xattr: bool = option("XAttr", "b", False)
    posix_acl: bool = option("PosixACL", "b", False)
    announce_submounts: bool = option("AnnounceSubmounts", "b", True)
    announce_tag: bool = option("AnnounceTag", "b", False)
    inode_file_handles: FileHandles = option("InodeFileHandles", "s", FileHandles.NEVER, FileHandles)
    thread_pool_size: int = option("ThreadPoolSize", "u", 0)
    translate_uid: tuple[str, ...] = option("TranslateUID", "as", (), tuple)
    translate_gid: tuple[str, ...] = option("TranslateGID", "as", (), tuple)
    uid_map: tuple[str, ...] = option("UIDMap", "as", (), tuple)
    gid_map: tuple[str, ...] = option("GIDMap", "as", (), tuple)
    xattr_map: str = option("XAttrMap", "s", "")
    kill_priv: bool = option("KillPriv", "b", False)
    security_label: bool = option("SecurityLabel", "b", False)
    allow_device_nodes: bool = option("AllowDeviceNodes", "b", False)
    allow_setuid: bool = option("AllowSetuid", "b", False)
    socket_group: str = option("SocketGroup", "s", "")
    log_level: LogLevel = option("LogLevel", "s", LogLevel.INFO, LogLevel)
    limit_nofile: int = option("LimitNOFILE", "t", 0)
    memory_max: int = option("MemoryMax", "t", 0)
    cpu_quota_per_sec_usec: int = option("CPUQuotaPerSecUSec", "t", 0)
    io_weight: int = option("IOWeight", "t", 0)
    tasks_max: int = option("TasksMax", "t", 0)

    def __post_init__(self) -> None:
        who = f'share "{self.name}"'
        require(
            names.is_share_name(self.name),
            f'"{self.name}" can\'t name a share; use 1 to 128 of a-z A-Z 0-9 . _ -, not beginning with . or -',
        )
        require(
            len(names.share_service_unit(self.name)) <= names.UNIT_NAME_MAX,
            f'"{self.name}" is too long for a unit name, where each - takes four bytes; use a shorter name',
        )
        check_path(f"the source of {who}", self.source)
        check_size(who, self, SHARE_OPTIONS)
        if not self.tag:
            object.__setattr__(self, "tag", fit_tag(self.name))
        check_text(f"the tag of {who}", self.tag)
        require(
            len(self.tag.encode()) <= names.TAG_MAX,
            f'tag "{self.tag}" of {who} has more than {names.TAG_MAX} bytes; use a shorter one',
        )
        if self.mount_point:
            check_path(f"the mount point of {who}", self.mount_point)
        odd = next((letter for letter in self.mount_options if letter <= " " or letter in "\\\x7f"), "")
        require(not odd, f"MountOptions of {who} hold {odd!r}; separate options by commas, without blanks")
        for rule in (*self.translate_uid, *self.translate_gid, *self.uid_map, *self.gid_map, self.xattr_map):
            check_text(f"a rule of {who}", rule)
        require(
            not (self.posix_acl and (self.translate_uid or self.translate_gid)),
            f"{who} has PosixACL and TranslateUID or TranslateGID; virtiofsd can do only one of the two",
        )
        require(
            not (self.uid_map or self.gid_map) or self.sandbox is Sandbox.NAMESPACE,
            f"{who} has UIDMap or GIDMap, which need Sandbox namespace",
        )
        check_text(f"the socket group of {who}", self.socket_group)
        limits.check(who, self, memory_min=limits.SHARE_MEMORY_MIN, tasks_min=self.tasks)

    @property
    def tasks(self) -> int:
        """Processes and threads that its virtiofsd may need."""
        return limits.SHARE_TASKS + self.thread_pool_size

    @classmethod
    def from_options(
        cls, name: str, source: str, scope: names.Scope, options: Mapping[str, tuple[str, Any]]
    ) -> Self:
        """Make a share from D-Bus options. :raise InvalidArgs: something is malformed."""
        given = dict(options)
        persistent = _take_persistent(given)
        fields = {"sandbox": Sandbox.default(scope), **parse_options(cls, SHARE_OPTIONS, given)}
        return cls(name=name, source=source, persistent=persistent, **fields)

    def with_option(self, dbus_name: str, signature: str, value: Any) -> Self:
        """A copy with one option changed. :raise InvalidArgs: the value is malformed."""
        changed = parse_options(type(self), SHARE_OPTIONS, {dbus_name: (signature, value)})
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """One QEMU, the shares made with it, and the names of those attached to it."""

    name: str
    persistent: bool = False
    shares: tuple[ShareSpec, ...] = ()
    attached: tuple[str, ...] = ()
    memory: int = option("Memory", "t", GIB)
    cpus: int = option("CPUs", "u", 1)
    kernel: str = option("Kernel", "s", "")
    initrd: str = option("Initrd", "s", "")
    append: str = option("Append", "s", "")
    root_share: str = option("RootShare", "s", "")
    root_overlay: bool = option("RootOverlay", "b", False)
    image: str = option("Image", "s", "")
    firmware: Firmware = option("Firmware", "s", Firmware.BIOS, Firmware)
    accelerator: Accelerator = option("Accelerator", "s", Accelerator.AUTO, Accelerator)
    builtin: bool = option("Builtin", "b", False)
    network: str = option("Network", "s", "user")
    forward: tuple[str, ...] = option("Forward", "as", (), tuple)
    display: Display = option("Display", "s", Display.NONE, Display)
    on_share_failure: FailurePolicy = option("OnShareFailure", "s", FailurePolicy.SIGNAL, FailurePolicy)
    autostart: bool = option("Autostart", "b", False)
    credentials: tuple[tuple[str, str], ...] = option("Credentials", "a{ss}", (), pairs, secret=True)
    credential_files: tuple[tuple[str, str], ...] = option("CredentialFiles", "a{ss}", (), pairs)
    ssh: bool = option("SSH", "b", False)
    spare_ports: int = option("SparePorts", "u", SPARE_PORTS)
    extra_arguments: tuple[str, ...] = option("ExtraArguments", "as", (), tuple)
    shutdown_timeout_usec: int = option("ShutdownTimeoutUSec", "t", 90 * USEC_PER_SEC)
    memory_max: int = option("MemoryMax", "t", 0)
    cpu_quota_per_sec_usec: int = option("CPUQuotaPerSecUSec", "t", 0)
    io_weight: int = option("IOWeight", "t", 0)
    tasks_max: int = option("TasksMax", "t", 0)

    def __post_init__(self) -> None:
        who = f'machine "{self.name}"'
        require(
            names.is_machine_name(self.name),
            f'"{self.name}" can\'t name a machine; use 1 to 64 of a-z A-Z 0-9 . _ -, not beginning with . or -',
        )
        require(
            len(names.machine_unit(self.name)) <= names.UNIT_NAME_MAX,
            f'"{self.name}" is too long for a unit name, where each - takes four bytes; use a shorter name',
        )
        check_size(who, self, MACHINE_OPTIONS)
        count = len(self.shares) + len(self.attached)
        require(count <= SHARES_MAX, f"{who} has {count} shares; {SHARES_MAX} are the most")
        for what, path in (("kernel", self.kernel), ("initrd", self.initrd), ("image", self.image)):
            if path:
                check_path(f"the {what} of {who}", path)
        check_text(f"an argument of {who}", self.append, self.root_share, *self.extra_arguments)
        limits.check_guest_memory(who, self.memory)
        require(1 <= self.cpus <= 4096, f"{who} has {self.cpus} processors; give 1 to 4096")
        require(self.shutdown_timeout_usec > 0, f"{who} gives its guest no time to shut down; give some µs")
        require(
            not (self.builtin and (self.kernel or self.initrd or self.image or self.root_share)),
            f"{who} boots the built-in guest; Kernel, Initrd, Image and RootShare can't be used with Builtin",
        )
        require(not self.initrd or self.kernel, f"{who} has an Initrd without a Kernel; give both")
        require(
            not self.root_overlay or (self.root_share and not self.initrd),
            f"{who} has RootOverlay, which needs a RootShare, and comes with an initial RAM file system of its own",
        )
        credentials.check(who, self.credentials, self.credential_files)
        self._check_network(who)
        tags = [share.tag for share in self.shares]
        require(len(set(tags)) == len(tags), f"{who} has two shares with one tag; give each its own Tag")
        require(
            self.spare_ports <= SPARE_PORTS_MAX,
            f"{who} has {self.spare_ports} spare ports; give at most {SPARE_PORTS_MAX}",
        )
        tasks = limits.QEMU_TASKS + self.cpus + sum(share.tasks for share in self.shares)
        # a second QEMU is there in a Refresh; it shares the guest's memory with the first one
        limits.check(who, self, memory_min=self.memory + limits.MEMORY_OVERHEAD, tasks_min=2 * tasks)

    def _check_network(self, who: str) -> None:
        kind, _, interface = self.network.partition(":")
        good = self.network in ("user", "none") or (
            kind in ("bridge", "tap")
            and 0 < len(interface.encode()) <= NETWORK_INTERFACE_MAX
            and not set(interface) & set("/: \t\n\0,")
        )
        require(
            good, f'network "{self.network}" of {who} must be user, none, bridge:INTERFACE or tap:INTERFACE'
        )
        require(not self.forward or self.network == "user", f"{who} forwards ports, which needs Network user")
        for forward in self.forward:
            Forward.parse(forward)

    @property
    def boots(self) -> bool:
        """Whether there is anything to boot."""
        return bool(self.builtin or self.kernel or self.image)

    @classmethod
    def from_options(cls, name: str, scope: names.Scope, options: Mapping[str, tuple[str, Any]]) -> Self:
        """Make a machine from D-Bus options. :raise InvalidArgs: something is malformed."""
        given = dict(options)
        persistent = _take_persistent(given)
        signature, wanted = given.pop("Shares", ("a(ssa{sv})", []))
        require(signature == "a(ssa{sv})", f'Shares has type "{signature}", it must be "a(ssa{{sv}})"')
        fields = parse_options(cls, MACHINE_OPTIONS, given)
        shares = own_shares(name, scope, wanted)
        return cls(name=name, persistent=persistent, shares=shares, **fields)

    def with_option(self, dbus_name: str, signature: str, value: Any) -> Self:
        """A copy with one option changed. :raise InvalidArgs: the value is malformed."""
        changed = parse_options(type(self), MACHINE_OPTIONS, {dbus_name: (signature, value)})
        if "credentials" in changed:
            changed["credentials"] = credentials.kept(self.credentials, changed["credentials"])
        return dataclasses.replace(self, **changed)


SHARE_OPTIONS: Mapping[str, Option] = options_of(ShareSpec)
MACHINE_OPTIONS: Mapping[str, Option] = options_of(MachineSpec)


def fit_tag(text: str, size: int = names.TAG_MAX) -> str:
    """A tag of at most so many bytes from any text: what is longer is cut and ends in a hash of the whole."""
    raw = text.encode()
    if len(raw) <= size:
        return text
    suffix = "-" + hashlib.sha256(raw).hexdigest()[:8]
    return raw[: size - len(suffix)].decode(errors="ignore") + suffix


def own_shares(
    machine: str, scope: names.Scope, wanted: list[tuple[str, str, Mapping[str, Any]]]
) -> tuple[ShareSpec, ...]:
    """The shares that are made with a machine.

    :param wanted: source, mount point or "", and options as (signature, value).
    :raise InvalidArgs: something is malformed.
    """
    shares: list[ShareSpec] = []
    for source, mount_point, options in wanted:
        given = dict(options)
        if "Persistent" in given:
            raise InvalidArgs("a machine's own share lives as long as the machine; leave Persistent out")
        if mount_point:
            given["MountPoint"] = ("s", mount_point)
        signature, tag = given.get("Tag", ("s", ""))
        if not tag and signature == "s":
            taken = {share.tag for share in shares}
            given["Tag"] = ("s", _unique_tag(source, taken))
        taken_names = {share.name for share in shares}
        name = _unique_name(f"{machine}.{names.make_name(str(given['Tag'][1]))}", taken_names)
        shares.append(ShareSpec.from_options(name, source, scope, given))
    return tuple(shares)


def _unique_tag(source: str, taken: set[str]) -> str:
    last = source.rstrip("/").rpartition("/")[2] or "root"
    base = tag = fit_tag(names.make_name(last).lstrip(".-") or "share")
    number = 2
    while tag in taken:
        tag = fit_tag(f"{base}-{number}")
        number += 1
    return tag


def _unique_name(base: str, taken: set[str]) -> str:
    name, number = base, 2
    while name in taken:
        name = f"{base}-{number}"
        number += 1
    return name


def _take_persistent(options: dict[str, tuple[str, Any]]) -> bool:
    signature, value = options.pop("Persistent", ("b", False))
    require(signature == "b", f'Persistent has type "{signature}", it must be "b"')
    return bool(value)
