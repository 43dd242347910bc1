"""Asks a guest to power off and waits for it: ExecStop= of a machine's unit.

Run by itself, so that stopping the unit is polite while vfsd is down: `power_off.py MONITOR DEADLINE TIMEOUT`,
the QMP socket that is kept for it, the file with the deadline of a shutdown that vfsd asked for (µs of
CLOCK_BOOTTIME), and the machine's own timeout in µs. It always ends: systemd then ends QEMU. Only modules that
load quickly are imported.
"""

import json
import os
import socket
import sys
import time

ASK_AGAIN = 3.0
"""Seconds. A guest that has just begun to boot loses the first press of the button."""


def main(monitor: str, deadline_file: str, timeout_usec: int) -> int:
    """Exit code 0: the guest is gone; 1: it isn't."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        with open(deadline_file, encoding="ascii") as file:  # noqa: PTH123  # pathlib takes longer to load
            deadline = int(file.read()) / 1e6
    except (OSError, ValueError):
        deadline = now + timeout_usec / 1e6
    _extend_timeout(deadline - now)
    with socket.socket(socket.AF_UNIX) as qmp:
        try:
            qmp.settimeout(5)
            qmp.connect(monitor)
            return _power_off(qmp, deadline)
        except OSError:
            return 1


def _power_off(qmp: socket.socket, deadline: float) -> int:
    with qmp.makefile("rb") as lines:
        lines.readline(1 << 16)
    # a guest that is paused can't react
    for name in ("qmp_capabilities", "cont"):
        _execute(qmp, name)
    ask_at = now = time.clock_gettime(time.CLOCK_BOOTTIME)
    while now < deadline:
        if now >= ask_at:
            _execute(qmp, "system_powerdown")
            ask_at = now + ASK_AGAIN
        qmp.settimeout(max(min(deadline, ask_at) - now, 0.001))
        try:
            if not qmp.recv(1 << 16):
                return 0
        except TimeoutError:
            pass
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
    return 1


def _execute(qmp: socket.socket, name: str) -> None:
    qmp.sendall(json.dumps({"execute": name}).encode() + b"\n")


def _extend_timeout(seconds: float) -> None:
    """Tell systemd that the stop takes this long (sd_notify(3), EXTEND_TIMEOUT_USEC=)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        try:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.send(f"EXTEND_TIMEOUT_USEC={int((max(seconds, 0) + 10) * 1e6)}".encode())
        except OSError:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
