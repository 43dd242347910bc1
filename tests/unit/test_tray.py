"""What the tray shows of given objects, and when it tells something unasked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd import names
from vfsd.cli import tray_menu
from vfsd.cli.objects import kind_at
from vfsd.cli.tray_item import item_properties
from vfsd.cli.tray_menu import Item, Objects, Properties
from vfsd.cli.values import Typed

MACHINE_DEFAULTS = {"Reason": "", "Degraded": False, "Suspended": False, "Shares": []}


def machine(name: str, state: str, **more: Any) -> Objects:
    item = {"Name": name, "State": state, **MACHINE_DEFAULTS, **more}
    return {names.machine_path(name): {names.MACHINE_INTERFACE: item}}


def share(name: str, state: str, of: str = "", **more: Any) -> Objects:
    machine_path = names.machine_path(of) if of else "/"
    item = {"Name": name, "State": state, "Reason": "", "Tag": name, "Machine": machine_path, **more}
    return {names.share_path(name): {names.SHARE_INTERFACE: item}}


def labels(entries: tuple[Item, ...]) -> list[str]:
    return [entry.label or "-" for entry in entries]


@pytest.mark.parametrize(
    ("objects", "status", "tool_tip"),
    [
        ({}, "Active", ""),
        (machine("a", "stopped"), "Active", ""),
        (share("s", "stopped"), "Active", ""),
        (machine("b", "running") | machine("a", "paused"), "Active", "a: Paused\nb: Running"),
        (share("s", "listening") | machine("z", "stopped"), "Active", "s: Waiting for a client"),
        (machine("a", "running") | share("a.s", "active", of="a"), "Active", "a: Running"),
        (machine("a", "running") | machine("b", "failed"), "NeedsAttention", "b: Failed"),
        (machine("a", "running", Degraded=True), "NeedsAttention", "a: Running, a share is broken"),
        (machine("a", "stopped", Degraded=True), "Active", ""),
        (share("s", "unavailable"), "NeedsAttention", "s: Unavailable"),
    ],
)
def test_status_and_tool_tip(objects: Objects, status: str, tool_tip: str) -> None:
    assert (tray_menu.status(objects), tray_menu.tool_tip(objects)) == (status, tool_tip)


def test_without_vfsd_there_is_only_its_start() -> None:
    assert labels(tray_menu.menu(None)) == ["vfsd is not running", "Start vfsd", "-", "Quit"]


def test_shares_stand_below_their_machine_and_those_of_none_by_themselves() -> None:
    objects = (
        share("web.src", "active", of="web", Tag="src", Source="/srv/src")
        | share("hidden", "listening", of="web")
        | share("alone", "unavailable", Source="/mnt", Reason="it is gone")
        | machine("web", "running", Shares=[names.share_path(each) for each in ("web.src", "hidden", "new")])
    )
    menu = tray_menu.menu(objects)
    assert labels(menu) == [
        *("web: Running", "-", "Shared folders", "alone: Unavailable", "-", "Share a Folder…", "-", "Quit")
    ]
    assert labels(menu[0].children)[:3] == ["src: In use (/srv/src)", "hidden: Waiting for a client", "-"]
    assert labels(menu[3].children) == ["/mnt", "it is gone", "-", "Stop Sharing", "Show Log"]
    told = [entry for entry in menu[0].children + menu[3].children if entry.label and not entry.action]
    assert [item_properties(entry)["enabled"] for entry in told] == [Typed("b", False)] * 4


@pytest.mark.parametrize(
    ("state", "more", "offered"),
    [
        ("stopped", {}, "Start"),
        ("failed", {}, "Start"),
        ("no such state", {}, "Start"),
        ("stopped", {"Suspended": True}, "Resume"),
        ("running", {}, "Shut Down, Pause, Open Console, Force Off"),
        ("paused", {}, "Resume, Open Console, Force Off"),
        ("stopping", {}, "Open Console, Force Off"),
    ],
)
def test_what_is_offered(state: str, more: Properties, offered: str) -> None:
    (item,) = machine("a", state, **more).values()
    deeds = tray_menu.deeds(item[names.MACHINE_INTERFACE])
    assert [deed.label for deed in deeds] == [*offered.split(", "), "Show Log"]
    members = {"Start": "Start", "Resume": "Thaw" if more else "Resume", "Shut Down": "Shutdown"}
    assert deeds[0].member == members.get(deeds[0].label, "")


@pytest.mark.parametrize(
    ("state", "offered"),
    [
        ("stopped", ["Start", "Stop Sharing", "Show Log"]),
        ("failed", ["Start", "Stop Sharing", "Show Log"]),
        ("listening", ["Stop Sharing", "Show Log"]),
        ("unavailable", ["Stop Sharing", "Show Log"]),
    ],
)
def test_what_is_offered_of_a_share(state: str, offered: list[str]) -> None:
    assert labels(tray_menu.menu(share("s", state))[3].children) == offered


def test_no_two_entries_have_one_key() -> None:
    objects = machine("a", "failed", Reason="why", Shares=[names.share_path("a.s")]) | machine("b", "running")
    objects |= share("a.s", "stopped", of="a") | share("s", "failed", Reason="why") | share("a", "active")

    def keys(entries: tuple[Item, ...]) -> list[str]:
        return [key for entry in entries for key in (entry.key, *keys(entry.children))]

    found = keys(tray_menu.menu(objects))
    assert len(found) == len(set(found)) > 20


def changed(before: Objects, now: Objects) -> tuple[str, str] | None:
    (path,) = now
    interface = kind_at(path).interface
    news = tray_menu.news(path, before[path][interface], now[path][interface])
    return news and (news.title, ", ".join(action.deed.label for action in news.actions))


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (machine("a", "running"), machine("a", "failed"), ("“a” failed", "Start, Show Log")),
        (machine("a", "running"), machine("a", "stopped"), None),
        (machine("a", "stopped"), machine("a", "running"), None),
        (machine("a", "failed"), machine("a", "running"), None),
        (machine("a", "failed"), machine("a", "failed", Reason="another"), None),
        (machine("a", "running"), machine("a", "running", Degraded=True), ("“a” lost a share", "Show Log")),
        (machine("a", "running", Degraded=True), machine("a", "running"), ("“a” works again", "")),
        (machine("a", "running", Degraded=True), machine("a", "stopped"), None),
        (share("s", "active"), share("s", "listening"), None),
        (share("s", "active"), share("s", "unavailable"), ("“s” is unavailable", "Show Log")),
        (share("s", "active"), share("s", "failed"), ("“s” failed", "Start, Show Log")),
        (share("s", "unavailable"), share("s", "failed"), None),
        (share("s", "unavailable"), share("s", "listening"), ("“s” works again", "")),
        (share("s", "failed"), share("s", "stopped"), None),
        (share("m.s", "active", of="m"), share("m.s", "failed", of="m"), None),
    ],
)
def test_news(before: Objects, now: Objects, expected: tuple[str, str] | None) -> None:
    assert changed(before, now) == expected


@pytest.mark.parametrize(
    ("folder", "taken", "name"),
    [
        ("/srv/src", {}, "src"),
        ("/srv/src/", {"src", "src-2"}, "src-3"),
        ("/home/me/My files", {}, "My_files"),
        ("/home/me/.config", {}, "config"),
        ("/", {}, "share"),
        ("/srv/---", {}, "share"),
        ("/srv/" + "x" * 255, {}, "x" * 40),
    ],
)
def test_the_name_of_a_share(folder: str, taken: set[str], name: str) -> None:
    assert tray_menu.share_name(folder, taken) == name


@given(st.text(min_size=1), st.sets(st.integers(0, 99)))
def test_the_name_of_a_share_is_one(folder: str, numbers: set[int]) -> None:
    first = tray_menu.share_name(f"/{folder}", {})
    taken = {first, *(f"{first}-{number}" for number in numbers)}
    name = tray_menu.share_name(f"/{folder}", taken)
    assert name not in taken
    assert names.is_share_name(name)
    assert len(names.share_socket_unit(name)) <= names.UNIT_NAME_MAX


def test_a_name_makes_no_access_key() -> None:
    assert item_properties(Item("key", "a_b__c")) == {
        "label": Typed("s", "a__b____c"),
        "enabled": Typed("b", False),
    }
