"""vfsctl as people and scripts use it, against the real vfsd, for root on the system bus and a user on theirs."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import MACHINE, SHARE, Vfsd
from tests.integration.vfsctl import BOOT_TIMEOUT, SMALL, Terminal, escape, nothing_left, ok, running, vfsctl

ODD_NAMES = (
    "with space",
    "co:lon",
    "per%cent",
    "new\nline",
    "quo\"te'",
    "back\\slash",
    "${HOME}",
    "com,ma",
    "ümlaut",
)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


# shares


def test_a_share_from_its_making_to_its_removal(vfsd: Vfsd, folder: Path) -> None:
    said = ok(
        vfsd, "share", "add", "src", str(folder), "--read-only", "--cache", "always", "-o", "LimitNOFILE=1K"
    )
    shown = vfsctl(vfsd, "share", "show", "src", "--json").json()
    assert shown["SocketPath"] in said
    path = vfsd.manager("GetShare", "s", "src")
    for name, value in (
        ("ReadOnly", True),
        ("Cache", "always"),
        ("LimitNOFILE", 1024),
        ("State", "listening"),
    ):
        assert shown[name] == vfsd.get(path, SHARE, name) == value
    assert f"Source={folder}\n" in ok(vfsd, "share", "show", "src")
    assert [item["Name"] for item in vfsctl(vfsd, "share", "list", "--json").json()] == ["src"]
    ok(vfsd, "share", "stop", "src")
    assert ok(vfsd, "--no-legend", "share", "list").split() == ["src", "stopped", "-", "ro", "-", str(folder)]
    ok(vfsd, "share", "start", "src")
    details = ok(vfsd, "status", "src")
    assert details.startswith("Share src is listening\n")
    assert "Cache=always" in details
    ok(vfsd, "share", "remove", "src")
    assert vfsctl(vfsd, "share", "show", "src").code == 4
    nothing_left(vfsd)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_may_have_any_name(vfsd: Vfsd, folder: Path, name: str) -> None:
    odd = folder / name
    odd.mkdir()
    made = vfsctl(vfsd, "share", "add", "odd", str(odd), "--json").json()
    assert made["Source"] == str(odd)
    machine = vfsctl(
        vfsd, "machine", "add", "odd", "--builtin", "--share", f"{escape(odd)}:/data:ro", "--json"
    ).json()
    share = vfsctl(
        vfsd, "share", "show", machine["Shares"][0].rpartition("/")[2].replace("_2e", "."), "--json"
    )
    if share.code == 0:
        assert (share.json()["Source"], share.json()["MountPoint"]) == (str(odd), "/data")
    sources = {item["Source"] for item in vfsctl(vfsd, "share", "list", "--json").json()}
    assert sources == {str(odd)}
    assert "\n".join(ok(vfsd, "share", "list").splitlines()[1:]).count("\n") == 1, "one line each"
    ok(vfsd, "share", "remove", "odd")
    ok(vfsd, "machine", "remove", "odd")


def test_a_relative_source_is_the_callers(vfsd: Vfsd, folder: Path) -> None:
    (folder / "sub").mkdir()
    argv = vfsd.argv(["vfsctl", "share", "add", "rel", "./sub", "--json"])
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["Source"] == str(folder / "sub")


# machines


def test_a_machine_from_its_making_to_its_removal(vfsd: Vfsd, folder: Path) -> None:
    share = f"{folder}:/data:ro"
    said = ok(vfsd, "machine", "add", "dev", "--builtin", *SMALL, "--cpus", "2", "--share", share)
    assert "machine start dev" in said
    path = vfsd.manager("GetMachine", "s", "dev")
    assert vfsd.get(path, MACHINE, "Memory") == 256 << 20
    assert "is stopped" in ok(vfsd, "status", "dev")
    ok(vfsd, "machine", "start", "dev")
    assert vfsctl(vfsd, "machine", "start", "dev").code == 1
    for command, state in (("pause", "paused"), ("resume", "running"), ("reset", "running")):
        ok(vfsd, "machine", command, "dev")
        assert vfsctl(vfsd, "machine", "show", "dev", "--json").json()["State"] == state
    overview = ok(vfsd, "status")
    assert re.search(r"^dev +running +\d+ +tcg +256M +\S+", overview, re.MULTILINE)
    assert "1 machine, 1 share." in overview
    details = ok(vfsd, "status", "dev")
    assert f"{folder}, tag" in details
    assert "at /data, read-only" in details
    assert vfsctl(vfsd, "machine", "remove", "dev").code == 1
    ok(vfsd, "machine", "kill", "dev")
    ok(vfsd, "machine", "remove", "dev")
    nothing_left(vfsd)


def test_shutdown_asks_the_guest(vfsd: Vfsd) -> None:
    ok(vfsd, "machine", "add", "off", "--builtin", *SMALL)
    ok(vfsd, "machine", "start", "off")
    console = vfsctl(vfsd, "machine", "show", "off", "--json").json()["ConsolePath"]
    with socket.socket(socket.AF_UNIX) as guest:
        guest.settimeout(BOOT_TIMEOUT)
        guest.connect(console)
        seen = b""
        while b"guest:~#" not in seen:
            seen += guest.recv(4096)
    time.sleep(1)  # the guest looks for its power button after its prompt
    ok(vfsd, "machine", "shutdown", "off", "--wait")
    shown = vfsctl(vfsd, "machine", "show", "off", "--json").json()
    assert shown["State"] == "stopped"
    assert "guest" in shown["Reason"]


def test_shutdown_uses_force_at_its_timeout(vfsd: Vfsd) -> None:
    ok(vfsd, "machine", "add", "deaf", "--builtin", *SMALL)
    ok(vfsd, "machine", "start", "deaf")
    ok(vfsd, "machine", "pause", "deaf")
    begin = time.monotonic()
    ok(vfsd, "machine", "shutdown", "deaf", "--timeout", "2s", "--wait")
    assert 1 < time.monotonic() - begin < 20
    assert vfsctl(vfsd, "machine", "show", "deaf", "--json").json()["State"] == "stopped"


def test_attach_and_detach(vfsd: Vfsd, folder: Path) -> None:
    ok(vfsd, "share", "add", "loose", str(folder))
    ok(vfsd, "machine", "add", "dev", "--builtin", *SMALL)
    ok(vfsd, "machine", "attach", "dev", "loose", "--mount-point", "/loose")
    assert "loose (listening)" in ok(vfsd, "status", "dev")
    assert ok(vfsd, "share", "list", "--no-legend").split()[2] == "dev"
    ok(vfsd, "machine", "detach", "dev", "loose")
    assert ok(vfsd, "share", "list", "--no-legend").split()[2] == "-"


def test_the_configuration_is_read_again(vfsd: Vfsd, folder: Path) -> None:
    file = vfsd.config / "shares/conf.toml"
    text = f'source = "{folder}"\nread_only = true\n'
    vfsd.run("sh", "-c", 'mkdir -p "${1%/*}" && printf %s "$2" >"$1"', "sh", str(file), text)
    try:
        ok(vfsd, "reload")
        assert vfsctl(vfsd, "share", "show", "conf", "--json").json()["ReadOnly"]
    finally:
        file.unlink()
        ok(vfsd, "reload")
        vfsctl(vfsd, "share", "stop", "conf")
    ok(vfsd, "reload")


# what there is, and what happens


def test_tables_fit_the_terminal_and_pipes_get_all(
    vfsd: Vfsd, folder: Path, terminals: list[Terminal]
) -> None:
    deep = folder / ("d" * 100) / "last"
    deep.mkdir(parents=True)
    ok(vfsd, "share", "add", "deep", str(deep))
    assert str(deep) in ok(vfsd, "share", "list")
    terminal = Terminal(vfsd, "share", "list", columns=60)
    terminals.append(terminal)
    assert terminal.end() == 0
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in terminal.text.splitlines()]
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("deep")
    assert lines[1].endswith("last")


def test_a_spinner_is_shown_and_wiped_away(vfsd: Vfsd, terminals: list[Terminal]) -> None:
    ok(vfsd, "machine", "add", "spin", "--builtin", *SMALL)
    ok(vfsd, "machine", "start", "spin")
    ok(vfsd, "machine", "pause", "spin")
    terminal = Terminal(vfsd, "machine", "shutdown", "spin", "--timeout", "2s", "--wait")
    terminals.append(terminal)
    assert terminal.end() == 0
    assert "Shutting down spin" in terminal.text
    assert terminal.text.endswith("\r\x1b[K")


def test_monitor_tells_what_happens_and_survives_a_restart(vfsd: Vfsd, folder: Path) -> None:
    with running(vfsd, "monitor", "--json") as process, running(vfsd, "monitor") as plain:
        time.sleep(2)
        ok(vfsd, "share", "add", "src", str(folder))
        vfsd.restart()
        ok(vfsd, "share", "remove", "src")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        plain.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        text, _ = plain.communicate(timeout=20)
        assert (process.returncode, plain.returncode) == (0, 0), err
    events = [json.loads(line) for line in out.splitlines()]
    told = [event["Signal"] for event in events]
    assert told.index("InterfacesAdded") < told.index("NameOwnerChanged") < told.index("InterfacesRemoved")
    assert [event["Running"] for event in events if event["Signal"] == "NameOwnerChanged"] == [False, True]
    assert events[told.index("InterfacesAdded")]["Name"] == "src"
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} share src: added$", text, re.MULTILINE)
    assert "vfsd has ended" in text
    assert "vfsd runs" in text


def test_check(vfsd: Vfsd) -> None:
    results = vfsctl(vfsd, "check", "--format", "json").json()
    assert {"id", "status", "found", "required", "remedy"} == set(results[0])
    assert all(result["status"] != "fail" for result in results)
    assert vfsctl(vfsd, "--json", "check").json()
    assert "All that is required is here" in ok(vfsd, "check")
    assert ok(vfsd, "check", "--format", "markdown").startswith("# virtio-fs Prerequisites Verification\n")


# errors


def test_errors_in_words(vfsd: Vfsd, folder: Path) -> None:
    ok(vfsd, "share", "add", "there", str(folder))
    ok(vfsd, "machine", "add", "empty")
    for arguments, code, said in (
        (("share", "show", "no"), 4, "no"),
        (("share", "start", "no"), 4, "no"),
        (("share", "remove", "no"), 4, "no"),
        (("machine", "start", "no"), 4, "no"),
        (("machine", "shutdown", "no"), 4, "no"),
        (("machine", "detach", "empty", "there"), 4, "there"),
        (("status", "no"), 4, "no"),
        (("share", "add", "there", str(folder)), 1, "there"),
        (("share", "add", "x", f"{folder}/no"), 1, f"{folder}/no"),
        (("share", "add", "a/b", str(folder)), 1, "a/b"),
        (("share", "add", "", str(folder)), 1, "name"),
        (("share", "start", "there"), 1, "there"),
        (("machine", "add", "empty"), 1, "empty"),
        (("machine", "start", "empty"), 1, "boot"),
        (("machine", "kill", "empty"), 1, "empty"),
        (("machine", "add", "x", "--network", "bridge:"), 1, "bridge"),
        (("share", "add", "x", "/\udcff"), 2, "UTF-8"),
    ):
        done = vfsctl(vfsd, *arguments)
        assert done.code == code, (arguments, done.err)
        error, hint = done.err.splitlines()
        assert error.startswith("Error: ")
        assert hint.startswith("Hint: ")
        assert said in error
        assert done.out == ""


def test_a_user_may_look_at_the_systems_vfsd_and_no_more() -> None:
    assert vfsctl(Vfsd("user"), "--system", "status").code == 0
    done = vfsctl(Vfsd("user"), "--system", "reload")
    assert done.code == 1
    assert "org.vfsd1.configure" in done.err
    assert "sudo vfsctl" in done.err


def test_a_vfsd_that_cannot_be_started(vfsd: Vfsd) -> None:
    vfsd.systemctl("stop", "vfsd.service")
    vfsd.systemctl("mask", "--runtime", "vfsd.service")
    try:
        done = vfsctl(vfsd, "status")
    finally:
        vfsd.systemctl("unmask", "--runtime", "vfsd.service")
    assert done.code == 5
    assert len(done.err.splitlines()) == 2


def test_a_reader_that_goes_away_is_no_bug(vfsd: Vfsd) -> None:
    done = vfsd.run(
        "sh", "-c", "vfsctl share show --help | head -n 1; vfsctl status >&- 2>&1; vfsctl status <&-"
    )
    assert "Traceback" not in done
    full = vfsd.run("sh", "-c", "vfsctl status 2>&1 >/dev/full; echo $?", check=False).splitlines()
    assert full[0].startswith("Error: No space left")
    assert full[-1] == "1"
    change = "vfsctl share add a /srv; vfsctl share remove a"
    script = f"vfsctl monitor 2>&1 | head -n 1 & for i in 1 2 3 4; do {change}; done; wait"
    assert "bug" not in vfsd.run("sh", "-c", script)


def test_status_is_quick(vfsd: Vfsd) -> None:
    """Three times `import asyncio`, whole process (performance.md); the least of several is what it takes."""

    def least(*argv: str) -> float:
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            subprocess.run(vfsd.argv(argv), check=True, capture_output=True, timeout=60)
            times.append(time.perf_counter() - begin)
        return min(times)

    assert least("vfsctl", "status") <= 3 * least(sys.executable, "-c", "import asyncio")
