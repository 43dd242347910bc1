"""What a guest does to itself: reboot, panic, power off; each is seen, and told from what was asked for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, Client, Vfsd, until, wait_for
from tests.integration.test_hotplug import builtin, execute, guest_is_ready
from tests.integration.test_shutdown import assert_clean
from tests.integration.tiny_guest import tiny_machine, walked

GUEST_EVENT = "MESSAGE_ID=47c5df5b6e884b478d3aaf95e43b1f00"
PANIC = "echo c >/proc/sysrq-trigger"
_RESETS_ITSELF = bytes.fromhex("b0fe e664 f4 ebfd")  # pulse the reset line of the keyboard's controller; hlt


async def later(client: Client, machine: str, command: str, seconds: float = 0.3) -> None:
    """Let the guest do what it would not live to answer for."""
    await execute(client, machine, "sh", "-c", f"(sleep {seconds}; {command}) </dev/null >/dev/null 2>&1 &")


def told(vfsd: Vfsd, machine: str) -> list[str]:
    """What the journal has about the guest, in order."""
    entries = vfsd.journal(GUEST_EVENT, f"VFSD_MACHINE={machine}")
    return [entry["MESSAGE"].partition(": ")[2] for entry in entries]


async def resets(monitor: Path, count: int) -> None:
    """Wait until QEMU told so many times on a monitor that the guest rebooted."""
    reader, writer = await asyncio.open_unix_connection(monitor)
    try:
        writer.write(b'{"execute": "qmp_capabilities"}\n')
        async with asyncio.timeout(60):
            while count:
                event = json.loads(await reader.readline())
                if event.get("event") == "RESET":
                    assert event["data"] == {"guest": True, "reason": "guest-reset"}
                    count -= 1
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_reboot_then_a_panic(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await builtin(client, folder)
    await guest_is_ready(vfsd, machine)
    before = len(told(vfsd, "guest"))

    # a reset that was asked for is not the guest's
    await client.call(machine, MACHINE, "Reset")
    await until(lambda: client.signals.changes(machine, "GuestReady")[-1] is False, "it is reset")
    await guest_is_ready(vfsd, machine)
    wait_for(lambda: told(vfsd, "guest")[before:] == ["it was reset on request"], "the journal has it")
    assert vfsd.get(machine, MACHINE, "Reason") == ""
    assert "the guest rebooted" not in client.signals.changes(machine, "Reason")

    await later(client, machine, "reboot -f")
    await until(lambda: "the guest rebooted" in client.signals.changes(machine, "Reason"), "it is told", 30)
    await until(lambda: client.signals.changes(machine, "GuestReady")[-1] is False, "the agent is gone")
    await guest_is_ready(vfsd, machine)
    assert vfsd.get(machine, MACHINE, "State") == "running"
    assert vfsd.get(machine, MACHINE, "Reason") == "the guest rebooted"
    assert walked(client.signals, machine) == ["starting", "running"]
    assert told(vfsd, "guest")[before + 1 :] == ["the guest rebooted"]

    await later(client, machine, PANIC)
    await until(lambda: "failed" in walked(client.signals, machine), "the machine is failed", 30)
    assert walked(client.signals, machine) == ["starting", "running", "failed"]
    assert client.signals.states(machine)[-1] == ("running", "failed", "the guest panicked")
    assert vfsd.get(machine, MACHINE, "Reason") == "the guest panicked"
    assert told(vfsd, "guest")[before + 2 :] == ["the guest panicked"]
    assert_clean(vfsd)

    # what failed can be started again, and what failed stays known
    vfsd.restart()
    assert vfsd.get(machine, MACHINE, "State") == "failed"
    assert vfsd.get(machine, MACHINE, "Reason") == "the guest panicked"


async def test_a_panic_that_nobody_saw(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await builtin(client, folder)
    await guest_is_ready(vfsd, machine)
    pid = await client.get(machine, MACHINE, "MainPID")
    await later(client, machine, PANIC, 4)
    vfsd.systemctl("stop", "vfsd.service")
    assert Path(f"/proc/{pid}").exists(), "it panicked too early"
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "QEMU ended", 30)
    vfsd.systemctl("start", "vfsd.service")
    assert vfsd.get(machine, MACHINE, "State") == "failed"
    assert vfsd.get(machine, MACHINE, "Reason") == "the guest panicked"


@only_system
async def test_a_panic_while_it_is_shut_down(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """It did not power off: that it ended does not make it a success."""
    machine = await builtin(client, folder)
    await guest_is_ready(vfsd, machine)
    await execute(client, machine, "sh", "-c", f"printf '#!/bin/sh\n{PANIC}\n' >/.vfsd/stop")
    await client.call(machine, MACHINE, "Shutdown", "t", 30_000_000)
    await until(lambda: "failed" in walked(client.signals, machine), "the machine is failed", 30)
    assert walked(client.signals, machine) == ["starting", "running", "stopping", "failed"]
    assert client.signals.states(machine)[-1][2] == "the guest panicked"


@only_system
async def test_a_guest_that_reboots_for_ever(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """It may do so; vfsd and the journal don't suffer."""
    machine = await tiny_machine(client, folder, "restless")
    with (folder / "restless.img").open("r+b") as image:
        image.write(_RESETS_ITSELF)
    before = len(told(vfsd, "restless"))
    await client.call(machine, MACHINE, "Start")
    await until(lambda: len(told(vfsd, "restless")) >= before + 10, "it rebooted ten times", 60)
    await until(lambda: vfsd.get(machine, MACHINE, "Reason") == "the guest rebooted", "it is told")
    signals = len(client.signals.seen)
    await resets(vfsd.runtime / "machine" / "restless" / "qmp-stop", 5)
    assert told(vfsd, "restless")[before:] == ["the guest rebooted"] * 10
    assert len(client.signals.seen) == signals
    await client.call(machine, MACHINE, "Kill")
    assert client.signals.states(machine)[-1][1:] == ("stopped", "killed on request")
