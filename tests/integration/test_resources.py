"""What machines and shares may use of the host.

The lab's control groups have no controllers: limits are read back from systemd here, and not enforced.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd, until, wait_for
from tests.integration.sharing import connected, wait_active, wait_state
from tests.integration.tiny_guest import started, tiny_machine
from tests.integration.vfsctl import ok
from vfsd.guest.command_line import escape
from vfsd.journal import MessageId
from vfsd.open_files import RESERVE

PROPERTIES = "org.freedesktop.DBus.Properties"
SLICE, QEMU = "vfsd-tiny.slice", "vfsd-machine-tiny.service"
MACHINE_LIMITS = {"MemoryMax": 2 << 30, "CPUQuotaPerSecUSec": 2_000_000, "IOWeight": 50, "TasksMax": 500}
SHARE_LIMITS = {"MemoryMax": 64 << 20, "CPUQuotaPerSecUSec": 500_000, "IOWeight": 20, "TasksMax": 100}

LIMIT = 290
"""Files that a virtiofsd may hold open for its guest."""


def typed(limits: dict[str, int]) -> dict[str, Any]:
    return {name: ("t", value) for name, value in limits.items()}


async def put(client: Client, path: str, interface: str, **limits: int) -> None:
    for name, value in limits.items():
        await client.call(path, PROPERTIES, "Set", "ssv", interface, name, Variant("t", value))


def systemds(vfsd: Vfsd, unit: str) -> dict[str, str]:
    """The limits of a unit, as systemctl shows them."""
    out = vfsd.systemctl("show", *(f"-p{name}" for name in MACHINE_LIMITS), unit)
    return dict(line.split("=", 1) for line in out.splitlines())


def shown(limits: dict[str, int]) -> dict[str, str]:
    """Limits as systemctl shows them."""
    words = {name: str(value) for name, value in limits.items()}
    return words | {"CPUQuotaPerSecUSec": f"{limits['CPUQuotaPerSecUSec'] / 1e6:g}s".replace("0.5s", "500ms")}


async def test_limits_of_a_machine_and_its_share(vfsd: Vfsd, client: Client, folder: Path) -> None:
    own = {name: Variant("t", value) for name, value in SHARE_LIMITS.items()}
    path = await started(
        client, folder, Shares=("a(ssa{sv})", [[str(folder), "", own]]), **typed(MACHINE_LIMITS)
    )
    [share] = await client.get(path, MACHINE, "Shares")
    service = await client.get(share, SHARE, "ServiceUnit")
    for name, value in MACHINE_LIMITS.items():
        assert await client.get(path, MACHINE, name) == value
        assert await client.get(share, SHARE, name) == SHARE_LIMITS[name]
    assert systemds(vfsd, SLICE) == shown(MACHINE_LIMITS)
    assert systemds(vfsd, service) == shown(SHARE_LIMITS)
    told = ok(vfsd, "status", "tiny")
    assert "memory 2G, 200% of a processor, IO weight 50, 500 tasks" in told
    told = ok(vfsd, "status", await client.get(share, SHARE, "Name"))
    assert "memory 64M, 50% of a processor, IO weight 20, 100 tasks" in told


async def test_limits_change_while_a_machine_runs(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await started(client, folder, shares=[folder])
    [share] = await client.get(path, MACHINE, "Shares")
    service = await client.get(share, SHARE, "ServiceUnit")
    none = systemds(vfsd, SLICE)
    assert (none["MemoryMax"], none["TasksMax"], none["IOWeight"]) == ("infinity", "infinity", "[not set]")
    await put(client, path, MACHINE, **MACHINE_LIMITS)
    await put(client, share, SHARE, **SHARE_LIMITS)
    assert systemds(vfsd, SLICE) == shown(MACHINE_LIMITS)
    assert systemds(vfsd, service) == shown(SHARE_LIMITS)
    await until(lambda: client.signals.changes(path, "TasksMax") == [500], "the change is told")
    vfsd.restart()
    assert await client.get(path, MACHINE, "MemoryMax") == MACHINE_LIMITS["MemoryMax"], (
        "the definition has it"
    )
    await put(client, path, MACHINE, **dict.fromkeys(MACHINE_LIMITS, 0))
    assert systemds(vfsd, SLICE) == none
    await put(client, path, MACHINE, TasksMax=600)
    with pytest.raises(BusError, match="shut it down to set Memory"):
        await client.call(path, PROPERTIES, "Set", "ssv", MACHINE, "Memory", Variant("t", 64 << 20))
    await client.call(path, MACHINE, "Kill")
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    # what was set of units that are gone must not come back with them
    await put(client, path, MACHINE, TasksMax=0)
    await put(client, share, SHARE, **dict.fromkeys(SHARE_LIMITS, 0))
    await client.call(path, MACHINE, "Start")
    assert systemds(vfsd, SLICE) == none
    assert systemds(vfsd, service)["MemoryMax"] == "infinity"


async def test_a_slice_that_is_still_there_is_not_told_of_other_options(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    """systemd takes it away some time after the machine's end."""
    path = await tiny_machine(client, folder)
    vfsd.run("systemd-run", vfsd.flag, "--quiet", f"--slice={SLICE}", "--unit=vfsd-test-late", "sleep", "60")
    try:
        await client.call(path, PROPERTIES, "Set", "ssv", MACHINE, "CPUs", Variant("u", 2))
        assert await client.get(path, MACHINE, "CPUs") == 2
    finally:
        vfsd.systemctl("stop", "vfsd-test-late.service", SLICE)


