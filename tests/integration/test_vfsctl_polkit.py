"""vfsctl and polkit: what a user is asked, shown and told; and what signals on the system bus leave out."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from dbus_next import Variant

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, TESTER, Client, Vfsd
from tests.integration.polkit import TESTER_IS_ADMINISTRATOR, Agent, calling, rules

PROPERTIES = "org.freedesktop.DBus.Properties"


@only_system
async def test_vfsctl_of_a_user_asks_and_explains(vfsd: Vfsd, client: Client, folder: Path) -> None:
    agent = Agent(client)
    await client.create_share("src", folder)
    as_tester = ["setpriv", f"--reuid={TESTER}", "--regid=tester", "--init-groups", "vfsctl", "--system"]

    def vfsctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*as_tester, *arguments], capture_output=True, text=True, check=False, timeout=60
        )

    for arguments in (["status"], ["status", "src"], ["share", "list"], ["share", "show", "src"]):
        done = vfsctl(*arguments)
        assert (done.returncode, "src" in done.stdout, str(folder) in done.stdout) == (0, True, False), done
    done = vfsctl("share", "remove", "src")
    assert done.returncode == 1
    assert "org.vfsd1.manage-shares" in done.stderr
    assert "sudo vfsctl --system" in done.stderr
    async with rules(client, TESTER_IS_ADMINISTRATOR):
        command = ["vfsctl", "--system", "share", "show", "src"]
        async with calling(agent, *command, terminal=True) as caller:
            await agent.accept(await agent.question())
            assert f"Source={folder}" in await caller.output()
        async with calling(agent, *command, "--no-ask-password", terminal=True) as caller:
            assert "Source" not in await caller.output()
        assert len(agent.asked) == 1


@only_system
async def test_monitor_asks_again_for_what_signals_do_not_tell(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        "vfsctl", "monitor", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    try:
        assert b"Watching" in await process.stderr.readline()
        machine = await client.create_machine("box", Builtin=("b", True))
        await client.call(machine, PROPERTIES, "Set", "ssv", MACHINE, "Append", Variant("s", "quiet"))
        told = b""
        async with asyncio.timeout(20):
            while b"Append" not in told:
                told = await process.stdout.readline()
        assert b"Append=quiet" in told
    finally:
        process.terminate()
        await process.communicate()
