"""What guests are told of their mounts: odd paths, read back by the rules of whoever reads them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.errors import InvalidArgs
from vfsd.model import ShareSpec
from vfsd.mounting import (
    LENIENT,
    Mount,
    fits_fstab,
    fstab_line,
    guest_options,
    mount_argument,
    mounts_of,
)
from vfsd.names import Scope

ODD = [
    "/mnt/plain",
    "/mnt/two words",
    "/mnt/tab\there",
    "/mnt/colon:comma,equals=",
    "/mnt/'single' \"double\"",
    "/mnt/back\\slash\\x20not\\040",
    "/mnt/%p %% $HOME $",
    "/mnt/ümläut-☃",
    "/mnt/#hash",
    "/.hidden/-dash",
]
PATHS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n", exclude_categories=["Cs"]), max_size=40
).map(lambda text: f"/mnt/{text}")


def share(
    tag: str = "src", mount_point: str = "/mnt/src", options: str = "", *, read_only: bool = False
) -> ShareSpec:
    given_options = {
        "Tag": ("s", tag),
        "MountPoint": ("s", mount_point),
        "MountOptions": ("s", options),
        "ReadOnly": ("b", read_only),
    }
    return ShareSpec.from_options("src", "/srv", Scope.USER, given_options)


def mount(where: str, tag: str = "src", options: str = "", *, read_only: bool = False) -> Mount:
    return Mount.of(tag, where, options, read_only=read_only)


def read_fstab(line: str) -> list[str]:
    """The fields of a line as getmntent(3) of glibc reads it."""
    assert "\n" not in line
    known = {"040": " ", "011": "\t", "012": "\n", "134": "\\"}
    return [
        re.sub(r"\\(040|011|012|134|\\)", lambda found: known.get(found[1], "\\"), field)
        for field in re.split(r"[ \t]+", line)
    ]


def read_argument(argument: str) -> list[str]:
    """The fields of systemd.mount-extra= as systemd reads it: words, colons, then C's escapes."""
    assert re.fullmatch(r"[!-~]+", argument), "it is one word of printable ASCII"
    assert not set(argument) & set("\"'"), "no quotes for the kernel and systemd to take away"
    key, _, value = argument.partition("=")
    assert key == "systemd.mount-extra"
    fields = []
    for field in value.split(":"):
        raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), field.encode())
        fields.append(raw.decode())
    return fields


@pytest.mark.parametrize("where", ODD)
@pytest.mark.parametrize("tag", ["src", "a b", "c:d'e\"f\\g", "☃"])
@pytest.mark.parametrize(
    "read", [lambda m: read_fstab(fstab_line(m)), lambda m: read_argument(mount_argument(m))]
)
def test_odd_paths_and_tags_come_through(where: str, tag: str, read: Callable[[Mount], list[str]]) -> None:
    wanted = mount(where, tag, "noatime", read_only=True)
    assert wanted.complaint == ""
    options = "ro,noatime,nofail,x-systemd.before=local-fs.target"
    assert read(wanted)[:4] == [tag, where, "virtiofs", options]


@given(PATHS)
def test_any_path_comes_through_or_is_refused(text: str) -> None:
    wanted = mount(text)
    if not wanted.complaint:
        assert read_fstab(fstab_line(wanted))[1] == wanted.where
        assert read_argument(mount_argument(wanted))[1] == wanted.where


