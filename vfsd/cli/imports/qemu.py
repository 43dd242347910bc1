"""QEMU's command line: what vfsd has an option for; the rest is named.

Where vfsd does the same in its own way (monitors, consoles, the guest's shared memory, QEMU's confinement), nothing is
said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from vfsd.cli.errors import CliError
from vfsd.cli.imports import disks, networks
from vfsd.cli.imports.disks import Disks
from vfsd.cli.imports.found import AGENT_PORTS, MAPPED, NINE_P, OWN_DISPLAY, Found, FoundShare, attaches
from vfsd.cli.imports.shell import SHELL, is_unknown
from vfsd.cli.imports.virtiofsd import Served
from vfsd.cli.imports.words import is_on, options, properties
from vfsd.cli.values import absolute, parse_size
from vfsd.names import make_name

_OWN = frozenset((
    *("nodefaults", "no-user-config", "nographic", "monitor", "qmp", "qmp-pretty", "mon", "sandbox", "msg", "usb"),
    *("daemonize", "pidfile", "vga", "D", "S", "no-shutdown", "uuid", "watchdog-action"),
))  # fmt: skip
"""What vfsd does in its own way, or what only makes room for devices."""
_OWN_VALUES = frozenset((
    *(("rtc", "base=utc"), ("boot", "strict=on"), ("overcommit", "mem-lock=off")),
    *(("audiodev", "driver=none"), ("audiodev", "none")),
    *(("machine", "usb=off"), ("machine", "acpi=on"), ("machine", "dump-guest-core=off"), ("machine", "mem-merge=on")),
    *(("machine", "vmport=off"), ("machine", "vmport=auto"), ("machine", "hpet=off"), ("machine", "smm=on")),
    *(("rtc", "driftfix=slew"), ("global", "kvm-pit.lost_tick_policy=delay"), ("global", "ICH9-LPC.noreboot=off")),
    *(("global", f"{chip}.disable_s{number}=1") for chip in ("ICH9-LPC", "PIIX4_PM") for number in (3, 4)),
))  # fmt: skip
"""Properties that say what is so anyway, or that no guest of vfsd's misses; libvirt and microvm.nix write these."""
_OWN_OBJECTS = ("memory-backend-", "rng-", "iothread")
_MASTER_KEY = "masterKey0"
"""libvirt's name of the key to what it hands QEMU."""
_OWN_DEVICES = (
    *("virtio-rng", "virtio-serial", "virtconsole", "isa-serial", "pci-serial", "pvpanic", "i8042", "virtio-balloon"),
    *("pcie-root-port", "pcie-pci-bridge", "pci-bridge", "virtio-scsi", "ahci", "ich9-ahci", "usb-ehci"),
    *("virtio-vga", "virtio-gpu", "VGA", "qxl", "virtio-keyboard", "virtio-tablet", "usb-tablet", "usb-kbd"),
    *("usb-mouse", "qemu-xhci", "nec-usb-xhci", "ich9-usb", "piix3-usb"),
)  # fmt: skip
_PLACE = frozenset(("driver", "", "id", "bus", "addr", "port", "chassis", "multifunction"))
"""Properties that say of a device where it is."""
_OWN_CONSOLES = ("stdio", "mon:stdio", "null", "none", "pty", "vc", "chardev")
MIB = 1 << 20


def read(words: Sequence[str], served: Mapping[str, Served]) -> Found:
    """What these words describe.

    :param words: the arguments, without the program.
    :param served: virtiofsds by their sockets.
    :raise CliError: a number in it is none.
    """
    line = _Line(served)
    for name, value in options(words):
        if is_unknown(value) and name not in ("append", "virtfs"):
            line.found.leave(f"-{name} {value}" if name else value, SHELL)
        else:
            line.take(name, value)
    line.connect()
    return line.found


