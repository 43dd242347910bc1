"""The networks of QEMU's command line: of its own, at a bridge or at a tap device."""

from __future__ import annotations

import re

from vfsd.cli.imports.found import OWN_ADDRESS, Found
from vfsd.cli.imports.words import properties

CARDS = ("virtio-net", "e1000", "rtl8139", "vmxnet3", "ne2k", "igb")
_FORWARD = re.compile(r"(?:(tcp|udp):)?(\[[^]]*\]|[^:]*):(\d+)-(\[[^]]*\]|[^:]*):(\d+)")
_GUEST_ADDRESSES = ("", "10.0.2.15")
"""QEMU's own network gives the guest this one."""
_OF_THE_CARD = ("", "type", "id", "model", "mac")


def read(found: Found, value: str) -> None:
    """`-netdev`, `-nic` or `-net`."""
    given = properties(value)
    first = dict(given)
    kind, what = first.get("type") or first.get(""), f"network {value}"
    if kind == "user":
        found.set_network("user", what)
        for key, item in given:
            if key == "hostfwd":
                _forward(found, item)
            elif key not in _OF_THE_CARD:
                found.leave(f"network option {key}={item}")
    elif kind == "bridge":
        found.set_network(f"bridge:{first.get('br', 'br0')}", what)
    elif kind == "tap" and "ifname" in first:
        found.set_network(f"tap:{first['ifname']}", what)
    elif kind == "none":
        found.set_network("none", what)
    elif kind != "nic":
        found.leave(what)
    card(found, first.get("mac", ""))


def card(found: Found, address: str) -> None:
    """A network card with an address, or with none of its own."""
    if address:
        found.leave(f"address {address}", OWN_ADDRESS)


def _forward(found: Found, rule: str) -> None:
    what = f"hostfwd={rule}"
    match = _FORWARD.fullmatch(rule)
    if match is None or match[4] not in _GUEST_ADDRESSES:
        found.leave(what, "vfsd forwards one port of tcp or udp to the guest's own address")
    else:
        found.add_forward(f"{match[1] or 'tcp'}:{match[2]}:{match[3]}:{match[5]}", what)
