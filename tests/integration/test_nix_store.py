"""vfsd from /nix/store is upgraded, and Nix then takes away all that no process uses: machines and shares go on.

Nix itself collects, in a store of the lab's own. What it takes for in use is in gc.cc: what /proc has of processes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.harness import MACHINE, SHARE, Client, Vfsd, process_exists, until, wait_for
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
QEMU = f"qemu-system-{os.uname().machine}"
UNIT = "vfsd-machine-tiny.service"


def nix_store(*arguments: str | Path) -> str:
    done = subprocess.run(["nix-store", *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def collect() -> None:
    nix_store("--gc")


@dataclass
class Old:
    """A vfsd that runs from the store, and the programs that it was given."""

    _service: Vfsd
    _dropin: Path
    vfsd: Path
    programs: Path
    shared: Path
    unused: Path

    @property
    def all(self) -> list[Path]:
        return [self.vfsd, self.programs, self.shared, self.unused]

    def upgrade(self) -> None:
        """Have the installed vfsd take its place."""
        shutil.rmtree(self._dropin)
        self._service.systemctl("daemon-reload")
        self._service.restart()


@pytest.fixture
def old(vfsd: Vfsd, tmp_path: Path) -> Iterator[Old]:
    own, programs, shared, unused = (tmp_path / name for name in ("vfsd", "programs", "shared", "unused"))
    shutil.copytree("/usr/lib/vfsd", own / "lib/vfsd")
    shutil.copytree("/usr/share/dbus-1/interfaces", own / "share/dbus-1/interfaces")
    (own / "bin").mkdir()
    (own / "bin/vfsd").write_text(LAUNCHER)
    (own / "bin/vfsd").chmod(0o755)
    (programs / "bin").mkdir(parents=True)
    for program in (f"/usr/bin/{QEMU}", "/usr/libexec/virtiofsd"):
        shutil.copy2(program, programs / "bin")
    shared.mkdir()
    unused.write_text("nobody uses this")
    added = (Path(nix_store("--add", path)) for path in (own, programs, shared, unused))
    dropin = Path(f"/run/systemd/{vfsd.scope}/vfsd.service.d")
    found = Old(vfsd, dropin, *added)
    dropin.mkdir(parents=True)
    dropin.joinpath("store.conf").write_text(
        f"[Service]\nExecStart=\nExecStart={found.vfsd}/bin/vfsd {vfsd.flag}\n"
        f"Environment=VFSD_QEMU={found.programs}/bin/{QEMU} VFSD_VIRTIOFSD={found.programs}/bin/virtiofsd\n"
    )
    try:
        vfsd.systemctl("daemon-reload")
        vfsd.restart()
        yield found
    finally:
        shutil.rmtree(dropin, ignore_errors=True)
        vfsd.systemctl("daemon-reload")
        vfsd.restart()
        collect()


async def test_a_machine_outlives_a_garbage_collection(
    vfsd: Vfsd, client: Client, folder: Path, old: Old
) -> None:
    """All that its unit names is there as long as it runs, and it is asked to power off with vfsd down."""
    path = await started(client, folder, shares=[old.shared])
    pid = int(await client.get(path, MACHINE, "MainPID"))
    assert f"{old.vfsd}/" in vfsd.unit_property(UNIT, "ExecStop")
    await until(lambda: HELLO in console(vfsd, pid), "the guest is up")
    old.upgrade()
    collect()
    assert [one.exists() for one in old.all] == [True, True, True, False]
    vfsd.systemctl("stop", "vfsd.service")
    vfsd.systemctl("stop", UNIT)
    assert not process_exists(pid)
    assert BUTTON in console(vfsd, pid)
    collect()
    assert not any(one.exists() for one in old.all)


async def test_a_share_is_served_by_the_virtiofsd_of_now(
    vfsd: Vfsd, client: Client, folder: Path, old: Old
) -> None:
    """One that waits for a client at once, one that has a client after it."""
    paths = {name: await client.create_share(name, folder) for name in ("waits", "serves")}
    sockets = {name: await client.get(path, SHARE, "SocketPath") for name, path in paths.items()}
    with connected(sockets["serves"]):
        pid = wait_active(vfsd, paths["serves"])
        old.upgrade()
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


def served_by(vfsd: Vfsd, share: str) -> str:
    return vfsd.unit_property(f"vfsd-share-{share}.service", "ExecStart")