async def test_limits_of_a_share_that_stands_alone(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await client.create_share("src", folder, IOWeight=("t", 20))
    assert systemds(vfsd, "vfsd-share-src.service")["IOWeight"] == "20"
    # while it listens: its service is told when it runs, whoever was there when that was said
    await put(client, path, SHARE, **SHARE_LIMITS)
    vfsd.restart()
    with connected(await client.get(path, SHARE, "SocketPath")):
        wait_active(vfsd, path)
        wait_for(
            lambda: systemds(vfsd, "vfsd-share-src.service") == shown(SHARE_LIMITS), "systemd has the limits"
        )
        await put(client, path, SHARE, IOWeight=30)
        assert systemds(vfsd, "vfsd-share-src.service")["IOWeight"] == "30"
    wait_state(vfsd, path, "listening")
    await put(client, path, SHARE, IOWeight=20)
    await client.call(path, SHARE, "Stop")
    await put(client, path, SHARE, MemoryMax=0)
    await client.call(path, SHARE, "Start")
    assert systemds(vfsd, "vfsd-share-src.service") == {**shown(SHARE_LIMITS), "MemoryMax": "infinity"}


async def test_limits_leave_no_control_group_behind(vfsd: Vfsd, client: Client, folder: Path) -> None:
    """systemd makes one as soon as a service is told of a limit, and takes it away only when that has run."""
    path = await client.create_share("src", folder)
    await put(client, path, SHARE, MemoryMax=64 << 20)
    group = vfsd.unit_property("vfsd.slice", "ControlGroup")
    await client.call(path, SHARE, "Remove")
    assert group.endswith("/vfsd.slice")
    assert not list(Path(f"/sys/fs/cgroup{group}").glob("vfsd-share-src*"))


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("MemoryMax", 32 << 20, "needs 167772160 bytes; give at least that, or 0"),
        ("CPUQuotaPerSecUSec", 999, "give at least 1000, or 0"),
        ("IOWeight", 10001, "give 1 to 10000, or 0"),
        ("TasksMax", 100, "needs 178; give at least that, or 0"),
    ],
)
async def test_limits_that_the_guest_would_not_live_with(
    client: Client, folder: Path, name: str, value: int, remedy: str
) -> None:
    path = await tiny_machine(client, folder, shares=[folder])
    with pytest.raises(BusError, match=f'machine "tiny" has {name} {value}.*{remedy}') as caught:
        await put(client, path, MACHINE, **{name: value})
    assert caught.value.name == "InvalidArgs"
    with pytest.raises(BusError, match=name):
        await tiny_machine(client, folder, "other", **typed({name: value}))
    assert await client.get(path, MACHINE, name) == 0