@pytest.mark.parametrize(
    ("tag", "where", "complaint"),
    [
        ("src", "/mnt/line\nbreak", "mount point has a line break"),
        ("a\rb", "/mnt", "tag has a line break"),
        ("src", "/mnt/blank ", "mount point begins or ends with a blank"),
        (" src", "/mnt", "tag begins or ends with a blank"),
        ("src", "/mnt/back\\", "mount point ends with a backslash"),
        ("src", "/mnt/${HOME}", "mount point has a \\$"),
        ("src", "/mnt/$$", "mount point has a \\$"),
        ("$HOME", "/mnt", "tag has a \\$"),
        ("src", "/", "use RootShare"),
        ("src", "/mnt/..", "use RootShare"),
        ("LABEL=data", "/mnt", "looks like a block device"),
        ("/dev/vda", "/mnt", "looks like a block device"),
        ("src", "/" + "-" * 80, "too long"),
    ],
)
def test_what_no_unit_can_hold_is_refused(tag: str, where: str, complaint: str) -> None:
    with pytest.raises(InvalidArgs, match=complaint) as caught:
        mounts_of([share(tag, where)])
    assert 'share "src"' in str(caught.value)


def test_options_that_systemd_would_replace_are_refused() -> None:
    with pytest.raises(InvalidArgs, match=r"options has a \$"):
        mounts_of([share(options="context=${X}")])


@pytest.mark.parametrize(
    ("own", "read_only", "expected"),
    [
        ("", False, ("rw", *LENIENT)),
        ("", True, ("ro", *LENIENT)),
        ("noatime,nosuid", False, ("rw", "noatime", "nosuid", *LENIENT)),
        ("rw,,ro", True, ("ro", *LENIENT)),
        ("fail", False, ("rw",)),
        ("nofail", False, ("rw", "nofail")),
        ("noauto", False, ("rw", "noauto")),
        ("x-systemd.automount,nosuid", False, ("rw", "x-systemd.automount", "nosuid")),
    ],
)
def test_a_failure_is_fatal_only_if_the_user_says_so(
    own: str, read_only: bool, expected: tuple[str, ...]
) -> None:
    assert mount("/mnt", options=own, read_only=read_only).options == expected


def test_mount_gets_none_of_what_is_meant_for_systemd() -> None:
    words = (
        "noatime,nofail,fail,x-systemd.automount,X-mount.mkdir,_netdev,noauto,comment=x,defaults,rw,nosuid"
    )
    assert guest_options(share(options=words)) == "rw,noatime,nosuid"
    assert guest_options(share(options=words, read_only=True)) == "ro,noatime,nosuid"
    assert guest_options(share()) == "rw"


def test_outer_mounts_come_first() -> None:
    places = ["/mnt/a/b", "/mnt/a-b", "/mnt", "/mnt/a", "/srv/../mnt/a//b/c/"]
    ordered = [one.where for one in mounts_of(share(f"t{n}", place) for n, place in enumerate(places))]
    assert ordered == ["/mnt", "/mnt/a", "/mnt/a/b", "/mnt/a/b/c", "/mnt/a-b"]


def test_shares_without_a_mount_point_are_left_to_the_guest() -> None:
    assert mounts_of([share(mount_point="")]) == []


def test_two_shares_at_one_place_are_refused() -> None:
    with pytest.raises(InvalidArgs, match="same MountPoint"):
        mounts_of([share("a", "/mnt/x"), share("b", "/mnt//x/")])


def test_fstab_has_no_escape_for_a_comment() -> None:
    assert not fits_fstab(mount("/mnt", "#tag"))
    assert fits_fstab(mount("/mnt/#x", "tag#"))


@pytest.mark.parametrize(
    ("where", "unit"),
    [
        ("/", "-.mount"),
        ("/mnt/src", "mnt-src.mount"),
        ("/mnt/a-b c", r"mnt-a\x2db\x20c.mount"),
        ("/.x/.y", r"\x2ex-.y.mount"),
        (r"/mnt/\x2f", r"mnt-\x5cx2f.mount"),
        ("/ü:_", r"\xc3\xbc:_.mount"),
    ],
)
def test_units_have_the_names_that_systemd_gives_them(where: str, unit: str) -> None:
    assert mount(where).unit == unit


@pytest.mark.parametrize("options", ["a b", "a\tb", "a\nb", "a\\b", "a\0b"])
def test_options_that_break_a_line_are_refused(options: str) -> None:
    with pytest.raises(InvalidArgs, match="MountOptions"):
        share(options=options)
