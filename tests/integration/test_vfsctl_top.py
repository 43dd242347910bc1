"""vfsctl top: what a real machine and its virtiofsd use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.conftest import only_user
from tests.integration.harness import Vfsd, wait_for
from tests.integration.vfsctl import SMALL, Terminal, ok, vfsctl
from vfsd.guest.command_line import escape

READER = "while :; do cat /mnt/data/file >/dev/null; done"


def test_a_guest_that_reads_is_seen(vfsd: Vfsd, folder: Path) -> None:
    (folder / "file").write_bytes(bytes(8 << 20))
    ok(vfsd, "share", "add", "idle", str(folder))
    ok(
        vfsd, "machine", "add", "dev", "--builtin", *SMALL, "--share", f"{folder}:/mnt/data",
        "--append", f"vfsd.exec={escape(READER)}",
    )  # fmt: skip
    ok(vfsd, "machine", "start", "dev")

    def busy() -> dict[str, Any] | None:
        told = [json.loads(line) for line in ok(vfsd, "top", "--json", "-n", "2", "-d", "500ms").splitlines()]
        assert len(told) == 2
        [machine] = told[1]["Machines"]
        assert told[1]["Shares"] == [
            {"Name": "idle", "State": "listening", **dict.fromkeys(("CPUPercent", "Memory"), None),
             **dict.fromkeys(("ReadPerSec", "WrittenPerSec"), None)}
        ]  # fmt: skip
        [share] = machine["Shares"]
        return dict(machine) if share["CPUPercent"] and (share["ReadPerSec"] or 0) > 1 << 20 else None

    machine = wait_for(busy, "the guest reads", 60)
    [share] = machine["Shares"]
    assert machine["CPUPercent"] > share["CPUPercent"]
    assert machine["Memory"] > share["Memory"] > 1 << 20
    table = ok(vfsd, "top", "--sort", "cpu").splitlines()
    assert table[0].split() == ["NAME", "STATE", "CPU", "MEMORY", "READ/S", "WRITE/S"]
    assert [line.split()[0] for line in table[1:]] == ["dev", f"dev.{folder.name}", "idle"]
    assert table[2].startswith("  ")
    assert vfsctl(vfsd, "top", "-n", "0").code == 2
    ok(vfsd, "machine", "kill", "dev")
    assert ok(vfsd, "top", "--no-legend", "--once").splitlines()[0].split() == [
        "dev",
        "stopped",
        "-",
        "-",
        "-",
        "-",
    ]


@only_user
def test_on_a_terminal_it_goes_on_until_it_is_ended(vfsd: Vfsd, folder: Path) -> None:
    for key, interval in (("\x03", "300ms"), ("q", "1h")):
        terminal = Terminal(vfsd, "top", "-d", interval)
        try:
            terminal.expect(r"0 machines, \d shares?. q ends")
            if key == "q":
                terminal.resize(24, 16)
                terminal.expect("…", 20)  # at once, not after the interval
            else:
                ok(vfsd, "share", "add", "new", str(folder))
                terminal.expect(r"new +listening")
            terminal.send(f"x{key}")
            assert terminal.end() == 0
            assert terminal.text.rstrip("^C\r\n ").endswith("\x1b[?1049l")
            assert "xq" not in terminal.text, "what is typed is not shown"
        finally:
            terminal.close()
