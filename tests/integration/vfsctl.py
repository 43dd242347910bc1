"""vfsctl as a test drives it: alone, in the background, or on a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.integration.harness import Vfsd, wait_for

BOOT_TIMEOUT = 60
SMALL = ("--memory", "256M", "--network", "none")


class Result:
    """How a vfsctl ended."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in self.err

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def vfsctl(vfsd: Vfsd, *arguments: str, stdin: str = "", timeout: float = 90) -> Result:
    """Run vfsctl as the scope's user, who needs no option to reach the vfsd that is meant."""
    argv = vfsd.argv(["vfsctl", *arguments])
    return Result(
        subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, cwd="/"
        )
    )


def ok(vfsd: Vfsd, *arguments: str, **options: Any) -> str:
    done = vfsctl(vfsd, *arguments, **options)
    assert done.code == 0, done.err
    return done.out


class Terminal:
    """vfsctl, or another program, on a terminal of its own."""

    def __init__(
        self,
        vfsd: Vfsd,
        *arguments: str,
        columns: int = 80,
        environment: Mapping[str, str] | None = None,
        program: str = "vfsctl",
    ) -> None:
        self._main, self._terminal = pty.openpty()
        self.resize(24, columns)
        self.before = termios.tcgetattr(self._terminal)
        more = [f"{name}={value}" for name, value in (environment or {}).items()]
        argv = vfsd.argv(["env", "-u", "COLUMNS", "TERM=xterm", *more, program, *arguments])
        # setsid makes it the controlling terminal, from which Ctrl-C would come if it were not raw
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            stdin=self._terminal,
            stdout=self._terminal,
            stderr=self._terminal,
        )
        self.text = ""

    def expect(self, pattern: str, timeout: float = BOOT_TIMEOUT) -> str:
        """Read until the pattern was printed after what the last call found; returns what was read."""
        deadline = time.monotonic() + timeout
        fresh = ""
        while not re.search(pattern, fresh):
            readable, _, _ = select.select([self._main], [], [], max(deadline - time.monotonic(), 0))
            assert readable, f"{pattern!r} did not come: {(self.text + fresh)[-2000:]!r}"
            try:
                fresh += os.read(self._main, 4096).decode(errors="replace")
            except OSError:
                fresh += "<closed>"
                assert re.search(pattern, fresh), f"{pattern!r} did not come: {self.text + fresh!r}"
        self.text += fresh
        return fresh

    def send(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """What a window does whose size is changed."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self._terminal)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)

    @property
    def echoes(self) -> bool:
        """Whether what is typed is shown."""
        return bool(termios.tcgetattr(self._terminal)[3] & termios.ECHO)

    def end(self, timeout: float = 30) -> int:
        """Wait for vfsctl, which must leave the terminal as it found it; returns the exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text[-2000:]
            self._drain()
        self._drain()
        assert termios.tcgetattr(self._terminal) == self.before
        return self.process.returncode

    def _drain(self) -> None:
        while select.select([self._main], [], [], 0.05)[0]:
            self.text += os.read(self._main, 4096).decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        os.close(self._main)
        os.close(self._terminal)


@contextlib.contextmanager
def running(vfsd: Vfsd, *arguments: str, stdin: Any = subprocess.DEVNULL) -> Iterator[subprocess.Popen[str]]:
    """A vfsctl in the background; ended by SIGTERM if the test leaves it running."""
    process = subprocess.Popen(
        vfsd.argv(["vfsctl", *arguments]),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        with contextlib.suppress(ValueError):
            process.communicate(timeout=60)


def nothing_left(vfsd: Vfsd) -> None:
    wait_for(lambda: not vfsd.leftovers(), "everything is gone", 10)
    assert vfsctl(vfsd, "status", "--json").json()["Machines"] == []


def escape(path: Path) -> str:
    return str(path).replace("\\", "\\\\").replace(":", "\\:")
