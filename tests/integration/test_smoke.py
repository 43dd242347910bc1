"""The main job: a directory is shared with a booting guest, which writes into it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.integration.harness import MACHINE, Client, Vfsd, until
from vfsd.guest.command_line import escape


async def test_a_guest_boots_and_writes_into_the_share(vfsd: Vfsd, client: Client, folder: Path) -> None:
    (folder / "from-host").write_text("hello")
    command = "cat /data/from-host > /data/from-guest"
    path = await client.create_machine(
        "smoke",
        Builtin=("b", True),
        Memory=("t", 256 << 20),
        Append=("s", f"vfsd.exec={escape(command)}"),
        Shares=("a(ssa{sv})", [[str(folder), "/data", {}]]),
    )
    await client.call(path, MACHINE, "Start")
    assert await client.get(path, MACHINE, "State") == "running"
    await until(lambda: (path, "stopped") in ended(client), "the guest powers off", 40)
    assert (folder / "from-guest").read_text() == "hello"
    assert (folder / "from-guest").stat().st_uid == vfsd.owner_uid
    states = [new for _, new, _ in client.signals.states(path)]
    assert states == ["starting", "running", "stopped"]


def ended(client: Client) -> list[tuple[str, str]]:
    seen = client.signals.seen
    return [(message.path, message.body[1]) for message in seen if message.member == "StateChanged"]


def test_without_a_bus_it_says_so(vfsd: Vfsd) -> None:
    variable = "DBUS_SYSTEM_BUS_ADDRESS" if vfsd.scope == "system" else "DBUS_SESSION_BUS_ADDRESS"
    argv = vfsd.argv(["env", f"{variable}=unix:path=/nonexistent", "vfsd", vfsd.flag])
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert f"the {vfsd.scope} bus can't be reached: " in done.stderr
