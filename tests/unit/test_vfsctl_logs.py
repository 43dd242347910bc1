"""vfsctl logs: which entries of the journal are asked for."""

from __future__ import annotations

from vfsd.cli.logs import Subject, matches
from vfsd.names import Scope


def groups(words: list[str]) -> list[set[str]]:
    """The groups of matches, which must not be empty: journalctl would show everything."""
    made: list[set[str]] = [set()]
    for word in words:
        if word == "+":
            made.append(set())
        else:
            made[-1].add(word)
    assert all(made)
    return made


def test_a_machine_of_the_system() -> None:
    asked = groups(matches(Scope.SYSTEM, Subject("my-dev", ("my-dev.src",)), None))
    assert {"VFSD_MACHINE=my-dev", "_SYSTEMD_UNIT=vfsd.service"} in asked
    assert {"VFSD_SHARE=my-dev.src", "_SYSTEMD_UNIT=vfsd.service"} in asked
    assert {"_SYSTEMD_SLICE=vfsd-my\\x2ddev.slice"} in asked
    [about] = [group for group in asked if all(word.startswith("UNIT=") for word in group)]
    assert "UNIT=vfsd-machine-my\\x2ddev.service" in about
    assert "UNIT=vfsd-share-my\\x2ddev.src.service" in about
    assert not any("USER" in word or "_UID" in word for group in asked for word in group)


def test_a_users_share_is_told_from_that_of_another() -> None:
    asked = groups(matches(Scope.USER, Subject(shares=("src",)), 1000))
    assert {"VFSD_SHARE=src", "_SYSTEMD_USER_UNIT=vfsd.service", "_UID=1000"} in asked
    assert all("_UID=1000" in group for group in asked)
    assert not any("SLICE" in word or "VFSD_MACHINE" in word for group in asked for word in group)
    assert any("_SYSTEMD_USER_UNIT=vfsd-share-src-2.service" in group for group in asked), "after a Refresh"
