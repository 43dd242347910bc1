"""The devices of libvirt's domain XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from vfsd.cli.imports.found import AGENT_PORTS, MAPPED, NINE_P, OWN_DISPLAY, Disk, Found, FoundShare, attaches
from vfsd.cli.imports.libvirt_xml import attribute, attributes, described, leave_others, number
from vfsd.cli.values import absolute
from vfsd.names import make_name

_OWN = frozenset(("emulator", "controller", "rng", "video", "audio", "panic"))
"""What vfsd sees to by itself, or what belongs to the display."""
_CONSOLES = ("console", "serial", "parallel", "channel")
_OWN_CONSOLES = ("pty", "stdio", "null", "vc", "spicevmc", "spiceport", "dbus")
_PLACE = frozenset(("alias", "address", "target", "source", "driver", "boot", "acpi", "rom"))
"""What says of a device where it is; and what is read, or lost, by itself."""
_DISK = _PLACE | {"readonly", "backingStore", "mirror", "geometry", "blockio"}
_INTERFACE = _PLACE | {"mac", "model", "portForward", "link"}
_FILE_SYSTEM = _PLACE | {"binary", "readonly", "idmap"}
_BINARY = {
    "cache": "Cache",
    "sandbox": "Sandbox",
    "thread_pool": "ThreadPoolSize",
    "openfiles": "LimitNOFILE",
}
_VALUES = {"cache": "mode", "sandbox": "mode", "thread_pool": "size", "openfiles": "max"}
_LOCAL = ("", "127.0.0.1", "localhost", "::1")
_ON = ("on", "yes", "true", "1")
_LAST = 1 << 32
"""Where what has no place in the boot order stands in it."""


def read(found: Found, domain: ET.Element) -> None:
    """Take a domain's devices in."""
    devices = [device for element in domain.findall("devices") for device in element]
    for disk in sorted((one for one in devices if one.tag == "disk"), key=_boot_order):
        _disk(found, disk)
    for device in devices:
        _device(found, device)
    if "Network" not in found.options:
        found.set("Network", "none")


def _device(found: Found, device: ET.Element) -> None:
    match device.tag:
        case "disk":
            pass
        case "filesystem":
            _filesystem(found, device)
        case "interface":
            _interface(found, device)
        case "graphics":
            _graphics(found, device)
        case tag if tag in _CONSOLES:
            _console(found, device)
        case "vsock":
            if cid := attribute(device, "cid", "address"):
                found.leave(f"vsock: cid {cid}", "vfsd chooses one")
        case "input" if device.get("type") not in ("passthrough", "evdev"):
            pass
        case "memballoon" if device.keys() in ([], ["model"]):
            pass
        case "watchdog" if device.get("model") == "itco":  # that of each q35
            pass
        case tag if tag not in _OWN:
            found.leave(f"devices/{described(device)}")


def _boot_order(disk: ET.Element) -> int:
    order = attribute(disk, "boot", "order")
    return number(order, "boot order") if order else _LAST


def _disk(found: Found, device: ET.Element) -> None:
    path = attribute(device, "source", "file") or attribute(device, "source", "dev")
    kind = device.get("device", "disk")
    if not path:
        if kind != "cdrom":  # an empty drive
            found.leave(f"disk of type {device.get('type')}", "vfsd's image is a file or a block device")
    elif kind in ("disk", "lun", "cdrom"):
        found.set_disk(
            Disk(
                path,
                read_only=device.find("readonly") is not None,
                cdrom=kind == "cdrom",
                format=attribute(device, "driver", "type"),
                bus=attribute(device, "target", "bus") or "virtio",
                lost=tuple(
                    described(item)
                    for item in [*device, *device.findall("source/encryption")]
                    if item.tag not in _DISK
                ),
            )
        )
    else:
        found.leave(f"{kind} {path}")


def _interface(found: Found, device: ET.Element) -> None:
    kind = device.get("type", "")
    what = f"interface of type {kind}"
    # a network's bridge is known while the domain runs
    bridge = attribute(device, "source", "bridge")
    tap = attribute(device, "target", "dev")
    if kind == "user":
        if found.set_network("user", what):
            for forward in device.findall("portForward"):
                _forward(found, forward)
    elif bridge and kind in ("bridge", "network"):
        found.set_network(f"bridge:{bridge}", what)
    elif kind == "ethernet" and tap:
        found.set_network(f"tap:{tap}", what)
    elif kind == "network":
        name = attribute(device, "source", "network")
        found.leave(
            f"{what}: {name}", f'"virsh net-info {name}" names its bridge: set network to "bridge:" and that'
        )
    else:
        found.leave(what)
    leave_others(found, device, what, _INTERFACE)
    if attribute(device, "link", "state") == "down":
        found.leave(f"{what}: link state=down")
    found.set_card(attribute(device, "model", "type"), attribute(device, "mac", "address"))


