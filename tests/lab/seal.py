"""The seal of a cached tree: proof that it was finished, and that it is still what was built.

A cache which is believed blindly turns a full disk or a killed build into test failures that
nobody understands. Checking costs a tenth of a second per boot.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "seal.json"
TREE = "root"

#: Files whose contents are compared, not only their sizes.
PROBES = (
    "usr/bin/bash",
    "usr/bin/busybox",
    "usr/bin/dbus-daemon",
    "usr/bin/python3.*",
    "usr/bin/qemu-system-*",
    "usr/bin/systemctl",
    "usr/lib/systemd/systemd",
    "usr/lib/systemd/systemd-executor",
    "usr/lib/*/libc.so.6",
    "usr/lib/*/systemd/libsystemd-*.so",
    "usr/lib/polkit-1/polkitd",
    "usr/libexec/virtiofsd",
    "boot/vmlinuz-*",
    "etc/passwd",
    "var/lib/dpkg/status",
)


def _sizes(tree: Path) -> dict[str, int]:
    """Return each file's size by its path; -1 for what is no regular file."""
    sizes: dict[str, int] = {}
    stack = [""]
    while stack:
        folder = stack.pop()
        with os.scandir(tree / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    stack.append(path)
                elif entry.is_file(follow_symlinks=False):
                    sizes[path] = entry.stat(follow_symlinks=False).st_size
                else:
                    sizes[path] = -1
    return sizes


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(content: dict[str, Any]) -> str:
    plain = {name: value for name, value in content.items() if name != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write(folder: Path, key: str) -> None:
    """Seal the tree in `folder`: the last step of building it."""
    tree = folder / TREE
    probes = {
        str(path.relative_to(tree)): _digest(path)
        for pattern in PROBES
        for path in sorted(tree.glob(pattern))
        if path.is_file() and not path.is_symlink()
    }
    content: dict[str, Any] = {"key": key, "sizes": _sizes(tree), "probes": probes}
    content["digest"] = _own_digest(content)
    part = folder / f"{NAME}.part"
    with part.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(folder / NAME)


def fault(folder: Path, key: str) -> str:
    """Return what is wrong with the tree in `folder`, or "" if it can be used."""
    try:
        content = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        return "it has no seal"
    except ValueError:
        return "its seal is no JSON"
    if not isinstance(content, dict) or content.get("digest") != _own_digest(content):
        return "its seal was changed"
    if content["key"] != key:
        return "its seal is of another tree"
    tree = folder / TREE
    try:
        sizes = _sizes(tree)
        for path, size in content["sizes"].items():
            if sizes.get(path) != size:
                return f"/{path} is missing or has another size"
        for path, digest in content["probes"].items():
            if _digest(tree / path) != digest:
                return f"/{path} has other contents"
    except OSError as error:
        return str(error)
    return ""
