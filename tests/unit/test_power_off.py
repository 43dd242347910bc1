"""ExecStop= of a machine against a monitor that plays QEMU."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vfsd import power_off

SECOND = 1_000_000
GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


class Qemu:
    """A monitor: notes the commands, and does as `react` says at each."""

    def __init__(self, path: Path, react: Callable[[Qemu, str], None]) -> None:
        self.path = path
        self.commands: list[tuple[str, float]] = []
        self._react = react
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._begun = time.monotonic()
        self.client: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self.client, _ = self._listener.accept()
        except OSError:
            return
        with contextlib.suppress(ConnectionError), self.client, self.client.makefile("rb") as lines:
            self.client.sendall(GREETING)
            for line in lines:
                name = json.loads(line)["execute"]
                self.commands.append((name, time.monotonic() - self._begun))
                self.client.sendall(b'{"return": {}}\r\n')
                self._react(self, name)

    def end(self) -> None:
        """QEMU ends."""
        assert self.client
        self.client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.commands]


def goes_on(qemu: Qemu, name: str) -> None:
    """Do nothing."""


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[Callable[..., Qemu]]:
    made: list[Qemu] = []

    def make(react: Callable[[Qemu, str], None] = goes_on) -> Qemu:
        made.append(Qemu(tmp_path / "qmp", react))
        return made[-1]

    yield make
    for one in made:
        one.close()


def run(monitor: Path, deadline_usec: int | None, timeout_usec: int) -> tuple[int, float]:
    """Exit code and duration, as systemd runs it."""
    file = monitor.with_name("deadline")
    if deadline_usec is not None:
        file.write_text(str(deadline_usec))
    before = time.monotonic()
    code = power_off.main(str(monitor), str(file), timeout_usec)
    return code, time.monotonic() - before


def boot_usec(seconds: float) -> int:
    """This many seconds from now, as the deadline file has it."""
    return int((time.clock_gettime(time.CLOCK_BOOTTIME) + seconds) * SECOND)


def ends_when_asked(qemu: Qemu, name: str) -> None:
    if name == "system_powerdown":
        qemu.end()


def test_the_guest_goes_on_is_asked_and_is_gone(qemu: Callable[..., Qemu]) -> None:
    monitor = qemu(ends_when_asked)
    code, took = run(monitor.path, None, 10 * SECOND)
    assert code == 0
    assert took < 1
    assert monitor.names == ["qmp_capabilities", "cont", "system_powerdown"]


def test_the_machines_own_timeout_holds_without_a_deadline(qemu: Callable[..., Qemu]) -> None:
    monitor = qemu()
    code, took = run(monitor.path, None, SECOND // 2)
    assert code == 1
    assert 0.45 < took < 1.5


@pytest.mark.parametrize("timeout", [30 * SECOND, 1])
def test_the_deadline_wins_over_the_timeout(qemu: Callable[..., Qemu], timeout: int) -> None:
    monitor = qemu()
    code, took = run(monitor.path, boot_usec(0.5), timeout)
    assert code == 1
    assert 0.45 < took < 1.5


def test_a_deadline_that_is_past_ends_at_once(qemu: Callable[..., Qemu]) -> None:
    code, took = run(qemu().path, boot_usec(-5), 30 * SECOND)
    assert code == 1
    assert took < 1


def test_a_damaged_deadline_counts_as_none(qemu: Callable[..., Qemu], tmp_path: Path) -> None:
    (tmp_path / "deadline").write_text("soon")
    code, took = run(qemu().path, None, SECOND // 2)
    assert code == 1
    assert 0.45 < took < 1.5


def test_events_do_not_put_off_the_next_press(
    qemu: Callable[..., Qemu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power_off, "ASK_AGAIN", 0.4)

    def chatter(qemu: Qemu, name: str) -> None:
        def talk() -> None:
            for _ in range(30):
                time.sleep(0.05)
                try:
                    qemu.client.sendall(b'{"event": "RTC_CHANGE"}\r\n')  # type: ignore[union-attr]
                except OSError:
                    return

        if name == "cont":
            threading.Thread(target=talk, daemon=True).start()

    monitor = qemu(chatter)
    run(monitor.path, None, int(1.4 * SECOND))
    presses = [when for name, when in monitor.commands if name == "system_powerdown"]
    assert 3 <= len(presses) <= 5
    assert all(later - earlier > 0.35 for earlier, later in itertools.pairwise(presses))


def test_no_monitor_is_no_traceback(tmp_path: Path) -> None:
    assert power_off.main(str(tmp_path / "none"), str(tmp_path / "deadline"), SECOND)
    (tmp_path / "file").touch()
    command = [
        sys.executable,
        "-I",
        "-S",
        power_off.__file__,
        str(tmp_path / "file"),
        str(tmp_path / "d"),
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_systemd_is_told_how_long_it_takes(
    qemu: Callable[..., Qemu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        run(qemu(ends_when_asked).path, boot_usec(300), SECOND)
        told = notify.recv(1000).decode()
    name, _, value = told.partition("=")
    assert name == "EXTEND_TIMEOUT_USEC"
    assert 305 * SECOND < int(value) < 320 * SECOND
