"""A fixed number of random calls, and some seconds of floods, on both buses; HACKING.md, "Fuzzing the bus"."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.fuzz import cli
from tests.fuzz.raw import ERROR, RETURN, Bus, Call, Typed
from tests.integration.conftest import only_user
from tests.integration.harness import MANAGER, ROOT, SHARE, Vfsd
from vfsd.bus.limits import CALL_MAX, CALLS_MAX
from vfsd.options import DEFINITION_MAX

CALLS = 2500
WARM_UP = 1500
FLOOD = 1.0
"""Seconds of each kind."""
LIMITS = "org.freedesktop.DBus.Error.LimitsExceeded"
INVALID = "org.freedesktop.DBus.Error.InvalidArgs"


def test_random_calls_and_floods(vfsd: Vfsd) -> None:
    vfsd.restart()
    seed = int(os.environ.get("VFSD_FUZZ_SEED", random.randrange(1 << 32)))
    assert cli.fuzz(vfsd, seed, lambda calls: calls < CALLS, WARM_UP, FLOOD, print) == []


def test_a_call_to_an_object_that_goes(vfsd: Vfsd, folder: Path) -> None:
    """Set was an internal error when the object went between its arrival and its turn."""
    with Bus(vfsd) as bus:
        for number in range(20):
            name, path = f"s{number}", f"{ROOT}/share/s{number}"
            bus.call(Call(ROOT, MANAGER, "CreateShare", "ssa{sv}", [name, str(folder), []]))
            given = [SHARE, "Tag", Typed("s", "x")]
            serials = [
                bus.send(Call(path, SHARE, "Remove")),
                bus.send(Call(path, "org.freedesktop.DBus.Properties", "Set", "ssv", given)),
            ]
            removed, told = replies(bus, serials)
            assert removed == ""
            assert told.rpartition(".")[2] in ("", "WrongState", "NoSuchShare", "UnknownObject")


@only_user  # the system bus itself allows fewer
def test_too_many_calls_of_one_caller(vfsd: Vfsd) -> None:
    """Some are refused, all are answered, nobody else is refused anything."""
    with Bus(vfsd) as many, Bus(vfsd) as other:
        serials = [many.next_serial() for _ in range(20 * CALLS_MAX)]
        call = Call(ROOT, MANAGER, "ListShares")
        many.socket.sendall(b"".join(call.raw(serial) for serial in serials))
        assert other.call(call).message_type.value == RETURN
        assert set(replies(many, serials)) == {"", LIMITS}
        assert many.call(call).message_type.value == RETURN


def test_a_call_that_is_too_large(vfsd: Vfsd) -> None:
    with Bus(vfsd) as bus:
        reply = bus.call(Call(ROOT, MANAGER, "GetShare", "s", ["x" * (CALL_MAX + 1)]))
        assert (reply.message_type.value, reply.error_name) == (ERROR, LIMITS)
        assert str(CALL_MAX) in reply.body[0]
        assert bus.call(Call(ROOT, MANAGER, "ListShares")).message_type.value == RETURN


def test_a_definition_that_is_too_large(vfsd: Vfsd, folder: Path) -> None:
    with Bus(vfsd) as bus:
        given = [("Append", Typed("s", "x" * (DEFINITION_MAX + 1)))]
        reply = bus.call(Call(ROOT, MANAGER, "CreateMachine", "sa{sv}", ["m", given]))
        assert (reply.error_name, str(DEFINITION_MAX) in reply.body[0]) == (INVALID, True)
        shares = Typed("a(ssa{sv})", [[str(folder), "", []]] * 129)
        reply = bus.call(Call(ROOT, MANAGER, "CreateMachine", "sa{sv}", ["m", [("Shares", shares)]]))
        assert (reply.error_name, "129 shares" in reply.body[0]) == (INVALID, True)


def test_an_error_repeats_no_megabyte(vfsd: Vfsd) -> None:
    with Bus(vfsd) as bus:
        reply = bus.call(Call(ROOT, MANAGER, "GetShare", "s", ["x" * (1 << 20)]))
        assert reply.error_name == "org.vfsd1.Error.NoSuchShare"
        assert len(reply.body[0]) == 16 << 10


def replies(bus: Bus, serials: list[int]) -> list[str]:
    """Names of the errors by which calls were answered, "" for a result."""
    found: dict[int, str] = {}
    while not found.keys() >= set(serials):
        for message in bus.receive(60):
            if message.message_type.value in (RETURN, ERROR):
                assert message.reply_serial not in found
                found[message.reply_serial] = message.error_name
    return [found[serial] for serial in serials]
