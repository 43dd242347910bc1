"""File descriptors go out with the message that they belong to, and stay open nowhere."""

from __future__ import annotations

import array
import io
import os
import socket

import pytest
from dbus_next import Message, MessageType
from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.errors import AuthError

from vfsd.bus import wire
from vfsd.bus.connection import Authenticator
from vfsd.bus.writer import PacedWriter


class Peer:
    """What the writer knows of its connection."""

    unique_name = ":1.1"

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self.failed: list[Exception] = []

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def tell_ready(self) -> None:
        pass

    def fail(self, error: Exception) -> None:
        self.failed.append(error)


def message(serial: int, descriptors: list[int] | None = None, size: int = 0) -> Message:
    signature = "h" if descriptors else "ay"
    body, taken = wire.take_descriptors(signature, descriptors or [b"x" * size])
    return wire.RawMessage(
        wire.marshal(signature, body),
        message_type=MessageType.METHOD_RETURN,
        reply_serial=serial,
        serial=serial,
        signature=signature,
        unix_fds=taken,
    )


def receive(end: socket.socket) -> Message:
    """The next message, as dbus-next reads it."""
    read = Unmarshaller(io.BytesIO(), end).unmarshall()
    assert read is not None
    return read


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_descriptors_become_indexes() -> None:
    taken = wire.take_descriptors("sha{sv}h", ["text", 10, {}, 11])
    assert taken == (["text", 0, {}, 1], [10, 11])
    assert wire.take_descriptors("", []) == ([], [])


def test_a_message_with_descriptors_is_read_by_dbus_next() -> None:
    ours, theirs = socket.socketpair()
    kept, given = os.pipe()
    raw = message(7, [given])._marshall()
    ours.sendmsg([raw], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [given]))])
    read = receive(theirs)
    assert (read.reply_serial, read.signature, read.body) == (7, "h", [0])
    assert [os.fstat(fd).st_ino for fd in read.unix_fds] == [os.fstat(given).st_ino]
    for descriptor in (*read.unix_fds, kept, given):
        os.close(descriptor)
    ours.close()
    theirs.close()


async def test_each_message_takes_its_own_descriptors_along() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    writer = PacedWriter(Peer(ours))  # type: ignore[arg-type]  # the parts of a connection that it needs
    pipes = [os.pipe() for _ in range(2)]
    for number, descriptors in enumerate(([], [pipes[0][1]], [], [pipes[1][1]], []), 1):
        writer.schedule_write(message(number, descriptors))
    expected = [os.fstat(write).st_ino for _, write in pipes]
    writer.flush()
    assert not any(is_open(write) for _, write in pipes), "the copies are closed once they were sent"
    found: list[tuple[int, list[int]]] = []
    for _ in range(5):
        read = receive(theirs)
        found.append((read.serial, [os.fstat(fd).st_ino for fd in read.unix_fds]))
        for descriptor in read.unix_fds:
            os.close(descriptor)
    assert found == [(1, []), (2, expected[:1]), (3, []), (4, expected[1:]), (5, [])]
    for read_end, _ in pipes:
        os.close(read_end)
    ours.close()
    theirs.close()


async def test_descriptors_wait_for_room_and_go_once() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    peer = Peer(ours)
    writer = PacedWriter(peer)  # type: ignore[arg-type]  # as above
    read_end, write_end = os.pipe()
    first, second = message(1, size=1 << 20), message(2, [write_end])
    begin = len(first._marshall())
    end = begin + len(second._marshall())
    writer.schedule_write(first)
    writer.schedule_write(second)
    writer.flush()
    assert is_open(write_end), "there was no room yet"
    received = array.array("i")
    theirs.setblocking(False)
    place = 0
    while place < end:
        try:
            piece, ancillary, _, _ = theirs.recvmsg(1 << 16, socket.CMSG_SPACE(64))
        except BlockingIOError:
            writer.flush()
            continue
        for _, _, raw in ancillary:
            assert place <= begin < place + len(piece), "they come with the first byte of their message"
            received.frombytes(raw)
        place += len(piece)
    assert len(received) == 1
    assert not peer.failed
    os.close(received[0])
    os.set_blocking(read_end, False)
    assert os.read(read_end, 1) == b"", "no other copy is open"
    os.close(read_end)
    ours.close()
    theirs.close()


async def test_what_can_no_longer_be_sent_is_closed() -> None:
    ours, theirs = socket.socketpair()
    writer = PacedWriter(Peer(ours))  # type: ignore[arg-type]  # as above
    read_end, write_end = os.pipe()
    writer.schedule_write(message(1, [write_end]))
    writer.drop()
    assert not is_open(write_end)
    os.close(read_end)
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("answers", "agreed"),
    [
        (["OK 0123", "AGREE_UNIX_FD"], True),
        (["OK 0123", 'ERROR "Unix file descriptors are not passed here"'], False),
    ],
)
def test_a_bus_may_pass_no_descriptors(answers: list[str], agreed: bool) -> None:
    authenticator = Authenticator()
    authenticator._authentication_start(negotiate_unix_fd=True)
    assert [authenticator._receive_line(line) for line in answers] == ["NEGOTIATE_UNIX_FD", "BEGIN"]
    assert authenticator.agreed is agreed


def test_a_bus_that_refuses_the_user_is_an_error() -> None:
    authenticator = Authenticator()
    authenticator._authentication_start(negotiate_unix_fd=True)
    with pytest.raises(AuthError):
        authenticator._receive_line("REJECTED EXTERNAL")
