"""vfsd as Nix's package runs it: what it needs is named in its environment, and comes and goes with the store.

Nix itself collects garbage, in a store of the lab's own. What it takes for in use is what /proc has of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import only_system
from tests.integration.harness import (
    MACHINE,
    SHARE,
    Client,
    Vfsd,
    process_exists,
    reconfigured,
    until,
    wait_for,
)
from tests.integration.sharing import connected, wait_active
from tests.integration.test_shutdown import console
from tests.integration.tiny_guest import BUTTON, HELLO, started

LAUNCHER = """#!/usr/bin/python3 -I
import sys
from pathlib import Path

library = Path(__file__).parents[1] / "lib/vfsd"
sys.path[:0] = [str(library), str(library / "bundled")]

from vfsd.service import main

sys.exit(main())
"""
QEMU = Path(f"/usr/bin/qemu-system-{os.uname().machine}")
VIRTIOFSD = Path("/usr/libexec/virtiofsd")
BUSYBOX = Path("/usr/bin/busybox")
UNIT = "vfsd-machine-tiny.service"


def nix_store(*arguments: str | Path) -> str:
    done = subprocess.run(["nix-store", *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def collect() -> None:
    nix_store("--gc")


@dataclass
class Old:
    """A vfsd that runs from the store, the programs that it was given, and what else lies there."""

    vfsd: Path
    programs: Path
    shared: Path
    unused: Path

    @property
    def all(self) -> list[Path]:
        return [self.vfsd, self.programs, self.shared, self.unused]


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Old]:
    own, programs, shared, unused = (tmp_path / name for name in ("vfsd", "programs", "shared", "unused"))
    shutil.copytree("/usr/lib/vfsd", own / "lib/vfsd")
    shutil.copytree("/usr/share/dbus-1/interfaces", own / "share/dbus-1/interfaces")
    (own / "bin").mkdir()
    (own / "bin/vfsd").write_text(LAUNCHER)
    (own / "bin/vfsd").chmod(0o755)
    (programs / "bin").mkdir(parents=True)
    for program in (QEMU, VIRTIOFSD):
        shutil.copy2(program, programs / "bin")
    shared.mkdir()
    unused.write_text("nobody uses this")
    yield Old(*(Path(nix_store("--add", path)) for path in (own, programs, shared, unused)))
    collect()


@pytest.fixture
def running(vfsd: Vfsd, old: Old) -> Iterator[Callable[[], None]]:
    """The old one serves; to be called for the upgrade."""
    text = (
        f"ExecStart=\nExecStart={old.vfsd}/bin/vfsd {vfsd.flag}\n"
        f"Environment=VFSD_QEMU={old.programs}/bin/{QEMU.name} VFSD_VIRTIOFSD={old.programs}/bin/virtiofsd\n"
    )
    with reconfigured(vfsd, text) as folder:

        def upgrade() -> None:
            shutil.rmtree(folder)
            vfsd.systemctl("daemon-reload")
            vfsd.restart()

        yield upgrade


async def test_a_machine_outlives_a_garbage_collection(
    vfsd: Vfsd, client: Client, folder: Path, old: Old, running: Callable[[], None]
) -> None:
    """All that its unit names is there as long as it runs, and it is asked to power off with vfsd down."""
    path = await started(client, folder, shares=[old.shared])
    pid = int(await client.get(path, MACHINE, "MainPID"))
    assert f"{old.vfsd}/" in vfsd.unit_property(UNIT, "ExecStop")
    await until(lambda: HELLO in console(vfsd, pid), "the guest is up")
    running()
    collect()
    assert [one.exists() for one in old.all] == [True, True, True, False]
    vfsd.systemctl("stop", "vfsd.service")
    vfsd.systemctl("stop", UNIT)
    assert not process_exists(pid)
    assert BUTTON in console(vfsd, pid)
    collect()
    assert not any(one.exists() for one in old.all)


async def test_a_share_is_served_by_the_virtiofsd_of_now(
    vfsd: Vfsd, client: Client, folder: Path, old: Old, running: Callable[[], None]
) -> None:
    """One that waits for a client at once, one that has a client after it."""
    paths = {name: await client.create_share(name, folder) for name in ("waits", "serves")}
    sockets = {name: await client.get(path, SHARE, "SocketPath") for name, path in paths.items()}
    with connected(sockets["serves"]):
        pid = wait_active(vfsd, paths["serves"])
        running()
        wait_for(lambda: "/usr/" in served_by(vfsd, "waits"), "the share listens anew")
        collect()
        assert [one.exists() for one in (old.vfsd, old.programs)] == [False, True]
        with connected(sockets["waits"]):
            wait_active(vfsd, paths["waits"])
        assert process_exists(pid)
        assert str(old.programs) in served_by(vfsd, "serves")
    wait_for(lambda: "/usr/" in served_by(vfsd, "serves"), "the share listens anew")
    collect()
    assert not old.programs.exists()
    with connected(sockets["serves"]):
        wait_active(vfsd, paths["serves"])


@pytest.fixture
def odd() -> Iterator[Path]:
    """A folder where no distribution has programs, and that no sandbox shows."""
    with tempfile.TemporaryDirectory(dir="/opt") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@only_system
def test_what_the_environment_names_is_enough(vfsd: Vfsd, folder: Path, odd: Path) -> None:
    """With none of it in PATH or where other distributions have it a guest is made of it, boots and reads a share."""
    (odd / "bin").mkdir()
    (odd / "lib").mkdir()
    for program in (QEMU, VIRTIOFSD, BUSYBOX):
        shutil.copy2(program, odd / "bin")
    [kernel] = Path("/boot").glob("vmlinuz-*")
    shutil.copy2(kernel, odd / "kernel")
    shutil.copytree("/usr/lib/modules", odd / "lib/modules", symlinks=True)
    named = {
        "VFSD_QEMU": odd / "bin" / QEMU.name,
        "VFSD_VIRTIOFSD": odd / "bin/virtiofsd",
        "VFSD_GUEST_BUSYBOX": odd / "bin/busybox",
        "VFSD_GUEST_KERNEL": odd / "kernel",
    }
    environment = " ".join(f"{name}={value}" for name, value in named.items())
    hidden = f"{QEMU} {VIRTIOFSD} {BUSYBOX} /boot /usr/lib/modules /usr/share/qemu/vhost-user"
    text = f"Environment=PATH=/nonexistent {environment}\nInaccessiblePaths={hidden}\n"
    (folder / "hello").write_text("hello")
    shutil.rmtree("/var/lib/vfsd/guest", ignore_errors=True)
    with reconfigured(vfsd, text):
        found = {one["id"]: one for one in json.loads(vfsd.run("vfsctl", "--json", "check", "--by-vfsd"))}
        for what in ("QEMU", "VIRTIOFSD"):
            assert found[what.lower()]["found"].endswith(f", {named[f'VFSD_{what}']}")
        vfsd.run(
            "vfsctl",
            "run",
            "--builtin",
            "--accelerator",
            "tcg",
            "--memory",
            "256M",
            "--share",
            f"{folder}:/x:ro",
            "--exec",
            "grep hello /x/hello",
        )


def served_by(vfsd: Vfsd, share: str) -> str:
    return vfsd.unit_property(f"vfsd-share-{share}.service", "ExecStart")
