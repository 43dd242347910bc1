"""The disks of QEMU's command line, which may be put together of drives, block nodes and devices."""

from __future__ import annotations

import json
from typing import NamedTuple

from vfsd.cli.imports.found import Found
from vfsd.cli.imports.words import flat, properties

DEVICES = ("virtio-blk", "scsi-hd", "scsi-disk", "ide-hd", "nvme", "usb-storage", "scsi-cd", "ide-cd")


class _Disk(NamedTuple):
    path: str
    read_only: bool
    cdrom: bool = False


class Disks:
    """Disks that are being read, until they are connected."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._nodes: dict[str, dict[str, str]] = {}
        self._drives: dict[str, _Disk] = {}
        self._disks: list[_Disk] = []

    def plain(self, path: str) -> None:
        """`-hda` and its like."""
        self._disks.append(_Disk(path, read_only=False))

    def cdrom(self, path: str) -> None:
        """`-cdrom`."""
        self._disks.append(_Disk(path, read_only=True, cdrom=True))

    def drive(self, value: str) -> None:
        """`-drive`."""
        given = dict(properties(value))
        path = given.get("file", "")
        if given.get("if") == "pflash":
            if given.get("unit", "0") == "0":
                self._found.set_firmware(path)
            return
        read_only = given.get("read-only", given.get("readonly", "off")) == "on"
        disk = _Disk(path, read_only, given.get("media") == "cdrom")
        if given.get("if") == "none" and "id" in given:
            self._drives[given["id"]] = disk
        elif path:
            self._disks.append(disk)

    def blockdev(self, value: str) -> None:
        """`-blockdev`, as JSON too."""
        try:
            node = flat(json.loads(value)) if value.startswith("{") else dict(properties(value))
        except (ValueError, AttributeError):
            self._found.leave(f"-blockdev {value}", "it is no object of JSON")
            return
        self._nodes[node.get("node-name", "")] = node

    def device(self, kind: str, drive: str, text: str) -> None:
        """A device of `DEVICES` that shows a drive or a block node to the guest."""
        disk = self._named(drive)
        if disk is None:
            self._found.leave(f"-device {text}")
        else:
            self._disks.append(disk._replace(cdrom=disk.cdrom or kind.endswith("-cd")))

    def connect(self) -> None:
        """Say what there is; a drive that no device names stands for itself."""
        for disk in [*self._disks, *self._drives.values()]:
            self._found.set_disk(disk.path, read_only=disk.read_only, cdrom=disk.cdrom)

    def _named(self, name: str) -> _Disk | None:
        """The drive of that name, or the file below a chain of block nodes."""
        if name in self._drives:
            return self._drives.pop(name)
        read_only = False
        for _ in range(len(self._nodes)):
            node = self._nodes.get(name)
            if node is None:
                return None
            read_only = read_only or node.get("read-only") == "on"
            if path := node.get("file.filename") or node.get("filename"):
                return _Disk(path, read_only)
            name = node.get("file", "")
        return None
