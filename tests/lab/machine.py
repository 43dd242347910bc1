"""A lab that is up, seen from the host: entering it, waiting for it, installing vfsd in it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab import LabError, base, packages, recipe, registry
from tests.lab import warden as warden_module

PATIENCE = 60.0
PROJECT = Path(__file__).resolve().parents[2]

#: What a command in the lab sees of the caller's environment.
PASSED = ("TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI", "PYTEST_ADDOPTS")


def environment(user: bool) -> list[str]:
    """Return the environment of a command in the lab."""
    name, home = (recipe.USER, f"/home/{recipe.USER}") if user else ("root", "/root")
    values = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if user:
        values["XDG_RUNTIME_DIR"] = f"/run/user/{recipe.UID}"
        values["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path=/run/user/{recipe.UID}/bus"
    values |= {key: os.environ[key] for key in PASSED if key in os.environ}
    values |= {key: text for key, text in os.environ.items() if key.startswith("VFSD_TEST_")}
    return [f"{key}={value}" for key, value in values.items()]


def entering(init: int, argv: Sequence[str], *, user: bool = False) -> list[str]:
    """Return the command which runs `argv` in the lab."""
    identity = ("--reuid", str(recipe.UID), "--regid", str(recipe.UID), "--init-groups")
    return [
        *("nsenter", "--target", str(init), "--all"),
        # nsenter does not hand signals on: so that its end is the command's end too.
        *("setpriv", "--pdeathsig", "TERM", *(identity if user else ())),
        *("env", "-i", "-C", f"/home/{recipe.USER}" if user else "/root"),
        *environment(user),
        *argv,
    ]


class Machine:
    """One lab that is up."""

    def __init__(self, record: registry.Record) -> None:
        self.record = record

    @property
    def root(self) -> Path:
        """The lab's root directory as the host sees it."""
        return Path(f"/proc/{self.record.init}/root")

    def call(self, *argv: str, user: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command quietly and return what it said."""
        return subprocess.run(
            entering(self.record.init, argv, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )

    def check(self, *argv: str, user: bool = False) -> None:
        """Run a command which has to succeed."""
        result = self.call(*argv, user=user)
        if result.returncode:
            raise LabError(f"`{' '.join(argv)}` failed in the lab:\n{result.stdout}")

    def wait(self) -> None:
        """Return when both service managers say that they are up and well."""
        deadline = time.monotonic() + PATIENCE
        running = ("systemctl", "is-system-running", "--wait")
        state = ""
        while time.monotonic() < deadline:
            state = self.call("timeout", "30", *running).stdout.strip().rpartition("\n")[2]
            if state in {"running", "degraded"}:
                break
            if not Path(f"/proc/{self.record.init}").exists():
                break
            time.sleep(0.05)
        if state != "running":
            failed = self.call("systemctl", "--failed", "--no-legend", "--plain").stdout
            log = registry.folder(self.record.name) / "console.log"
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise LabError(f"The lab is not well ({state}).\n{failed}\n{said}")
        self.check("systemctl", "start", f"user@{recipe.UID}.service")
        self.check("timeout", "30", "systemctl", "--user", *running[1:], user=True)

    def install(self, project: Path) -> None:
        """Install the project's packages: what users get, so nothing is done here that they don't do themselves."""
        here = self.root / packages.IN_LAB
        shutil.copytree(self._packages(project), here)
        desktop = (self.root / "usr/bin/gnome-shell").exists()
        names = ["vfsd", *(["vfsd-gnome", "vfsd-plasma"] if desktop else [])]
        self.check(
            "sh", "-c", f"cd /{packages.IN_LAB} && dpkg --install {' '.join(f'{n}_*.deb' for n in names)}"
        )

    def _packages(self, project: Path) -> Path:
        """Return the folder of the project's packages; what is not in the cache is built in this lab."""
        key = packages.key(project, Path(self.record.base).name)
        if found := packages.find(key):
            return found
        self._make(project, "bundle")
        work = "tmp/vfsd-packages"
        shutil.copytree(base.cache() / "wheels", self.root / work / "wheels")
        builds = [f"{name}_BUILD=/{work}/{name}" for name in ("DEB", "ARCH")]
        where = [f"WHEELS=/{work}/wheels", f"DIST=/{work}/dist", *builds]
        self.check("make", "--silent", "--directory=/usr/src/vfsd", "deb", "arch", *where)
        built = packages.keep(key, self.root / work / "dist")
        shutil.rmtree(self.root / work)
        return built

    def _make(self, project: Path, *arguments: str) -> None:
        done = subprocess.run(
            ["make", "--no-print-directory", *arguments],
            cwd=project,
            env={**os.environ, "VFSD_LAB_CACHE": str(base.cache())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LabError(f"make {arguments[0]} failed:\n{done.stdout}")

    def install_files(self, project: Path) -> None:
        """Install what the project has now over what is installed, with `make install`: quicker than a package."""
        self._make(project, "install", f"DESTDIR={self.root}", "PREFIX=/usr")
        bus = "org.freedesktop.DBus"
        reload = ("call", "--quiet", bus, "/", bus, "ReloadConfig")
        self.check("python3", "-m", "compileall", "-q", "/usr/lib/vfsd")
        self.check("journalctl", "--quiet", "--update-catalog")
        if (self.root / "usr/bin/glib-compile-schemas").exists():
            self.check("glib-compile-schemas", "/usr/share/glib-2.0/schemas")
        self.check("systemctl", "daemon-reload")
        self.check("busctl", *reload)
        self.check("systemctl", "--user", "daemon-reload", user=True)
        self.check("busctl", "--user", *reload, user=True)


class Lab:
    """A lab started here: a context that ends it, unless it is to be left up."""

    def __init__(self, name: str, *, keep: bool = False, desktop: bool = False) -> None:
        self.name = name
        self.desktop = desktop
        self.keep = keep
        self.warden: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        """Boot it and wait until it is usable."""
        tree = base.ensure(desktop=self.desktop)
        systemd = Path("/run/systemd/system").is_dir()
        line = warden_module.command(self.name, tree, PROJECT, leash=not self.keep, systemd=systemd)
        self.warden = subprocess.Popen(
            line,
            cwd=PROJECT,
            env={**os.environ, **base.ENVIRONMENT},
            stdin=subprocess.DEVNULL if self.keep else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: we then end the lab through the leash.
        )
        try:
            assert self.warden.stdout is not None
            self.warden.stdout.read()
            if self.warden.poll() is not None or not self._published():
                _, error = self.warden.communicate()
                raise LabError(error.decode(errors="replace").strip() or "The lab did not start.")
            machine = Machine(registry.find(self.name))
            machine.wait()
        except BaseException:
            self.keep = False
            self.__exit__()
            raise
        return machine

    def _published(self) -> bool:
        return (registry.folder(self.name) / "state.json").exists()

    def __exit__(self, *_: object) -> None:
        """Take it down, all of it, before returning."""
        if self.warden and not self.keep:
            if self.warden.stdin:
                self.warden.stdin.close()
            self.warden.terminate()
            try:
                self.warden.wait(30)
            except subprocess.TimeoutExpired:
                print("lab: its warden does not end; killing it", file=sys.stderr)
                self.warden.kill()
                self.warden.wait()


def down(record: registry.Record) -> None:
    """End a lab that was left up."""
    try:
        process = os.pidfd_open(record.warden)
    except ProcessLookupError:
        return
    os.kill(record.warden, signal.SIGTERM)
    if not select.select([process], [], [], 30)[0]:
        raise LabError(f"The warden of {record.name} (process {record.warden}) does not end.")
