"""The guest's agent, no more of it than the bench needs: running a script of the shell, to its end."""

from __future__ import annotations

import base64
import json
import socket
import time
from pathlib import Path
from typing import Any

from tests.bench.qmp import request

BOOT_TIMEOUT = 60.0
ANSWER_TIMEOUT = 10.0
_GREETING = 0.5
"""Seconds in which an agent that is there says so; one that comes up may have missed the question."""
_POLL = 0.002
"""Seconds between questions whether a script has ended. A question costs the built-in guest no process."""
_SENTINEL = b"\xff"
"""Makes the agent forget half a request, and begins its answer (QEMU's qga/qapi-schema.json)."""


class Agent:
    """A blocking connection to the socket of the agent's port."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._received = bytearray()

    def greet(self) -> None:
        """Wait until the agent answers. :raise TimeoutError."""
        end = time.perf_counter() + BOOT_TIMEOUT
        number = 0
        while time.perf_counter() < end:
            number += 1
            self._socket.sendall(_SENTINEL + request("guest-sync-delimited", {"id": number}))
            try:
                while self._line(_GREETING) != {"return": number}:
                    pass  # an answer to an earlier question
            except TimeoutError:
                continue
            return
        raise TimeoutError("the guest's agent does not answer")

    def shell(self, script: str, *arguments: str) -> bytes:
        """Run a script to its end and return its output. :raise RuntimeError: it failed. TimeoutError."""
        words = ["-c", script, "sh", *arguments]
        started = self._command("guest-exec", path="/bin/sh", arg=words, **{"capture-output": True})
        end = time.perf_counter() + ANSWER_TIMEOUT
        while time.perf_counter() < end:
            told = self._command("guest-exec-status", pid=started["pid"])
            if told["exited"]:
                output = base64.b64decode(told.get("out-data", ""))
                if told["exitcode"]:
                    errors = base64.b64decode(told.get("err-data", ""))
                    raise RuntimeError(f"exit code {told['exitcode']} in the guest: {(errors or output)!r}")
                return output
            time.sleep(_POLL)
        raise TimeoutError("a script in the guest has not ended")

    def close(self) -> None:
        self._socket.close()

    def _command(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(request(command, arguments))
        answer = self._line(ANSWER_TIMEOUT)
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["return"]

    def _line(self, timeout: float) -> Any:
        self._socket.settimeout(timeout)
        while b"\n" not in self._received:
            data = self._socket.recv(1 << 16)
            if not data:
                raise EOFError("QEMU closed the agent's socket")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line.rpartition(_SENTINEL)[2])
