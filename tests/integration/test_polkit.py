"""Who may do what on the system bus, with the real polkitd; and that a user's bus is that user's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.conftest import only_system, only_user
from tests.integration.harness import (
    MACHINE,
    MANAGER,
    ROOT,
    SHARE,
    TESTER,
    BusError,
    Client,
    Vfsd,
    until,
    wait_for,
)
from tests.integration.polkit import (
    TESTER_IS_ADMINISTRATOR,
    UID,
    Agent,
    busctl,
    calling,
    polkitd,
    rule,
    rules,
)
from tests.integration.vfsctl import Terminal
from vfsd.cli.errors import Exit
from vfsd.journal import MessageId

PROPERTIES = "org.freedesktop.DBus.Properties"
DENIED = "Access denied"
"""busctl's words for AccessDenied, whatever the message."""


@pytest.fixture
async def stranger(vfsd: Vfsd) -> AsyncIterator[Client]:
    """A client of the tester's on the system bus."""
    connected = await Client.connect(vfsd, uid=UID)
    yield connected
    await connected.close()


@pytest.fixture
def agent(client: Client) -> Agent:
    return Agent(client)


async def refused(call: Any, *names: str) -> str:
    with pytest.raises(BusError) as caught:
        await call
    assert caught.value.name in (names or ("InteractiveAuthorizationRequired",))
    return caught.value.message


@only_system
async def test_without_a_rule_others_may_only_look(
    vfsd: Vfsd, client: Client, stranger: Client, folder: Path
) -> None:
    share = await client.create_share("src", folder)
    machine = await client.create_machine("box", Builtin=("b", True))
    since = time.time()
    calls = [
        ("manage-shares", stranger.create_share("mine", folder)),
        ("manage-shares", stranger.call(share, SHARE, "Stop")),
        ("manage-shares", stranger.manager("RemoveShare", "s", "src")),
        ("manage-shares", stranger.call(share, PROPERTIES, "Set", "ssv", SHARE, "Tag", Variant("s", "x"))),
        ("manage-machines", stranger.create_machine("mine")),
        ("manage-machines", stranger.call(machine, MACHINE, "Start")),
        ("manage-machines", stranger.manager("StartMachine", "s", "box")),
        ("manage-machines", stranger.call(machine, MACHINE, "AttachShare", "sa{sv}", "src", {})),
        ("console", stranger.call(machine, MACHINE, "OpenConsole")),
        ("console", stranger.call(machine, MACHINE, "Execute", "asa{sv}", ["id"], {})),
        ("configure", stranger.manager("Reload")),
        ("inspect", stranger.manager("Check")),
        ("inspect", stranger.call(share, SHARE, "GetSpace")),
        ("inspect", stranger.get(share, SHARE, "Source")),
        ("inspect", stranger.get(machine, MACHINE, "Kernel")),
    ]
    for action, call in calls:
        assert f"org.vfsd1.{action}" in await refused(call)
    assert await stranger.get(share, SHARE, "State") == "listening"
    assert await stranger.manager("GetShare", "s", "src") == share
    assert await stranger.manager("ListShares") == [["src", "listening", "", share]]
    assert await client.manager("ListShares") == [["src", "listening", str(folder), share]]
    await refused(stranger.call(f"{ROOT}/share/none", SHARE, "Stop"), "UnknownObject")
    refusals = (f"MESSAGE_ID={MessageId.REFUSED.value}", "VFSD_SHARE=src")
    entries = wait_for(lambda: vfsd.journal(*refusals, since=since), "the journal has them")
    assert {(e["VFSD_CALLER_UID"], e["VFSD_CALLER_PID"]) for e in entries} == {(str(UID), str(os.getpid()))}


