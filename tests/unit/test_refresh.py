"""What Refresh and Suspend compute, and the watch on binaries; the rest needs QEMU (tests/integration)."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import pytest

from tests.unit.test_qemu_arguments import PLAN, built, values
from vfsd import saved, ssh, units, watch
from vfsd.agent import Agent
from vfsd.commands import Incoming, MachineArchitecture
from vfsd.devices import Layout
from vfsd.errors import GuestTimeout
from vfsd.migration import Channels
from vfsd.model import MachineSpec
from vfsd.watch import FileWatch


def test_the_second_qemu_waits_for_the_guest_and_stands_still() -> None:
    incoming = Incoming("pc-q35-10.0", ["fd:12", "{}"])
    arguments = built(dataclasses.replace(PLAN, incoming=incoming, has_shared_ram=True))
    assert "-S" in arguments
    assert values(arguments, "-incoming") == ["fd:12", "{}"]
    [machine] = values(arguments, "-machine")
    assert machine == "pc-q35-10.0,memory-backend=mem,aux-ram-share=on"


def test_the_first_qemu_boots() -> None:
    arguments = built()
    assert "-S" not in arguments
    assert values(arguments, "-incoming") == []
    assert "aux-ram-share" not in " ".join(arguments), "QEMU before 10.0 does not know it"


def test_what_else_a_machine_type_has_stays() -> None:
    plan = dataclasses.replace(PLAN, architecture=MachineArchitecture.of("aarch64"))
    plan = dataclasses.replace(plan, incoming=Incoming("virt-10.0", ["unix:/x"]))
    assert values(built(plan), "-machine")[0].startswith("virt-10.0,gic-version=max,")


@pytest.mark.parametrize("shared", [True, False])
def test_both_qemus_name_the_same_sockets(shared: bool) -> None:
    channels = Channels.below("/proc/self/fd/9", shared=shared)
    assert [json.loads(word) for word in channels.incoming] == channels.named
    kinds = {channel["channel-type"]: channel["addr"]["path"] for channel in channels.named}
    control = {"cpr": "/proc/self/fd/9/control"} if shared else {}
    assert kinds == {"main": "/proc/self/fd/9/main", **control}


def test_the_qemu_of_a_command() -> None:
    assert (
        units.qemu_of(units.with_console_input(["/usr/bin/qemu-system-x86_64", "-S"]))
        == "/usr/bin/qemu-system-x86_64"
    )
    assert units.qemu_of([]) == ""


@pytest.mark.parametrize(
    ("options", "address", "expected"),
    [
        ({"ssh": True}, "127.0.0.1:4711", ["tcp:127.0.0.1:4711:22"]),
        ({"ssh": True, "forward": ("tcp:127.0.0.1:2222:22",)}, "127.0.0.1:2222", []),
        ({"ssh": True, "network": "none"}, "", []),
        ({}, "", []),
    ],
)
def test_the_forward_that_is_vfsds(options: dict[str, object], address: str, expected: list[str]) -> None:
    assert ssh.own_forward(MachineSpec(name="m", **options), address) == expected  # type: ignore[arg-type]


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    assert saved.read(tmp_path) is None
    layout = Layout.cold([("m.src", "src")], 3)
    document = {
        "machine_type": "pc-q35-10.0",
        "accelerator": "tcg",
        "layout": layout.write(),
        "vsock": True,
        "persistent": False,
    }
    (tmp_path / "guest.json").write_text(json.dumps(document))
    found = saved.read(tmp_path)
    assert found is not None
    before = found.predecessor(Path("/run/m/saved"))
    assert (before.layout, before.accelerator, before.vsock, before.lives) == (layout, "tcg", True, False)
    assert (before.machine_type, before.source) == ("pc-q35-10.0", Path("/run/m/saved"))
    assert not before.shared


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"machine_type": "x"}', "\0"])
def test_what_is_saved_and_damaged_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "guest.json").write_text(content)
    assert saved.read(tmp_path) is None


@pytest.mark.parametrize("persistent", [True, False])
def test_only_what_nobody_can_want_is_swept_away(tmp_path: Path, persistent: bool) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "uefi-variables.fd").touch()
    saved.sweep(folder)
    assert folder.exists(), "nothing is saved there"
    document = {
        "machine_type": "x",
        "accelerator": "tcg",
        "layout": "",
        "vsock": False,
        "persistent": persistent,
    }
    (folder / "guest.json").write_text(json.dumps(document))
    saved.sweep(folder)
    assert folder.exists() is persistent


async def test_a_file_that_is_replaced_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "QUIET", 0.05)
    told: list[float] = []
    loop = asyncio.get_running_loop()
    files = FileWatch(lambda: told.append(loop.time()))
    first, second = tmp_path / "a" / "qemu", tmp_path / "b" / "virtiofsd"
    for file in (first, second):
        file.parent.mkdir()
        file.touch()
    files.watch([first, second])
    (tmp_path / "a" / "other").touch()
    await asyncio.sleep(0.2)
    assert told == []
    for file in (first, second):
        new = file.with_name("new")
        new.touch()
        new.rename(file)
    await asyncio.sleep(0.3)
    assert len(told) == 1
    files.watch([second])
    first.write_text("x")
    await asyncio.sleep(0.2)
    assert len(told) == 1, "it is watched no longer"
    second.unlink()
    await asyncio.sleep(0.2)
    assert len(told) == 2
    files.close()


async def test_an_agent_that_is_silenced_is_not_judged(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "agent", "m")
    agent.answers = True
    async with agent.silence(1):
        with pytest.raises(GuestTimeout):
            await agent.command("guest-ping", 0.05)
    assert agent.answers, "it was not asked"
