"""QEMU's command line: what vfsd has an option for; the rest is named.

Where vfsd does the same in its own way (monitors, consoles, the guest's shared memory, QEMU's confinement), nothing is
said.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping, Sequence

from vfsd.cli.errors import CliError
from vfsd.cli.imports import disks, networks
from vfsd.cli.imports.disks import Disks
from vfsd.cli.imports.found import NINE_P, Found, FoundShare
from vfsd.cli.imports.virtiofsd import SHELL, Served
from vfsd.cli.imports.words import options, properties
from vfsd.cli.values import absolute, parse_size
from vfsd.names import make_name

_OWN = frozenset((
    *("nodefaults", "no-user-config", "nographic", "serial", "monitor", "qmp", "qmp-pretty", "mon", "sandbox", "msg"),
    *("daemonize", "pidfile", "vga", "parallel", "debugcon", "D", "usb"),
))  # fmt: skip
"""What vfsd does in its own way, or what only makes room for devices."""
_OWN_DEVICES = (
    *(
        "virtio-rng",
        "virtio-serial",
        "virtserialport",
        "virtconsole",
        "isa-serial",
        "pci-serial",
        "pvpanic",
        "i8042",
    ),
    *("pcie-root-port", "pcie-pci-bridge", "pci-bridge", "virtio-scsi", "ahci", "ich9-ahci"),
    *("virtio-vga", "virtio-gpu", "VGA", "qxl", "virtio-keyboard", "virtio-tablet", "usb-tablet", "usb-kbd"),
    *("usb-mouse", "qemu-xhci", "nec-usb-xhci", "ich9-usb", "piix3-usb"),
)
_CONVENTIONAL_MACHINES = re.compile(r"(pc-)?q35.*|virt.*|none")
_CREDENTIAL = re.compile(r"io\.systemd\.credential(\.binary)?:([^=]+)=(.*)", re.DOTALL)
_FW_CFG_CREDENTIAL = "opt/io.systemd.credentials/"
MIB = 1 << 20


def read(words: Sequence[str], served: Mapping[str, Served]) -> Found:
    """What these words describe.

    :param words: the arguments, without the program.
    :param served: virtiofsds by their sockets.
    :raise CliError: a number in it is none.
    """
    line = _Line(served)
    for name, value in options(words):
        if "$" in value and name not in ("append", "virtfs"):
            line.found.leave(f"-{name} {value}" if name else value, SHELL)
        else:
            line.take(name, value)
    line.connect()
    return line.found


class _Line:
    """A command line that is being read: its objects by their ids, until they are connected."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.found = Found()
        self._served = served
        self._chardevs: dict[str, str] = {}
        self._disks = Disks(self.found)
        self._fsdevs: dict[str, dict[str, str]] = {}
        self._devices: list[tuple[str, dict[str, str], str]] = []
        self._bare = False
        self._takers: dict[str, Callable[[str], None]] = {
            "name": self._name, "m": self._memory, "smp": self._processors,
            "M": self._machine, "machine": self._machine, "accel": self._accelerator, "cpu": self._cpu,
            "enable-kvm": lambda _: self.found.set("Accelerator", "kvm"),
            "kernel": lambda value: self.found.set_path("Kernel", value),
            "initrd": lambda value: self.found.set_path("Initrd", value),
            "append": self._append,
            "bios": self.found.set_firmware, "pflash": self.found.set_firmware,
            "drive": self._disks.drive, "blockdev": self._disks.blockdev, "cdrom": self._disks.cdrom,
            **dict.fromkeys(("", "hda", "hdb", "hdc", "hdd"), self._disks.plain),
            **dict.fromkeys(("netdev", "nic", "net"), lambda value: networks.read(self.found, value)),
            "chardev": self._chardev, "fsdev": self._fsdev, "virtfs": self._virtfs,
            "device": self._device, "fw_cfg": self._fw_cfg, "smbios": self._smbios,
            "object": self._object, "numa": self._numa, "display": self._display,
            "vnc": lambda value: self.found.set("Display", "none" if value == "none" else "vnc"),
            "spice": lambda _: self.found.set("Display", "spice"),
        }  # fmt: skip

    def take(self, name: str, value: str) -> None:
        """Take one option in."""
        self._bare = self._bare or name == "nodefaults"
        taker = self._takers.get(name)
        if taker is not None:
            taker(value)
        elif name not in _OWN:
            self.found.leave(f"-{name} {value}".rstrip())

    def connect(self) -> None:
        """Bring together what named each other by ids."""
        for kind, wanted, text in self._devices:
            self._connect(kind, wanted, text)
        self._disks.connect()
        if self._bare and "Network" not in self.found.options:
            self.found.set("Network", "none")

    # what the machine is

    def _name(self, value: str) -> None:
        given = properties(value)
        self.found.name = dict(given).get("guest", given[0][1] if given and not given[0][0] else "")

    def _memory(self, value: str) -> None:
        given = properties(value)
        size = dict(given).get("size", dict(given).get("", ""))
        number = size.rstrip("bB")
        self.found.set("Memory", int(number) * MIB if size.isdecimal() else parse_size(number))
        for key, more in given:
            if key not in ("", "size"):
                self.found.leave(f"-m {key}={more}", "vfsd's memory is of one size")

    def _processors(self, value: str) -> None:
        given = dict(properties(value))
        count = given.pop("", "") or given.pop("cpus", "")
        topology = [given.get(key, "1") for key in ("sockets", "dies", "clusters", "cores", "threads")]
        try:
            total = int(count) if count else math.prod(map(int, topology))
        except ValueError:
            raise CliError(f'"-smp {value}" has a number that is none', "correct it.") from None
        self.found.set("CPUs", total)
        if given:
            self.found.leave(f"-smp {','.join(f'{key}={item}' for key, item in given.items())}")

    def _machine(self, value: str) -> None:
        rest = []
        for key, item in properties(value):
            if key in ("", "type"):
                if not _CONVENTIONAL_MACHINES.fullmatch(item):
                    self.found.leave(f"machine type {item}", "vfsd makes a q35, or a virt")
            elif key == "accel":
                self._accelerator(item)
            elif key != "memory-backend":
                rest.append(f"{key}={item}")
        if rest:
            self.found.leave(f"-machine {','.join(rest)}")

    def _accelerator(self, value: str) -> None:
        kinds = (dict(properties(value)).get("") or value).split(":")
        if kinds in (["kvm"], ["tcg"]):
            self.found.set("Accelerator", kinds[0])
        elif not set(kinds) <= {"kvm", "tcg"}:
            self.found.leave(f"accelerator {value}", "vfsd uses KVM where it works, and TCG")

    def _cpu(self, value: str) -> None:
        if value not in ("host", "max"):
            self.found.leave(f"-cpu {value}", "vfsd takes host with KVM, and max")

    def _append(self, value: str) -> None:
        self.found.set("Append", value)
        if "$" in value:
            self.found.leave(f"what $ stands for in -append {value}", SHELL)

    def _object(self, value: str) -> None:
        if not value.startswith("memory-backend-"):
            self.found.leave(f"-object {value}")

    def _numa(self, value: str) -> None:
        if set(dict(properties(value))) - {"", "memdev"}:
            self.found.leave(f"-numa {value}", "vfsd makes one node")

    def _display(self, value: str) -> None:
        kind = value.partition(",")[0].partition("=")[0]
        if kind == "vnc":
            self.found.set("Display", "vnc")
        elif kind != "none":
            self.found.leave(
                f"-display {value}", 'set display to "spice" or "vnc", and vfsctl view opens a window'
            )

    # devices

    def _chardev(self, value: str) -> None:
        given = dict(properties(value))
        if "path" in given:
            self._chardevs[given.get("id", "")] = given["path"]

    def _fsdev(self, value: str) -> None:
        given = dict(properties(value))
        self._fsdevs[given.get("id", "")] = given

    def _virtfs(self, value: str) -> None:
        given = dict(properties(value))
        self._nine_p(given, given.get("mount_tag", ""), f"-virtfs {value}")

    def _device(self, value: str) -> None:
        given = dict(properties(value))
        kind = given.get("", given.get("driver", ""))
        self._devices.append((kind, given, value))

    def _connect(self, kind: str, given: dict[str, str], text: str) -> None:
        if kind.startswith("vhost-user-fs"):
            self._virtio_fs(given)
        elif kind.startswith("virtio-9p"):
            self._nine_p(
                self._fsdevs.get(given.get("fsdev", ""), {}), given.get("mount_tag", ""), f"-device {text}"
            )
        elif kind.startswith(networks.CARDS):
            networks.card(self.found, given.get("mac", ""))
        elif kind.startswith(disks.DEVICES):
            self._disks.device(kind, given.get("drive", ""), text)
        elif kind.startswith("vhost-vsock"):
            self.found.leave(f"guest-cid={given.get('guest-cid', '')}", "vfsd chooses one")
        elif not kind.startswith(_OWN_DEVICES):
            self.found.leave(f"-device {text}")

    def _virtio_fs(self, given: dict[str, str]) -> None:
        tag, socket = given.get("tag", ""), self._chardevs.get(given.get("chardev", ""), "")
        served = self._served.get(socket)
        if served is None or not served.share.source:
            self.found.leave(
                f"share {tag}",
                f"no virtiofsd with --socket-path={socket} is given: name its command line, too",
            )
        else:
            self._share(served.share, tag)
        for text in served.left if served else ():
            self.found.leave(f"virtiofsd's {text} of share {tag}")

    def _nine_p(self, given: Mapping[str, str], tag: str, what: str) -> None:
        path = given.get("path", "")
        if not path or "$" in path:
            self.found.leave(what, SHELL if path else "it names no directory")
            return
        share = FoundShare(absolute(path))
        if given.get("readonly", "off") in ("on", "true"):
            share.set("ReadOnly", True)
        self._share(share, tag)
        self.found.leave(f"the protocol of share {tag}", NINE_P)

    def _share(self, share: FoundShare, tag: str) -> None:
        share.set("Tag", tag or make_name(share.source))
        self.found.shares.append(share)

    def _fw_cfg(self, value: str) -> None:
        given = dict(properties(value))
        name = given.get("name", given.get("", ""))
        credential = name.removeprefix(_FW_CFG_CREDENTIAL)
        if credential == name or not given.keys() & {"file", "string"}:
            self.found.leave(f"-fw_cfg {value}")
        elif "file" in given:
            self.found.add_credential(credential, absolute(given["file"]), file=True)
        else:
            self.found.add_credential(credential, given["string"])

    def _smbios(self, value: str) -> None:
        given = dict(properties(value))
        match = _CREDENTIAL.fullmatch(given.get("value", "")) if given.get("type") == "11" else None
        try:
            content = (
                base64.b64decode(match[3]).decode() if match and match[1] else match[3] if match else None
            )
        except (binascii.Error, UnicodeDecodeError):
            content = None
        if match is None or content is None:
            self.found.leave(f"-smbios {value}")
        else:
            self.found.add_credential(match[2], content)
