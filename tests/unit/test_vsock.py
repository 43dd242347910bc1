"""vsock: what a guest's systemd says is read, whatever it is; a CID and a place to listen are found, or not."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd import vsock
from vfsd.vsock import Address, Notice, parse

SSH = b"ssh-access.target"
LINES = st.sampled_from(
    [b"READY=1", b"READY=0", b"STOPPING=1", b"X_SYSTEMD_SHUTDOWN=reboot", b"X_SYSTEMD_UNIT_ACTIVE=" + SSH]
)


@pytest.mark.parametrize(
    ("message", "notice"),
    [
        # as a systemd 257 sends them
        (b"READY=1\nSTATUS=Ready.", Notice(ready=True)),
        (b"READY=1", Notice(ready=True)),
        (b"X_SYSTEMD_UNIT_ACTIVE=ssh-access.target", Notice(ssh=True)),
        (b"X_SYSTEMD_UNIT_INACTIVE=ssh-access.target\n", Notice(ssh=False)),
        (b"X_SYSTEMD_UNIT_ACTIVE=multi-user.target", Notice()),
        (b"EXIT_STATUS=0\nX_SYSTEMD_SHUTDOWN=reboot", Notice(ready=False, ssh=False)),
        (b"STOPPING=1", Notice(ready=False, ssh=False)),
        # as nobody does
        (b"", Notice()),
        (b"READY=1\0", Notice()),
        (b" READY=1", Notice()),
        (b"READY=10", Notice()),
        (b"ready=1", Notice()),
        (b"STATUS=READY=1", Notice()),
        (b"X_SYSTEMD_UNIT_ACTIVE", Notice()),
        (b"READY=1\nSTOPPING=1", Notice(ready=False, ssh=False)),
        (b"STOPPING=1\nREADY=1\n\n", Notice(ready=True, ssh=False)),
    ],
)
def test_what_a_message_says(message: bytes, notice: Notice) -> None:
    assert parse(message) == notice


@given(st.binary(max_size=200))
def test_garbage_says_nothing_that_it_does_not_hold(message: bytes) -> None:
    notice = parse(message)
    lines = message.split(b"\n")
    assert notice.ready is not True or b"READY=1" in lines
    assert notice.ssh is not True or b"X_SYSTEMD_UNIT_ACTIVE=" + SSH in lines


@given(st.lists(LINES | st.binary(max_size=8).filter(lambda word: b"\n" not in word)))
def test_the_last_line_counts(lines: list[bytes]) -> None:
    one_by_one: bool | None = None
    for line in lines:
        said = parse(line).ready
        one_by_one = one_by_one if said is None else said
    assert parse(b"\n".join(lines)).ready == one_by_one


def test_what_a_guest_is_told() -> None:
    assert Address(77, 1234).credential == "vsock-stream:2:1234"


class FakeDevice:
    """/dev/vhost-vsock where there is none: which CIDs are in use, and what it answers to others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *used: int, error: int = 0) -> None:
        self.used, self.error, self.asked = used, error, list[int]()
        monkeypatch.setattr(vsock, "DEVICE", tmp_path / "vhost-vsock")
        vsock.DEVICE.touch()
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def ioctl(self, descriptor: int, request: int, argument: bytes) -> int:
        assert os.fstat(descriptor).st_ino == vsock.DEVICE.stat().st_ino
        assert request == (1 << 30) | (struct.calcsize("Q") << 16) | (0xAF << 8) | 0x60, (
            "_IOW(0xAF, 0x60, u64)"
        )
        [cid] = struct.unpack("Q", argument)
        self.asked.append(cid)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if cid in self.used or (not self.used and len(self.asked) > 100):
            raise OSError(errno.EADDRINUSE, "in use")
        return 0


def test_a_cid_is_kept_as_long_as_it_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeDevice(monkeypatch, tmp_path, 40)
    assert vsock.choose_cid(41) == 41
    for wanted, taken in ((40, ()), (41, (41,)), (0, ())):
        cid = vsock.choose_cid(wanted, taken)
        assert cid not in (40, 41)
        assert 2 < cid < 0xFFFFFFFF


def test_no_cid_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = FakeDevice(monkeypatch, tmp_path, error=errno.EADDRINUSE)
    with pytest.raises(OSError, match="no context id"):
        vsock.choose_cid(5)
    assert len(device.asked) == len(set(device.asked)) < 100


def test_a_device_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeDevice(monkeypatch, tmp_path, error=errno.EPERM)
    with pytest.raises(PermissionError):
        vsock.choose_cid(0)
    monkeypatch.setattr(vsock, "DEVICE", tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        vsock.choose_cid(0)


def has_vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_vsock(), reason="the kernel has no AF_VSOCK (CONFIG_VSOCKETS)")
def test_a_port_is_kept_as_long_as_it_is_free() -> None:
    with vsock.listen(0) as first:
        port = first.getsockname()[1]
        with vsock.listen(port) as other:
            assert other.getsockname()[1] != port
    with vsock.listen(port) as again, pytest.raises(BlockingIOError):
        assert again.getsockname()[1] == port
        again.accept()


@pytest.mark.skipif(not has_vsock(), reason="the kernel has no AF_VSOCK (CONFIG_VSOCKETS)")
def test_what_an_earlier_vfsd_left() -> None:
    with vsock.listen(0) as left:
        found = vsock.inherited(os.dup(left.fileno()))
        assert found is not None
        with found:
            assert found.getsockname() == left.getsockname()


def test_what_it_did_not_leave(tmp_path: Path) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    one, other = socket.socketpair()
    with other:
        for descriptor in (file, one.detach()):
            assert vsock.inherited(descriptor) is None
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(descriptor)
