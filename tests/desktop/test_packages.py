"""The packages of the applets: they are installed like this in the lab, and leave nothing when they are removed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = Path("/var/lib/vfsd-lab/packages")
NAMES = ("vfsd-gnome", "vfsd-plasma")
SHARE = Path("/usr/share")


def dpkg(*arguments: str | Path) -> str:
    done = subprocess.run(["dpkg", *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def back_again() -> Iterator[None]:
    yield
    dpkg("--install", *(next(PACKAGES.glob(f"{name}_*.deb")) for name in NAMES))


def settings() -> bool:
    """Whether the extension's settings are known to GSettings."""
    listed = subprocess.run(["gsettings", "list-schemas"], capture_output=True, text=True, check=True)
    return "org.gnome.shell.extensions.vfsd" in listed.stdout.split()


def test_removing_them_leaves_nothing(back_again: None) -> None:
    theirs = {Path(line) for name in NAMES for line in dpkg("--listfiles", name).split("\n") if line}
    files = {path for path in theirs if path.is_file()}
    folders = {path for path in theirs if path.is_dir() and "vfsd" in path.name}
    assert SHARE / "gnome-shell/extensions/vfsd@vfsd1.org/metadata.json" in files
    assert SHARE / "plasma/plasmoids/org.vfsd1.plasma/metadata.json" in files
    assert settings()
    dpkg("--purge", *NAMES)
    assert not [path for path in files | folders if path.exists()]
    assert not settings()