@only_system
async def test_paths_are_for_the_owner_and_who_may_inspect(
    vfsd: Vfsd, client: Client, stranger: Client, folder: Path
) -> None:
    roots = await client.create_share("roots", folder)
    whole = await client.call(roots, PROPERTIES, "GetAll", "s", SHARE)
    seen = await stranger.call(roots, PROPERTIES, "GetAll", "s", SHARE)
    assert set(whole) - set(seen) == {"Source", "SocketPath"}
    assert {name: whole[name] for name in seen} == seen
    async with rules(
        client, rule("action.lookup('verb') === 'CreateShare' || action.lookup('verb') === 'CreateMachine'")
    ):
        mine = await stranger.create_share("mine", folder)
        machine = await stranger.create_machine("box", Append=("s", "secret"), Builtin=("b", True))
    assert await stranger.get(mine, SHARE, "Source") == str(folder)
    assert await stranger.get(mine, SHARE, "Owner") == UID
    assert await stranger.get(machine, MACHINE, "Append") == "secret"
    assert await stranger.call(mine, SHARE, "GetSpace") > 0
    await refused(stranger.call(mine, SHARE, "Stop"))
    everything = await client.objects()
    shown = await stranger.objects()
    assert shown[mine] == everything[mine]
    assert shown[machine] == everything[machine]
    assert set(shown[roots][SHARE]) == set(seen)
    listed = {row[0]: row[2] for row in await stranger.manager("ListShares")}
    assert listed == {"mine": str(folder), "roots": ""}
    async with rules(client, rule("action.id === 'org.vfsd1.inspect'")):
        assert await stranger.get(roots, SHARE, "Source") == str(folder)
        assert await stranger.objects() == everything
        assert await stranger.call(roots, PROPERTIES, "GetAll", "s", SHARE) == whole
        assert {row[2] for row in await stranger.manager("ListShares")} == {str(folder)}
    await refused(stranger.get(roots, SHARE, "Source"))


@only_system
async def test_what_all_hear_has_no_path(vfsd: Vfsd, client: Client, stranger: Client, folder: Path) -> None:
    (folder / "gone").mkdir()
    share = await client.create_share("src", folder / "gone")
    machine = await client.create_machine(
        "box",
        Shares=("a(ssa{sv})", [[str(folder / "gone"), "/data", {}]]),
        Builtin=("b", True),
        Display=("s", "vnc"),
    )
    await client.call(machine, MACHINE, "Start")
    await client.call(machine, MACHINE, "Kill")
    other = await client.create_machine("other")
    for name, value in (
        ("Kernel", Variant("s", "/secret/vmlinuz")),
        ("ExtraArguments", Variant("as", ["/secret/x"])),
    ):
        await client.call(other, PROPERTIES, "Set", "ssv", MACHINE, name, value)
    await client.call(share, SHARE, "Stop")
    (folder / "gone").rmdir()
    await refused(client.call(share, SHARE, "Start"), "SourceNotFound")
    await refused(client.call(machine, MACHINE, "Start"), "InvalidArgs", "SourceNotFound")
    await client.call(share, SHARE, "Remove")
    await until(lambda: "InterfacesRemoved" in stranger.signals.members(), "its end was told")
    assert "DisplayPath" in stranger.signals.invalidations(machine)
    assert stranger.signals.invalidations(other) == ["Kernel", "ExtraArguments"]
    assert "InterfacesAdded" in stranger.signals.members()
    told = str([message.body for message in stranger.signals.seen])
    assert "unavailable" in told
    for secret in (str(folder), "/run/vfsd", "/secret", "/var/lib/vfsd"):
        assert secret not in told


