"""The disks of QEMU's command line, which may be put together of drives, block nodes and devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from vfsd.cli.imports.found import Disk, Found
from vfsd.cli.imports.words import is_on, properties

DEVICES = ("virtio-blk", "scsi-hd", "scsi-disk", "ide-hd", "nvme", "usb-storage", "scsi-cd", "ide-cd")
_DRIVERS = ("file", "host_device", "raw", "qcow2")
"""Block drivers of a chain that ends in an image of vfsd's."""
_DISCARDED = "snapshot=on, which kept the file as it was"


class Disks:
    """Disks that are being read, until they are connected."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self._nodes: dict[str, dict[str, str]] = {}
        self._drives: dict[str, Disk] = {}
        self._disks: list[Disk] = []

    def plain(self, path: str) -> None:
        """`-hda` and its like."""
        self._disks.append(Disk(path, bus="ide"))

    def cdrom(self, path: str) -> None:
        """`-cdrom`."""
        self._disks.append(Disk(path, cdrom=True))

    def drive(self, value: str) -> None:
        """`-drive`."""
        given = dict(properties(value))
        path = given.get("file", "")
        if given.get("if") == "pflash":
            if given.get("unit", "0") == "0":
                self._found.set_firmware(path)
            return
        if given.get("if") in ("floppy", "sd", "mtd"):
            self._found.leave(f"-drive {value}")
            return
        disk = Disk(
            path,
            read_only=is_on(given, "read-only") or is_on(given, "readonly"),
            cdrom=given.get("media") == "cdrom",
            format=given.get("format", ""),
            bus=given.get("if", "ide"),
            lost=(*((_DISCARDED,) if is_on(given, "snapshot") else ()), *_lost(given)),
        )
        if given.get("if") == "none" and "id" in given:
            self._drives[given["id"]] = disk
        elif path:
            self._disks.append(disk)

    def blockdev(self, value: str) -> None:
        """`-blockdev`, as JSON too."""
        node = dict(properties(value))
        if "node-name" in node:
            self._nodes[node["node-name"]] = node
        else:
            self._found.leave(f"-blockdev {value}", "it has no node-name")

    def flash(self, name: str) -> None:
        """A block node that is the machine's firmware."""
        disk = self._node(name)
        self._found.set_firmware(disk.path if disk else name)

    def device(self, kind: str, given: Mapping[str, str], text: str) -> None:
        """A device of `DEVICES` that shows a drive or a block node to the guest."""
        name = given.get("drive", "")
        disk = self._drives.pop(name, None) or self._node(name)
        if disk is None:
            self._found.leave(f"-device {text}")
            return
        self._disks.append(
            dataclasses.replace(
                disk,
                cdrom=disk.cdrom or kind.endswith("-cd"),
                bus=kind.partition("-")[0],
                lost=(*disk.lost, *_lost(given)),
            )
        )

    def connect(self) -> None:
        """Say what there is; a drive that no device names stands for itself."""
        for disk in [*self._disks, *self._drives.values()]:
            self._found.set_disk(disk)

    def _node(self, name: str) -> Disk | None:
        """The file below a chain of block nodes."""
        disk = Disk("")
        for node in self._chain(name):
            driver = node.get("driver", "")
            odd = driver and driver not in _DRIVERS
            disk = dataclasses.replace(
                disk,
                read_only=disk.read_only or is_on(node, "read-only"),
                format=disk.format or (driver if odd or driver == "qcow2" else ""),
            )
            if path := node.get("file.filename") or node.get("filename"):
                return dataclasses.replace(disk, path=path)
        return None

    def _chain(self, name: str) -> Iterator[dict[str, str]]:
        """The nodes below one, which may be in a circle."""
        for _ in range(len(self._nodes)):
            node = self._nodes.get(name)
            if node is None:
                return
            yield node
            name = node.get("file", "")


def _lost(given: Mapping[str, str]) -> Iterator[str]:
    """What a guest or its owner would miss."""
    for key in (
        "serial",
        "iops",
        "bps",
        "iops_rd",
        "iops_wr",
        "throttling.iops-total",
        "throttling.bps-total",
    ):
        if given.get(key):
            yield f"{key}={given[key]}"
