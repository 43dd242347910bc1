"""A vfsd that its user installed from the wheel, next to the one that the system has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import only_user
from tests.integration.harness import CommandFailed, Vfsd, wait_for

PROJECT = Path(__file__).parents[2]
_BUILD = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
_LEFT_OUT = shutil.ignore_patterns(".git", "build", "dist", "__pycache__", ".*_cache", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as `make dist-pypi` makes it."""
    tree = tmp_path_factory.mktemp("wheel") / "vfsd"
    shutil.copytree(PROJECT, tree, ignore=_LEFT_OUT)
    subprocess.run(["make", "-C", tree, "dist-pypi"], check=True, capture_output=True)
    [sources] = (tree / "dist").glob("*.tar.gz")
    listed = subprocess.run(["tar", "-tf", sources], check=True, capture_output=True, text=True).stdout
    for part in (
        "Makefile",
        "units/user/vfsd.service.in",
        "dbus/org.vfsd1.policy",
        "tests/lab/prepare",
        "LICENSE",
    ):
        assert f"/{part}\n" in listed
    [made] = (tree / "dist").glob("*.whl")
    return made


@pytest.fixture
def vfsctl(vfsd: Vfsd, folder: Path, wheel: Path) -> Iterator[Path]:
    """The wheel's vfsctl, at a path that systemd reads in a way of its own."""
    place = folder / "100% mine"
    vfsd.run(sys.executable, "-m", "venv", "--system-site-packages", str(place))
    here = Path(shutil.copy(wheel, folder))
    vfsd.run(str(place / "bin/pip"), "install", "--no-index", "--no-deps", str(here))
    # qemu.qmp, which Debian lacks, where the system's vfsd has it
    [site] = place.glob("lib/python3*/site-packages")
    (site / "bundled.pth").write_text("/usr/lib/vfsd/bundled\n")
    yield place / "bin/vfsctl"
    vfsd.run(str(place / "bin/vfsctl"), "install-files", "--remove")
    vfsd.systemctl("stop", "vfsd.service")


def files(home: Path) -> set[str]:
    return {str(path) for path in home.rglob("*") if path.is_file()}


@only_user
def test_files_are_put_in_place_and_taken_away(vfsd: Vfsd, vfsctl: Path, folder: Path) -> None:
    vfsd.systemctl("stop", "vfsd.service")
    data = Path(vfsd.run("sh", "-c", "echo ~").strip()) / ".local/share"
    before = files(data)
    put = vfsd.run(str(vfsctl), "install-files").splitlines()
    assert set(put) == files(data) - before
    assert vfsd.run(str(vfsctl), "install-files").splitlines() == put, "it may be done again, for an upgrade"
    assert {str(Path(name).relative_to(data)) for name in put} >= {
        "systemd/user/vfsd.service",
        "dbus-1/services/org.vfsd1.service",
        "bash-completion/completions/vfsctl",
        "man/man1/vfsctl.1",
        "man/man8/vfsd.8",
    }
    # the bus starts the wheel's vfsd, by the unit that was put there
    source = folder / "source"
    vfsd.run("mkdir", str(source))
    vfsd.run(str(vfsctl), "share", "add", "mine", str(source))
    assert "mine" in vfsd.run(str(vfsctl), "share", "list")
    program = Path(f"/proc/{vfsd.main_pid()}/cmdline").read_bytes().split(b"\0")
    assert program[1] == os.fsencode(vfsctl.parent / "vfsd")
    assert vfsd.unit_property("vfsd.service", "FragmentPath") == str(data / "systemd/user/vfsd.service")
    vfsd.run(str(vfsctl), "share", "remove", "mine")
    # a completion that bash finds by itself
    script = 'COMP_WORDS=(vfsctl ch) COMP_CWORD=1; . "$1"; _vfsctl_completion vfsctl; echo "${COMPREPLY[@]}"'
    completion = str(data / "bash-completion/completions/vfsctl")
    assert "check" in vfsd.run(
        "env", f"PATH={vfsctl.parent}:/usr/bin", "bash", "-c", script, "bash", completion
    )

    assert vfsd.run(str(vfsctl), "install-files", "--remove").splitlines() == sorted(put)
    assert files(data) == before
    assert vfsd.unit_property("vfsd.service", "FragmentPath") == "/usr/lib/systemd/user/vfsd.service"
    vfsd.systemctl("restart", "vfsd.service")
    wait_for(
        lambda: str(vfsctl.parent) not in Path(f"/proc/{vfsd.main_pid()}/cmdline").read_text(), "the other's"
    )


@only_user
def test_the_files_of_others_stay(vfsd: Vfsd, vfsctl: Path) -> None:
    data = Path(vfsd.run("sh", "-c", "echo ~").strip()) / ".local/share"
    unit = data / "systemd/user/vfsd.service"
    vfsd.run("mkdir", "-p", str(unit.parent))
    vfsd.run("sh", "-c", f'echo "# my own" >"{unit}"')
    try:
        before = files(data)
        with pytest.raises(CommandFailed, match=f'"{unit}" is there already, and is not vfsctl\'s'):
            vfsd.run(str(vfsctl), "install-files")
        assert vfsd.run(str(vfsctl), "install-files", "--remove") == ""
        assert files(data) == before
        assert unit.read_text() == "# my own\n"
    finally:
        unit.unlink()
        vfsd.systemctl("daemon-reload")


@only_user
def test_what_did_not_come_in_a_wheel_has_nothing_to_put(vfsd: Vfsd) -> None:
    with pytest.raises(CommandFailed, match="was not installed from a wheel"):
        vfsd.run("vfsctl", "install-files")
    with pytest.raises(CommandFailed, match="for a user, not for the system"):
        vfsd.run("vfsctl", "--system", "install-files")