def _forward(found: Found, forward: ET.Element) -> None:
    protocol, address = forward.get("proto", "tcp"), forward.get("address", "")
    address = f"[{address}]" if ":" in address else address
    for span in forward.findall("range"):
        start = span.get("start", "")
        what = f"portForward {protocol} {attributes(span)}"
        if span.get("end", start) != start or span.get("exclude") == "yes":
            found.leave(what, "vfsd forwards single ports")
        else:
            found.add_forward(f"{protocol}:{address}:{start}:{span.get('to', start)}", what)


def _graphics(found: Found, device: ET.Element) -> None:
    kind = device.get("type", "")
    if kind not in ("vnc", "spice") or "Display" in found.options:
        found.leave(f"graphics of type {kind}", "vfsd has one of spice and vnc")
        return
    found.set("Display", kind)
    where = {device.get("listen", ""), *(item.get("address", "") for item in device.findall("listen"))}
    ports = (
        {device.get(name, "-1") for name in ("port", "tlsPort")} if device.get("autoport") != "yes" else set()
    )
    if not where <= set(_LOCAL) or ports - {"-1"} or device.get("passwd"):
        found.leave(f"where {kind} is seen, and with which password", OWN_DISPLAY)


def _console(found: Found, device: ET.Element) -> None:
    agent = device.tag == "channel" and attribute(device, "target", "name") in AGENT_PORTS
    if not agent and device.get("type") not in _OWN_CONSOLES:
        where = attribute(device, "source", "path") or attribute(device, "source", "host")
        found.leave(f"devices/{described(device)} {where}".strip(), "the console is in the journal")
    leave_others(found, device, f"devices/{device.tag}", _PLACE | {"protocol"})


def _filesystem(found: Found, device: ET.Element) -> None:
    source, tag = attribute(device, "source", "dir"), attribute(device, "target", "dir")
    what = f"filesystem {tag}"
    if not source:
        where = attribute(device, "source", "socket")
        elsewhere = f"its virtiofsd at {where} runs elsewhere" if where else "it has no source dir"
        found.leave(what, attaches(where) or elsewhere)
        return
    share = FoundShare(absolute(source))
    share.set("Tag", tag or make_name(source))
    if device.find("readonly") is not None:
        share.set("ReadOnly", True)
    if attribute(device, "driver", "type") != "virtiofs":
        found.leave(f"the protocol of {what}", NINE_P)
        if device.get("accessmode") in ("mapped", "squash"):
            found.leave(f"accessmode={device.get('accessmode')} of {what}", MAPPED)
    binary = device.find("binary")
    if binary is not None:
        _binary(found, binary, share, what)
    for option, name in (("UIDMap", "uid"), ("GIDMap", "gid")):
        maps = [_id_map(item) for item in device.findall(f"idmap/{name}")]
        if maps:
            share.set(option, maps)
            share.set("Sandbox", "namespace")  # which they need
    leave_others(found, device, what, _FILE_SYSTEM)
    found.shares.append(share)


def _binary(found: Found, binary: ET.Element, share: FoundShare, what: str) -> None:
    if binary.get("path"):
        found.leave(f"{what}: binary {binary.get('path')}", "vfsd takes this host's virtiofsd")
    if binary.get("xattr") in _ON:
        share.set("XAttr", True)
    for item in binary:
        option = _BINARY.get(item.tag)
        value = item.get(_VALUES[item.tag], "") if option else ""
        if not option or not value:
            found.leave(f"{what}: binary/{described(item)}")
        elif option in ("Cache", "Sandbox"):
            share.set(option, "never" if value == "none" and option == "Cache" else value)
        else:
            share.set(option, number(value, item.tag))


def _id_map(item: ET.Element) -> str:
    """In virtiofsd's words."""
    return f":{item.get('start')}:{item.get('target')}:{item.get('count')}:"
