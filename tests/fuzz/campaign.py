"""Random calls, many at a time from several clients, and what must be true of their replies."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.fuzz.choice import Choice
from tests.fuzz.health import DOCUMENTED, SECRETS
from tests.fuzz.raw import ERROR, RETURN, TIMEOUT, Bus, Call, Disconnected, check_body
from tests.fuzz.surface import introspect
from tests.fuzz.values import Chance
from tests.integration.harness import MACHINE, MANAGER, ROOT, SHARE, Vfsd
from vfsd.bus.incoming import Incoming

CLIENTS = 6
IN_FLIGHT = 8
"""Calls of each client at once."""
LOOK_AGAIN = 400
"""Calls after which the tree is walked again."""
OF_THE_BUS = frozenset({"org.freedesktop.DBus.Error.LimitsExceeded"})
"""Errors by which the bus itself may answer."""


@dataclass
class Findings:
    """What was seen."""

    calls: int = 0
    members: Counter[str] = field(default_factory=Counter)
    """Which were called."""
    answers: Counter[str] = field(default_factory=Counter)
    """Names of errors, or "done"."""
    wrong: list[str] = field(default_factory=list)


class Client:
    """One connection, and its calls that wait for a reply."""

    def __init__(self, vfsd: Vfsd, findings: Findings) -> None:
        self.bus = Bus(vfsd)
        self._findings = findings
        self.waiting: dict[int, tuple[Call, float]] = {}

    def send(self, call: Call) -> None:
        """:raise Disconnected."""
        serial = self.bus.send(call)
        if call.expects_reply:
            self.waiting[serial] = (call, time.monotonic())
        self._findings.calls += 1
        self._findings.members[call.member] += 1

    def read(self) -> None:
        """Take in what came. :raise Disconnected."""
        for message in self.bus.poll():
            if message.message_type.value in (RETURN, ERROR):
                self._judge(message)
        for serial, (call, sent) in list(self.waiting.items()):
            if time.monotonic() - sent > TIMEOUT:
                del self.waiting[serial]
                self._findings.wrong.append(f"no reply: {call}")

    def _judge(self, message: Incoming) -> None:
        call, _ = self.waiting.pop(message.reply_serial, (None, 0))
        told = self._findings
        if call is None:
            told.wrong.append(f"a reply to what was answered, or wanted none: {message.reply_serial}")
            return
        try:
            check_body(message)
        except Exception as error:
            told.wrong.append(f"a malformed reply ({error!r}): {call}")
        if message.message_type.value == RETURN:
            told.answers["done"] += 1
            return
        told.answers[message.error_name] += 1
        text = str(message.body[0]) if message.body else ""
        known = OF_THE_BUS if message.sender == "org.freedesktop.DBus" else DOCUMENTED
        if message.error_name not in known or any(secret in text for secret in SECRETS) or not text:
            told.wrong.append(f"{message.error_name}: {text[:300]}: {call}")


def run(
    vfsd: Vfsd, seed: object, prefix: str, folder: str, go_on: Callable[[int], bool], findings: Findings
) -> None:
    """Make random calls as long as `go_on`, which is told how many were made, says so."""
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(16)]
    choice = Choice(Chance(seed), prefix, folder, descriptors)
    clients = [Client(vfsd, findings) for _ in range(CLIENTS)]
    try:
        with Bus(vfsd) as walker:
            begin = findings.calls
            for number, client in enumerate(_turns(clients)):
                if number % LOOK_AGAIN == 0:
                    _keep_some(walker, prefix, folder)
                    choice.look(introspect(walker))
                if not go_on(findings.calls - begin):
                    break
                _one(client, choice.next(), findings)
        for client in clients:
            while client.waiting:
                client.read()
                time.sleep(0.01)
    except Disconnected as error:
        findings.wrong.append(f"the bus ended a connection that sent nothing wrong: {error}")
    finally:
        for client in clients:
            client.bus.socket.close()
        for descriptor in descriptors:
            os.close(descriptor)


def _turns(clients: list[Client]) -> Iterator[Client]:
    while True:
        yield from clients


def _one(client: Client, call: Call, findings: Findings) -> None:
    client.read()
    while len(client.waiting) >= IN_FLIGHT and not findings.wrong:
        client.read()
        time.sleep(0.001)
    client.send(call)


def _keep_some(bus: Bus, prefix: str, folder: str) -> None:
    """See to it that there is always a share and a machine to call, and that they don't become too many."""
    shares, machines = (
        bus.call(Call(ROOT, MANAGER, f"List{kind}")).body[0] for kind in ("Shares", "Machines")
    )
    for name, state, *_ in machines:
        if state not in ("stopped", "failed"):
            bus.call(Call(ROOT, MANAGER, "KillMachine", "s", [name]))
    if len(shares) + len(machines) > 40:
        remove_all(bus)
    bus.call(Call(ROOT, MANAGER, "CreateShare", "ssa{sv}", [f"{prefix}kept", folder, {}]))
    bus.call(Call(ROOT, MANAGER, "CreateMachine", "sa{sv}", [f"{prefix}kept", {}]))


def remove_all(bus: Bus) -> None:
    """End and forget every object."""
    for name, _, path in bus.call(Call(ROOT, MANAGER, "ListMachines")).body[0]:
        bus.call(Call(path, MACHINE, "Kill"))
        bus.call(Call(ROOT, MANAGER, "RemoveMachine", "s", [name]))
    for *_, path in bus.call(Call(ROOT, MANAGER, "ListShares")).body[0]:
        bus.call(Call(path, SHARE, "Stop"))
        bus.call(Call(path, SHARE, "Remove"))
