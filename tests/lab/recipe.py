"""What a base tree consists of, and the key that changes whenever that does.

There are two: of a server, in which everything but the desktops' tests run, and of a desktop.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass

from tests.lab import LabError

SUITE = "trixie"
#: Raise this when the code that builds the tree changes in a way the other inputs do not show.
FORMAT = 1

#: The user in whose service manager the tests of vfsd's user scope run.
USER = "tester"
UID = 1000
HOSTNAME = "vfsd-lab"

COMMON = (
    "systemd systemd-sysv systemd-container dbus dbus-user-session libpam-systemd udev procps "
    "polkitd libglib2.0-bin python3 python3-dbus-next python3-systemd python3-pyudev python3-click "
    "python3-rich python3-jsonschema python3-pytest python3-pytest-asyncio python3-hypothesis virtiofsd qemu-utils "
    "busybox-static util-linux iproute2 uidmap acl attr kmod strace less mandoc make xz-utils zstd "
    "cpio qemu-guest-agent openssh-server openssh-client python3-yaml nix-bin "
    "python3-venv python3-pip python3-setuptools python3-wheel zsh fish "
    "qemu-system-modules-spice debhelper dh-python gettext lintian rpm rpmlint "
    "makepkg pacman-package-manager libarchive-tools "
    "libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-driver-storage libvirt-clients virt-install"
)

#: What a desktop has besides: both shells, what drives and reads them, and what checks metadata and translations.
DESKTOP = (
    "gnome-shell gjs gnome-shell-extension-appindicator gnome-shell-extension-prefs gir1.2-adw-1 gir1.2-gtk-4.0 "
    "plasma-workspace plasma-desktop kpackagetool6 kwin-x11 qml6-module-org-kde-notifications "
    "qml6-module-qtquick-dialogs qt6-declarative-dev-tools qml6-module-qttest xvfb xdotool x11-utils xterm imagemagick "
    "at-spi2-core gir1.2-atspi-2.0 python3-gi adwaita-icon-theme breeze-icon-theme "
    "hicolor-icon-theme fonts-dejavu-core fonts-cantarell fonts-noto-core appstream desktop-file-utils "
    "librsvg2-bin locales dbus-x11 zip"
)

#: Locales that are made for a desktop: its languages, and one that is written from right to left.
LOCALES = ("de_DE", "fr_FR", "he_IL")

#: Whatever would wait for hardware, a network or the time of day.
MASKED = (
    "console-getty.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "logrotate.timer",
    "fstrim.timer",
    "systemd-networkd-wait-online.service",
    "systemd-timesyncd.service",
    "systemd-udev-load-credentials.service",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
)

#: The same of the user's: sound, for which a desktop asks.
USER_MASKED = (
    "filter-chain.service",
    "pipewire.service",
    "pipewire.socket",
    "pipewire-pulse.service",
    "pipewire-pulse.socket",
    "wireplumber.service",
)

#: Files that are left out of every package, in patterns of dpkg.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/iso-codes/*",
    "/usr/share/xml/iso-codes/*",
    # 150 MB of the compiler on which debhelper depends, and which packages of Python don't need
    "/usr/libexec/gcc/*",
    "/usr/lib/gcc/*",
    "/usr/lib/*/lib*san.so*",
    "/usr/include/*",
)

#: What is nevertheless there: of vfsd's own packages, because it is tested; and what lintian reads.
INCLUDED = (
    "/usr/share/doc/vfsd*",
    "/usr/share/man/man*/*vfs*",
    "/usr/share/locale/*/LC_MESSAGES/vfsd.mo",
    "/usr/share/iso-codes/json/*",
)

#: Mesa's drivers (200 MB), on which the spice server's package depends and which nothing but a desktop loads.
DRIVERS = (
    "/usr/lib/*/libLLVM*",
    "/usr/lib/*/libgallium*",
    "/usr/lib/*/libz3.so*",
)

#: What a lab has no use for until a test starts it: sshd in a guest that has the tree as its root, and libvirt.
DISABLED = (
    "ssh.service",
    "ssh.socket",
    "libvirt-guests.service",
    "libvirtd.service",
    "libvirtd.socket",
    "libvirtd-admin.socket",
    "libvirtd-ro.socket",
    "virtlogd.service",
    "virtlogd.socket",
    "virtlogd-admin.socket",
)

#: Configuration files of the tree: path → text.
FILES = {
    "etc/hostname": f"{HOSTNAME}\n",
    "etc/hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n",
    # An empty file is "no identity yet" without being a first boot, on which systemd would
    # enable every unit that its presets name.
    "etc/machine-id": "",
    "etc/resolv.conf": "",
    "etc/subuid": f"{USER}:100000:65536\n",
    "etc/subgid": f"{USER}:100000:65536\n",
    f"var/lib/systemd/linger/{USER}": "",
    # Tests ask the journal what happened, so it may not drop a line.
    "etc/systemd/journald.conf.d/lab.conf": (
        "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nRateLimitBurst=0\n"
        "RuntimeMaxUse=512M\nForwardToConsole=no\n"
    ),
    # A unit that does not stop is a finding: let it show within a test's patience.
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStopSec=30s\n",
}


#: Debian's newest kernel for guests. Unpacked, not installed: nobody boots the tree itself with it.
#: It runs as a hook of mmdebstrap, with the tree as $1 and the meta package as $KERNEL.
KERNEL_HOOK = """
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
image=$(apt-cache depends --important "$KERNEL" |
        sed -n 's/^ *Depends: *\\(linux-image-[^ ]*\\)$/\\1/p' | head -n 1)
