"""What vfsd writes to the journal: ids, fields, the unit that it is about, and the catalog's explanation."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, ROOT, SHARE, CommandFailed, Vfsd, wait_for
from tests.integration.sharing import connected, kill, wait_active, wait_state
from vfsd.journal import MessageId

SRC = f"{ROOT}/share/src"
SERVICE = "vfsd-share-src.service"


def entries(vfsd: Vfsd, since: float, *matches: str, count: int = 0) -> list[dict[str, Any]]:
    """Entries of this scope's vfsd since a moment; waits for so many."""
    field = "_SYSTEMD_UNIT" if vfsd.scope == "system" else "_SYSTEMD_USER_UNIT"

    def read() -> list[dict[str, Any]]:
        return vfsd.journal(f"{field}=vfsd.service", *matches, since=since)

    if count:
        wait_for(lambda: len(read()) >= count, f"{count} entries", 5)
    return read()


def told(entry: dict[str, Any]) -> dict[str, str]:
    return {
        key: value
        for key, value in entry.items()
        if key.startswith(("VFSD_", "OBJECT_")) or key == "MESSAGE_ID"
    }


def test_each_change_of_state_is_one_entry(vfsd: Vfsd, folder: Path) -> None:
    since = time.time()
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "0")
    with connected(vfsd.runtime / "share/src.sock"):
        kill(wait_active(vfsd, SRC))
        wait_state(vfsd, SRC, "listening")
    reason = vfsd.get(SRC, SHARE, "Reason")
    vfsd.call(SRC, SHARE, "Stop")
    about = "OBJECT_SYSTEMD_UNIT" if vfsd.scope == "system" else "OBJECT_SYSTEMD_USER_UNIT"
    base = {"MESSAGE_ID": MessageId.SHARE_STATE.value, "VFSD_SHARE": "src", about: SERVICE}
    steps = [
        ("stopped", "listening"),
        ("listening", "active"),
        ("active", "listening"),
        ("listening", "stopped"),
    ]
    wanted = [{**base, "VFSD_OLD_STATE": old, "VFSD_NEW_STATE": new} for old, new in steps]
    wanted[2]["VFSD_REASON"] = reason
    found = [
        told(entry)
        for entry in entries(vfsd, since, f"MESSAGE_ID={MessageId.SHARE_STATE.value}", count=4)
        if entry["VFSD_NEW_STATE"] != "stopping"
    ]
    for entry in found:
        if entry["VFSD_OLD_STATE"] == "stopping":
            entry["VFSD_OLD_STATE"] = "listening"
    assert found == wanted
    # journald vouches for the unit that root's, or the user's own, vfsd wrote about
    shown = [entry for entry in vfsd.journal(f"{about}={SERVICE}", since=since) if "VFSD_NEW_STATE" in entry]
    assert [entry["VFSD_NEW_STATE"] for entry in shown][-1] == "stopped"
    assert all(entry["SYSLOG_IDENTIFIER"] == "vfsd" for entry in shown)


@only_system
def test_the_journal_of_the_unit_shows_vfsds_words(vfsd: Vfsd, folder: Path) -> None:
    since = time.time()
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "0")
    with connected(vfsd.runtime / "share/src.sock"):
        wait_active(vfsd, SRC)
    wait_state(vfsd, SRC, "listening")
    shown = vfsd.run("journalctl", "-u", SERVICE, f"--since=@{since:.6f}", "-o", "cat")
    assert "share src is active" in shown
    assert "Waiting for vhost-user socket connection" in shown
    tagged = vfsd.journal("VFSD_SHARE=src", since=since)
    assert {"vfsd", "virtiofsd", "systemd"} <= {entry["SYSLOG_IDENTIFIER"] for entry in tagged}


