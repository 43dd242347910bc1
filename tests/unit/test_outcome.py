"""What the end of a process is called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.outcome import qemu_end, virtiofsd_end
from vfsd.supervisor import UnitStatus

EXITED, KILLED, DUMPED = 1, 2, 3


def ended(code: int, status: int, result: str = "exit-code") -> UnitStatus:
    return UnitStatus(active="failed", exit_code=code, exit_status=status, result=result)


@pytest.mark.parametrize(
    ("status", "begun", "words"),
    [
        (ended(EXITED, 0, "success"), True, ""),
        (ended(KILLED, 2, "success"), True, ""),  # SIGINT is its KillSignal=
        (ended(EXITED, 254), True, ""),  # the same, of its child
        (ended(EXITED, 1), True, "ended with exit code 1"),
        (ended(EXITED, 2), True, "ended with exit code 2"),
        (ended(KILLED, 9, "signal"), True, "was killed by SIGKILL"),
        (ended(DUMPED, 11, "core-dump"), True, "was killed by SIGSEGV"),
        (ended(EXITED, 247), True, "was killed by SIGKILL"),
        (ended(EXITED, 225), True, "killed by SIGSYS for a system call that its filter forbids"),
        (ended(EXITED, 225), False, "could not get a network namespace"),
        (ended(EXITED, 226), False, "is the source still there?"),
        (ended(EXITED, 203), False, "can't be executed"),
        (ended(KILLED, 9, "oom-kill"), True, "because memory ran out"),
        (ended(KILLED, 9, "timeout"), True, "did not end in time"),
        (ended(0, 0, "resources"), False, "for want of resources"),
        (ended(0, 0, "success"), False, ""),
    ],
)
def test_virtiofsd(status: UnitStatus, begun: bool, words: str) -> None:
    told = virtiofsd_end(status, had_begun=begun)
    assert words in told
    assert bool(told) == bool(words)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (ended(EXITED, 0, "success"), ""),
        (ended(EXITED, 1), "QEMU ended with exit code 1"),
        (ended(KILLED, 9, "signal"), "QEMU was killed by SIGKILL"),
        (ended(DUMPED, 6, "core-dump"), "QEMU was killed by SIGABRT"),
        (ended(EXITED, 203), "QEMU can't be executed"),
        (ended(KILLED, 9, "oom-kill"), "memory ran out"),
    ],
)
def test_qemu(status: UnitStatus, words: str) -> None:
    told = qemu_end(status)
    assert words in told
    assert bool(told) == bool(words)


@given(
    st.builds(
        ended,
        st.integers(0, 3),
        st.integers(0, 255),
        st.sampled_from(["success", "exit-code", "signal", "timeout", "protocol", "something-new"]),
    ),
    st.booleans(),
)
def test_no_end_is_without_words(status: UnitStatus, begun: bool) -> None:
    """Whatever systemd tells, there is a sentence or a normal end."""
    for told in (virtiofsd_end(status, had_begun=begun), qemu_end(status)):
        assert told == "" or told.startswith(("virtiofsd ", "QEMU "))
    if status.result == "something-new" and status.exit_code == 0:
        assert "something-new" in qemu_end(status)
