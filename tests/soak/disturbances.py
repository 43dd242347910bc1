"""What happens to vfsd and systemd beside the work: reloads, restarts, kills."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

from tests.integration.harness import ROOT, BusError, Vfsd
from tests.soak.caller import Caller, eventually
from tests.soak.plan import Step
from tests.soak.tally import Tally
from vfsd.names import machine_path, share_path

NAME = "configured"
"""Of the share and the machine that files define from time to time."""


async def disturb(caller: Caller, step: Step, folder: Path) -> None:
    """Do one of plan.DISTURBANCES; what is wrong is told to the tally."""
    vfsd, tally = caller.vfsd, caller.tally
    tally.done[f"disturbance {step.name} ({vfsd.scope})"] += 1
    try:
        if step.name == "daemon-reload":
            await asyncio.to_thread(vfsd.systemctl, "daemon-reload")
        elif step.name == "check":
            results = await caller.call(ROOT, "Check")
            assert results
        elif step.name == "restart vfsd":
            await _come_back(vfsd, tally, vfsd.restart)
        elif step.name == "kill vfsd":
            await _come_back(vfsd, tally, vfsd.crash)
        else:
            await _reload(caller, random.Random(step.seed), folder)
    except (AssertionError, BusError) as error:
        tally.blame(f"{vfsd.scope}: in disturbance {step.name}: {error}")


async def _come_back(vfsd: Vfsd, tally: Tally, end: object) -> None:
    """End vfsd in some way that starts it again."""
    assert callable(end)
    with tally.away(vfsd.scope):
        await asyncio.to_thread(end)


async def _reload(caller: Caller, draw: random.Random, folder: Path) -> None:
    """Files define a share and a machine, are changed, and taken away."""
    vfsd = caller.vfsd
    share, machine = (vfsd.config / kind / f"{NAME}.toml" for kind in ("shares", "machines"))
    cpus = draw.choice((1, 2))
    try:
        await asyncio.to_thread(_write, vfsd, share, f'source = "{folder}"\n')
        await asyncio.to_thread(_write, vfsd, machine, f"builtin = true\ncpus = {cpus}\n")
        await caller.call(ROOT, "Reload")
        found = await eventually(lambda: caller.get(machine_path(NAME), "CPUs"), "the machine is defined")
        assert found == cpus
        await caller.call(ROOT, "GetShare", "s", NAME)
    finally:
        for file in (share, machine):
            file.unlink(missing_ok=True)
        with contextlib.suppress(BusError):
            await caller.call(ROOT, "Reload")
    for path in (machine_path(NAME), share_path(NAME)):
        await eventually(lambda path=path: _gone(caller, path), f"{path} is gone")  # type: ignore[misc]


async def _gone(caller: Caller, path: str) -> bool:
    try:
        await caller.get(path, "Name")
    except BusError as error:
        return error.name == "UnknownObject"
    with contextlib.suppress(BusError):
        if path == share_path(NAME):  # it is not forgotten while it listens
            await caller.call(path, "Stop", allowed=("WrongState", "UnknownObject"))
        await caller.call(ROOT, "Reload")
    return False


def _write(vfsd: Vfsd, file: Path, text: str) -> None:
    """Write as the scope's user, whose folder it is."""
    vfsd.run("mkdir", "-p", str(file.parent))
    vfsd.run("tee", str(file), input=text)
