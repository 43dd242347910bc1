"""QEMU's monitor, no more of it than the bench needs: commands, descriptors passed along, and waiting for events."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

START_TIMEOUT = 30.0
RETRY = 0.0005
"""Seconds between tries to connect to a monitor that QEMU makes itself."""


class Qmp:
    """A blocking connection."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._lines = connected.makefile("rb")
        self._events: deque[dict[str, Any]] = deque()

    @classmethod
    def until_running(cls, path: Path) -> Qmp:
        """Connect, as soon as there is something to connect to, and return when the processors run."""
        end = time.perf_counter() + START_TIMEOUT
        monitor = cls.open(path)
        while monitor.execute("query-status")["status"] != "running":
            if time.perf_counter() > end:
                raise TimeoutError("QEMU does not run its guest")
        return monitor

    @classmethod
    def open(cls, path: Path) -> Qmp:
        """Connect, as soon as there is something to connect to, and return when QEMU takes commands."""
        end = time.perf_counter() + START_TIMEOUT
        while True:
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(START_TIMEOUT)
            monitor = None
            try:
                connected.connect(str(path))
                monitor = cls(connected)
                monitor._message()
                monitor.execute("qmp_capabilities")
            except (FileNotFoundError, ConnectionError, EOFError):
                # also what connects while systemd makes the socket: FlushPending= turns it away
                monitor.close() if monitor else connected.close()
                if time.perf_counter() > end:
                    raise TimeoutError(f"nothing answers on {path}") from None
                time.sleep(RETRY)
            else:
                return monitor

    @classmethod
    def ahead(cls, path: Path) -> Qmp:
        """Connect to a QEMU that is not up yet, so that no event of its is missed."""
        connected = socket.socket(socket.AF_UNIX)
        connected.settimeout(START_TIMEOUT)
        connected.connect(str(path))
        monitor = cls(connected)
        monitor.send("qmp_capabilities")
        return monitor

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer; events are kept. :raise RuntimeError: QEMU refused."""
        self.send(command, **arguments)
        return self._answer(command)

    def pass_fd(self, name: str, fd: int) -> None:
        """Give QEMU a copy of a descriptor, under a name."""
        socket.send_fds(self._socket, [request("getfd", {"fdname": name})], [fd])
        self._answer("getfd")

    def send(self, command: str, **arguments: Any) -> None:
        """Send a command and wait for nothing."""
        self._socket.sendall(request(command, arguments))

    def wait_for(self, event: str, **data: Any) -> dict[str, Any]:
        """The first event of that name with such data, that has come or comes. :raise TimeoutError, EOFError."""
        while True:
            while self._events:
                found = self._events.popleft()
                if found["event"] == event and data.items() <= found.get("data", {}).items():
                    return found
            self._read()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._lines.close()
            self._socket.close()

    def _answer(self, command: str) -> Any:
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")

    def _read(self) -> dict[str, Any]:
        message = self._message()
        if "event" in message:
            self._events.append(message)
        return message

    def _message(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise EOFError("QEMU closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message


def request(command: str, arguments: Mapping[str, Any]) -> bytes:
    """A command as QMP, and the guest's agent, want it."""
    document: dict[str, Any] = {"execute": command}
    if arguments:
        document["arguments"] = arguments
    return json.dumps(document).encode() + b"\n"


def seconds_of(event: Mapping[str, Any]) -> float:
    """When QEMU says that an event was, in seconds since the epoch."""
    stamp = event["timestamp"]
    return float(stamp["seconds"] + stamp["microseconds"] / 1e6)
