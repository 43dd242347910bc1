"""Clients that mean harm: floods, clients that never read, that vanish in mid-call, that break the protocol.

Beside them a good client calls, and how long it waits is compared with how long it waits alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests.fuzz.health import observe
from tests.fuzz.raw import BUS, NO_REPLY, RETURN, Bus, Call, Disconnected, Typed
from tests.integration.harness import MANAGER, ROOT, SHARE, Vfsd

OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
PEER = "org.freedesktop.DBus.Peer"
SHARES = 40
"""Shares that stand there while vfsd is flooded, so that answers have some size."""
FLOODERS = 4
"""Processes that flood at once."""
LATENCY_MAX = {"get": 1.5, "create": 4.0}
"""Seconds that a good client may wait, 99 times of 100, for a call and for a share, while others flood. On two cores it
was 0.03 to 0.2 s and 0.07 to 0.9 s, and with a load of 14 up to 2.1 and 3.4 s. As long as refusals
did not wait for their turn, a share took over a minute on a session bus."""
BUS_TURNS = 8
"""How often it may wait for the bus besides, which is flooded itself: a share takes vfsd some words with systemd."""
DEAF_MEMORY = 24 << 20
"""Bytes by which vfsd may grow while clients don't read."""

Tell = Callable[[str], None]


def all_of_it(vfsd: Vfsd, folder: str, prefix: str, seconds: float, tell: Tell) -> list[str]:
    """Everything here, each kind of flood for so long, or none; returns what was wrong."""
    with Bus(vfsd) as good:
        names = [f"{prefix}f{number}" for number in range(SHARES)]
        for name in names:
            made = good.call(Call(ROOT, MANAGER, "CreateShare", "ssa{sv}", [name, folder, []]))
            assert made.message_type.value == RETURN, made.body
        wrong = [*break_the_protocol(vfsd), *vanish(vfsd, folder, prefix)]
        wrong += never_read(vfsd, good, tell)
        wrong += flood(vfsd, folder, prefix, seconds, good, tell) if seconds else []
        for name in [*names, *(f"fuzz-flood{number}" for number in range(FLOODERS))]:
            good.call(Call(ROOT, MANAGER, "RemoveShare", "s", [name]))
    return wrong


def break_the_protocol(vfsd: Vfsd) -> list[str]:
    """Send what no client may: the bus ends the connection, and vfsd hears nothing of it."""
    good = Call(ROOT, MANAGER, "GetShare", "s", ["x"])
    raw = good.raw(9)
    size = struct.pack("<I", 1 << 31)
    null = os.open("/dev/null", os.O_RDONLY)
    calls = [
        Call(ROOT, MANAGER, "GetShare", "s", [b"\xff\xfe\xc0\x80"]),
        Call(ROOT, MANAGER, "GetShare", "s", [b"\xed\xa0\x80"]),
        Call(ROOT, MANAGER, "GetShare", "s", [b"a\0b"]),
        Call(b"no/path", MANAGER, "ListShares"),
        Call(b"/a//b/", MANAGER, "ListShares"),
        Call(ROOT, "x" * 300, "ListShares"),
        Call(ROOT, MANAGER, "not a member"),
        Call(ROOT, MANAGER, "GetShare", "v", [_deep(70)]),
        Call(ROOT, MANAGER, "ListShares", descriptors=[null] * 250),
    ]
    pieces = [
        *(call.raw(9) for call in calls[:-1]),
        raw[:4] + size + raw[8:],
        raw[:12] + size + raw[16:],
        raw[:8] + bytes(4) + raw[12:],
        raw[:3] + b"\2" + raw[4:],
        b"x" + raw[1:],
        bytes(100),
        raw[: len(raw) - 3],
    ]
    for piece in pieces:
        with Bus(vfsd) as bus, contextlib.suppress(OSError):
            bus.socket.sendall(piece)
    with Bus(vfsd) as bus, contextlib.suppress(Disconnected, TimeoutError):
        bus.send(calls[-1])
    os.close(null)
    return _answers(vfsd, "after broken messages")