async def test_limits_on_the_command_line(vfsd: Vfsd, client: Client, folder: Path) -> None:
    flags = ["--memory-max", "2G", "--cpu-quota", "200%", "--io-weight", "50", "--tasks-max", "500"]
    ok(vfsd, "machine", "add", "dev", "--builtin", *flags)
    path = await client.manager("GetMachine", "s", "dev")
    assert {name: await client.get(path, MACHINE, name) for name in MACHINE_LIMITS} == MACHINE_LIMITS
    flags = ["--memory-max", "64M", "--cpu-quota", "50%", "--io-weight", "20", "--tasks-max", "100"]
    ok(vfsd, "share", "add", "src", str(folder), *flags, "--limit-nofile", "500")
    path = await client.manager("GetShare", "s", "src")
    assert {name: await client.get(path, SHARE, name) for name in SHARE_LIMITS} == SHARE_LIMITS
    assert await client.get(path, SHARE, "LimitNOFILE") == 500


async def test_open_files_and_the_warning_before_there_are_no_more(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    for number in range(240):
        (folder / f"file{number}").touch()
    wait = "until [ -e /data/{0} ]; do sleep 0.1; done; "
    look = "ls -l /data/file?? >/dev/null; "
    command = f"{wait.format('some')}{look}{wait.format('all')}{look.replace('??', '*')}{wait.format('end')}"
    before = time.time()
    path = await client.create_machine(
        "dev",
        Builtin=("b", True),
        Memory=("t", 192 << 20),
        Accelerator=("s", "tcg"),
        Network=("s", "none"),
        Append=("s", f"vfsd.exec={escape(command)}"),
        Shares=("a(ssa{sv})", [[str(folder), "/data", {"LimitNOFILE": Variant("t", LIMIT + RESERVE)}]]),
    )
    await client.call(path, MACHINE, "Start")
    [share] = await client.get(path, MACHINE, "Shares")
    idle = await client.get(share, SHARE, "OpenFiles")
    assert 5 < idle < 40
    (folder / "some").touch()
    for _ in range(600):  # the guest boots first
        some = await client.get(share, SHARE, "OpenFiles")
        if some >= idle + 90:
            break
        await asyncio.sleep(0.1)
    assert idle + 90 <= some < 0.7 * LIMIT, "one for each file that the guest remembers"
    assert not warnings(client, share)
    (folder / "all").touch()
    await until(lambda: warnings(client, share), "vfsd warns", 60)
    [(count, limit)] = warnings(client, share)
    assert (count >= 0.8 * LIMIT, limit) == (True, LIMIT)
    objects = await client.objects()
    assert objects[share][SHARE]["OpenFiles"].value >= count - 5, "it is looked up for everybody"
    [entry] = vfsd.journal(f"MESSAGE_ID={MessageId.FILES_RUNNING_OUT.value}", since=before)
    assert f"{count} of {LIMIT} files open; set a larger LimitNOFILE" in entry["MESSAGE"]
    assert (entry["VFSD_MACHINE"], entry["PRIORITY"]) == ("dev", "4")
    assert f"Open files: {count // 10}" in ok(vfsd, "status", f"dev.{folder.name}")
    (folder / "end").touch()
    await until(lambda: client.signals.states(path)[-1][1] == "stopped", "the guest ends", 120)
    assert await client.get(share, SHARE, "OpenFiles") == 0
    assert client.signals.changes(share, "OpenFiles") == [], "nobody is woken up for it"


def warnings(client: Client, share: str) -> list[tuple[int, int]]:
    seen = client.signals.seen
    return [tuple(m.body) for m in seen if m.member == "FilesRunningOut" and m.path == share]
