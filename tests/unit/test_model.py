"""Specifications: what is accepted, what is refused and why, and what is filled in."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd import names
from vfsd.errors import InvalidArgs
from vfsd.forward import Forward
from vfsd.model import (
    MACHINE_OPTIONS,
    SHARE_OPTIONS,
    MachineSpec,
    Sandbox,
    ShareSpec,
    fit_tag,
    own_shares,
)
from vfsd.names import Scope


def share(**options: tuple[str, Any]) -> ShareSpec:
    return ShareSpec.from_options("src", "/srv", Scope.USER, options)


def machine(**options: tuple[str, Any]) -> MachineSpec:
    return MachineSpec.from_options("dev", Scope.USER, options)


def test_defaults() -> None:
    spec = share()
    assert (spec.tag, spec.sandbox, spec.persistent, spec.announce_submounts) == (
        "src", Sandbox.NAMESPACE, False, True,
    )  # fmt: skip
    assert ShareSpec.from_options("src", "/srv", Scope.SYSTEM, {}).sandbox is Sandbox.CHROOT
    plain = machine()
    assert (plain.memory, plain.cpus, plain.network, plain.shutdown_timeout_usec) == (
        1 << 30,
        1,
        "user",
        90_000_000,
    )
    assert not plain.boots


@pytest.mark.parametrize("size", [0, (16 << 20) - 8192, 100_000_001, (1 << 30) + 4096])
def test_memory_that_qemu_starts_without(size: int) -> None:
    with pytest.raises(
        InvalidArgs, match=f"{size} bytes of memory; give at least 16777216, and a multiple of 8192"
    ):
        machine(Memory=("t", size))


def test_specifications_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        share().tag = "x"  # type: ignore[misc]


@pytest.mark.parametrize(("table", "spec"), [(SHARE_OPTIONS, share()), (MACHINE_OPTIONS, machine())])
def test_each_option_goes_out_and_comes_in_again(table: Any, spec: Any) -> None:
    for name, option in table.items():
        value = option.to_dbus(spec)
        assert option.fits(value)
        assert type(value) in (str, bool, int, list, dict)
        assert spec.with_option(name, option.signature, value) == spec


@given(st.sampled_from(sorted(SHARE_OPTIONS)), st.sampled_from(["s", "b", "u", "t", "as", "i", "v", "a{sv}"]))
def test_another_type_is_refused(name: str, signature: str) -> None:
    if SHARE_OPTIONS[name].signature == signature:
        return
    with pytest.raises(InvalidArgs, match=name):
        share(**{name: (signature, None)})


@given(st.sampled_from(["Cache", "Sandbox", "LogLevel", "InodeFileHandles"]), st.text())
def test_choices(name: str, value: str) -> None:
    parse = SHARE_OPTIONS[name].parse
    if value in set(parse):  # type: ignore[call-overload]
        assert getattr(share(**{name: ("s", value)}), SHARE_OPTIONS[name].field) == value
    else:
        with pytest.raises(InvalidArgs, match="must be one of"):
            share(**{name: ("s", value)})


@pytest.mark.parametrize(
    ("signature", "good", "bad"),
    [
        ("s", ["", "x"], [1, None, True, ["x"]]),
        ("b", [True, False], [0, 1, "true", None]),
        ("u", [0, (1 << 32) - 1], [-1, 1 << 32, 1.0, True, "1"]),
        ("t", [0, (1 << 64) - 1], [-1, 1 << 64, True]),
        ("as", [[], ["x"]], ["x", [1], None, ("x",)]),
    ],
)
def test_what_fits_an_option(signature: str, good: list[Any], bad: list[Any]) -> None:
    option = next(o for o in (*SHARE_OPTIONS.values(), *MACHINE_OPTIONS.values()) if o.signature == signature)
    assert all(option.fits(value) for value in good)
    assert not any(option.fits(value) for value in bad)
    assert option.wanted


@pytest.mark.parametrize(
    "options",
    [
        {"PosixACL": ("b", True), "TranslateGID": ("as", ["x"])},
        {"UIDMap": ("as", [":0:0:1:"]), "Sandbox": ("s", "chroot")},
        {"GIDMap": ("as", [":0:0:1:"]), "Sandbox": ("s", "none")},
        {"XAttrMap": ("s", "a\0b")},
        {"TranslateUID": ("as", ["a\0"])},
        {"Tag": ("s", "\0")},
        {"MountPoint": ("s", "x")},
        {"MountPoint": ("s", "/x\0")},
    ],
)
def test_shares_that_can_not_be(options: dict[str, tuple[str, Any]]) -> None:
    with pytest.raises(InvalidArgs, match="src"):
        share(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"Memory": ("t", (16 << 20) - 1)},
        {"CPUs": ("u", 4097)},
        {"ShutdownTimeoutUSec": ("t", 0)},
        {"Builtin": ("b", True), "Kernel": ("s", "/boot/vmlinuz")},
        {"Builtin": ("b", True), "Image": ("s", "/x.img")},
        {"Initrd": ("s", "/x")},
        {"Network": ("s", "none"), "Forward": ("as", ["tcp:127.0.0.1:2222:22"])},
        {"Network": ("s", "tap:" + "x" * 16)},
        {"Network": ("s", "tap:")},
        {"Network": ("s", "user:x")},
        {"Kernel": ("s", "/a\0")},
        {"ExtraArguments": ("as", ["\0"])},
    ],
)
def test_machines_that_can_not_be(options: dict[str, tuple[str, Any]]) -> None:
    with pytest.raises(InvalidArgs, match="dev"):
        machine(**options)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_tags_fit(text: str) -> None:
    tag = fit_tag(text)
    assert len(tag.encode()) <= names.TAG_MAX
    if len(text.encode()) <= names.TAG_MAX:
        assert tag == text
    else:
        assert fit_tag(text + "x") != tag


@given(
    st.lists(
        st.sampled_from(["/srv", "/srv/", "/a/srv", "/", "/x y", "/ü", "/-a", "/" + "z" * 60]), max_size=8
    )
)
def test_own_shares_have_tags_and_names_of_their_own(sources: list[str]) -> None:
    shares = own_shares("dev", Scope.USER, [(source, "", {}) for source in sources])
    assert [spec.source for spec in shares] == sources
    assert len({spec.name for spec in shares}) == len({spec.tag for spec in shares}) == len(sources)
    assert all(spec.name.startswith("dev.") for spec in shares)


def test_two_shares_with_one_tag() -> None:
    wanted = [("/a", "", {"Tag": ("s", "t")}), ("/b", "", {"Tag": ("s", "t")})]
    with pytest.raises(InvalidArgs, match="two shares with one tag"):
        machine(Shares=("a(ssa{sv})", wanted))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("tcp:127.0.0.1:2222:22", Forward("tcp", "127.0.0.1", 2222, 22)),
        ("udp:[::1]:53:5353", Forward("udp", "[::1]", 53, 5353)),
        ("tcp::80:8080", Forward("tcp", "", 80, 8080)),
    ],
)
def test_forwards(text: str, wanted: Forward) -> None:
    assert Forward.parse(text) == wanted


def test_a_forward_says_on_which_address() -> None:
    with pytest.raises(InvalidArgs, match="tcp:2222:22"):
        machine(Forward=("as", ["tcp:2222:22"]))


@given(st.text("tcpud:0123456789.[]%,=a ", max_size=40))
def test_no_forward_brings_an_option_along(text: str) -> None:
    try:
        forward = Forward.parse(text)
    except InvalidArgs:
        return
    assert not set(forward.host_address) & set(",=% ")
    assert 0 < forward.host_port < 65536 > forward.guest_port > 0