def vanish(vfsd: Vfsd, folder: str, prefix: str) -> list[str]:
    """Go away in mid-call: with a call that takes a while, with many, and in the middle of a message."""
    for number in range(10):
        name = f"{prefix}gone{number % 3}"
        with Bus(vfsd) as bus:
            for call in (
                Call(ROOT, MANAGER, "CreateShare", "ssa{sv}", [name, folder, []]),
                *[Call(ROOT, OBJECT_MANAGER, "GetManagedObjects")] * 20,
                *[Call(ROOT, MANAGER, "Check")] * (number == 0),
                Call(ROOT, MANAGER, "RemoveShare", "s", [name]),
            ):
                bus.send(call)
            bus.socket.sendall(Call(ROOT, MANAGER, "ListShares").raw(bus.next_serial())[:20])
    return _answers(vfsd, "after clients that vanished")


def never_read(vfsd: Vfsd, good: Bus, tell: Tell) -> list[str]:
    """Ask for much and read none of it, by several clients, one of which listens to all signals too."""
    before = observe(vfsd, good).memory
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(Bus(vfsd)) for _ in range(FLOODERS)]
        deaf[0].send(Call(BUS[1], BUS[2], "AddMatch", "s", ["type='signal'"], destination=BUS[0]))
        whole = Call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        for bus in deaf:
            bus.socket.settimeout(1)
            with contextlib.suppress(Disconnected):
                for _ in range(1000):
                    bus.send(whole)
        wrong = _answers(vfsd, "beside clients that never read")
        grown = observe(vfsd, good).memory - before
        [stats] = good.call_bus(
            "GetConnectionStats", "s", "org.vfsd1", interface="org.freedesktop.DBus.Debug.Stats"
        )
        held = int(stats["IncomingBytes"].value)
    tell(
        f"{vfsd.scope}: beside clients that never read: {grown / (1 << 20):.1f} MiB more, "
        f"the bus holds {held >> 20} MiB"
    )
    if grown > DEAF_MEMORY:
        wrong.append(f"vfsd's memory grew by {grown} bytes for clients that never read")
    return wrong


def flood(vfsd: Vfsd, folder: str, prefix: str, seconds: float, good: Bus, tell: Tell) -> list[str]:
    """Each kind of flood; a good client must be served meanwhile."""
    wrong = []
    alone = _latency(good, folder, prefix, seconds)
    tell(f"{vfsd.scope}: alone: {_figures(alone)}")
    for kind in KINDS:
        with _flooders(vfsd, kind, folder):
            beside = _latency(good, folder, prefix, seconds)
        tell(f"{vfsd.scope}: beside {FLOODERS} floods of {kind}: {_figures(beside)}")
        for what in ("get", "create"):
            waited, allowed = (
                p99(beside[what]),
                p99(alone[what]) + BUS_TURNS * p99(beside["bus"]) + LATENCY_MAX[what],
            )
            if waited > allowed:
                wrong.append(
                    f"beside a flood of {kind} a good client waited {waited:.3f} s for {what}: {allowed:.3f}"
                )
    return wrong


def p99(times: list[float]) -> float:
    """The time that 99 of 100 are not above."""
    return sorted(times)[-1 - len(times) // 100]


def _figures(times: dict[str, list[float]]) -> str:
    parts = [
        f"{what} p50 {sorted(t)[len(t) // 2] * 1000:.1f} p99 {p99(t) * 1000:.1f}" for what, t in times.items()
    ]
    return ", ".join(parts) + f" ms ({len(times['get'])} turns)"


def _latency(good: Bus, folder: str, prefix: str, seconds: float) -> dict[str, list[float]]:
    """What a good client waits for: the bus alone, a property, a share that is made."""
    name = f"{prefix}good"
    calls = {
        "bus": Call(BUS[1], BUS[2], "GetId", destination=BUS[0]),
        "get": Call(ROOT, "org.freedesktop.DBus.Properties", "Get", "ss", [MANAGER, "Version"]),
        "create": Call(ROOT, MANAGER, "CreateShare", "ssa{sv}", [name, folder, []]),
        "remove": Call(ROOT, MANAGER, "RemoveShare", "s", [name]),
    }
    times: dict[str, list[float]] = {what: [] for what in calls}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["get"]) < 3:
        for what, call in calls.items():
            begin = time.perf_counter()
            reply = good.call(call)
            times[what].append(time.perf_counter() - begin)
            assert reply.message_type.value == RETURN, reply.body
    return times