test -n "$image"
mkdir "$1/tmp/kernel"
cd "$1/tmp/kernel"
apt-get -q download "$image"
dpkg-deb -x linux-image-*.deb .
cp -a boot/. "$1/boot/"
mkdir -p "$1/usr/lib/modules"
for modules in lib/modules usr/lib/modules; do
    if [ -d "$modules" ]; then cp -a "$modules/." "$1/usr/lib/modules/"; fi
done
cd /
rm -rf "$1/tmp/kernel"
for version in "$1"/usr/lib/modules/*; do
    chroot "$1" depmod -a "${version##*/}"
done
"""


@dataclass(frozen=True)
class Architecture:
    """The names that differ between architectures."""

    debian: str
    packages: str
    kernel: str


ARCHITECTURES = {
    "amd64": Architecture("amd64", "qemu-system-x86 seabios ovmf", "linux-image-cloud-amd64"),
    "arm64": Architecture("arm64", "qemu-system-arm qemu-efi-aarch64", "linux-image-cloud-arm64"),
}


def host_architecture() -> Architecture:
    """Return the host's architecture, found by the name dpkg has for it."""
    name = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise LabError(f"The lab knows amd64 and arm64, not {name}.") from None


def packages(arch: Architecture, *, desktop: bool) -> list[str]:
    """Every package asked for, sorted, so that the order of the lists above does not matter."""
    return sorted({*COMMON.split(), *arch.packages.split(), *(DESKTOP.split() if desktop else ())})


def excluded(*, desktop: bool) -> tuple[str, ...]:
    """Patterns of files that are left out."""
    return EXCLUDED if desktop else EXCLUDED + DRIVERS


def key(arch: Architecture, *, desktop: bool) -> str:
    """A short name of the tree: equal for equal recipes, different for different ones."""
    recipe = {
        "format": FORMAT,
        "suite": SUITE,
        "architecture": arch.debian,
        "kernel": [arch.kernel, KERNEL_HOOK],
        "packages": packages(arch, desktop=desktop),
        "user": [USER, UID],
        "excluded": sorted(excluded(desktop=desktop)),
        "included": INCLUDED,
        "locales": LOCALES if desktop else (),
        "masked": sorted(MASKED + USER_MASKED),
        "disabled": sorted(DISABLED),
        "files": FILES,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
