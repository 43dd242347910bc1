"""vfsctl edit: which calls make one definition of another, and which must wait for a stop."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.cli.changes import changes
from vfsd.cli.definition import Known
from vfsd.cli.errors import CliError
from vfsd.cli.objects import MACHINE, SHARE
from vfsd.cli.values import Typed
from vfsd.model import GIB, Cache, MachineSpec, ShareSpec


def share(tag: str, source: str = "", **options: object) -> ShareSpec:
    return ShareSpec(name=f"dev.{tag}", source=source or f"/srv/{tag}", tag=tag, **options)  # type: ignore[arg-type]


def known(spec: MachineSpec | ShareSpec, state: str = "stopped", machine: str = "") -> Known:
    own = {one.name: f"/{one.name}" for one in spec.shares} if isinstance(spec, MachineSpec) else {}
    return Known(SHARE if isinstance(spec, ShareSpec) else MACHINE, spec, "/it", state, machine, own, ())


def test_nothing_is_changed_of_what_is_the_same() -> None:
    spec = MachineSpec(name="dev", shares=(share("a"), share("b")))
    todo = changes(known(spec, "running"), spec)
    assert (todo.settings, todo.removed, todo.added) == ([], [], [])


def test_a_running_machine_gets_its_limits_and_shares_and_the_rest_waits() -> None:
    before = MachineSpec(name="dev", builtin=True, shares=(share("a"), share("b")))
    wanted = dataclasses.replace(
        before, cpus=2, io_weight=50, shares=(share("a", cache=Cache.NEVER, tasks_max=50), share("c"))
    )
    todo = changes(known(before, "running"), wanted)
    assert todo.waiting == ["CPUs", "share a: Cache"]
    assert todo.done_now == ["IOWeight", "share a: TasksMax", "without share dev.b", "with share c"]
    assert {setting.path for setting in todo.settings if setting.kind is SHARE} == {"/dev.a"}
    assert changes(known(before), wanted).waiting == []


def test_a_share_is_known_again_by_its_directory() -> None:
    before = MachineSpec(name="dev", shares=(share("a"), share("b")))
    renamed = dataclasses.replace(before, shares=(share("b"), share("x", "/srv/a")))
    [setting] = changes(known(before), renamed).settings
    assert (setting.path, setting.option, setting.value) == ("/dev.a", "Tag", Typed("s", "x"))
    moved = dataclasses.replace(before, shares=(share("a", "/elsewhere"), share("b")))
    todo = changes(known(before), moved)
    assert (todo.settings, todo.removed, [one.source for one in todo.added]) == (
        [],
        ["dev.a"],
        ["/elsewhere"],
    )


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        (MachineSpec(name="m", builtin=True), MachineSpec(name="m", kernel="/k", initrd="/i")),
        (MachineSpec(name="m", kernel="/k", initrd="/i"), MachineSpec(name="m", builtin=True)),
        (MachineSpec(name="m", memory_max=2 * GIB), MachineSpec(name="m", memory=2 * GIB, memory_max=4 * GIB)),
        (MachineSpec(name="m", memory=2 * GIB, memory_max=4 * GIB), MachineSpec(name="m", memory_max=2 * GIB)),
        (MachineSpec(name="m", forward=("tcp:127.0.0.1:1:2",)), MachineSpec(name="m", network="none")),
        (MachineSpec(name="m", network="none"), MachineSpec(name="m", forward=("tcp:127.0.0.1:1:2",))),
        (
            MachineSpec(name="m", credentials=(("a", "x"),)),
            MachineSpec(name="m", credential_files=(("a", "/x"),)),
        ),
    ],
)  # fmt: skip
def test_each_step_is_a_machine_that_can_be(before: MachineSpec, wanted: MachineSpec) -> None:
    spec = before
    for setting in changes(known(before), wanted).settings:
        spec = spec.with_option(setting.option, *setting.value)  # it raises if this is none
    assert spec == wanted


@given(
    before=st.builds(
        MachineSpec, name=st.just("m"), memory=st.sampled_from([GIB, 2 * GIB]), cpus=st.integers(1, 4),
        network=st.sampled_from(["none", "bridge:br0"]), memory_max=st.sampled_from([0, 4 * GIB]),
    ),
    wanted=st.builds(
        MachineSpec, name=st.just("m"), memory=st.sampled_from([GIB, 4 * GIB]), cpus=st.integers(1, 4),
        forward=st.sampled_from([(), ("tcp:127.0.0.1:1:2",)]), builtin=st.booleans(),
    ),
)  # fmt: skip
def test_any_machine_becomes_any_other(before: MachineSpec, wanted: MachineSpec) -> None:
    spec = before
    for setting in changes(known(before), wanted).settings:
        spec = spec.with_option(setting.option, *setting.value)
    assert spec == wanted


def test_a_share_that_is_in_use_waits() -> None:
    spec = ShareSpec(name="a", source="/srv")
    wanted = dataclasses.replace(spec, read_only=True, io_weight=7)
    for state, machine, waiting in (
        ("stopped", "", []),
        ("listening", "", []),
        ("failed", "dev", []),
        ("listening", "dev", ["ReadOnly"]),
        ("active", "", ["ReadOnly"]),
    ):
        assert changes(known(spec, state, machine), wanted).waiting == waiting


def test_the_source_of_a_share_stays() -> None:
    with pytest.raises(CliError, match="the source of share a is /srv"):
        changes(known(ShareSpec(name="a", source="/srv")), ShareSpec(name="a", source="/other"))
