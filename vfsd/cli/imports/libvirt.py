"""libvirt's domain XML: what vfsd has an option for; the rest is named by its element.

Where vfsd does the same in its own way (consoles, controllers, shared memory, what libvirt notes for itself), nothing
is said.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from vfsd.cli.errors import CliError
from vfsd.cli.imports.found import NINE_P, OWN_ADDRESS, Found, FoundShare
from vfsd.cli.values import absolute
from vfsd.limits import GUEST_MEMORY_UNIT
from vfsd.names import make_name

_OWN = frozenset((
    *("uuid", "title", "description", "metadata", "memoryBacking", "currentMemory", "features", "seclabel", "genid"),
    *("on_poweroff", "on_reboot", "on_crash", "on_lockfailure", "pm", "clock", "iothreads", "sysinfo"),
))  # fmt: skip
_OWN_DEVICES = frozenset((
    *("emulator", "controller", "console", "serial", "parallel", "channel", "rng", "input", "video", "audio"),
    *("memballoon", "panic", "watchdog", "vsock"),
))  # fmt: skip
"""What vfsd sees to by itself, or what belongs to the display."""
_UNITS = {
    **dict.fromkeys(("b", "bytes"), 1),
    **{unit + "B": 1000**power for power, unit in enumerate("KMGT", 1)},
    **{unit: 1 << (10 * power) for power, unit in enumerate("kMGT", 1)},
    **{f"{unit}iB": 1 << (10 * power) for power, unit in enumerate("KMGT", 1)},
}
"""libvirt's units of memory (its formatdomain): MB is a million bytes, M is MiB."""
_ON = ("on", "yes", "true", "1")


