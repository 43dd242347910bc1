"""The bench's statistics and its reading of messages: what can be checked without running anything."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from dbus_next import Message, Variant
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.bus import parse_header
from tests.bench.by_hand import free_slot
from tests.bench.heals import degraded_in, shares_for
from tests.bench.qmp import request, seconds_of
from tests.bench.refreshes import SECTION, tell
from tests.bench.results import Results, Row, cells, milliseconds, number, table
from tests.bench.stats import Goal, Spread, Verdict, median, quantile, ratios, spread, turn_order
from vfsd.healing import ATTEMPTS
from vfsd.model import SPARE_PORTS_MAX

TIMES = st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=1, max_size=30)


def test_the_median_lies_in_the_middle() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5


def test_quartiles_are_linear_between_values() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert quantile([0.0, 10.0], 0.25) == 2.5


def test_nothing_has_no_median() -> None:
    with pytest.raises(ValueError, match="no values"):
        median([])


@given(TIMES)
def test_quantiles_are_ordered_and_within_the_values(values: list[float]) -> None:
    found = spread(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)


@given(TIMES, st.floats(min_value=0.1, max_value=10))
def test_a_slow_machine_changes_no_ratio(values: list[float], slowness: float) -> None:
    base = [value * 2 for value in values]
    slow = ratios([value * slowness for value in values], [value * slowness for value in base])
    assert slow == pytest.approx([0.5] * len(values))


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (Spread(1.0, 0.9, 1.05, 5), Verdict.MET),
        (Spread(1.0, 0.9, 1.2, 5), Verdict.MET_CLOSE),
        (Spread(1.2, 1.0, 1.3, 5), Verdict.MISSED_CLOSE),
        (Spread(1.2, 1.15, 1.3, 5), Verdict.MISSED),
        (Spread(1.1, 1.1, 1.1, 1), Verdict.MET),
    ],
)
def test_a_goal_judges_the_median_and_says_if_the_spread_doubts_it(value: Spread, verdict: Verdict) -> None:
    assert Goal(1.1).verdict(value) is verdict


def test_each_mode_takes_its_turn_once_in_each_round() -> None:
    modes = ["a", "b", "c"]
    orders = [turn_order(modes, number) for number in range(6)]
    assert all(sorted(order) == modes for order in orders)
    assert {order[0] for order in orders} == set(modes)
    followers = [pair for order in orders for pair in pairwise(order)]
    assert followers.count(("a", "b")) == followers.count(("b", "a"))
    assert turn_order([], 3) == []


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.0, "x", "x1.00"),
        (4.123, "ms", "4.12 ms"),
        (41.23, "ms", "41.2 ms"),
        (412.3, "ms", "412 ms"),
        (0, "", "0.00"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text


def test_times_are_told_in_milliseconds() -> None:
    assert milliseconds(0.0012) == "1.20 ms"
    assert milliseconds(1.2) == "1200 ms"


def test_the_table_names_a_section_once_and_a_goal_in_its_own_words() -> None:
    rows = [
        Row("s", "one", spread([1.0, 2.0]), "x", Goal(1.0, "1.00 (exactly)"), "5 ms / 4 ms"),
        Row("s", "two", spread([1.0]), "ms"),
    ]
    assert cells(rows[0]) == ("s", "one", "x1.50", "1.25 to 1.75", "1.00 (exactly)", "missed", "5 ms / 4 ms")
    assert cells(rows[1]) == ("s", "two", "1.00 ms", "", "", "", "")
    lines = table(rows).splitlines()
    assert [line.startswith("s ") for line in lines if "one" in line or "two" in line] == [True, False]


def test_results_are_written_as_json(tmp_path: Path) -> None:
    results = Results()
    results.compare("s", "pairs", [2.0, 3.0], [1.0, 2.0], 1.1)
    results.compare("s", "nothing measured", [], [], 1.1)
    results.write(tmp_path / "bench.json", {"seconds": 1})
    document = json.loads((tmp_path / "bench.json").read_text())
    assert document["about"] == {"seconds": 1}
    [row] = document["rows"]
    assert row["value"]["median"] == 1.75
    assert (row["goal"], row["verdict"]) == (1.1, "missed")
    assert [row.what for row in results.missed] == ["pairs"]


def test_a_header_is_read_without_its_body() -> None:
    message = Message(
        destination="org.example",
        path="/org/example",
        interface="org.example.Interface",
        member="Member",
        signature="su",
        body=["text", 5],
        serial=77,
    )
    header = parse_header(bytes(message._marshall()), 1.5)
    assert (header.kind, header.serial, header.reply_serial) == (1, 77, 0)
    assert (header.path, header.interface, header.member) == (
        "/org/example",
        "org.example.Interface",
        "Member",
    )
    assert header.body() == ["text", 5]
    assert header.received == 1.5


def test_a_reply_is_known_by_its_serial() -> None:
    call = Message(destination="d.e", path="/p", member="M", serial=5, sender=":1.5")
    reply = Message.new_error(call, "org.example.Error", "why")
    reply.serial = 9
    header = parse_header(bytes(reply._marshall()))
    assert (header.reply_serial, header.error_name, header.body()) == (5, "org.example.Error", ["why"])


def test_a_command_has_arguments_only_if_it_is_given_some() -> None:
    assert json.loads(request("quit", {})) == {"execute": "quit"}
    assert request("quit", {}).endswith(b"}\n")
    asked = json.loads(request("guest-exec", {"path": "/bin/sh", "capture-output": True}))
    assert asked["arguments"] == {"path": "/bin/sh", "capture-output": True}


def test_the_time_between_two_events_is_exact_to_the_microsecond() -> None:
    stop = {"event": "STOP", "timestamp": {"seconds": 1_700_000_000, "microseconds": 999_000}}
    resume = {"event": "RESUME", "timestamp": {"seconds": 1_700_000_001, "microseconds": 5_000}}
    assert seconds_of(resume) - seconds_of(stop) == pytest.approx(0.006, abs=1e-6)


@given(st.sets(st.integers(min_value=0, max_value=40)))
def test_a_free_slot_is_the_first_that_is_not_taken(taken: set[int]) -> None:
    slot = free_slot(taken)
    assert slot not in taken
    assert set(range(slot)) <= taken


@given(st.integers(min_value=1, max_value=SPARE_PORTS_MAX - ATTEMPTS))
def test_no_share_is_killed_more_often_than_it_is_healed(turns: int) -> None:
    count = shares_for(turns)
    killed = Counter(number % count for number in range(turns))
    assert max(killed.values()) <= ATTEMPTS
    assert turns <= count * ATTEMPTS <= SPARE_PORTS_MAX


def test_more_turns_than_a_machine_has_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="slots"):
        shares_for(SPARE_PORTS_MAX)


@pytest.mark.parametrize(
    ("member", "changed", "found"),
    [
        ("PropertiesChanged", {"Degraded": Variant("b", True)}, True),
        ("PropertiesChanged", {"Degraded": Variant("b", False), "Reason": Variant("s", "")}, False),
        ("PropertiesChanged", {"Reason": Variant("s", "")}, None),
        ("StateChanged", {}, None),
    ],
)
def test_a_change_of_degraded_is_told_from_all_others(
    member: str, changed: dict[str, Variant], found: bool | None
) -> None:
    message = Message.new_signal(
        "/org/vfsd1/machine/bench",
        "org.freedesktop.DBus.Properties",
        member,
        "sa{sv}as",
        ["org.vfsd1.Machine", changed, []],
    )
    message.serial = 3
    assert degraded_in(parse_header(bytes(message._marshall()))) is found


BY_HAND = {"downtime": [0.01, 0.0], "still": [0.011, 0.009], "resumed": [0.07, 0.06], "whole": [0.1, 0.2]}


def test_a_refresh_is_compared_by_the_time_from_stop_to_resume() -> None:
    results = Results()
    tell(results, {"still": [0.022, 0.018], "whole": [0.3, 0.4]}, BY_HAND, "")
    found = {row.what: row for row in results.rows}
    assert {row.section for row in results.rows} == {SECTION}
    assert found["guest stands still: vfsd / by hand"].value.median == pytest.approx(2.0)
    assert found["whole: vfsd / by hand"].value.median == pytest.approx(2.5)
    assert found["by hand: guest stands still, from STOP to RESUME"].value.median == pytest.approx(10.0)


def test_a_vfsd_that_can_not_refresh_is_told_beside_what_was_done_by_hand() -> None:
    results = Results()
    tell(results, {}, BY_HAND, "vfsd: not supported")
    assert [row.unit for row in results.rows] == ["ms"] * 4
    assert {row.note for row in results.rows} == {"vfsd: not supported"}
    tell(results, {}, {}, "")
    assert len(results.rows) == 4
