"""Devices that come and go, through udev: no polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pyudev

WATCHED = ("kvm", "vhost-vsock", "vhost-net")


class DeviceMonitor:
    """Tells of each change to one of the devices that guests use, and to disks and their partitions."""

    def __init__(self, on_change: Callable[[str, str], None], on_disk: Callable[[str, str], None]) -> None:
        """:param on_change: called with the device's name and what happened: add, remove, change.
        :param on_disk: the same for a block device, with its node.
        """
        self._on_change = on_change
        self._on_disk = on_disk
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context())
        self._monitor.filter_by("misc")
        self._monitor.filter_by("block")

    def start(self) -> None:
        """Begin to watch, in the running event loop."""
        self._monitor.start()
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._read)

    def stop(self) -> None:
        """Watch no more."""
        asyncio.get_running_loop().remove_reader(self._monitor.fileno())

    def _read(self) -> None:
        while (device := self._monitor.poll(timeout=0)) is not None:
            if device.subsystem == "block":
                self._on_disk(device.device_node or "", device.action or "")
            elif device.sys_name in WATCHED:
                self._on_change(device.sys_name, device.action or "")


def file_system_id(device: int) -> str:
    """The UUID of the file system on a block device, as udev found it; "" if it has none, or udev does not run."""
    try:
        found = pyudev.Devices.from_device_number(pyudev.Context(), "block", device)
        return str(found.properties.get("ID_FS_UUID", ""))
    except pyudev.DeviceNotFoundError:
        return ""
