"""The networks of QEMU's command line: of its own, at a bridge or at a tap device."""

from __future__ import annotations

import re

from vfsd.cli.imports.found import Found
from vfsd.cli.imports.words import properties

CARDS = ("virtio-net", "e1000", "rtl8139", "vmxnet3", "ne2k", "igb")
_FORWARD = re.compile(r"(?:(tcp|udp):)?(\[[^]]*\]|[^:]*):(\d+)-(\[[^]]*\]|[^:]*):(\d+)")
_GUEST_ADDRESSES = ("", "10.0.2.15")
"""QEMU's own network gives the guest this one."""
_OWN = ("", "type", "id", "model", "mac", "hostfwd", "br", "helper", "ifname", "netdev")
_OWN_VALUES = (("script", "no"), ("downscript", "no"))
"""A tap device is set up by who made it; so it is with vfsd."""


def read(found: Found, value: str) -> None:
    """`-netdev`, `-nic` or `-net`."""
    given = properties(value)
    first = dict(given)
    kind, what = first.get("type") or first.get(""), f"network {value}"
    if kind == "user":
        wanted = "user"
    elif kind == "bridge":
        wanted = f"bridge:{first.get('br', 'br0')}"
    elif kind == "tap" and "ifname" in first:
        wanted = f"tap:{first['ifname']}"
    elif kind == "none":
        wanted = "none"
    else:
        wanted = ""
        if kind != "nic":
            found.leave(what)
    if wanted and found.set_network(wanted, what):
        for key, item in given:
            if key == "hostfwd":
                _forward(found, item)
            elif key not in _OWN and (key, item) not in _OWN_VALUES:
                found.leave(f"network option {key}={item}")
    found.set_card(first.get("model", ""), first.get("mac", ""))


def _forward(found: Found, rule: str) -> None:
    what = f"hostfwd={rule}"
    match = _FORWARD.fullmatch(rule)
    if match is None or match[4] not in _GUEST_ADDRESSES:
        found.leave(what, "vfsd forwards one port of tcp or udp to the guest's own address")
    else:
        found.add_forward(f"{match[1] or 'tcp'}:{match[2]}:{match[3]}:{match[5]}", what)
