"""Names, escapes, and the units and paths made of them."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd import names

ANY_NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("", "_"),
        ("a", "a"),
        ("a-b", "a_2db"),
        ("0a", "_30a"),
        ("a0", "a0"),
        ("a_b", "a_5fb"),
        ("é", "_c3_a9"),
    ],
)
def test_label_escape(name: str, label: str) -> None:
    assert names.label_escape(name) == label
    assert names.label_unescape(label) == name


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("a", "a"),
        ("a-b", r"a\x2db"),
        (".a", r"\x2ea"),
        ("a.b", "a.b"),
        ("a_b:c", "a_b:c"),
        ("a b", r"a\x20b"),
    ],
)
def test_unit_escape(name: str, escaped: str) -> None:
    assert names.unit_escape(name) == escaped
    assert names.unit_unescape(escaped) == name


@given(st.text())
def test_escapes_can_be_undone(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert names.label_unescape(names.label_escape(text)) == text
    assert re.fullmatch(r"[A-Za-z0-9_]+", names.label_escape(text))
    assert names.unit_unescape(names.unit_escape(text)) == text
    assert re.fullmatch(r"[A-Za-z0-9:_.\\]*", names.unit_escape(text))


@given(ANY_NAME, ANY_NAME)
def test_two_names_share_nothing(one: str, other: str) -> None:
    makers = (names.share_path, names.share_service_unit, names.share_socket_unit)
    for maker in (*makers, names.machine_path, names.machine_unit, names.machine_slice):
        assert (maker(one) == maker(other)) == (one == other)
    assert not {names.share_service_unit(one), names.share_socket_unit(one)} & {names.machine_unit(other)}


@given(ANY_NAME, ANY_NAME)
def test_the_two_sets_of_units_share_nothing(one: str, other: str) -> None:
    for all_units in (names.share_units, names.machine_units):
        assert len(set(all_units(one))) == len(all_units(one))
        assert bool(set(all_units(one)) & set(all_units(other))) == (one == other)
    assert "x-2" not in names.machine_unit("x-2"), "the - of a name is escaped"


@given(ANY_NAME)
def test_units_and_their_object_paths(name: str) -> None:
    unit = names.share_service_unit(name)
    assert names.unit_from_object_path(names.unit_object_path(unit)) == unit
    assert "/" not in unit
    assert unit.count(".service") >= 1


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="needs systemd-escape")
def test_unit_escape_is_systemds() -> None:
    samples = ["a", "a-b", "x.y", "_-.", "0", "A" * 50, "a--b", "ü x", "a\\b", "%n"]
    done = subprocess.run(["systemd-escape", "--", *samples], capture_output=True, text=True, check=True)
    assert [names.unit_escape(sample) for sample in samples] == done.stdout.split()


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="needs systemd-escape")
def test_mount_units_are_systemds() -> None:
    places = ["/", "/mnt", "/mnt/a-b c", "/.hidden/.x", "/srv/ü\\x", "/a:b_c/d.e"]
    command = ["systemd-escape", "--path", "--suffix=mount", "--", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [names.mount_unit(place) for place in places] == done.stdout.split()
    assert names.mount_unit("/mnt/" + "x" * 255) == "", "systemd has no unit for it either"


@pytest.mark.parametrize("name", ["", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "\na", "é", "a" * 129])
def test_what_is_no_name(name: str) -> None:
    assert not names.is_share_name(name)
    assert not names.is_machine_name(name)


def test_how_long_names_may_be() -> None:
    assert names.is_share_name("a" * 128)
    assert names.is_machine_name("a" * 64)
    assert not names.is_machine_name("a" * 65)


@given(st.text(min_size=1))
def test_any_text_can_become_part_of_a_name(text: str) -> None:
    assert names.is_share_name("x" + names.make_name(text)[:100])


def test_hints() -> None:
    assert names.Scope.USER.hint("journalctl", "-u x") == "journalctl --user -u x"
    assert names.Scope.SYSTEM.hint("journalctl", "-u x") == "journalctl -u x"
