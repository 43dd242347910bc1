"""Ports of the host that lead into a guest."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self

from vfsd.errors import InvalidArgs


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads into the guest."""

    protocol: str
    host_address: str
    host_port: int
    guest_port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `tcp:127.0.0.1:2222:22`, or `tcp::2222:22` for all addresses of the host.

        :raise InvalidArgs: it is not of that form.
        """
        remedy = InvalidArgs(f'forward "{text}" is not of the form tcp:127.0.0.1:2222:22')
        if text.count(":") < 3:
            raise remedy  # that a port is open to everybody must be said
        protocol, _, rest = text.partition(":")
        address, _, ports = rest.rpartition(":")
        address, _, host = address.rpartition(":")
        try:
            forward = cls(protocol, address, int(host), int(ports))
            # a zone after % could be anything, an option of QEMU's too
            if address and getattr(ipaddress.ip_address(address.strip("[]")), "scope_id", None):
                raise remedy
        except ValueError:
            raise remedy from None
        valid = all(0 < port < 1 << 16 for port in (forward.host_port, forward.guest_port))
        if protocol not in ("tcp", "udp") or not valid:
            raise remedy
        return forward
