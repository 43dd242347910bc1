"""The MAC address of a machine's network card: the same at each start, and another one for each machine."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

_APPLICATION = bytes.fromhex("6f0b5c1e8d2a4f3797c4e5a1b08d362f")
"""What the host's id is hashed with, so that nobody finds it out from an address (machine-id(5))."""
_MACHINE_ID = Path("/etc/machine-id")
_LOCAL, _MULTICAST = 0x02, 0x01
"""Bits of an address's first byte (IEEE 802)."""


def host_id(path: Path = _MACHINE_ID) -> bytes:
    """The id of this host; empty if it has none."""
    try:
        return path.read_bytes().strip()
    except OSError:
        return b""


def address(host: bytes, uid: int, machine: str) -> str:
    """The address of a user's machine: unicast, locally administered, 46 bits of a hash.

    :param host: host_id(), since machines of two hosts may be on one network.
    :param uid: whose machine it is: each user has names of their own, and a bridge may be everybody's.
    """
    key = hmac.digest(host, _APPLICATION, hashlib.sha256)
    raw = bytearray(hmac.digest(key, f"{uid}:{machine}".encode(), hashlib.sha256)[:6])
    raw[0] = raw[0] & ~_MULTICAST | _LOCAL
    return raw.hex(":")