class _Line:
    """A command line that is being read: its objects by their ids, until they are connected."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.found = Found()
        self._served = dict(served)
        self._chardevs: dict[str, dict[str, str]] = {}
        self._disks = Disks(self.found)
        self._fsdevs: dict[str, dict[str, str]] = {}
        self._devices: list[tuple[str, dict[str, str], str]] = []
        self._accelerators: list[str] = []
        """Of `-accel`, of which QEMU takes the first that works."""
        self._bare = False
        self._flash = ""
        self._takers: dict[str, Callable[[str], None]] = {
            "name": self._name, "m": self._memory, "smp": self._processors,
            "M": self._machine, "machine": self._machine, "accel": self._accelerators.append, "cpu": self._cpu,
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
            "vnc": lambda value: self._seen_at("vnc", value), "spice": lambda value: self._seen_at("spice", value),
            **{name: self._console(name) for name in ("serial", "parallel", "debugcon")},
            **{name: self._properties(name) for name in ("rtc", "boot", "overcommit", "audiodev", "global")},
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
        """Bring together what named each other by ids, and what stands more than once."""
        if self._accelerators:
            kinds = [value.partition(",")[0].rpartition("=")[2] for value in self._accelerators]
            self._accelerator(":".join(kinds))
        for kind, wanted, text in self._devices:
            self._connect(kind, wanted, text)
        if self._flash:
            self._disks.flash(self._flash)
        self._disks.connect()
        for served in self._served.values():
            self.found.leave(
                f"directory {served.share.source}",
                f"no device is connected to its virtiofsd at {served.socket}",
            )
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
        if set(topology[1:]) != {"1"} or (given.keys() & {"maxcpus"} and given["maxcpus"] != str(total)):
            self.found.leave(f"-smp {','.join(f'{key}={item}' for key, item in given.items())}")

    def _machine(self, value: str) -> None:
        rest = []
        for key, item in properties(value):
            if key in ("", "type"):
                self.found.set_machine_type(item)
            elif key == "accel":
                self._accelerator(item)
            elif key == "pflash0":
                self._flash = item
            elif key not in ("memory-backend", "pflash1"):
                rest.append((key, item))
        self._leave_properties("machine", rest)

    def _properties(self, name: str) -> Callable[[str], None]:
        return lambda value: self._leave_properties(name, properties(value))

    def _leave_properties(self, name: str, given: Sequence[tuple[str, str]]) -> None:
        """Name what an option says besides what is so anyway."""
        texts = [f"{key}={item}" if key else item for key, item in given if key != "id"]
        if lost := [text for text in texts if (name, text) not in _OWN_VALUES]:
            self.found.leave(f"-{name} {','.join(lost)}")

    def _console(self, name: str) -> Callable[[str], None]:
        def take(value: str) -> None:
            if value.partition(":")[0] not in _OWN_CONSOLES and value not in _OWN_CONSOLES:
                self.found.leave(f"-{name} {value}", "the console is in the journal")

        return take

    def _accelerator(self, value: str) -> None:
        kinds = value.split(":")
        if kinds in (["kvm"], ["tcg"]):
            self.found.set("Accelerator", kinds[0])
        elif not set(kinds) <= {"kvm", "tcg"}:
            self.found.leave(f"accelerator {value}", "vfsd uses KVM where it works, and TCG")

    def _cpu(self, value: str) -> None:
        if value not in ("host", "max"):
            self.found.leave(f"-cpu {value}", "vfsd takes host with KVM, and max")

    def _append(self, value: str) -> None:
        self.found.set("Append", value)
        if is_unknown(value):
            self.found.leave(f"what $ stands for in -append {value}", SHELL)

    def _object(self, value: str) -> None:
        given = dict(properties(value))
        kind = given.get("qom-type", given.get("", ""))
        if not kind.startswith(_OWN_OBJECTS) and given.get("id") != _MASTER_KEY:
            self.found.leave(f"-object {value}")

    def _numa(self, value: str) -> None:
        if set(dict(properties(value))) - {"", "memdev"}:
            self.found.leave(f"-numa {value}", "vfsd makes one node")

    def _display(self, value: str) -> None:
        kind = value.partition(",")[0].partition("=")[0]
        if kind == "vnc":
            self._seen_at("vnc", value.partition("=")[2])
        elif kind != "none":
            self.found.leave(
                f"-display {value}", 'set display to "spice" or "vnc", and vfsctl view opens a window'
            )

    def _seen_at(self, kind: str, where: str) -> None:
        self.found.set("Display", "none" if where == "none" else kind)
        if where != "none":
            self.found.leave(f"where {kind} is seen, and with which password", OWN_DISPLAY)

    # devices

    def _chardev(self, value: str) -> None:
        given = dict(properties(value))
        self._chardevs[given.get("id", "")] = given

    def _fsdev(self, value: str) -> None:
        given = dict(properties(value))
        self._fsdevs[given.get("id", "")] = given

    def _virtfs(self, value: str) -> None:
        given = dict(properties(value))
        self._nine_p(given, given.get("mount_tag", ""), f"-virtfs {value}")

    def _device(self, value: str) -> None:
        given = dict(properties(value))
        kind = given.get("", given.get("driver", ""))
        rest = [kind, *(f"{key}={item}" for key, item in given.items() if key not in _PLACE)]
        self._devices.append((kind, given, ",".join(rest) if value.startswith("{") else value))

    def _connect(self, kind: str, given: dict[str, str], text: str) -> None:
        if kind.startswith("vhost-user-fs"):
            self._virtio_fs(given)
        elif kind.startswith("virtio-9p"):
            self._nine_p(
                self._fsdevs.get(given.get("fsdev", ""), {}), given.get("mount_tag", ""), f"-device {text}"
            )
        elif kind.startswith(networks.CARDS):
            self.found.set_card(kind, given.get("mac", ""))
        elif kind.startswith(disks.DEVICES):
            self._disks.device(kind, given, text)
        elif kind.startswith("vhost-vsock"):
            self.found.leave(f"guest-cid={given.get('guest-cid', '')}", "vfsd chooses one")
        elif kind == "virtserialport":
            if given.get("name") not in AGENT_PORTS:
                self.found.leave(f"-device {text}")
        elif not kind.startswith(_OWN_DEVICES):
            self.found.leave(f"-device {text}")
        elif "chardev" in given:
            backend = self._chardevs.get(given["chardev"], {})
            self._console(f"device {kind}")(backend.get("backend", backend.get("", "null")))

    def _virtio_fs(self, given: dict[str, str]) -> None:
        tag, socket = given.get("tag", ""), self._chardevs.get(given.get("chardev", ""), {}).get("path", "")
        served = self._served.pop(socket, None)
        if served is None or not served.share.source:
            self.found.leave(
                f"share {tag}",
                attaches(socket)
                or f"no virtiofsd with --socket-path={socket} is given: name its command line, too",
            )
        else:
            self._share(served.share, tag)
        for text in served.left if served else ():
            self.found.leave(f"virtiofsd's {text} of share {tag}")

    def _nine_p(self, given: Mapping[str, str], tag: str, what: str) -> None:
        path = given.get("path", "")
        if not path or is_unknown(path):
            self.found.leave(what, SHELL if path else "it names no directory")
            return
        share = FoundShare(absolute(path))
        if is_on(given, "readonly"):
            share.set("ReadOnly", True)
        self._share(share, tag)
        self.found.leave(f"the protocol of share {tag}", NINE_P)
        if given.get("security_model", "").startswith("mapped"):
            self.found.leave(f"security_model={given['security_model']} of share {tag}", MAPPED)

    def _share(self, share: FoundShare, tag: str) -> None:
        share.set("Tag", tag or make_name(share.source))
        self.found.shares.append(share)

    def _fw_cfg(self, value: str) -> None:
        given = dict(properties(value))
        name = given.get("name", given.get("", ""))
        if not self.found.add_fw_cfg(name, file=given.get("file"), content=given.get("string")):
            self.found.leave(f"-fw_cfg {value}")

    def _smbios(self, value: str) -> None:
        given = properties(value)
        strings = [item for key, item in given if key == "value"] if ("type", "11") in given else []
        taken = [self.found.add_smbios(item) for item in strings]
        if not taken or not all(taken):
            self.found.leave(f"-smbios {value}")
