"""A program of its own, `ProxyCommand=` of vfsctl ssh: connects to a guest over vsock, for ssh to go on.

    vsock_proxy.py CID PORT

ssh takes the connection itself as a descriptor (ProxyUseFdpass of ssh_config(5)), so nothing stays between. systemd's
own systemd-ssh-proxy does the same, since 256.
"""

from __future__ import annotations

import socket
import sys

_STDOUT = 1


def hand_over(connection: socket.socket, descriptor: int) -> None:
    """Send a connection to whoever has the other end of a socket."""
    with socket.socket(fileno=descriptor) as ssh:
        socket.send_fds(ssh, [b"\0"], [connection.fileno()])


def main(arguments: list[str]) -> int:
    """Connect to a guest, and hand the connection to ssh."""
    cid, port = map(int, arguments)
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as guest:
            guest.connect((cid, port))
            hand_over(guest, _STDOUT)
    except OSError as error:
        sys.stderr.write(f"port {port} of vsock:{cid} can't be reached: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