@only_system
async def test_a_rule_may_allow_one_share(vfsd: Vfsd, client: Client, stranger: Client, folder: Path) -> None:
    one = folder / "one"
    one.mkdir()
    wanted = {"kind": "share", "name": "mine", "source": str(one)}
    condition = " && ".join(f"action.lookup('{key}') === '{value}'" for key, value in wanted.items())
    async with rules(client, rule(condition)):
        await refused(stranger.create_share("other", one))
        await refused(stranger.create_share("mine", folder))
        await refused(stranger.create_share("mine", f"{one}/../one"))
        assert "name" not in await refused(stranger.create_share("x" * 100_000, one))
        await refused(stranger.create_machine("mine", Shares=("a(ssa{sv})", [[str(one), "", {}]])))
        path = await stranger.create_share("mine", one)
        await stranger.call(path, SHARE, "Stop")
        await stranger.call(path, PROPERTIES, "Set", "ssv", SHARE, "Tag", Variant("s", "t"))
        await stranger.manager("RemoveShare", "s", "mine")
        await client.create_share("mine", folder)
        await refused(stranger.manager("RemoveShare", "s", "mine"))


@only_system
async def test_somebody_authenticates(
    vfsd: Vfsd, client: Client, stranger: Client, agent: Agent, folder: Path
) -> None:
    async with rules(client, TESTER_IS_ADMINISTRATOR):
        create = busctl("CreateShare", "ssa{sv}", "mine", str(folder), "0")
        async with calling(agent, *create) as caller:
            question = await agent.question()
            assert question.body[0] == "org.vfsd1.manage-shares"
            assert "as root can" in question.body[1]
            # nobody else waits for that
            began = time.monotonic()
            assert await stranger.manager("ListShares") == []
            await refused(stranger.create_share("other", folder))
            other = await client.create_share("other", folder)
            await client.call(other, SHARE, "Remove")
            assert time.monotonic() - began < 10
            assert caller.process.poll() is None
            await agent.accept(question)
            assert f"{ROOT}/share/mine" in await caller.output()
        assert [row[0] for row in await client.manager("ListShares")] == ["mine"]
        async with calling(agent, *busctl("RemoveShare", "s", "mine")) as caller:
            agent.dismiss(await agent.question(2))
            assert DENIED in await caller.output()
        async with calling(agent, *busctl("Reload")) as caller:
            await agent.question(3)
            caller.process.send_signal(signal.SIGKILL)
            await until(lambda: agent.cancelled, "the dialog is closed")
        # what the question was about is another one meanwhile
        async with calling(agent, *busctl("RemoveShare", "s", "mine")) as caller:
            question = await agent.question(4)
            await client.manager("RemoveShare", "s", "mine")
            (folder / "new").mkdir()
            await client.create_share("mine", folder / "new")
            await agent.accept(question)
            assert "another one" in await caller.output()
        assert [row[0] for row in await client.manager("ListShares")] == ["mine"]


@only_system
async def test_polkitd_ends_in_mid_call(
    vfsd: Vfsd, client: Client, stranger: Client, agent: Agent, folder: Path
) -> None:
    async with rules(client, rule("action.lookup('verb') === 'CreateShare'"), TESTER_IS_ADMINISTRATOR):
        pid = polkitd()
        os.kill(pid, signal.SIGSTOP)
        asked = asyncio.create_task(stranger.create_share("mine", folder))
        await asyncio.sleep(0.3)
        assert await client.manager("ListShares") == []
        assert not asked.done()
        os.kill(pid, signal.SIGKILL)
        assert await asked == f"{ROOT}/share/mine", "the next polkitd was asked"
        async with calling(agent, *busctl("Reload")) as caller:
            await agent.question()
            vfsd.systemctl("kill", "-s", "KILL", "polkit.service")
            assert "no authentication agent" in await caller.output()
        assert polkitd() not in (0, pid)


@only_system
async def test_without_polkit_root_alone_is_obeyed(
    vfsd: Vfsd, client: Client, stranger: Client, folder: Path
) -> None:
    share = await client.create_share("src", folder)
    vfsd.systemctl("mask", "--runtime", "--now", "polkit.service")
    try:
        assert "polkit" in await refused(stranger.call(share, SHARE, "Stop"), "AccessDenied")
        await refused(stranger.get(share, SHARE, "Source"), "AccessDenied")
        assert "Source" not in (await stranger.objects())[share][SHARE]
        await client.call(share, SHARE, "Stop")
    finally:
        vfsd.systemctl("unmask", "--runtime", "polkit.service")
    await refused(stranger.call(share, SHARE, "Start"))