class _Builder(ET.TreeBuilder):
    """Refuses a document type, in which entities would be defined that grow without end or name files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:  # noqa: ARG002  # ElementTree's
        raise CliError("the XML has a document type, which libvirt's never has", "take <!DOCTYPE …> out.")


def read(text: str) -> Found:
    """What a domain's XML describes.

    The parser (expat) gets nothing from outside, and a document type ends it before an entity is defined.

    :raise CliError: it is no domain.
    """
    parser = ET.XMLParser(target=_Builder())  # noqa: S314  # see above
    try:
        parser.feed(text)
        domain: ET.Element = parser.close()
    except ET.ParseError as error:
        raise CliError(f"it is no XML: {error}", '"virsh dumpxml NAME" prints a domain.') from None
    if domain.tag != "domain":
        raise CliError(
            f"it is a <{domain.tag}> of libvirt's, not a <domain>", '"virsh dumpxml NAME" prints one.'
        )
    domain_reader = _Domain()
    for element in domain:
        domain_reader.take(element)
    if "Network" not in domain_reader.found.options:
        domain_reader.found.set("Network", "none")
    return domain_reader.found


class _Domain:
    """A domain that is being read."""

    def __init__(self) -> None:
        self.found = Found()

    def take(self, element: ET.Element) -> None:
        """Take one element below <domain> in."""
        found, text = self.found, (element.text or "").strip()
        match element.tag:
            case "name":
                found.name = text
            case "memory":
                self._memory(text, element.get("unit", "KiB"))
            case "vcpu":
                found.set("CPUs", _number(text, "vcpu"))
                if element.get("current", text) != text or element.get("cpuset"):
                    found.leave(f"vcpu {_attributes(element)}")
            case "os":
                self._os(element)
            case "cpu":
                if element.get("mode") not in ("host-passthrough", "maximum"):
                    found.leave(f"cpu {_attributes(element)}".strip(), "vfsd takes host with KVM, and max")
            case "devices":
                for device in element:
                    self._device(device)
            case tag if tag not in _OWN:
                found.leave(tag)

    def _memory(self, text: str, unit: str) -> None:
        if unit not in _UNITS:
            raise CliError(f'libvirt has no unit "{unit}" of memory', "correct <memory>.")
        size = _number(text, "memory") * _UNITS[unit]
        self.found.set("Memory", -(-size // GUEST_MEMORY_UNIT) * GUEST_MEMORY_UNIT)

    def _os(self, element: ET.Element) -> None:
        found = self.found
        if element.get("firmware") == "efi":
            found.set("Firmware", "uefi")
        for item in element:
            text = (item.text or "").strip()
            match item.tag:
                case "kernel":
                    found.set_path("Kernel", text)
                case "initrd":
                    found.set_path("Initrd", text)
                case "cmdline":
                    found.set("Append", text)
                case "loader" if text:
                    if item.get("type") == "pflash":
                        found.set("Firmware", "uefi")
                    found.set_firmware(text)
                case "nvram" if text:
                    found.leave(f"the firmware's variables in {text}", "vfsd keeps some of its own")
                case "type":
                    if text != "hvm":
                        found.leave(f"os type {text}", "vfsd knows hvm")
                case "boot" | "loader" | "nvram" | "bootmenu" | "firmware" | "bios" | "smbios":
                    pass
                case tag:
                    found.leave(f"os/{tag}")

    def _device(self, device: ET.Element) -> None:
        match device.tag:
            case "filesystem":
                self._filesystem(device)
            case "disk":
                self._disk(device)
            case "interface":
                self._interface(device)
            case "graphics":
                self._graphics(device)
            case tag if tag not in _OWN_DEVICES:
                self.found.leave(f"devices/{tag} {_attributes(device)}".strip())

    def _disk(self, device: ET.Element) -> None:
        path = _of(device, "source", "file") or _of(device, "source", "dev")
        kind = device.get("device", "disk")
        if not path:
            if kind != "cdrom":  # an empty drive
                self.found.leave(
                    f"disk of type {device.get('type')}", "vfsd's image is a file or a block device"
                )
        elif kind in ("disk", "lun", "cdrom"):
            read_only = device.find("readonly") is not None
            self.found.set_disk(path, read_only=read_only, cdrom=kind == "cdrom")
        else:
            self.found.leave(f"{kind} {path}")

    def _interface(self, device: ET.Element) -> None:
        found, kind = self.found, device.get("type", "")
        what = f"interface of type {kind}"
        if kind == "user":
            found.set_network("user", what)
            for forward in device.findall("portForward"):
                self._forward(forward)
        elif kind == "bridge":
            found.set_network(f"bridge:{_of(device, 'source', 'bridge')}", what)
        elif kind == "ethernet" and _of(device, "target", "dev"):
            found.set_network(f"tap:{_of(device, 'target', 'dev')}", what)
        elif kind == "network":
            name = _of(device, "source", "network")
            found.leave(
                f"{what}: {name}",
                f'"virsh net-info {name}" names its bridge: set network to "bridge:" and that',
            )
        else:
            found.leave(what)
        if address := _of(device, "mac", "address"):
            found.leave(f"address {address}", OWN_ADDRESS)

    def _forward(self, forward: ET.Element) -> None:
        protocol, address = forward.get("proto", "tcp"), forward.get("address", "")
        address = f"[{address}]" if ":" in address else address
        for span in forward.findall("range"):
            start = span.get("start", "")
            what = f"portForward {protocol} {_attributes(span)}"
            if span.get("end", start) != start or span.get("exclude") == "yes":
                self.found.leave(what, "vfsd forwards single ports")
            else:
                self.found.add_forward(f"{protocol}:{address}:{start}:{span.get('to', start)}", what)

    def _graphics(self, device: ET.Element) -> None:
        kind = device.get("type", "")
        if kind in ("vnc", "spice") and "Display" not in self.found.options:
            self.found.set("Display", kind)
        else:
            self.found.leave(f"graphics of type {kind}", "vfsd has one of spice and vnc")

    def _filesystem(self, device: ET.Element) -> None:
        found, source, tag = self.found, _of(device, "source", "dir"), _of(device, "target", "dir")
        if not source:
            where = _of(device, "source", "socket")
            found.leave(
                f"filesystem {tag}",
                f"its virtiofsd at {where} runs elsewhere" if where else "it has no source dir",
            )
            return
        share = FoundShare(absolute(source))
        share.set("Tag", tag or make_name(source))
        if device.find("readonly") is not None:
            share.set("ReadOnly", True)
        if _of(device, "driver", "type") != "virtiofs":
            found.leave(f"the protocol of filesystem {tag}", NINE_P)
        binary = device.find("binary")
        if binary is not None:
            self._binary(binary, share, tag)
        for option, name in (("UIDMap", "uid"), ("GIDMap", "gid")):
            maps = [_id_map(item) for item in device.findall(f"idmap/{name}")]
            if maps:
                share.set(option, maps)
                share.set("Sandbox", "namespace")  # which they need
        for item in device:
            if item.tag not in (
                "driver",
                "source",
                "target",
                "binary",
                "readonly",
                "idmap",
                "alias",
                "address",
            ):
                found.leave(f"filesystem {tag}: {item.tag}")
        found.shares.append(share)

    def _binary(self, binary: ET.Element, share: FoundShare, tag: str) -> None:
        if binary.get("path"):
            self.found.leave(
                f"filesystem {tag}: binary {binary.get('path')}", "vfsd takes this host's virtiofsd"
            )
        if binary.get("xattr") in _ON:
            share.set("XAttr", True)
        for name, attribute, option in (
            ("cache", "mode", "Cache"),
            ("sandbox", "mode", "Sandbox"),
            ("thread_pool", "size", "ThreadPoolSize"),
            ("openfiles", "max", "LimitNOFILE"),
        ):
            value = _of(binary, name, attribute)
            if value:
                share.set(option, value if name in ("cache", "sandbox") else _number(value, name))
        for item in binary:
            if item.tag not in ("cache", "sandbox", "thread_pool", "openfiles"):
                self.found.leave(f"filesystem {tag}: binary/{item.tag} {_attributes(item)}")


def _id_map(item: ET.Element) -> str:
    """In virtiofsd's words."""
    return f":{item.get('start')}:{item.get('target')}:{item.get('count')}:"


def _of(element: ET.Element, path: str, attribute: str) -> str:
    """An attribute of the first element at a path; "" if there is none."""
    found = element.find(path)
    return found.get(attribute, "") if found is not None else ""


def _attributes(element: ET.Element) -> str:
    return " ".join(_pairs(element))


def _pairs(element: ET.Element) -> Iterator[str]:
    for name, value in element.attrib.items():
        yield f"{name}={value}"


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise CliError(f'<{what}> can\'t be "{text}"', "write a whole number.")
    return int(text)
