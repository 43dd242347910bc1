"""A whole Debian 13 as a guest: the lab's own tree, booted over virtio-fs, with systemd, sshd and qemu-ga as they are.

It boots in 20 s on TCG on a quiet machine and in minutes on a busy one, so many tests share a boot. What is taken away
is what a boot would spend its time on without a test looking at it; nothing is configured in it for the shares.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbus_next import Variant

from tests.integration.harness import MACHINE, Client, Vfsd, wait_for
from tests.integration.vfsctl import Result, vfsctl
from vfsd.guest import find_kernel

TREE = Path("/usr/share/vfsd-lab/tree")
"""The lab's tree as it was built, read-only."""
NAME = "debian"
PATH = f"/org/vfsd1/machine/{NAME}"
BOOT_TIMEOUT = 420
"""Seconds. With seven others that want two processors it took 260."""
WHOLE = "quiet cryptomgr.notests rcupdate.rcu_expedited=1"
_NEEDLESS = (
    *("systemd-tmpfiles-setup", "systemd-tmpfiles-setup-dev", "systemd-tmpfiles-setup-dev-early"),
    *("systemd-modules-load", "systemd-sysctl", "kmod-static-nodes"),
)
SMALL = (
    f"{WHOLE} systemd.unit=basic.target systemd.wants=systemd-logind.service "
    + " ".join(f"systemd.mask={name}.service" for name in _NEEDLESS)
    + " systemd.mask=tmp.mount systemd.mask=dev-mqueue.mount systemd.mask=run-lock.mount"
)
"""Arguments for a systemd that is to start little more than the agent, which udev has it start, and who hears the power
button. It boots in two thirds of the time."""

_MASKED = (
    *("systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount", "systemd-pstore.service"),
    *("systemd-random-seed.service", "systemd-journal-flush.service", "e2scrub_reap.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service"),
)
_NOT_LOADED = (
    *("kvm_amd", "kvm_intel", "ahci", "aesni_intel", "sha1_ssse3", "sha256_ssse3", "sha512_ssse3"),
    *("vsock_loopback", "vmw_vsock_vmci_transport"),
)
# QEMU's user network as its manual has it ("-netdev user"), without a service that asks for it
_NETWORK = ("link set $name up", "address add 10.0.2.15/24 dev $name", "route add default via 10.0.2.2")
_FILES = {
    "etc/hostname": f"{NAME}\n",
    "etc/udev/rules.d/90-network.rules": 'SUBSYSTEM=="net", ACTION=="add", DRIVERS=="virtio_net"'
    + "".join(f', RUN+="/usr/bin/ip {words}"' for words in _NETWORK)
    + "\n",
    # a session of PAM's would start a service manager of root's own, for half a minute on a busy host
    "etc/ssh/sshd_config.d/guest.conf": "UsePAM no\n",
    "etc/modprobe.d/guest.conf": "".join(f"blacklist {name}\n" for name in _NOT_LOADED),
}


@contextlib.contextmanager
def writable_tree() -> Iterator[Path]:
    """The tree, with a layer for changes that goes with the context. Nobody but root can serve it."""
    with tempfile.TemporaryDirectory(prefix="vfsd-test-debian-", dir="/run") as made:
        base = Path(made)
        with mounted(base, "tmpfs", "mode=0755"):
            for name in ("upper", "work", "root"):
                (base / name).mkdir()
            layers = f"lowerdir={TREE},upperdir={base}/upper,workdir={base}/work"
            with mounted(base / "root", "overlay", layers):
                _configure(base / "root")
                yield base / "root"


@contextlib.contextmanager
def mounted(where: Path, kind: str, options: str) -> Iterator[None]:
    """A file system, for as long as the context lasts."""
    subprocess.run(["mount", "-t", kind, "-o", options, NAME, where], check=True)
    try:
        yield
    finally:
        # by no means beside what still uses it: that is a finding
        subprocess.run(["umount", where], check=True)