@only_system
async def test_a_user_can_not_have_too_many_dialogs(
    vfsd: Vfsd, client: Client, stranger: Client, agent: Agent
) -> None:
    async with rules(client, TESTER_IS_ADMINISTRATOR), contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(agent, *busctl("Reload"))) for _ in range(8)]
        await agent.question(8)
        async with calling(agent, *busctl("Reload")) as caller:
            assert "too many" in await caller.output()
        assert await stranger.manager("ListShares") == []
        await client.manager("Reload")
        for number in range(8):
            agent.dismiss(agent.asked[number])
        for caller in callers:
            assert DENIED in await caller.output()


def test_anybodys_call_starts_the_systems_vfsd() -> None:
    vfsd = Vfsd("system")
    vfsd.systemctl("stop", "vfsd.service")
    vfsd.run(
        *("setpriv", f"--reuid={TESTER}", "--regid=tester", "--init-groups"),
        *("busctl", "--system", "call", "org.vfsd1", ROOT, MANAGER, "ListMachines"),
    )
    assert vfsd.unit_property("vfsd.service", "ActiveState") == "active"


@only_user
async def test_a_users_bus_is_that_users(vfsd: Vfsd) -> None:
    """dbus-daemon lets in nobody else; where a configuration of it does, vfsd does not."""
    policy = Path("/etc/dbus-1/session.d/vfsd-test.conf")
    bus = ["busctl", "--user", "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "ReloadConfig"]
    policy.write_text('<busconfig><policy context="default"><allow user="*"/></policy></busconfig>')
    try:
        vfsd.run(*bus)
        client = await Client.connect(vfsd, uid=0)
        try:
            for call in (
                client.manager("ListShares"),
                client.get(ROOT, MANAGER, "Version"),
                client.manager("Reload"),
            ):
                assert "uid 0" in await refused(call, "AccessDenied")
        finally:
            await client.close()
    finally:
        policy.unlink()
        vfsd.run(*bus)


class LoggedIn(Vfsd):
    """Whose commands run in a session of logind's, as they do where somebody has logged in on a terminal."""

    def argv(self, command: Sequence[str]) -> list[str]:
        return ["su", "--login", TESTER, "--session-command", shlex.join(command)]


@only_system
async def test_vfsctl_asks_on_the_terminal(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """Where there is no desktop that would."""

    def password(argument: str) -> None:
        subprocess.run(["usermod", "--password", argument, TESTER], check=True)

    def share(verb: str, typed: str) -> tuple[int, str]:
        terminal = Terminal(LoggedIn("user"), "--system", "share", *verb.split())
        try:
            terminal.expect("Password: ")
            wait_for(lambda: not terminal.echoes, "it listens")
            terminal.send(f"{typed}\n")
            return terminal.end(), terminal.text
        finally:
            terminal.close()

    def names() -> list[str]:
        return [row[0] for row in vfsd.manager("ListShares")]

    crypt = ["perl", "-e", 'print crypt("secret", q($6$vfsd$))']
    password(subprocess.run(crypt, check=True, capture_output=True, text=True).stdout)
    try:
        async with rules(client, TESTER_IS_ADMINISTRATOR):
            code, text = await asyncio.to_thread(share, f"add mine {folder}", "secret")
            assert (code, names()) == (0, ["mine"]), text
            code, text = await asyncio.to_thread(share, "remove mine", "wrong")
            assert (code, names()) == (Exit.FAILED, ["mine"]), text
            assert "AUTHENTICATION FAILED" in text
    finally:
        password("!")
    assert not [p for p in Path("/proc").glob("[0-9]*/comm") if p.read_text().strip() == "pkttyagent"]
