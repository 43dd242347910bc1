"""The base tree: built once with mmdebstrap, cached under its key, shared read-only by every lab."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab import LabError, mirror, recipe, seal

#: A tree of another recipe may belong to another checkout, so it gets a day's grace.
GRACE = 24 * 3600
_LOCK = "in-use"

#: The host's own tools, whatever pyenv or a user's ~/bin put before them.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}

#: Puts a command into namespaces of its own that end with it, and ends it with its parent: however
#: a build or a lab is interrupted, SIGKILL included, the kernel takes all of it down.
CONFINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
    *("--propagation", "private"),
)


def cache() -> Path:
    """Return the cache folder: the user's, even when the lab has made itself root."""
    if chosen := os.environ.get("VFSD_LAB_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vfsd-lab"


@contextlib.contextmanager
def _locked(path: Path, announce: str = "") -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if announce:
                print(announce, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(*, desktop: bool = False) -> Path:
    """Return the folder of a sound base tree, building it if need be."""
    arch = recipe.host_architecture()
    key = recipe.key(arch, desktop=desktop)
    top = cache()
    top.mkdir(parents=True, exist_ok=True)
    folder = top / key
    if not folder.exists():
        reason = "it is not there yet"
    elif not (reason := seal.fault(folder, key)):
        os.close(hold(folder))  # Used just now: no other checkout's build may sweep it away.
        return folder
    with _locked(top / "build.lock", "lab: waiting for another build of the base tree …"):
        if folder.exists() and not (reason := seal.fault(folder, key)):
            return folder
        print(f"lab: building the base tree {key}: {reason}", file=sys.stderr, flush=True)
        started = time.monotonic()
        sweep(top, keep=key)
        part = Path(tempfile.mkdtemp(prefix="building-", dir=top))
        try:
            _build(part, arch, Progress(started), desktop=desktop)
            seal.write(part, key)
            if folder.exists():
                # A lab may be running on it: put it aside, `sweep` takes it when nobody does.
                folder.rename(top / f"stale-{part.name.removeprefix('building-')}")
            part.rename(folder)
        finally:
            if part.exists():
                remove(part)
        sweep(top, keep=key)
        seconds = time.monotonic() - started
        print(f"lab: the base tree is ready after {seconds:.0f} s", file=sys.stderr, flush=True)
    return folder


class Progress:
    """One line per stage, with the seconds since the beginning."""

    def __init__(self, started: float) -> None:
        self.started = started

    def __call__(self, stage: str) -> None:
        """Say what begins now."""
        seconds = time.monotonic() - self.started
        print(f"lab: {seconds:4.0f} s  {stage}", file=sys.stderr, flush=True)


def hold(folder: Path) -> int:
    """Mark the tree as in use for as long as the descriptor returned stays open."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    os.utime(folder / _LOCK)
    return fd


def sweep(top: Path, keep: str) -> None:
    """Remove what no lab uses: broken trees, half-built ones, old recipes. Needs the build lock."""
    for folder in top.iterdir():
        if folder.is_symlink() or not folder.is_dir() or folder.name == keep:
            continue
        if folder.name.startswith("building-"):
            remove(folder)
            continue
        lock = folder / _LOCK
        broken = folder.name.startswith("stale-")
        if not broken and not (folder / seal.NAME).is_file():
            continue  # Not a tree: the wheels and the linters live here too.
        age = time.time() - (lock if lock.exists() else folder).stat().st_mtime
        if not broken and age < GRACE:
            continue
        with lock.open("a") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a tree, unless anything of the host is still mounted in it."""
    mounts = Path("/proc/self/mountinfo").read_text()
    inside = [line.split()[4] for line in mounts.splitlines() if f" {folder}/" in line]
    if inside:
        raise LabError(f"{inside[0]} is mounted: unmount it, then try again.")
    shutil.rmtree(folder)


def _build(part: Path, arch: recipe.Architecture, progress: Progress, *, desktop: bool) -> None:
    source = mirror.find()
    tree = part / seal.TREE
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True)
    options = ['APT::Install-Recommends "false";', *mirror.apt_options(dump.stdout)]
    command = [
        *CONFINED,
        *("mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase"),
        f"--architectures={arch.debian}",
        f"--include={','.join(recipe.packages(arch, desktop=desktop))}",
        *(f"--aptopt={option}" for option in options),
        # A tree that was not finished is thrown away: nothing needs to be on the disk before the next step.
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.excluded(desktop=desktop)),
        *(f"--dpkgopt=path-include={pattern}" for pattern in recipe.INCLUDED),
        "--skip=output/dev",
        f"--customize-hook={recipe.KERNEL_HOOK}",
        *(recipe.SUITE, str(tree)),
        f"deb [signed-by={source.keyring}] {source.uri} {recipe.SUITE} main",
    ]
    environment = {name: value for name, value in os.environ.items() if name.endswith("_proxy")}
    # Its own temporary files go where a killed build is swept up.
    temporary = part / "tmp"
    temporary.mkdir(mode=0o1777)
    environment |= {**ENVIRONMENT, "KERNEL": arch.kernel, "TMPDIR": str(temporary)}
    log = part / "build.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                if line.startswith("I: ") and "..." in line:
                    progress(line[3:].strip().rstrip("."))
        except BaseException:
            process.kill()
            process.wait()
            raise
        code = process.wait()
    if code:
        tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:])
        raise LabError(f"mmdebstrap failed ({code}). The end of what it said:\n{tail}")
    progress("configuring")
    _configure(tree, recipe.LOCALES if desktop else ())


def _configure(tree: Path, locales: Sequence[str]) -> None:
    """Make the tree a machine: a user, its service manager, no waiting for what never comes."""
    chroot = ["chroot", str(tree)]
    steps = [["useradd", "-m", "-u", str(recipe.UID), "-s", "/bin/bash", recipe.USER]]
    if "\nkvm:" in (tree / "etc/group").read_text():
        steps.append(["usermod", "-a", "-G", "kvm", recipe.USER])
    steps += [["localedef", "-i", name, "-f", "UTF-8", f"{name}.UTF-8"] for name in locales]
    for step in steps:
        subprocess.run([*chroot, *step], check=True, env=ENVIRONMENT)
    disable = ["systemctl", f"--root={tree}", "disable", "--quiet", *recipe.DISABLED]
    subprocess.run(disable, check=True, env=ENVIRONMENT)
    for name, text in recipe.FILES.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    for scope, units in (("system", recipe.MASKED), ("user", recipe.USER_MASKED)):
        for unit in units:
            (tree / "etc/systemd" / scope / unit).symlink_to("/dev/null")
    # Otherwise the first boot rebuilds what the packages' own scripts have built just now.
    for folder in ("etc", "var"):
        (tree / folder / ".updated").touch()