def _configure(root: Path) -> None:
    """Make the tree of a lab that of a guest."""
    for name, text in _FILES.items():
        (root / name).write_text(text)
    units = root / "etc/systemd/system"
    for unit in _MASKED:
        (units / unit).unlink(missing_ok=True)  # the lab may have masked it, too
        (units / unit).symlink_to("/dev/null")
    (units / "multi-user.target.wants/ssh.service").symlink_to("/usr/lib/systemd/system/ssh.service")
    shutil.rmtree(root / "var/lib/systemd/linger")


@dataclass
class Debian:
    """The machine with the guest."""

    vfsd: Vfsd
    root: Path
    """Its root share's source."""

    async def define(self, client: Client, shares: list[Any], **options: tuple[str, Any]) -> None:
        """Define it; nothing boots yet. :param shares: as in CreateMachine, besides the root."""
        root = {"Tag": Variant("s", "root"), "Cache": Variant("s", "always"), "XAttr": Variant("b", True)}
        defaults: dict[str, tuple[str, Any]] = {
            "Kernel": ("s", str(find_kernel())),
            "RootShare": ("s", "root"),
            "Memory": ("t", 512 << 20),
            "Accelerator": ("s", "tcg"),
            "Shares": ("a(ssa{sv})", [[str(self.root), "", root], *shares]),
        }
        path = await client.create_machine(NAME, **{**defaults, **options})
        assert path == PATH

    def up(self, append: str) -> None:
        """Have it running, its kernel started with these arguments, and its agent answering."""
        if self.get("State") == "running" and self.get("Append") == append and self.get("GuestReady"):
            return
        if self.get("State") not in ("stopped", "failed"):
            self.vfsd.call(PATH, MACHINE, "Kill")
        self.vfsd.run("busctl", "set-property", "org.vfsd1", PATH, MACHINE, "Append", "s", append)
        self.vfsd.call(PATH, MACHINE, "Start")
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait for its agent."""
        wait_for(lambda: self.get("GuestReady"), "the guest is ready", BOOT_TIMEOUT)
        wait_for(lambda: self.get("GuestSystem"), "its system is known")

    def get(self, name: str) -> Any:
        """One property of the machine."""
        return self.vfsd.get(PATH, MACHINE, name)

    def share(self, name: str) -> str:
        """The object of one of its own shares."""
        return str(self.vfsd.manager("GetShare", "s", f"{NAME}.{name}"))

    def ssh(self, script: str) -> str:
        """Run a script of the shell's past the agent; returns what it wrote."""
        done = self.vfsctl("ssh", NAME, "--", script)
        assert done.code == 0, (script, done.out, done.err)
        return done.out

    def vfsctl(self, *arguments: str, stdin: str = "") -> Result:
        return vfsctl(self.vfsd, *arguments, stdin=stdin, timeout=BOOT_TIMEOUT)


async def sh(client: Client, script: str, *arguments: str) -> str:
    """Run a script of the shell's through the agent; returns what it wrote."""
    status, output, errors = await execute(client, "sh", "-c", script, "sh", *arguments)
    assert status == 0, (script, status, output, errors)
    return output.decode()


async def execute(client: Client, *arguments: str, seconds: float = 120) -> tuple[int, bytes, bytes]:
    """Run a program through the agent: status, output, errors. :raise BusError."""
    options = {"TimeoutUSec": Variant("t", int(seconds * 1_000_000))}
    status, output, errors = await client.raw(
        "org.vfsd1", PATH, MACHINE, "Execute", "asa{sv}", [list(arguments), options]
    )
    return status, output, errors


async def later(client: Client, script: str) -> None:
    """Have the guest do what it would not live to answer for."""
    await sh(client, f"(sleep 0.5; {script}) </dev/null >/dev/null 2>&1 &")


def make(vfsd: Vfsd, root: Path, shares: list[Any], **options: tuple[str, Any]) -> Debian:
    """Define the machine from outside of any event loop."""
    debian = Debian(vfsd, root)

    async def define() -> None:
        client = await Client.connect(vfsd, listen=False)
        try:
            await debian.define(client, shares, **options)
        finally:
            await client.close()

    with ThreadPoolExecutor(
        1
    ) as pool:  # asyncio.run() forgets the loop that is its thread's, which pytest keeps
        pool.submit(asyncio.run, define()).result()
    return debian
