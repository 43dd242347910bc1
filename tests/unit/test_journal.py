"""How often somebody untrusted can cause an entry in the journal."""

from __future__ import annotations

import pytest

from vfsd.journal import Pace


def test_what_comes_too_often_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("vfsd.journal.time.monotonic", lambda: now)
    pace = Pace()
    assert [pace.pace("again") for _ in range(Pace.COUNT + 3)] == ["again"] * Pace.COUNT + [""] * 3
    now += Pace.WINDOW
    assert pace.pace("later") == "later (3 entries of this kind were left out before)"
    assert pace.pace("later") == "later"


def test_a_window_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("vfsd.journal.time.monotonic", lambda: now)
    pace = Pace()
    written = 0
    for _ in range(600):  # ten minutes, one a second
        written += bool(pace.pace("again"))
        now += 1
    assert written == 10 * Pace.COUNT
