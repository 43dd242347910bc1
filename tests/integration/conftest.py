"""Fixtures: a vfsd in each scope, left as clean as it was found."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.harness import TESTER, Client, Vfsd, clean, scrub, wait_for


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests need the lab: elsewhere they must not touch anybody's vfsd."""
    if Path("/etc/hostname").read_text().strip() != "vfsd-lab":
        for item in items:
            if "integration" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="runs in the lab only: make test"))


@pytest.fixture(autouse=True, scope="session")
def readable_journal() -> None:
    """Let the user read the journal of what he runs; a journal that is kept on disk does by itself (SplitMode=)."""
    rights = f"u:{TESTER}:rX"
    subprocess.run(["setfacl", "-R", "-m", rights, "-m", f"d:{rights}", "/run/log/journal"], check=True)


@contextlib.contextmanager
def kept_clean(scope: str) -> Iterator[Vfsd]:
    """A running vfsd without objects; fails if something is left behind that can't be removed."""
    service = Vfsd(scope)
    service.systemctl("reset-failed", "vfsd.service", check=False)
    service.systemctl("start", "vfsd.service")
    yield service
    service.systemctl("reset-failed", "vfsd.service", check=False)
    service.systemctl("start", "vfsd.service")
    clean(service)
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not service.leftovers(), "everything is gone", 10)
    left = service.leftovers()
    scrub(service)
    assert left == []


@pytest.fixture(params=["system", "user"])
def vfsd(request: pytest.FixtureRequest) -> Iterator[Vfsd]:
    """A vfsd in each scope; the test fails if it leaves something behind that can't be removed."""
    with kept_clean(request.param) as service:
        yield service


only_system = pytest.mark.parametrize("vfsd", ["system"], indirect=True)
only_user = pytest.mark.parametrize("vfsd", ["user"], indirect=True)


@pytest.fixture
async def client(vfsd: Vfsd) -> AsyncIterator[Client]:
    """A client of that vfsd which collects signals."""
    connected = await Client.connect(vfsd)
    yield connected
    await connected.close()


@pytest.fixture
def folder(vfsd: Vfsd) -> Iterator[Path]:
    """A folder that the scope's user owns, to be shared. Not on overlayfs, not below /tmp or a home."""
    base = Path("/srv")
    base.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="vfsd-test-", dir=base))
    if vfsd.scope == "user":
        shutil.chown(made, TESTER, TESTER)
    yield made
    shutil.rmtree(made, ignore_errors=True)
