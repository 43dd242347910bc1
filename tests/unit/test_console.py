"""A console's parts: what is replayed, where the live stream joins it, and sockets whose other side does nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.harness import until
from vfsd.console import ends
from vfsd.console.ends import BACKLOG, CHUNK, Hangups, Reader, Tap
from vfsd.console.history import LIMIT, Kept, Seam, Tail, overlaps

FEW_LETTERS = st.text("ab", max_size=12).map(str.encode)


@given(st.lists(st.binary(max_size=3 * LIMIT // 2).map(lambda seed: seed * 50), max_size=6))
def test_the_tail_is_the_last_64_kib(pieces: list[bytes]) -> None:
    tail = Tail(b"begin")
    for piece in pieces:
        tail.add(piece)
    assert bytes(tail) == (b"begin" + b"".join(pieces))[-LIMIT:]
    assert len(tail._kept) <= 2 * LIMIT + max(map(len, pieces), default=0)


def test_a_long_stream_takes_no_more_room_than_a_short_one() -> None:
    tail = Tail()
    for number in range(100_000):
        tail.add(b"%07d\n" % number)
        assert len(tail._kept) <= 2 * LIMIT
    assert bytes(tail) == b"".join(b"%07d\n" % number for number in range(100_000))[-LIMIT:]


def test_what_is_kept_is_private_and_replaced_as_a_whole(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept")
    assert kept.read() == b""
    kept.write(b"x" * LIMIT + b"end")
    assert kept.read() == b"x" * (LIMIT - 3) + b"end"
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600
    kept.write(b"short")
    assert kept.read() == b"short"
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
    kept.forget()
    kept.forget()
    assert kept.read() == b""


@given(FEW_LETTERS, FEW_LETTERS, st.integers(0, 4), st.integers(0, 14))
def test_overlaps(earlier: bytes, later: bytes, low: int, high: int) -> None:
    most = min(high, len(earlier), len(later))
    expected = [n for n in range(most, low - 1, -1) if earlier[len(earlier) - n :] == later[:n]]
    assert overlaps(earlier, later, low, high) == expected


def test_overlaps_of_much_that_is_alike_are_found_soon() -> None:
    assert len(overlaps(b"a" * LIMIT, b"a" * 2 * LIMIT, 0, LIMIT)) == LIMIT + 1
    assert overlaps(b"a" * LIMIT, b"a" * (LIMIT - 1) + b"b", LIMIT // 2, LIMIT) == list(
        range(LIMIT - 1, LIMIT // 2 - 1, -1)
    )


@given(
    before=FEW_LETTERS,
    rounds=st.lists(st.tuples(FEW_LETTERS, FEW_LETTERS, FEW_LETTERS), min_size=1, max_size=5),
    last=FEW_LETTERS,
)
def test_no_byte_is_lost_or_doubled_where_the_stream_joins_the_ring(
    before: bytes, rounds: list[tuple[bytes, bytes, bytes]], last: bytes
) -> None:
    """The guest writes at every moment: before the ring is asked, until it answers, and until that has come.

    In a last round it writes nothing, which makes the place certain however often it repeated itself.
    """
    seam, stream, unread = Seam(), b"", before
    known = False
    for written, until_answer, until_arrival in [*rounds, (last, b"", b"")]:
        stream += written
        low = len(stream)
        piece, unread = unread + written + until_answer, until_arrival
        stream += until_answer + until_arrival
        known = seam.narrow(piece, stream, low, len(stream))
        if known:
            break
    assert known
    assert seam.joined(stream) == before + stream


def test_a_ring_that_overflowed_gives_way_to_the_stream() -> None:
    stream = bytes(number * 7 % 251 for number in range(2 * LIMIT))
    seam = Seam()
    assert not seam.narrow(stream[-LIMIT:], stream, len(stream), len(stream))
    assert seam.joined(stream) == stream


# sockets


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    yield ours, theirs
    ours.close()
    theirs.close()


def ignore(_: object) -> None:
    pass


async def settle() -> None:
    """Let the event loop see what is ready."""
    for _ in range(5):
        await asyncio.sleep(0)


def read_all(end: socket.socket) -> bytes:
    """What is there to be read."""
    end.setblocking(False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := end.recv(1 << 20):
            data += piece
    return data


async def test_a_reader_that_does_not_read_loses_what_follows(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    reader = Reader(ours, ignore, ignore)
    stream = b"".join(b"%07d\n" % number for number in range(200_000))
    for start in range(0, len(stream), 10_000):
        reader.send(stream[start : start + 10_000])
        assert len(reader._backlog) <= BACKLOG
    got = b""
    while piece := read_all(theirs):
        got += piece
        await settle()
    assert BACKLOG < len(got) < len(stream)
    assert stream.startswith(got), "what came is in order and without a gap up to the loss"
    reader.send(b"later")
    assert read_all(theirs) == b"later"
    reader.close()


async def test_a_reader_that_is_slow_gets_the_end_all_the_same(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    reader = Reader(ours, ignore, ignore)
    reader.send(b"x" * (1 << 20))
    waiting = len(reader._backlog)
    assert waiting == BACKLOG
    reader.finish()
    assert reader.fileno() >= 0
    got = 0
    while reader.fileno() >= 0:
        got += len(read_all(theirs))
        await settle()
    assert got + len(read_all(theirs)) > waiting


async def test_a_reader_that_never_takes_the_end_is_left(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "LINGER", 0.05)
    reader = Reader(pair[0], ignore, ignore)
    reader.send(b"x" * (1 << 20))
    reader.finish()
    await until(lambda: reader.fileno() < 0, "it is closed")


async def test_input_is_taken_only_while_it_is_wanted(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    typed: list[bytes] = []
    reader = Reader(ours, typed.append, ignore)
    theirs.send(b"early")
    await settle()
    assert typed == []
    reader.take_input(True)
    await settle()
    assert typed == [b"early"]
    theirs.send(b"x" * (CHUNK + 1))
    await settle()
    assert typed[1:] == [b"x" * CHUNK, b"x"]
    reader.close()
    assert theirs.recv(1) == b""


async def test_a_reader_that_hangs_up_is_noticed_whatever_is_asked_of_it(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    typed: list[bytes] = []
    gone: list[Reader] = []
    hangups = Hangups()

    def forget(reader: Reader) -> None:
        gone.append(reader)
        hangups.forget(reader)

    reader = Reader(ours, typed.append, forget)
    hangups.watch(reader)
    theirs.shutdown(socket.SHUT_WR)
    reader.take_input(True)
    await settle()
    reader.send(b"still")
    assert theirs.recv(9) == b"still", "who types no more may read on"
    assert not gone
    theirs.close()
    await settle()
    assert gone == [reader]
    assert reader.fileno() < 0
    assert not hangups
    hangups.close()


async def test_what_was_typed_last_is_taken_from_a_reader_that_hangs_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    typed: list[bytes] = []
    hangups = Hangups()
    reader = Reader(ours, typed.append, hangups.forget)
    hangups.watch(reader)
    reader.take_input(True)
    theirs.send(b"x" * (2 * CHUNK + 1))
    theirs.close()
    await settle()
    assert b"".join(typed) == b"x" * (2 * CHUNK + 1)
    assert reader.fileno() < 0
    hangups.close()


async def test_a_guest_that_does_not_read_blocks_the_tap(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    tap = Tap(ours)
    room: list[bool] = []
    tap.listen(ignore, lambda: None, lambda: room.append(True))
    sent = 0
    while not tap.blocked:
        tap.write(b"x" * CHUNK)
        sent += CHUNK
        assert sent < 10 << 20
    assert len(tap._pending) <= CHUNK
    got = 0
    while got < sent:
        got += len(read_all(theirs))
        await settle()
    assert (got, tap.blocked, room) == (sent, False, [True])
    tap.close()


async def test_the_tap_tells_output_and_its_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.setblocking(False)
    tap = Tap(ours)
    theirs.send(b"before")
    assert (tap.drain(), tap.drain()) == (b"before", b"")
    told: list[bytes] = []

    def end() -> None:
        told.append(b"end")
        tap.close()

    tap.listen(told.append, end, lambda: None)
    theirs.send(b"after")
    theirs.close()
    await settle()
    assert told == [b"after", b"end"]


async def test_a_tap_that_nobody_listens_at(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await Tap.open(tmp_path / "nothing")
