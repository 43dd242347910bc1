"""What virtiofsd and QEMU may not do: sandboxing properties of their units.

The sets were tried with reads, writes, chown and links by a real guest. Each relaxation has its reason beside it.
A user manager can apply few of them without a user namespace of its own, in which the id maps of virtiofsd would
not work, so there virtiofsd confines itself (Sandbox=namespace) and gets only what needs no namespace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfsd.model import MachineSpec, Sandbox, ShareSpec
from vfsd.names import Scope
from vfsd.paths import Paths

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
    "CAP_SETFCAP",
    "CAP_SETPCAP",  # virtiofsd trims its own bounding set
)

_NEEDS_NO_NAMESPACE: list[Property] = [
    ("LockPersonality", "b", True),
    ("MemoryDenyWriteExecute", "b", True),
    ("RestrictRealtime", "b", True),
    ("SystemCallArchitectures", "as", ["native"]),
]


def _mask(capabilities: tuple[str, ...]) -> int:
    return sum(1 << _CAPABILITIES[name] for name in capabilities)


def virtiofsd(spec: ShareSpec, scope: Scope, paths: Paths) -> list[Property]:
    """Sandboxing of one virtiofsd."""
    if scope is Scope.USER:
        # nothing that implies NoNewPrivileges=: newuidmap, which UIDMap needs, is setuid
        return []
    bind = "BindReadOnlyPaths" if spec.read_only else "BindPaths"
    # the guest sees file systems mounted below the source, so the bind is recursive (MS_REC)
    bound = [[str(paths.source_link(spec.name)), str(paths.mount), False, 0x4000]]
    capabilities: tuple[str, ...] = _ACT_AS_THE_GUESTS_USERS
    if spec.sandbox is Sandbox.CHROOT:
        capabilities += ("CAP_SYS_CHROOT",)
    if spec.sandbox is Sandbox.NAMESPACE:
        capabilities += ("CAP_SYS_ADMIN", "CAP_SYS_CHROOT")  # it unshares and mounts by itself
    if spec.inode_file_handles != "never":
        capabilities += ("CAP_DAC_READ_SEARCH",)  # open_by_handle_at()
    if spec.allow_device_nodes:
        capabilities += ("CAP_MKNOD",)
    return [
        *_NEEDS_NO_NAMESPACE,
        ("NoNewPrivileges", "b", True),
        ("PrivateNetwork", "b", True),
        ("PrivateIPC", "b", True),
        ("PrivateTmp", "b", True),
        ("PrivateDevices", "b", not spec.allow_device_nodes),  # it takes CAP_MKNOD away
        ("ProtectSystem", "s", "strict"),
        ("ProtectHome", "s", "yes"),
        ("ProtectClock", "b", not spec.allow_device_nodes),  # the same
        ("ProtectControlGroups", "b", True),
        ("ProtectHostname", "b", True),
        ("ProtectKernelLogs", "b", True),
        ("ProtectKernelModules", "b", True),
        ("ProtectKernelTunables", "b", True),
        ("ProtectProc", "s", "invisible"),
        ("RestrictAddressFamilies", "(bas)", [True, ["AF_UNIX"]]),
        ("RestrictSUIDSGID", "b", not (spec.allow_setuid or spec.allow_device_nodes)),
        *_namespaces(spec),
        ("CapabilityBoundingSet", "t", _mask(capabilities)),
        ("SystemCallFilter", "(bas)", [True, _system_calls(spec)]),
        ("SystemCallErrorNumber", "i", 1),
        (bind, "a(ssbt)", bound),
    ]


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


def qemu(spec: MachineSpec, scope: Scope) -> list[Property]:
    """Sandboxing of one QEMU."""
    if scope is Scope.USER or spec.network.startswith("bridge:"):
        return []  # qemu-bridge-helper is setuid
    capabilities: tuple[str, ...] = ("CAP_DAC_OVERRIDE",)  # images belong to whoever made them
    if spec.network.startswith("tap:"):
        capabilities += ("CAP_NET_ADMIN",)
    return [
        ("CapabilityBoundingSet", "t", _mask(capabilities)),
        ("PrivateTmp", "b", True),
        ("NoNewPrivileges", "b", True),
        ("LockPersonality", "b", True),
        ("RestrictRealtime", "b", True),
        ("RestrictSUIDSGID", "b", True),
        ("SystemCallArchitectures", "as", ["native"]),
        ("ProtectSystem", "s", "full"),
        ("ProtectKernelModules", "b", True),
        ("ProtectKernelTunables", "b", True),
        ("ProtectKernelLogs", "b", True),
        ("ProtectControlGroups", "b", True),
        ("ProtectClock", "b", True),
        ("ProtectHostname", "b", True),
    ]