def _answers(vfsd: Vfsd, when: str) -> list[str]:
    with Bus(vfsd) as bus:
        reply = bus.call(Call(ROOT, MANAGER, "ListShares"))
        return [] if reply.message_type.value == RETURN else [f"{when}: {reply.body}"]


def _deep(levels: int) -> Typed:
    deep = Typed("s", "")
    for _ in range(levels):
        deep = Typed("v", deep)
    return deep


# the other processes


def _flood_calls(kind: str, folder: str, number: int) -> list[Call]:
    name = f"fuzz-flood{number}"
    return {
        "quick calls": [Call(ROOT, PEER, "Ping")],
        "calls without reply": [
            Call(ROOT, "org.freedesktop.DBus.Properties", "GetAll", "s", [MANAGER], NO_REPLY)
        ],
        "large replies": [Call(ROOT, OBJECT_MANAGER, "GetManagedObjects")],
        "slow calls": [
            Call(ROOT, MANAGER, "CreateShare", "ssa{sv}", [name, folder, []]),
            Call(f"{ROOT}/share/fuzz_2dflood{number}", SHARE, "Stop"),
            Call(ROOT, MANAGER, "RemoveShare", "s", [name]),
        ],
        "refused calls": [Call(ROOT, MANAGER, "GetShare", "s", ["nowhere"])],
    }[kind]


KINDS = ("quick calls", "calls without reply", "large replies", "slow calls", "refused calls")


@contextlib.contextmanager
def _flooders(vfsd: Vfsd, kind: str, folder: str) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.fuzz.hostile", vfsd.scope, kind, folder]
    flooders = [
        subprocess.Popen([*command, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for number in range(FLOODERS)
    ]
    try:
        for process in flooders:
            assert process.stdout
            assert process.stdout.readline(), "the flood has begun"
        yield
    finally:
        for process in flooders:
            process.communicate(timeout=60)


def _flood(vfsd: Vfsd, calls: list[Call]) -> None:
    """Have as many calls pending as the bus allows, or more than vfsd does, until standard input ends."""
    with Bus(vfsd) as bus:
        print("begun", flush=True)
        bus.socket.setblocking(False)
        room = {"system": 120, "user": 2000}[vfsd.scope]
        to_send, received, waiting = bytearray(), bytearray(), 0
        while True:
            while waiting < room and len(to_send) < 1 << 16:
                for call in calls:
                    to_send += call.raw(bus.next_serial())
                    waiting += call.expects_reply
            number = bus.socket.fileno()
            ready, writable, _ = select.select([0, number], [number] if to_send else [], [])
            if 0 in ready:
                return
            with contextlib.suppress(BlockingIOError):
                if writable:
                    del to_send[: bus.socket.send(to_send)]
                if ready:
                    received += bus.socket.recv(1 << 18)
            waiting -= _count_messages(received)


def _count_messages(received: bytearray) -> int:
    """Take the whole messages away; returns how many they were."""
    count = start = 0
    while len(received) - start >= 16:
        body, _, fields = struct.unpack_from("<III", received, start + 4)
        size = 16 + fields + (-fields % 8) + body
        if len(received) - start < size:
            break
        start += size
        count += 1
    del received[:start]
    return count


if __name__ == "__main__":
    scope, kind_of, source, which = sys.argv[1:]
    _flood(Vfsd(scope), _flood_calls(kind_of, source, int(which)))
