"""What `nix run` runs, with the installed vfsd in place of the package's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import Vfsd, wait_for

SCRIPT = Path(__file__).resolve().parents[2] / "packaging/nix/run.sh"
STRICT = ("bash", "-o", "errexit", "-o", "nounset", "-o", "pipefail")
"""As nixpkgs' writeShellApplication has its scripts run."""


def nix_run(vfsd: Vfsd, command: str) -> subprocess.CompletedProcess[str]:
    guest = ("--accelerator", "tcg", "--memory", "256M", "--exec", command)
    whole = vfsd.argv([*STRICT, str(SCRIPT), *guest])
    return subprocess.run(whole, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def nothing_installed(vfsd: Vfsd) -> Iterator[None]:
    """A bus that neither has vfsd nor knows how to start it."""
    kind = "system-services" if vfsd.scope == "system" else "services"
    file = Path(f"/usr/share/dbus-1/{kind}/org.vfsd1.service")
    bus = ("org.freedesktop.DBus", "/", "org.freedesktop.DBus")
    vfsd.systemctl("stop", "vfsd.service")
    hidden = file.rename(file.with_suffix(".hidden"))
    vfsd.run("busctl", vfsd.flag, "call", *bus, "ReloadConfig")
    try:
        yield
    finally:
        hidden.rename(file)
        vfsd.run("busctl", vfsd.flag, "call", *bus, "ReloadConfig")


def test_a_guest_without_an_installation(vfsd: Vfsd, nothing_installed: None) -> None:
    """A user needs none. The system bus takes its policy, and root is told."""
    done = nix_run(vfsd, "echo hello; exit 3")
    if vfsd.scope == "system":
        assert (done.returncode, done.stdout) == (1, "")
        assert "vfsd is not installed" in done.stderr
    else:
        assert (done.returncode, done.stdout.split()) == (3, ["hello"]), done.stderr
    wait_for(
        lambda: vfsd.unit_property("vfsd-for-nix-run.service", "LoadState") == "not-found",
        "no vfsd is left behind",
    )


def test_a_guest_of_the_vfsd_that_is_there(vfsd: Vfsd) -> None:
    before = vfsd.main_pid()
    done = nix_run(vfsd, "echo hello")
    assert (done.returncode, done.stdout.split()) == (0, ["hello"]), done.stderr
    assert vfsd.main_pid() == before
