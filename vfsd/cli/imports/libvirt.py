"""libvirt's domain XML: what vfsd has an option for; the rest is named by its element.

Where vfsd does the same in its own way (consoles, controllers, shared memory, what libvirt notes for itself), nothing
is said.
"""

from __future__ import annotations

import platform
import xml.etree.ElementTree as ET
from xml.parsers.expat import errors

from vfsd.cli.errors import CliError
from vfsd.cli.imports import libvirt_devices
from vfsd.cli.imports.found import Found
from vfsd.cli.imports.libvirt_xml import attributes, described, leave_others, number
from vfsd.limits import GUEST_MEMORY_UNIT

_TYPES = ("kvm", "qemu", "hvf", "")
"""Domains that QEMU runs."""
_OWN = frozenset((
    *("uuid", "title", "description", "metadata", "iothreads", "pm", "on_crash", "on_lockfailure"),
    # read with others, below
    *("devices", "os", "cpu", "sysinfo", "memory", "currentMemory", "vcpu", "name"),
))  # fmt: skip
"""What vfsd sees to by itself, or what is libvirt's own."""
_USUAL = {"on_poweroff": "destroy", "on_reboot": "restart"}
_LIMITS = {
    "memtune": "memory_max limits a machine",
    "cputune": "cpu_quota_per_sec_usec limits a machine",
    "blkiotune": "io_weight weighs a machine",
}
"""By which options vfsd does the like, though not in the same measure."""
_FEATURES = frozenset(("acpi", "apic", "pae", "vmport", "gic", "smm", "ioapic"))
_OWN_SMBIOS = ("smbios mode=sysinfo", "smbios mode=emulate")
_COMMAND_LINE = "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"
"""Options of QEMU's own (libvirt's drvqemu, "Pass-through of arbitrary qemu commands")."""
_UNITS = {
    **dict.fromkeys(("b", "bytes"), 1),
    **{unit + "B": 1000**power for power, unit in enumerate("KMGT", 1)},
    **{unit: 1 << (10 * power) for power, unit in enumerate("kMGT", 1)},
    **{f"{unit}iB": 1 << (10 * power) for power, unit in enumerate("KMGT", 1)},
}
"""libvirt's units of memory (its formatdomain): MB is a million bytes, M is MiB."""
_MORE_THAN_ONE = errors.codes[errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT]


