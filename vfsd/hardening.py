"""What virtiofsd and QEMU may not do: sandboxing properties of their units.

The sets were tried with reads, writes, chown and links by a real guest. Each relaxation has its reason beside it.
A user manager can apply few of them without a user namespace of its own, in which the id maps of virtiofsd would
not work, so there virtiofsd confines itself (Sandbox=namespace) and gets only what needs no namespace.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vfsd.model import Display, MachineSpec, Sandbox, ShareSpec
from vfsd.names import Scope
from vfsd.paths import MachinePaths, Paths

if TYPE_CHECKING:
    from vfsd.units import Property

_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
    "CAP_SETFCAP": 31,
}
"""Numbers of linux/capability.h."""

_ACT_AS_THE_GUESTS_USERS = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",  # virtiofsd trims its own bounding set
)

_PROGRAMS = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/nix/store", "/gnu/store")
"""What a binary needs to run: itself, its libraries, and where its loader finds them."""
_SAFE_PATH = re.compile(r"/[A-Za-z0-9/._+-]+")
"""What systemd reads as one path when it reads a unit again."""
_TAP_DEVICE = "/dev/net/tun"
_MS_REC = 0x4000

_NEEDS_NO_NAMESPACE: list[Property] = [
    ("LockPersonality", "b", True),
    ("MemoryDenyWriteExecute", "b", True),
    ("RestrictRealtime", "b", True),
    ("SystemCallArchitectures", "as", ["native"]),
]

_NEEDS_ROOT: list[Property] = [("ProtectKernelLogs", "b", True)]
"""In a container a user's namespace can't hide /proc/kmsg, which is hidden already."""


def _mask(capabilities: tuple[str, ...]) -> int:
    return sum(1 << _CAPABILITIES[name] for name in capabilities)


def hides_all_else(spec: ShareSpec, scope: Scope) -> bool:
    """Whether virtiofsd sees nothing of the host but what it shares, and that in another place.

    A user's that maps ids sees all: newuidmap and newgidmap are setuid, and the rest implies NoNewPrivileges=.
    """
    return scope is Scope.SYSTEM or not (spec.uid_map or spec.gid_map)


def virtiofsd(spec: ShareSpec, scope: Scope, paths: Paths, program: str) -> list[Property]:
    """Sandboxing of one virtiofsd.

    :param program: its path. VFSD_VIRTIOFSD may name one anywhere, whose libraries have to be where others' are.
    """
    if not hides_all_else(spec, scope):
        return []
    # the guest sees file systems mounted below the source, so the bind is recursive
    capabilities = _virtiofsds_capabilities(spec) if scope is Scope.SYSTEM else ()
    shared = [[str(paths.source_link(spec.name)), str(paths.mount), False, _MS_REC]]
    elsewhere = _SAFE_PATH.fullmatch(program) and not any(
        Path(program).is_relative_to(one) for one in _PROGRAMS
    )
    programs = (*_PROGRAMS, program) if elsewhere else _PROGRAMS
    read_only = [[path, path, True, _MS_REC] for path in programs]
    return [
        *_NEEDS_NO_NAMESPACE,
        *([("PrivateUsers", "b", True)] if scope is Scope.USER else _NEEDS_ROOT),
        ("NoNewPrivileges", "b", True),
        ("PrivateNetwork", "b", True),
        ("PrivateIPC", "b", True),
        ("PrivateTmp", "b", True),
        ("PrivateDevices", "b", not spec.allow_device_nodes),  # it takes CAP_MKNOD away
        # "strict" is a mount of / too, for which systemd drops that of TemporaryFileSystem=; "full" wants an /etc
        ("ProtectSystem", "s", "yes"),
        # "yes" would hide /run/user for good, below which a user's mount point is
        ("ProtectHome", "s", "tmpfs"),
        # nothing of the host's files but itself and what is shared
        ("TemporaryFileSystem", "a(ss)", [["/", "ro"]]),
        ("MemoryPressureWatch", "s", "off"),  # its file would have to be there
        ("BindReadOnlyPaths", "a(ssbt)", [*read_only, *(shared if spec.read_only else [])]),
        *([] if spec.read_only else [("BindPaths", "a(ssbt)", shared)]),
        ("ProtectClock", "b", not spec.allow_device_nodes),  # the same
        ("ProtectControlGroups", "b", True),
        ("ProtectHostname", "b", True),
        ("ProtectKernelModules", "b", True),
        ("ProtectKernelTunables", "b", True),
        ("ProtectProc", "s", "invisible"),
        ("RestrictAddressFamilies", "(bas)", [True, ["AF_UNIX"]]),
        ("RestrictSUIDSGID", "b", not spec.allow_setuid),
        *_namespaces(spec),
        ("CapabilityBoundingSet", "t", _mask(capabilities)),
        ("SystemCallFilter", "(bas)", [True, _system_calls(spec)]),
        ("SystemCallErrorNumber", "i", 1),
    ]


def _virtiofsds_capabilities(spec: ShareSpec) -> tuple[str, ...]:
    """Those that root's has. A user's has none; in namespaces of its own it gets others."""
    capabilities: tuple[str, ...] = _ACT_AS_THE_GUESTS_USERS
    if spec.sandbox is Sandbox.CHROOT:
        capabilities += ("CAP_SYS_CHROOT",)
    if spec.sandbox is Sandbox.NAMESPACE:
        capabilities += ("CAP_SYS_ADMIN", "CAP_SYS_CHROOT")  # it unshares and mounts by itself
    if spec.inode_file_handles != "never":
        capabilities += ("CAP_DAC_READ_SEARCH",)  # open_by_handle_at()
    if spec.allow_device_nodes:
        capabilities += ("CAP_MKNOD",)
    if spec.allow_setuid:
        capabilities += ("CAP_SETFCAP",)  # a file's capabilities raise who runs it as setuid does
    return capabilities


def _namespaces(spec: ShareSpec) -> list[Property]:
    if spec.sandbox is Sandbox.NAMESPACE:
        return []  # it makes its own
    return [("RestrictNamespaces", "t", 0)]


def _system_calls(spec: ShareSpec) -> list[str]:
    calls = ["@system-service", "@chown", "@setuid", "chroot", "capset", "prlimit64", "setrlimit"]
    if spec.sandbox is Sandbox.NAMESPACE:
        calls += ["@mount", "unshare", "setns"]
    if spec.allow_device_nodes:
        calls += ["mknod", "mknodat"]
    if spec.inode_file_handles != "never":
        calls += ["open_by_handle_at", "name_to_handle_at"]
    return calls


def has_own_user(scope: Scope, *, opens: bool) -> bool:
    """Whether QEMU runs as a user of its own.

    :param opens: whether systemd opens its files for it. If not, it must be root to reach them.
    """
    return scope is Scope.SYSTEM and opens


def qemu(
    spec: MachineSpec, scope: Scope, own: MachinePaths, accelerator: str, *, opens: bool, kvm_group: int = 0
) -> list[Property]:
    """Sandboxing of one QEMU.

    :param own: its paths, for the socket of a display, which it makes by itself.
    :param opens: whether systemd opens its files for it.
    :param kvm_group: whose /dev/kvm is, where not everybody may use it; 0 if everybody may.
    """
    kind = spec.network.partition(":")[0]
    if scope is Scope.USER:
        # qemu-bridge-helper is setuid, and a mount namespace would take a user namespace, in which it could do nothing
        return [] if kind == "bridge" else [*_NEEDS_NO_NAMESPACE, *_qemus_calls(kind)]
    if not has_own_user(scope, opens=opens):
        return [*_NEEDS_NO_NAMESPACE, *_qemus_calls(kind), ("ProtectSystem", "s", "full")]
    makes_taps = kind in ("tap", "bridge")
    devices = ["/dev/kvm"] * (accelerator == "kvm") + [_TAP_DEVICE] * makes_taps
    properties: list[Property] = [
        ("DynamicUser", "b", True),
        # in a user namespace of its own no capability would be good for the host's network
        ("PrivateUsers", "b", not makes_taps),
        ("CapabilityBoundingSet", "t", _mask(("CAP_NET_ADMIN",) if makes_taps else ())),
        ("AmbientCapabilities", "t", _mask(("CAP_NET_ADMIN",) if makes_taps else ())),
        *_NEEDS_NO_NAMESPACE,
        *_qemus_calls(kind),
        ("ProtectSystem", "s", "strict"),
        ("ProtectHome", "s", "yes"),
        ("InaccessiblePaths", "as", _hidden(kind)),
        ("PrivateDevices", "b", True),
        ("DevicePolicy", "s", "closed"),
        ("PrivateTmp", "b", True),
        ("NoNewPrivileges", "b", True),
        ("PrivateNetwork", "b", kind == "none"),
        ("PrivateIPC", "b", True),
        ("KeyringMode", "s", "private"),
        ("ProcSubset", "s", "pid"),
        ("ProtectClock", "b", True),
        ("ProtectControlGroups", "b", True),
        ("ProtectHostname", "b", True),
        ("ProtectKernelLogs", "b", True),
        ("ProtectKernelModules", "b", True),
        ("ProtectKernelTunables", "b", True),
        ("ProtectProc", "s", "invisible"),
        ("RestrictNamespaces", "t", 0),
        ("RestrictSUIDSGID", "b", True),
    ]
    if devices:
        properties += [
            ("BindPaths", "a(ssbt)", [[path, path, True, 0] for path in devices]),
            ("DeviceAllow", "a(ss)", [[path, "rw"] for path in devices]),
        ]
    if spec.display is not Display.NONE:
        properties.append(("RuntimeDirectory", "as", [own.display_folder]))
    if kvm_group and accelerator == "kvm":
        properties.append(("SupplementaryGroups", "as", [str(kvm_group)]))
    return properties


def _qemus_calls(network: str) -> list[Property]:
    families = ["AF_UNIX"]
    if network == "user":
        families += ["AF_INET", "AF_INET6"]
    if network in ("tap", "bridge"):
        families.append("AF_INET")  # by which the host is asked about interfaces
    return [
        ("RestrictAddressFamilies", "(bas)", [True, families]),
        ("SystemCallFilter", "(bas)", [True, ["@system-service"]]),
        ("SystemCallFilter", "(bas)", [False, ["@privileged", "@resources"]]),  # taken from those
        ("SystemCallErrorNumber", "i", 1),
    ]


def _hidden(network: str) -> list[str]:
    """What QEMU need not see of the host, as far as it is there.

    TemporaryFileSystem= would hide all but what it needs, but from what ExecStop= and ExecStartPost= run as well.
    systemd itself needs something of /run.
    """
    folders = ["/boot", "/efi", "/media", "/mnt", "/srv", "/var", "/run/dbus", "/run/vfsd"]
    if network not in ("user", "bridge"):
        folders.append("/etc")  # resolv.conf, bridge.conf
    return [f"-{folder}" for folder in folders]
