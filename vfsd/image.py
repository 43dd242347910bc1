"""A machine's disk image: in which format it is, of which files it consists, and how QEMU is given them.

A guest writes into a raw image what it likes, the header of another format too, which names further files of the
host. So the format of an image is found out once, before its guest ever runs, and then remembered.
"""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfsd import store
from vfsd.errors import InvalidArgs, PrerequisiteMissing
from vfsd.opened import Opened, Openings

_QCOW2 = b"QFI\xfb"
_BACKING = slice(8, 16)
"""Where a qcow2 header has the offset of its backing file's name, 0 if it has none (QEMU's docs/interop/qcow2)."""
_INCOMPATIBLE = slice(72, 80)
_EXTERNAL_DATA = 1 << 2
"""The incompatible feature "external data file"."""
_VERSION = slice(4, 8)
_HEADER_SIZE = 80
_TIMEOUT = 10.0
"""Seconds in which qemu-img must tell of a chain of images."""
_RECORD = "image.json"


@dataclass(frozen=True, slots=True)
class File:
    """One file of an image."""

    path: Path
    format: str
    is_device: bool
    """Whether it is a block device."""
    data: Path | None = None
    """Where a qcow2 image keeps its content, if elsewhere."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of an image as QEMU gets it."""

    file: File
    opened: Opened
    data: Opened | None = None


def look(image: Path, folder: Path, machine: str, qemu: Path) -> list[File]:
    """The files of an image, the topmost first; blocks.

    :param folder: where the format is remembered.
    :param machine: whose image it is.
    :param qemu: the QEMU that is to use it; the qemu-img beside it is asked, else that of PATH.
    :raise OSError: the image can't be read. PrerequisiteMissing, InvalidArgs: its files can't be found out.
    """
    kind = _format(image, folder)
    if kind != "qcow2" or not _has_further_files(image):
        return [File(image, kind, _is_device(image))]
    return [_file(told) for told in _chain(image, machine, qemu)]


def layers(files: Iterable[File], openings: Openings) -> list[Layer]:
    """Have the files of an image opened: the topmost one, and its data, for writing."""
    made: list[Layer] = []
    for file in files:
        writable = not made
        data = openings.add(file.data, writable=writable) if file.data else None
        made.append(Layer(file, openings.add(file.path, writable=writable), data))
    return made


def arguments(disk: Sequence[Layer]) -> list[str]:
    """QEMU's arguments for an image."""
    node: dict[str, Any] | None = None
    for layer in reversed(disk):
        below, top = node, layer is disk[0]
        node = {"driver": layer.file.format, "file": _protocol(layer.file.is_device, layer.opened)}
        if layer.data:
            node["data-file"] = _protocol(device=False, opened=layer.data)
        if below:
            node["backing"] = below
        elif layer.file.format == "qcow2":
            node["backing"] = None  # whatever its header says by then
        node |= {"node-name": "disk0"} if top else {"read-only": True}
    opened = [one for layer in disk for one in (layer.opened, layer.data) if one]
    sets = [argument for one in opened for argument in one.set_arguments]
    return [*sets, "-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=disk0,bootindex=1"]


def flash(name: str, file: Opened, *, read_only: bool) -> list[str]:
    """QEMU's arguments for a chip with firmware: a node of that name."""
    node = {
        "driver": "raw",
        "node-name": name,
        "read-only": read_only,
        "file": _protocol(device=False, opened=file),
    }
    return [*file.set_arguments, "-blockdev", json.dumps(node)]


def _protocol(device: bool, opened: Opened) -> dict[str, Any]:
    return {"driver": "host_device" if device else "file", "filename": opened.block}


def _format(image: Path, folder: Path) -> str:
    status = image.stat()
    identity = {"path": str(image.resolve()), "device": status.st_dev, "inode": status.st_ino}
    record = folder / _RECORD
    try:
        known = json.loads(record.read_text())
        if {key: known[key] for key in identity} == identity and known["format"] in ("raw", "qcow2"):
            return str(known["format"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with image.open("rb") as file:
        found = "qcow2" if file.read(len(_QCOW2)) == _QCOW2 else "raw"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    store.replace(record, identity | {"format": found}, sync=True)
    return found


def _has_further_files(image: Path) -> bool:
    with image.open("rb") as file:
        header = file.read(_HEADER_SIZE)
    features = int.from_bytes(header[_INCOMPATIBLE]) if int.from_bytes(header[_VERSION]) >= 3 else 0
    return bool(int.from_bytes(header[_BACKING]) or features & _EXTERNAL_DATA)


def _chain(image: Path, machine: str, qemu: Path) -> list[dict[str, Any]]:
    program = shutil.which("qemu-img", path=str(qemu.parent)) or shutil.which("qemu-img")
    if program is None:
        raise PrerequisiteMissing(
            f'"{image}", the image of machine "{machine}", has several files, of which qemu-img tells; install it '
            "(Debian: qemu-utils)"
        )
    options = ("--force-share", "--backing-chain", "--output=json", "-f", "qcow2")
    command = [program, "info", *options, "--", str(image)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
        told: list[dict[str, Any]] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        raise InvalidArgs(
            f'"{image}", the image of machine "{machine}", is no sound qcow2 image, or a file that it '
            "names is missing; qemu-img info tells which"
        ) from None
    return told


def _file(told: dict[str, Any]) -> File:
    path = Path(told["filename"])
    data = told.get("format-specific", {}).get("data", {}).get("data-file")
    return File(path, str(told["format"]), _is_device(path), path.parent / data if data else None)


def _is_device(path: Path) -> bool:
    return stat.S_ISBLK(path.stat().st_mode)