def test_refusals_are_entries(vfsd: Vfsd, folder: Path) -> None:
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "0")
    vfsd.manager("CreateMachine", "sa{sv}", "dev", "0")
    since = time.time()
    for path, interface, member, arguments in (
        (SRC, SHARE, "Start", []),
        (f"{ROOT}/machine/dev", MACHINE, "Pause", []),
        (ROOT, "org.vfsd1.Manager", "GetShare", ["s", "none"]),
    ):
        with pytest.raises(CommandFailed):
            vfsd.call(path, interface, member, *arguments)
    about = "OBJECT_SYSTEMD_UNIT" if vfsd.scope == "system" else "OBJECT_SYSTEMD_USER_UNIT"
    share, machine, manager = entries(vfsd, since, f"MESSAGE_ID={MessageId.REFUSED.value}", count=3)
    assert (share["VFSD_SHARE"], share[about]) == ("src", SERVICE)
    assert share["MESSAGE"] == f"Start refused: {share['VFSD_REASON']}"
    assert "listening already" in share["VFSD_REASON"]
    assert (machine["VFSD_MACHINE"], machine[about]) == ("dev", "vfsd-machine-dev.service")
    assert 'no share "none"' in manager["VFSD_REASON"]
    assert all(entry["PRIORITY"] == "6" for entry in (share, machine, manager))


def test_a_failure_is_an_entry(vfsd: Vfsd, folder: Path) -> None:
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "0")
    vfsd.call(SRC, SHARE, "Stop")
    since = time.time()
    vfsd.systemctl("mask", "--runtime", "vfsd-share-src.socket")
    try:
        with pytest.raises(CommandFailed, match="masked"):
            vfsd.call(SRC, SHARE, "Start")
    finally:
        vfsd.systemctl("unmask", "--runtime", "vfsd-share-src.socket")
    [entry] = entries(vfsd, since, f"MESSAGE_ID={MessageId.SHARE_FAILED.value}", count=1)
    assert (entry["VFSD_SHARE"], entry["VFSD_NEW_STATE"], entry["PRIORITY"]) == ("src", "failed", "4")
    assert "masked" in entry["VFSD_REASON"]
    assert vfsd.get(SRC, SHARE, "State") == "failed"
    vfsd.call(SRC, SHARE, "Start")
    assert (vfsd.get(SRC, SHARE, "State"), vfsd.get(SRC, SHARE, "Reason")) == ("listening", "")


def test_what_was_found_again_is_told(vfsd: Vfsd, folder: Path) -> None:
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "0")
    since = time.time()
    vfsd.restart()
    [entry] = entries(vfsd, since, f"MESSAGE_ID={MessageId.ADOPTED.value}", count=1)
    assert entry["MESSAGE"] == "Found 1 shares and 0 machines again"
    assert [e for e in entries(vfsd, since) if e.get("MESSAGE_ID") == MessageId.SHARE_STATE.value] == []


def test_a_newline_in_a_source_makes_no_entry_of_its_own(vfsd: Vfsd, folder: Path) -> None:
    since = time.time()
    source = f"{folder}/x\nPRIORITY=0\nMESSAGE=forged"
    with pytest.raises(CommandFailed, match="does not exist"):
        vfsd.manager("CreateShare", "ssa{sv}", "src", source, "0")
    [entry] = entries(vfsd, since, f"MESSAGE_ID={MessageId.REFUSED.value}", count=1)
    assert entry["PRIORITY"] == "6"
    assert source in entry["VFSD_REASON"]


@only_system
def test_the_catalog_explains_each_entry(vfsd: Vfsd, folder: Path) -> None:
    listed = subprocess.run(
        ["journalctl", "--list-catalog", *(item.value for item in MessageId)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for item in MessageId:
        assert f"{item.value} vfsd: " in listed
    since = time.time()
    vfsd.manager("CreateShare", "ssa{sv}", "src", str(folder), "0")
    entries(vfsd, since, f"MESSAGE_ID={MessageId.SHARE_STATE.value}", count=1)
    explained = vfsd.run(
        "journalctl", "-x", f"--since=@{since:.6f}", "VFSD_SHARE=src", "_SYSTEMD_UNIT=vfsd.service"
    )
    assert "The share src went from stopped to listening." in explained
