"""Addresses of network cards: stable, their own, and of the kind that nobody else gives out."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vfsd import mac

HOST = b"0123456789abcdef0123456789abcdef"


def test_an_address_never_changes() -> None:
    # what is written here must stay: guests and DHCP servers know machines by it
    assert mac.address(HOST, 0, "dev") == "26:ee:8b:7c:46:21"


@given(st.binary(max_size=32), st.integers(0, 1 << 32), st.text(min_size=1, max_size=64))
def test_an_address_is_unicast_and_locally_administered(host: bytes, uid: int, name: str) -> None:
    octets = [int(octet, 16) for octet in mac.address(host, uid, name).split(":")]
    assert len(octets) == 6
    assert octets[0] & 0b11 == 0b10


def test_another_machine_user_or_host_has_another_address() -> None:
    every = [
        mac.address(host, uid, name)
        for host in (HOST, HOST[::-1], b"")
        for uid in (0, 1000, 10)
        for name in ("dev", "0dev", "Dev", *(f"dev{number}" for number in range(1000)))
    ]
    assert len(set(every)) == len(every)


def test_the_id_of_a_host(tmp_path: Path) -> None:
    path = tmp_path / "machine-id"
    assert mac.host_id(path) == b""
    path.write_bytes(HOST + b"\n")
    assert mac.host_id(path) == HOST
