"""The command: one run, its figures, and what was wrong."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.fuzz import campaign, health, hostile
from tests.fuzz.campaign import Findings
from tests.fuzz.raw import Bus
from tests.integration.harness import CommandFailed, Vfsd

PREFIX = "fuzz-"
WARM_UP = 3000
"""Calls before the memory is measured for the first time: what is kept has been filled by then for the most part."""


@contextlib.contextmanager
def _folder(vfsd: Vfsd) -> Iterator[str]:
    """A folder of the scope's user to be shared."""
    made = tempfile.mkdtemp(prefix="vfsd-fuzz-", dir="/srv")
    os.chown(made, vfsd.owner_uid, vfsd.owner_uid)
    yield made
    shutil.rmtree(made)


def _have_connections_made(vfsd: Vfsd, folder: str) -> None:
    """Do what leaves a connection open once: nss-systemd's, to look for a group, and that to logind, for its lock."""
    with contextlib.suppress(CommandFailed):
        options = ("1", "SocketGroup", "s", "no-such-group")
        vfsd.manager("CreateShare", "ssa{sv}", f"{PREFIX}group", folder, *options)
    name = f"{PREFIX}first"
    vfsd.manager("CreateMachine", "sa{sv}", name, "1", "Builtin", "b", "true")
    for verb in ("StartMachine", "KillMachine", "RemoveMachine"):
        vfsd.manager(verb, "s", name)


def fuzz(
    vfsd: Vfsd,
    seed: int,
    go_on: Callable[[int], bool],
    warm_up: int,
    flood: float,
    tell: Callable[[str], None],
) -> list[str]:
    """Fuzz one vfsd, and flood it for so many seconds in each way; returns what was wrong."""
    began, findings = time.time(), Findings()
    tell(f"{vfsd.scope}: seed {seed}")
    with _folder(vfsd) as folder, Bus(vfsd) as bus:
        _have_connections_made(vfsd, folder)
        campaign.run(vfsd, f"{seed} warm-up", PREFIX, folder, lambda calls: calls < warm_up, findings)
        findings.wrong += hostile.all_of_it(vfsd, folder, PREFIX, 0, lambda _text: None)
        campaign.remove_all(bus)
        before = health.observe(vfsd, bus)
        tell(f"{vfsd.scope}: after the warm-up: {before}")
        campaign.run(vfsd, seed, PREFIX, folder, go_on, findings)
        findings.wrong += hostile.all_of_it(vfsd, folder, PREFIX, flood, tell)
        campaign.remove_all(bus)
        after = health.settled(vfsd, bus, before)
    tell(f"{vfsd.scope}: at the end: {after}")
    tell(f"{vfsd.scope}: {findings.calls} calls of {len(findings.members)} members")
    for name, count in findings.answers.most_common():
        tell(f"{vfsd.scope}: {count:8} {name}")
    wrong = findings.wrong + health.compare(before, after) + health.nothing_left(vfsd)
    return wrong + [f"in the journal: {text}" for text in health.complaints(vfsd, began)]


def _print(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until done; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.fuzz",
        description="Calls everything that vfsd has on the bus with random values, and floods it. Only for a lab: "
        "it removes every share and machine.",
    )
    how_long = parser.add_mutually_exclusive_group()
    how_long.add_argument(
        "--calls", type=int, default=10000, metavar="N", help="how many calls (default: 10000)"
    )
    how_long.add_argument("--minutes", type=float, metavar="M", help="for how long instead")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 32), metavar="S", help="as printed before"
    )
    parser.add_argument(
        "--flood", type=float, default=4, metavar="SECONDS", help="of each kind of flood (default: 4)"
    )
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument(
        "--system", action="store_const", const=["system"], dest="scopes", help="the system bus only"
    )
    scope.add_argument(
        "--user", action="store_const", const=["user"], dest="scopes", help="a session bus only"
    )
    given = parser.parse_args(arguments)
    if Path("/etc/hostname").read_text(encoding="ascii").strip() != "vfsd-lab":
        parser.error("this is no lab, and every share and machine would be removed")
    wrong = []
    for name in given.scopes or ["system", "user"]:
        end = time.monotonic() + (given.minutes or 0) * 60

        def go_on(calls: int, end: float = end) -> bool:
            return time.monotonic() < end if given.minutes else calls < given.calls

        vfsd = Vfsd(name)
        vfsd.restart()
        wrong += fuzz(vfsd, given.seed, go_on, WARM_UP, given.flood, _print)
    for text in wrong[:20]:
        _print(f"WRONG: {text}")
    _print(f"{len(wrong)} things were wrong")
    return 1 if wrong else 0
