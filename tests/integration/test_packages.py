"""The packages for Debian, as dpkg installs, upgrades, removes and purges them, while machines run on both buses."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import MACHINE, MANAGER, ROOT, SHARE, TESTER, Vfsd, process_exists, wait_for
from vfsd import __version__

SOURCE = Path(__file__).parents[2]
PACKAGES = Path("/var/lib/vfsd-lab/packages")
OLD = "0.0.9"
SCOPES = (Vfsd("system"), Vfsd("user"))
GUEST = f"{ROOT}/machine/upgraded"
WRITER = """\
#!/bin/sh
# Holds a file open and writes lines to it.
exec >/data/log
i=0
while sleep 0.05; do i=$((i+1)); echo $i; done
"""
PASSED_OVER = re.compile(
    r"/(home|proc|sys|dev|tmp|srv|usr/src|var/(log|tmp)|run/(log|udev|systemd|user/\d+/systemd)|var/lib/(dpkg|vfsd-lab))/"
)
"""What changes by itself, and what is the user's; the units and users that are there are compared besides."""


def run(*command: str | Path, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout + done.stderr


def package(name: str = "vfsd") -> Path:
    (found,) = PACKAGES.glob(f"{name}_*.deb")
    return found


def dpkg(*arguments: str | Path) -> str:
    return run("dpkg", "--force-unsafe-io", *arguments)


def installed() -> str:
    """What dpkg says of vfsd: `installed`, `config-files`, or nothing."""
    return run("dpkg-query", "--show", "--showformat=${db:Status-Status}", "vfsd", check=False)


def version(vfsd: Vfsd) -> str:
    return str(vfsd.get(ROOT, MANAGER, "Version"))


def activity(vfsd: Vfsd) -> tuple[str, str]:
    """Whether it runs, and whether it is enabled."""
    unit = "vfsd.service"
    return vfsd.unit_property(unit, "ActiveState"), vfsd.unit_property(unit, "UnitFileState")


def census() -> set[str]:
    """All that a package, or what it has run, could leave behind: files, users, units, names on the buses."""
    there = set()
    for top, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if not PASSED_OVER.match(f"{Path(top, name)}/")]
        there |= {str(Path(top, name)) for name in (*folders, *files)}
    there |= {f"user {entry.pw_name}" for entry in pwd.getpwall()}
    for vfsd in SCOPES:
        for command in (("list-unit-files", "vfsd*"), ("list-units", "--all", "--plain", "vfsd*")):
            units = vfsd.systemctl("--no-legend", *command, check=False)  # it is 1 if there are none
            there |= {f"{vfsd.scope} {line}" for line in units.splitlines()}
        names = vfsd.run("busctl", vfsd.flag, "list", "--no-legend", "--acquired", "--activatable")
        there |= {f"{vfsd.scope} {line.split()[0]}" for line in names.splitlines()}
    return there


