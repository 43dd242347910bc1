"""How to install something on this distribution, in one sentence."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from vfsd.binaries import host_architecture, version_tuple
from vfsd.prerequisites.model import Environment

_INSTALL = {
    "debian": "apt install",
    "fedora": "dnf install",
    "arch": "pacman -S",
    "suse": "zypper install",
    "alpine": "apk add",
}
_FAMILIES = {
    "ubuntu": "debian",
    "rhel": "fedora",
    "centos": "fedora",
    "opensuse": "suse",
    "sles": "suse",
}
_DEBIAN_QEMU = {"x86_64": "x86", "aarch64": "arm", "ppc64": "ppc"}
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "qemu": {
        "debian": f"qemu-system-{_DEBIAN_QEMU.get(host_architecture(), 'misc')}",
        "fedora": "qemu-kvm",
        "arch": "qemu-base",
        "alpine": f"qemu-system-{host_architecture()}",
    },
    "uidmap": {"debian": "uidmap", "fedora": "shadow-utils", "alpine": "shadow-subids", "": "shadow"},
    "polkit": {"debian": "polkitd"},
}
_NIXOS: Mapping[str, str] = {
    "polkit": "Set security.polkit.enable = true; in the NixOS configuration.",
    "uidmap": "newuidmap belongs to NixOS itself: see /run/wrappers/bin.",
}
# The first releases with a package of the Rust virtiofsd
_RUST_VIRTIOFSD_SINCE = {"debian": (13,), "ubuntu": (23, 10)}


def os_release(text: str) -> dict[str, str]:
    """os-release(5) as a dictionary; malformed lines are left out."""
    values = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not name.startswith("#"):
            try:
                values[name.strip()] = "".join(shlex.split(value))
            except ValueError:
                continue
    return values


def release_of(host: Environment) -> dict[str, str]:
    """The host's os-release."""
    return os_release(host.read("etc/os-release") or host.read("usr/lib/os-release"))


def family(release: Mapping[str, str]) -> str:
    """debian, fedora, arch, suse, alpine, nixos, or empty for one that is not known."""
    for name in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
        known = _FAMILIES.get(name.partition("-")[0], name)
        if known in _INSTALL or known == "nixos":
            return known
    return ""


def install(host: Environment, what: str) -> str:
    """A sentence that says how to install `qemu`, `virtiofsd`, `uidmap`, `polkit` or another package."""
    release = release_of(host)
    kind = family(release)
    if kind == "nixos":
        package = _NIXOS.get(what)
        return package or f"Add pkgs.{what} to environment.systemPackages in the NixOS configuration."
    since = _RUST_VIRTIOFSD_SINCE.get(release.get("ID", ""))
    version = version_tuple(release.get("VERSION_ID", "") + ".0")
    if what == "virtiofsd" and since and version and version < since:
        name = release.get("NAME", "This distribution")
        return (
            f"{name} {release['VERSION_ID']} has no package of the Rust virtiofsd (it came with"
            f' {".".join(map(str, since))}): upgrade, or build one with "cargo install virtiofsd" and name it'
            " in VFSD_VIRTIOFSD."
        )
    names = _PACKAGES.get(what, {})
    package = names.get(kind) or names.get("") or what
    if kind not in _INSTALL:
        return f"Install {package} with the distribution's package manager."
    return f'Run "{_INSTALL[kind]} {package}".'
