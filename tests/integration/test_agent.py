"""What vfsd knows of a guest and does in it, with the agent of the built-in guest."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import subprocess
import time
from pathlib import Path

from dbus_next import Variant

from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd, until, wait_for
from tests.integration.test_hotplug import builtin, execute, guest_is_ready, refused
from tests.integration.test_shutdown import console
from tests.integration.tiny_guest import started


async def test_a_guest_and_its_agent(  # noqa: PLR0915  # a boot takes seconds: one for all
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    folder.chmod(0o777)
    machine = await builtin(client, folder)
    [share] = await client.get(machine, MACHINE, "Shares")
    await until(lambda: True in client.signals.changes(machine, "GuestReady"), "it is told", 60)
    await until(lambda: client.signals.changes(machine, "GuestSystem"), "so is the system")
    assert (await client.get(machine, MACHINE, "GuestSystem")).startswith("vfsd built-in guest, Linux 6.")
    await until(lambda: "/first" in client.signals.changes(share, "MountedAt"), "and the mount")
    assert await client.get(share, SHARE, "GuestOptions") == "rw,relatime"

    # programs: arguments, environment, input, exit code
    odd = ["a b", 'it\'s "x" $HOME \\', "two\nlines\ttab", "", "ü€"]
    status, output, _ = await execute(client, machine, "printf", "[%s]", *odd)
    assert (status, output.decode()) == (0, "".join(f"[{word}]" for word in odd))
    given = {"Input": Variant("ay", b"in\0put"), "Environment": Variant("as", ["X=1  2"])}
    call = (machine, MACHINE, "Execute", "asa{sv}")
    found = await client.raw("org.vfsd1", *call, [["sh", "-c", 'echo "$X"; cat; echo e >&2; exit 7'], given])
    assert found == [7, b"1  2\nin\0put", b"e\n"]
    status, output, _ = await execute(client, machine, "head", "-c", "1000000", "/dev/zero")
    assert (status, output) == (0, bytes(1_000_000))
    data = os.urandom(1 << 20)
    found = await client.raw("org.vfsd1", *call, [["sha256sum"], {"Input": Variant("ay", data)}])
    assert found[1].split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert (await execute(client, machine, "sh", "-c", "kill -9 $$"))[0] == 137
    await refused(execute(client, machine, "no-such-program"), "Failed", "no such program")
    # refusals
    huge = {"Input": Variant("ay", bytes((1 << 20) + 1))}
    await refused(client.call(*call, ["cat"], huge), "InvalidArgs", "1 MiB")
    await refused(client.call(*call, [], {}), "InvalidArgs", "nothing to run")
    await refused(client.call(*call, ["x"], {"Nothing": Variant("s", "")}), "InvalidArgs", "Nothing")
    begun = time.monotonic()
    short = {"TimeoutUSec": Variant("t", 500_000)}
    await refused(client.call(*call, ["sleep", "30"], short), "GuestTimeout", "sleep")
    assert time.monotonic() - begun < 5

    # vfsctl: exit code, both outputs, input
    command = vfsd.argv(["vfsctl", vfsd.flag, "exec", "guest", "sh", "-c", "cat; echo no >&2; exit 5"])
    done = subprocess.run(command, input=b"to the guest", capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, b"to the guest", b"no\n")

    # and what a person sees
    shown = vfsd.run("vfsctl", vfsd.flag, "status", "guest")
    assert "Guest: vfsd built-in guest, Linux 6." in shown
    assert re.search(r"mounted at /first \(\S+ used, \S+ free\)", shown), shown
    assert "/first (rw,relatime)" in vfsd.run(
        "vfsctl", vfsd.flag, "status", await client.get(share, SHARE, "Name")
    )

    # what the guest does by hand is seen when it is asked for
    assert (await execute(client, machine, "umount", "/first"))[0] == 0
    await client.call(machine, MACHINE, "QueryGuest")
    assert await client.get(share, SHARE, "MountedAt") == ""
    size, free = await client.raw("org.vfsd1", share, SHARE, "GetSpace", "", [])
    found_fs = os.statvfs(folder)
    assert size == found_fs.f_blocks * found_fs.f_frsize
    assert 0 < free <= size

    # a new vfsd finds the agent again
    vfsd.crash()
    wait_for(lambda: vfsd.get(machine, MACHINE, "GuestReady"), "the agent is found again")
    wait_for(lambda: vfsd.get(machine, MACHINE, "GuestSystem").startswith("vfsd built-in"), "and its system")

    # one that hangs is not ready, and is again once it answers
    begun, before = time.monotonic(), len(client.signals.changes(machine, "GuestReady"))
    await execute(
        client, machine, "sh", "-c", f"(sleep 0.3; kill -STOP {AGENT}; sleep 8; kill -CONT {AGENT}) &"
    )
    while client.signals.changes(machine, "GuestReady")[before:][-2:] != [False, True]:
        await ask(client, machine)
        assert time.monotonic() - begun < 60

    # a machine that is paused
    await client.call(machine, MACHINE, "Pause")
    await refused(client.call(*call, ["true"], {}), "WrongState", "paused")
    await refused(client.call(machine, MACHINE, "QueryGuest"), "WrongState", "paused")
    await client.call(machine, MACHINE, "Resume")

    # an agent that dies
    # and others that take its port: one talks for ever, one talks garbage, one says nothing
    talkers = "; ".join(
        f"{talk} >$port & sleep 4; kill $!" for talk in ("yes", "cat /dev/urandom", "sleep 99")
    )
    script = (
        f"port=/dev/$(cd /sys/class/virtio-ports; echo *); kill -KILL {AGENT}; {talkers}; exec /.vfsd/a*t"
    )
    await execute(client, machine, "sh", "-c", f"(sleep 0.3; {script}) >/dev/null 2>&1 &")
    await until(lambda: client.signals.changes(machine, "GuestReady")[-1] is False, "its end is seen")
    assert await client.get(machine, MACHINE, "GuestSystem") == ""
    assert await client.get(machine, MACHINE, "State") == "running"
    tries = 0
    while not await client.get(machine, MACHINE, "GuestReady"):
        await ask(client, machine)
        tries += 1
    assert tries > 2
    assert (await execute(client, machine, "echo", "back"))[1] == b"back\n"

    # a machine that ends while a program runs in it
    waiting = asyncio.create_task(execute(client, machine, "sleep", "60"))
    await until(lambda: "sleep 60" in guest_processes(vfsd), "it runs")
    await client.call(machine, MACHINE, "Kill")
    await refused(waiting, "WrongState", "ended meanwhile")


AGENT = "$(ps | grep '[v]fsd/agent' | awk '{print $1}')"
"""The processes of the agent, found by their command lines; this one is not among them."""


async def ask(client: Client, machine: str) -> None:
    """Ask for the guest anew; the answer, or that there is none, comes within the time limit."""
    begun = time.monotonic()
    with contextlib.suppress(BusError):
        await client.call(machine, MACHINE, "QueryGuest")
    assert time.monotonic() - begun < 15
    await asyncio.sleep(0.2)


def guest_processes(vfsd: Vfsd) -> str:
    return vfsd.run("vfsctl", vfsd.flag, "exec", "guest", "ps")


async def test_a_shutdown_goes_through_the_agent(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await builtin(client, folder)
    await guest_is_ready(vfsd, machine)
    pid = await client.get(machine, MACHINE, "MainPID")
    # what waits for the power button in the guest ends, so the button does nothing
    await execute(client, machine, "sh", "-c", "kill $(ps | awk '/[{]dd}/ {print $1}')")
    await client.call(machine, MACHINE, "Shutdown", "t", 0)
    await until(lambda: "stopped" in [new for _, new, _ in client.signals.states(machine)], "it is off", 30)
    assert await client.get(machine, MACHINE, "Reason") == "the guest powered off"
    assert await client.get(machine, MACHINE, "GuestReady") is False
    assert "power button" not in console(vfsd, pid)

    # with an agent that hangs the power button does it
    await client.call(machine, MACHINE, "Start")
    await guest_is_ready(vfsd, machine)
    pid = await client.get(machine, MACHINE, "MainPID")
    await execute(client, machine, "sh", "-c", f"(sleep 0.2; kill -STOP {AGENT}; echo hung >/dev/console) &")
    await until(lambda: "hung" in console(vfsd, pid), "it hangs")
    begun = time.monotonic()
    await client.call(machine, MACHINE, "Shutdown", "t", 0)
    assert time.monotonic() - begun < 5
    await until(lambda: vfsd.get(machine, MACHINE, "State") == "stopped", "it is off", 30)
    assert await client.get(machine, MACHINE, "Reason") == "the guest powered off"
    assert "vfsd: power button" in console(vfsd, pid)


async def test_a_guest_without_agent(vfsd: Vfsd, client: Client, folder: Path) -> None:
    machine = await started(client, folder)
    assert await client.get(machine, MACHINE, "GuestReady") is False
    await refused(
        client.call(machine, MACHINE, "Execute", "asa{sv}", ["true"], {}), "NotSupported", "no agent"
    )
    await refused(client.call(machine, MACHINE, "QueryGuest"), "NotSupported", "qemu-guest-agent")
    await client.call(machine, MACHINE, "Kill")
    await refused(client.call(machine, MACHINE, "Execute", "asa{sv}", ["true"], {}), "WrongState")
    await refused(client.call(machine, MACHINE, "QueryGuest"), "WrongState")
