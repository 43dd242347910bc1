"""Presses Ctrl+Alt+Del on a guest's keyboard: what a machine's leader runs for `machinectl reboot`.

Run by itself: `ctrl_alt_del.py MONITOR`, the QMP socket that is kept for the unit's ExecStop=. While that asks the
guest to power off, nothing is pressed. Only modules that load quickly are imported.
"""

from __future__ import annotations

import json
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

PATIENCE = 5.0
"""Seconds in which QEMU must answer."""
_KEYS = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", "delete")]


def main(monitor: str) -> int:
    """Exit code 0: pressed; 1: not."""
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.settimeout(PATIENCE)
        try:
            qmp.connect(monitor)
            with qmp.makefile("rb") as lines:
                return _press(qmp, lines)
        except (OSError, ValueError):
            return 1


def _press(qmp: socket.socket, lines: BinaryIO) -> int:
    lines.readline(1 << 16)
    _execute(qmp, {"execute": "qmp_capabilities"})
    _execute(qmp, {"execute": "send-key", "arguments": {"keys": _KEYS}, "id": "pressed"})
    while line := lines.readline(1 << 16):
        answer = json.loads(line)
        if isinstance(answer, dict) and answer.get("id") == "pressed":
            return 1 if "error" in answer else 0
    return 1


def _execute(qmp: socket.socket, command: object) -> None:
    qmp.sendall(json.dumps(command).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
