"""AnnounceTag: for a virtual machine monitor that asks virtiofsd for the tag, as crosvm does."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from tests.integration.harness import MACHINE, SHARE, Client, Vfsd
from tests.integration.sharing import command_line, connected, wait_active, wait_state
from tests.integration.tiny_guest import tiny_machine
from vfsd.names import TAG_MAX

# https://qemu.readthedocs.io/en/latest/interop/vhost-user.html
_GET_FEATURES, _SET_FEATURES, _SET_OWNER = 1, 2, 3
_GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES = 15, 16
_GET_CONFIG = 24
_VERSION = 1
_HAS_PROTOCOL_FEATURES = 1 << 30
_PROTOCOL_CONFIG = 1 << 9
_HEADER = struct.Struct("<III")
_CONFIG = struct.Struct(f"<III{TAG_MAX}sI")
"""Offset, size, flags; virtio_fs_config: the tag and the number of request queues (virtio 1.2, 5.11.4)."""


def say(connection: socket.socket, request: int, payload: bytes = b"") -> None:
    connection.sendall(_HEADER.pack(request, _VERSION, len(payload)) + payload)


def ask(connection: socket.socket, request: int, payload: bytes = b"") -> bytes:
    say(connection, request, payload)
    answered, _, size = _HEADER.unpack(connection.recv(_HEADER.size, socket.MSG_WAITALL))
    assert answered == request
    return connection.recv(size, socket.MSG_WAITALL)


def ask_number(connection: socket.socket, request: int) -> int:
    [number] = struct.unpack("<Q", ask(connection, request))
    return int(number)


def told_tag(connection: socket.socket) -> str | None:
    """The tag that virtiofsd tells a monitor; None if it tells none."""
    say(connection, _SET_OWNER)
    features = ask_number(connection, _GET_FEATURES)
    assert features & _HAS_PROTOCOL_FEATURES
    say(connection, _SET_FEATURES, struct.pack("<Q", features))
    if not ask_number(connection, _GET_PROTOCOL_FEATURES) & _PROTOCOL_CONFIG:
        return None
    say(connection, _SET_PROTOCOL_FEATURES, struct.pack("<Q", _PROTOCOL_CONFIG))
    size = _CONFIG.size - 12
    tag = _CONFIG.unpack(ask(connection, _GET_CONFIG, _CONFIG.pack(0, size, 0, b"", 0)))[3]
    return str(tag.rstrip(b"\0").decode())


async def test_a_monitor_is_told_the_tag_if_the_share_shall(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder, Tag=("s", "größe"), AnnounceTag=("b", True))
    with connected(await client.get(path, SHARE, "SocketPath")) as connection:
        assert told_tag(connection) == "größe"
    wait_state(vfsd, path, "listening")

    silent = await client.create_share("silent", folder)
    with connected(await client.get(silent, SHARE, "SocketPath")) as connection:
        assert told_tag(connection) is None


async def test_the_qemu_of_a_machine_is_not_told_it_twice(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder, AnnounceTag=("b", True))
    machine = await tiny_machine(client, folder)
    await client.call(machine, MACHINE, "AttachShare", "sa{sv}", "src", {})
    await client.call(machine, MACHINE, "Start")
    assert not any(word.startswith("--tag") for word in command_line(wait_active(vfsd, path)))
    assert await client.get(machine, MACHINE, "NeedsRefresh") is False
