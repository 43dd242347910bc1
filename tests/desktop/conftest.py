"""Fixtures of the desktop lab: the user's vfsd and session."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.desktop.gnome import GnomeShell
from tests.desktop.session import Session
from tests.integration.conftest import folder, kept_clean, readable_journal
from tests.integration.harness import Vfsd

__all__ = ["folder", "readable_journal"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests need the desktop lab."""
    if Path("/etc/hostname").read_text().strip() != "vfsd-lab" or not shutil.which("gnome-shell"):
        for item in items:
            if "desktop" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="runs in the desktop lab only: make test-desktop"))


@pytest.fixture
def vfsd() -> Iterator[Vfsd]:
    """The user's vfsd, without objects before and after."""
    with kept_clean("user") as service:
        yield service


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    """The user's session; what runs in it is ended."""
    made = Session()
    yield made
    made.close()


@pytest.fixture(scope="session")
def gnome_shell(session: Session) -> Iterator[GnomeShell]:
    """GNOME Shell; it ends before tests of another desktop begin."""
    shell = GnomeShell(session)
    yield shell
    GnomeShell.close_running()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Only one desktop at a time can be the user's."""
    if not nextitem or not nextitem.path.name.startswith("test_gnome"):
        GnomeShell.close_running()


@pytest.fixture
def gnome(gnome_shell: GnomeShell, vfsd: Vfsd) -> Iterator[GnomeShell]:
    """GNOME Shell with the extension, and the user's vfsd; fails if the shell complains."""
    if not gnome_shell.is_running:
        gnome_shell.start()
    gnome_shell.begin()
    yield gnome_shell
    if gnome_shell.is_running:
        assert gnome_shell.errors() == []
