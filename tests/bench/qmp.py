"""QEMU's monitor, no more of it than "does the guest run?" and "quit"."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

START_TIMEOUT = 30.0
RETRY = 0.0005
"""Seconds between tries to connect to a monitor that QEMU makes itself."""


class Qmp:
    """A blocking connection."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._file = connected.makefile("rwb", buffering=0)
        self._lines = connected.makefile("rb")

    @classmethod
    def until_running(cls, path: Path) -> Qmp:
        """Connect, as soon as there is something to connect to, and return when the processors run."""
        end = time.perf_counter() + START_TIMEOUT
        while True:
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(START_TIMEOUT)
            monitor = None
            try:
                connected.connect(str(path))
                monitor = cls(connected)
                monitor._lines.readline()
                monitor.execute("qmp_capabilities")
                break
            except (FileNotFoundError, ConnectionError, EOFError):
                # also what connects while systemd makes the socket: FlushPending= turns it away
                monitor.close() if monitor else connected.close()
                if time.perf_counter() > end:
                    raise TimeoutError(f"nothing answers on {path}") from None
                time.sleep(RETRY)
        while monitor.execute("query-status")["status"] != "running":
            if time.perf_counter() > end:
                raise TimeoutError("QEMU does not run its guest")
        return monitor

    def execute(self, command: str) -> Any:
        """Run a command; events are passed over."""
        self.send(command)
        while line := self._lines.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
        raise EOFError("QEMU closed its monitor")

    def send(self, command: str) -> None:
        """Send a command and wait for nothing."""
        self._file.write(json.dumps({"execute": command}).encode() + b"\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            self._lines.close()
            self._socket.close()