class _Builder(ET.TreeBuilder):
    """Refuses a document type, in which entities would be defined that grow without end or name files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:  # noqa: ARG002  # ElementTree's
        raise CliError("the XML has a document type, which libvirt's never has", "take <!DOCTYPE …> out.")


def read(text: str) -> Found:
    """What a domain's XML describes.

    The parser (expat) gets nothing from outside, and a document type ends it before an entity is defined.

    :raise CliError: it is no domain, or none of QEMU's.
    """
    parser = ET.XMLParser(target=_Builder())  # noqa: S314  # see above
    try:
        parser.feed(text)
        domain: ET.Element = parser.close()
    except ET.ParseError as error:
        if error.code == _MORE_THAN_ONE:
            raise CliError(
                "there is more than one description in it",
                'take one; "virt-install --print-xml 2" prints the machine as it is once it is installed.',
            ) from None
        raise CliError(f"it is no XML: {error}", '"virsh dumpxml NAME" prints a domain.') from None
    if domain.tag != "domain":
        raise CliError(
            f"it is a <{domain.tag}> of libvirt's, not a <domain>", '"virsh dumpxml NAME" prints one.'
        )
    if (kind := domain.get("type", "")) not in _TYPES:
        raise CliError(
            f"it is a domain of type {kind}, which QEMU does not run", "take one of type kvm or qemu."
        )
    found = Found()
    if kind == "qemu":
        found.set("Accelerator", "tcg")
    for element in domain:
        _take(found, element)
    _memory(found, domain)
    libvirt_devices.read(found, domain)
    return found


def _memory(found: Found, domain: ET.Element) -> None:
    """The memory, and what of it a balloon would take back."""
    for name in ("memory", "currentMemory"):
        element = domain.find(name)
        if element is None:
            continue
        unit = element.get("unit", "KiB")
        if unit not in _UNITS:
            raise CliError(f'libvirt has no unit "{unit}" of memory', f"correct <{name}>.")
        size = number((element.text or "").strip(), name) * _UNITS[unit]
        rounded = -(-size // GUEST_MEMORY_UNIT) * GUEST_MEMORY_UNIT
        if name == "memory":
            found.set("Memory", rounded)
        elif "Memory" in found.options and rounded < found.options["Memory"].value:
            found.leave(
                f"currentMemory {size >> 20} MiB", "vfsd has no balloon: the guest has all of its memory"
            )


def _take(found: Found, element: ET.Element) -> None:
    """Take one element below <domain> in."""
    text = (element.text or "").strip()
    match element.tag:
        case "name":
            found.name = text
        case "vcpu":
            found.set("CPUs", number(text, "vcpu"))
            if element.get("current", text) != text or element.get("cpuset"):
                found.leave(f"vcpu {attributes(element)}")
        case "os":
            _os(found, element)
        case "cpu":
            _cpu(found, element)
        case "sysinfo":
            _sysinfo(found, element)
        case tag if tag == _COMMAND_LINE:
            _command_line(found, element)
        case _:
            _take_aside(found, element, text)


def _take_aside(found: Found, element: ET.Element, text: str) -> None:
    """Say what of an element is lost for which vfsd has no option."""
    match element.tag:
        case "features":
            leave_others(found, element, "features", _FEATURES)
        case "memoryBacking":
            leave_others(found, element, "memoryBacking", frozenset(("source", "access")))
        case "clock":
            if element.get("offset", "utc") != "utc":
                found.leave(f"clock {attributes(element)}", "vfsd's clocks are in UTC")
        case "seclabel":
            if element.get("type", "dynamic") != "dynamic":
                found.leave(f"seclabel {attributes(element)}", "vfsd confines QEMU in its own way")
        case tag if tag not in _OWN and _USUAL.get(tag) != text:
            found.leave(described(element), _LIMITS.get(tag, ""))


def _os(found: Found, element: ET.Element) -> None:
    if element.get("firmware") == "efi":
        found.set("Firmware", "uefi")
    boots = [item.get("dev", "") for item in element.findall("boot")]
    if boots and boots[0] != "hd":
        found.leave(f"os/boot dev={boots[0]}", "vfsd boots the image, or the kernel")
    for item in element:
        text = (item.text or "").strip()
        match item.tag:
            case "kernel":
                found.set_path("Kernel", text)
            case "initrd":
                found.set_path("Initrd", text)
            case "cmdline":
                found.set("Append", text)
            case "loader" | "nvram":
                _firmware(found, item, text)
            case "type":
                _board(found, item, text)
            case tag if tag not in ("boot", "firmware") and described(item) not in _OWN_SMBIOS:
                found.leave(f"os/{described(item)}")


def _firmware(found: Found, item: ET.Element, path: str) -> None:
    if item.get("secure") == "yes":
        found.leave("os/loader secure=yes", "vfsd's UEFI has no secure boot")
    if path and item.tag == "nvram":
        found.leave(f"the firmware's variables in {path}", "vfsd keeps some of its own")
    elif path:
        if item.get("type") == "pflash":
            found.set("Firmware", "uefi")
        found.set_firmware(path)


def _board(found: Found, item: ET.Element, kind: str) -> None:
    if kind != "hvm":
        found.leave(f"os type {kind}", "vfsd knows hvm")
    found.set_machine_type(item.get("machine", ""))
    architecture = item.get("arch", "")
    if architecture not in ("", "i686", platform.machine()):
        found.leave(f"architecture {architecture}", "vfsd's guests have that of their host")


def _cpu(found: Found, element: ET.Element) -> None:
    mode, model = element.get("mode", ""), element.find("model")
    shown = " ".join(
        [*([f"mode={mode}"] if mode else []), *([model.text or ""] if model is not None else [])]
    )
    if shown and mode not in ("host-passthrough", "maximum"):
        found.leave(f"cpu {shown}", "vfsd takes host with KVM, and max")
        own = {"model", "feature", "vendor", "cache", "maxphysaddr"}
    else:
        own = {"cache", "maxphysaddr"}
    if len(element.findall("numa/cell")) <= 1:
        own.add("numa")  # before memoryBacking, a single cell was the way to share memory
    leave_others(found, element, "cpu", frozenset(own))


def _sysinfo(found: Found, element: ET.Element) -> None:
    """Credentials for the guest's systemd are taken over; what else stands in the guest's tables is not."""
    if element.get("type") == "fwcfg":
        for entry in element:
            name = entry.get("name", "")
            if not found.add_fw_cfg(name, file=entry.get("file"), content=entry.text or ""):
                found.leave(f"sysinfo: fw_cfg {name}")
        return
    for table in element:
        for entry in table:
            if table.tag != "oemStrings" or not found.add_smbios(entry.text or ""):
                found.leave(f"sysinfo/{table.tag}: {described(entry)}")


def _command_line(found: Found, element: ET.Element) -> None:
    values = [item.get("value", "") for item in element if item.tag.endswith("}arg")]
    if values:
        found.set("ExtraArguments", values)
    for item in element:
        if not item.tag.endswith("}arg"):
            found.leave(f"QEMU's {described(item)}")
