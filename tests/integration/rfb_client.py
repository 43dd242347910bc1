"""A VNC viewer without a window: says which display it found at a Unix socket. Run as `rfb_client.py SOCKET`.

The protocol is RFB 3.8 (RFC 6143): versions, no security, initialisation.
"""

from __future__ import annotations

import socket
import struct
import sys

VERSION = b"RFB 003.008\n"
NO_SECURITY = b"\1"


def exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = connection.recv(length - len(data))
        assert piece, f"the server closed after {data!r}"
        data += piece
    return data


def look(path: str) -> str:
    """Width, height and name of the display."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(path)
        assert exactly(connection, len(VERSION)) == VERSION
        connection.sendall(VERSION)
        kinds = exactly(connection, exactly(connection, 1)[0])
        assert NO_SECURITY in kinds, kinds
        connection.sendall(NO_SECURITY)
        assert exactly(connection, 4) == bytes(4)
        connection.sendall(b"\1")  # others may look too
        width, height = struct.unpack(">HH", exactly(connection, 4))
        exactly(connection, 16)  # the pixel format
        name = exactly(connection, *struct.unpack(">I", exactly(connection, 4))).decode()
        return f"{width}x{height} {name}"


if __name__ == "__main__":
    print(look(sys.argv[1]))
