"""Open files of a process, and when to warn."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from vfsd import open_files
from vfsd.open_files import CALM, LEVELS, Alarm

OPEN_MANY = (
    "import os, sys; [os.open('/', os.O_PATH) for _ in range(100)]; print(flush=True); sys.stdin.read()"
)


def test_open_files_of_a_process() -> None:
    before = open_files.look(os.getpid())
    assert before is not None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert before.limit == (soft - open_files.RESERVE if soft > open_files.RESERVE else soft)
    files = [os.open("/", os.O_PATH) for _ in range(50)]
    try:
        after = open_files.look(os.getpid())
        assert after is not None
        assert after.open - before.open == 50
        assert open_files.count(os.getpid()) in (after.open, None)
        assert open_files._listed(os.getpid()) == after.open + 1, "the listing itself"
    finally:
        for descriptor in files:
            os.close(descriptor)


def test_a_child_that_does_the_work_counts() -> None:
    waits = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {OPEN_MANY!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        found = open_files.look(parent.pid)
        assert found is not None
        assert 100 <= found.open < 120
        parent.communicate()
    assert open_files.look(parent.pid) is None, "it is gone"
    assert open_files.count(parent.pid) == 0


def test_a_process_that_may_open_any_number() -> None:
    assert open_files.Use(5, 0).part == 0


def test_an_alarm() -> None:
    alarm = Alarm()
    parts = [0.1, 0.79, 0.8, 0.9, 0.96, 0.9, 0.96, 0.75, 0.85, 0.96, 0.69, 0.75, 0.8, 0.5, 1.0, 1.0]
    assert [part for part in parts if alarm.rings(part)] == [0.8, 0.96, 0.8, 1.0]


@given(st.lists(st.floats(0, 1)))
def test_an_alarm_rings_at_most_twice_before_it_is_calm(parts: list[float]) -> None:
    alarm = Alarm()
    rung = 0
    for part in parts:
        if part < CALM:
            rung = 0
        if alarm.rings(part):
            assert part >= LEVELS[0]
            rung += 1
        assert rung <= len(LEVELS)