@pytest.fixture
def back_again() -> Iterator[None]:
    """Whatever happens, the others find the package that they test."""
    yield
    if installed() != "installed" or version(SCOPES[0]) != __version__:
        dpkg("--install", package())


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The same package as an older version."""
    run("dpkg-deb", "--raw-extract", package(), tmp_path / "old")
    for name in ("DEBIAN/control", "usr/lib/vfsd/vfsd/__init__.py"):
        path = tmp_path / "old" / name
        path.write_text(path.read_text().replace(__version__, OLD))
    run("dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "--build", tmp_path / "old", tmp_path / "old.deb")
    return tmp_path / "old.deb"


@pytest.fixture
def folders() -> Iterator[dict[str, Path]]:
    """A folder for each scope that a guest writes into."""
    made = {vfsd.scope: Path(tempfile.mkdtemp(prefix="vfsd-test-", dir="/srv")) for vfsd in SCOPES}
    for folder in made.values():
        folder.chmod(0o777)
        (folder / "writer").write_text(WRITER)
        (folder / "writer").chmod(0o755)
    shutil.chown(made["user"], TESTER, TESTER)
    yield made
    for folder in made.values():
        shutil.rmtree(folder)


def begin(vfsd: Vfsd, folder: Path) -> None:
    """Start a guest that writes."""
    guest = ("--builtin", "--memory", "256M", "--network", "none", "--share", f"{folder}:/data")
    vfsd.run("vfsctl", "machine", "add", "upgraded", *guest, "-o", "Append=vfsd.exec=/data/writer")
    vfsd.run("vfsctl", "machine", "start", "upgraded")


def lines(folder: Path) -> list[str]:
    """What the guest has written; the last line may be half there."""
    log = folder / "log"
    return log.read_text().splitlines()[:-1] if log.exists() else []


def goes_on(folder: Path) -> None:
    """The guest writes on, and no line is lost or written twice."""
    before = len(lines(folder))
    wait_for(lambda: len(lines(folder)) > before + 3, "the guest writes on", 60)
    assert lines(folder) == [str(number + 1) for number in range(len(lines(folder)))]


def processes(vfsd: Vfsd) -> list[int]:
    """QEMU's and virtiofsd's."""
    [share] = vfsd.get(GUEST, MACHINE, "Shares")
    return [vfsd.get(GUEST, MACHINE, "MainPID"), vfsd.get(share, SHARE, "MainPID")]


def test_install_upgrade_remove_and_purge(back_again: None, older: Path, folders: dict[str, Path]) -> None:
    system = SCOPES[0]
    dpkg("--purge", "vfsd")
    for configuration in ("/etc/vfsd", "/usr/lib/vfsd"):  # other tests have left folders there
        shutil.rmtree(configuration, ignore_errors=True)
    before = census()
    assert not [name for name in before if re.search(r"org\.vfsd1|(^|/)vfsd(\.|$)", name)]

    # Nothing runs before it is called.
    dpkg("--install", older)
    assert [activity(vfsd) for vfsd in SCOPES] == [("inactive", "disabled")] * 2
    assert [version(vfsd) for vfsd in SCOPES] == [OLD, OLD]

    for vfsd in SCOPES:
        begin(vfsd, folders[vfsd.scope])
    for vfsd in SCOPES:
        goes_on(folders[vfsd.scope])
    system.run("vfsctl", "share", "add", "kept", "/srv", "--persistent")
    daemons = [vfsd.main_pid() for vfsd in SCOPES]
    guests = [processes(vfsd) for vfsd in SCOPES]

    # Another vfsd, and the same guests.
    dpkg("--install", package())
    assert [version(vfsd) for vfsd in SCOPES] == [__version__] * 2
    assert not any(map(process_exists, daemons))
    for vfsd in SCOPES:
        assert vfsd.get(GUEST, MACHINE, "State") == "running"
        goes_on(folders[vfsd.scope])
    assert [processes(vfsd) for vfsd in SCOPES] == guests
    assert run("dpkg", "--verify", "vfsd") == ""

    # What runs ends as when the host shuts down. What is kept is there when the package comes again, which starts
    # nothing.
    since = float(run("date", "+%s.%N"))
    said = dpkg("--remove", "vfsd")
    assert "ending machines and shares" in said
    assert not any(process_exists(pid) for pids in guests for pid in pids)
    assert [vfsd.units() for vfsd in SCOPES] == [[], []]
    ends = system.journal("VFSD_MACHINE=upgraded", "VFSD_NEW_STATE=stopped", since=since)
    told = [entry["MESSAGE"] for entry in ends]
    assert told.count("machine upgraded is stopped: the guest powered off") == 2
    assert shutil.which("vfsctl") is None
    dpkg("--install", package())
    assert [activity(vfsd)[0] for vfsd in SCOPES] == ["inactive"] * 2
    assert "kept" in system.run("vfsctl", "status")

    # A link that "systemctl enable" made goes too, and what somebody wrote does not.
    system.systemctl("enable", "vfsd.service")
    own = Path("/etc/vfsd/shares/own.toml")
    own.parent.mkdir(parents=True)
    own.write_text('source = "/srv"\n')
    dpkg("--purge", "vfsd")
    assert own.exists()
    shutil.rmtree("/etc/vfsd")
    assert census() - before == set()


def test_lintian_finds_nothing() -> None:
    """Errors and warnings; what is overridden says why."""
    names = ("vfsd", "vfsd-gnome", "vfsd-plasma")
    told = run("lintian", "--profile=debian", "--allow-root", *(package(name) for name in names), check=False)
    assert [line for line in told.splitlines() if not line.startswith(("N:", "I:", "P:"))] == []


def test_the_packages_own_test() -> None:
    """What autopkgtest would run, on this installation."""
    run(SOURCE / "packaging/debian/tests/system-bus")


_DOCUMENTS = re.compile(r"usr/share/(doc|licenses)/")


def files(root: Path) -> set[str]:
    """The files of the programs, by their path, compressed or not; documents lie elsewhere in each distribution."""
    found = (path.relative_to(root) for path in (root / "usr").rglob("*") if not path.is_dir())
    names = {str(path).removesuffix(".gz") for path in found if path.suffix != ".pyc"}
    return {name for name in names if not _DOCUMENTS.match(name)}


def make_installs(folder: Path, *options: str) -> set[str]:
    """What `make install` puts in place, from which all packages are made."""
    root = folder / "installed"
    run("make", "--silent", f"--directory={SOURCE}", "install", f"DESTDIR={root}", "PREFIX=/usr", *options)
    return files(root)


def test_fedoras_packages(tmp_path: Path) -> None:
    """They are built, without what Debian's rpm does not know, and rpmlint finds nothing."""
    build, made, of_rpm = tmp_path / "build", tmp_path / "made", SOURCE / "packaging/rpm"
    options = (f"RPM_BUILD={build}", f"DIST={made}", "RPM_OPTIONS=--nodeps --quiet")
    run("make", "--silent", f"--directory={SOURCE}", "rpm", *options)
    names = ("vfsd", "vfsd-gnome", "vfsd-plasma")
    packages = [made / f"{name}-{__version__}-1.noarch.rpm" for name in names]
    run("rpmlint", "--config", of_rpm / "rpmlint.toml", of_rpm / "vfsd.spec", *packages)
    scripts = run("rpm", "--query", "--package", "--scripts", packages[0])
    assert "systemctl stop vfsd.slice" in scripts
    root = tmp_path / "root"
    run("rpm", "--root", root, "--install", "--nodeps", "--noscripts", *packages)
    assert files(root) == make_installs(tmp_path, "WITH_QMP=system")


