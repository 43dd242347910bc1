"""vfsd's packages for Debian, and what Arch's are built from, kept in the cache under a hash of what they are made of.

`make deb arch` makes them in a lab. So a lab has what users get, for some seconds after each change and for none after
that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lab import base

#: What packages are made of; the Makefile's COPY_TREE has the same list.
INPUTS = (
    *("Makefile", "pyproject.toml", "LICENSE", "README.md", "NEWS.md"),
    *("docs", "dbus", "units", "vfsd", "applets", "packaging"),
)
LEFT_OUT = {"__pycache__", "node_modules"}

#: Where a lab has them, for the tests too.
IN_LAB = "var/lib/vfsd-lab/packages"

_KEPT = 24 * 3600
"""Seconds for which packages that no lab takes stay in the cache."""


def files(project: Path) -> Iterator[Path]:
    """Every file that packages are made of, in an order of its own."""
    for name in INPUTS:
        path = project / name
        if path.is_file():
            yield path
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(set(folders) - LEFT_OUT)
            yield from (Path(folder, name) for name in sorted(names))


def key(project: Path, tree: str) -> str:
    """A short name of what the packages will be: of their sources, and of the tree (its key) whose tools build them."""
    digest = hashlib.sha256(tree.encode())
    for path in files(project):
        content = path.read_bytes()
        executable = path.stat().st_mode & 0o111 != 0
        digest.update(f"{path.relative_to(project)}\0{executable}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def folder() -> Path:
    """Where the cache has packages, a folder for each key."""
    return base.cache() / "packages"


def find(name: str) -> Path | None:
    """The folder of complete packages, if they are in the cache."""
    found = folder() / name
    if not found.is_dir():
        return None
    os.utime(found)
    return found


def keep(name: str, built: Path) -> Path:
    """Take packages into the cache, and drop from it what was not used for a day."""
    top = folder()
    top.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix="building-", dir=top))
    for package in built.glob("*.deb"):
        shutil.copyfile(package, part / package.name)
    shutil.copytree(built / "arch", part / "arch")
    with contextlib.suppress(OSError):  # another lab was faster
        part.rename(top / name)
    for other in top.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if other.name != name and time.time() - other.stat().st_mtime > _KEPT:
                shutil.rmtree(other)
    shutil.rmtree(part, ignore_errors=True)
    return top / name