@pytest.fixture
def testers() -> Iterator[Path]:
    """A folder of the tester's: makepkg builds nothing for root."""
    with tempfile.TemporaryDirectory(prefix="vfsd-test-", dir="/srv") as folder:
        shutil.chown(folder, TESTER, TESTER)
        yield Path(folder)


def test_archs_packages(testers: Path, tmp_path: Path) -> None:
    """They are built from what `make arch` put together, and pacman installs them."""
    parts, root = testers / "parts", tmp_path / "root"
    shutil.copytree(PACKAGES / "arch", parts)
    shutil.chown(parts, TESTER, TESTER)
    settings = tmp_path / "pacman.conf"
    settings.write_text("[options]\nArchitecture = auto\n", encoding="utf-8")
    run("runuser", "-u", TESTER, "--", "sh", "-c", f"cd {parts} && PKGEXT=.pkg.tar makepkg --nodeps")
    (root / "var/lib/pacman").mkdir(parents=True)
    pacman = ("pacman", "--config", settings, "--root", root, "--dbpath", root / "var/lib/pacman")
    run(*pacman, "--upgrade", "--noconfirm", "-dd", "--noscriptlet", *parts.glob("*.pkg.tar"))
    wheels = f"WHEELS={next(parts.glob('src/vfsd-*/wheels'))}"
    assert files(root) == make_installs(tmp_path, wheels)
    hooks = run("bash", "-euc", f"source {parts}/vfsd.install; declare -F")
    assert {"declare -f post_upgrade", "declare -f pre_remove"} < set(hooks.splitlines())
