"""vfsctl without a bus: what is typed, what is printed, and what is never imported."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vfsd import errors as domain
from vfsd.cli import (
    boot,
    command,
    console,
    execute,
    monitor,
    options,
    output,
    resources,
    ssh,
    status,
    values,
    view,
    visitor,
    vsock_proxy,
)
from vfsd.cli.errors import CallFailed, CliError, Exit, Unreachable, explain, explain_unreachable
from vfsd.cli.main import main
from vfsd.cli.output import Column
from vfsd.cli.proxy import Signal
from vfsd.cli.values import Typed
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS
from vfsd.names import Scope

DBUS = Path(__file__).parents[2] / "dbus"


# what is typed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a", ("/a", "", False)),
        ("/a:ro", ("/a", "", True)),
        ("/a:rw", ("/a", "", False)),
        ("/a:/b", ("/a", "/b", False)),
        ("/a:/b:ro", ("/a", "/b", True)),
        ("/a::ro", ("/a", "", True)),
        (r"/a\:b:/c\:d", ("/a:b", "/c:d", False)),
        (r"/a\\:/b", ("/a\\", "/b", False)),
        (r"/a\b", (r"/a\b", "", False)),
        ("/a b,c%d'\"${X}:ro", ("/a b,c%d'\"${X}", "", True)),
        ("/a\nb", ("/a\nb", "", False)),
        ("/ä", ("/ä", "", False)),
        (r"/x/ro\:ro", ("/x/ro:ro", "", False)),
    ],
)
def test_share_argument(text: str, expected: tuple[str, str, bool]) -> None:
    assert values.parse_share(text) == expected


@pytest.mark.parametrize("text", ["", ":", ":/b", "/a:b", "/a:/b:rx", "/a:/b:/c", "/a:/b:ro:", "/a:ro:ro"])
def test_share_argument_malformed(text: str) -> None:
    with pytest.raises(CliError) as caught:
        values.parse_share(text)
    assert caught.value.code is Exit.USAGE
    assert caught.value.hint


path = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text not in (".", "..")
)


@given(path, path, st.booleans())
def test_any_path_can_be_written_as_a_share(source: str, mount_point: str, read_only: bool) -> None:
    def escape(text: str) -> str:
        return text.replace("\\", "\\\\").replace(":", "\\:")

    text = f"/{escape(source)}:/{escape(mount_point)}" + (":ro" if read_only else "")
    assert values.parse_share(text) == (f"/{source}", f"/{mount_point}", read_only)


def test_a_relative_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/deep")
    monkeypatch.chdir(tmp_path)
    assert values.parse_share("link").source == str(tmp_path / "link"), "the link stays"
    assert values.parse_share("./link//x/.").source == str(tmp_path / "link/x")
    assert values.parse_share("link/..").source == str(tmp_path / "real"), ".. is the target's parent"
    assert values.absolute("/") == "/"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1048576", 1 << 20),
        ("2G", 2 << 30),
        ("2g", 2 << 30),
        ("512M", 512 << 20),
        ("512 MiB", 512 << 20),
        ("64K", 64 << 10),
        ("1T", 1 << 40),
        ("1.5G", 3 << 29),
        ("10B", 10),
        ("18446744073709551615", (1 << 64) - 1),
    ],
)
def test_size(text: str, expected: int) -> None:
    assert values.parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1", "2X", "1,5G", "0x10", "2 G G", "nan"])
def test_size_malformed(text: str) -> None:
    with pytest.raises(CliError, match="no size"):
        values.parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30_000_000),
        ("30s", 30_000_000),
        ("500ms", 500_000),
        ("1min 30s", 90_000_000),
        ("1h", 3_600_000_000),
        ("7us", 7),
        ("0.5s", 500_000),
    ],
)
def test_timespan(text: str, expected: int) -> None:
    assert values.parse_timespan(text) == expected


@pytest.mark.parametrize("text", ["", "s", "-3s", "3 parsecs", "3s x", "1:30"])
def test_timespan_malformed(text: str) -> None:
    with pytest.raises(CliError, match="no time"):
        values.parse_timespan(text)


@pytest.mark.parametrize("name", ["PosixACL", "posixacl", "posix_acl", "posix-acl", "POSIX_ACL"])
def test_an_option_is_found_in_every_spelling(name: str) -> None:
    assert values.find_option(SHARE_OPTIONS, name).dbus_name == "PosixACL"


def test_assignments_get_the_types_of_the_interface() -> None:
    given = (
        "XAttr=yes",
        "thread-pool-size=4",
        "LimitNOFILE=1M",
        "cache=never",
        "UIDMap=:0:1:2:",
        "UIDMap=b=c",
    )
    assert values.parse_assignments(SHARE_OPTIONS, given) == {
        "XAttr": Typed("b", True),
        "ThreadPoolSize": Typed("u", 4),
        "LimitNOFILE": Typed("t", 1 << 20),
        "Cache": Typed("s", "never"),
        "UIDMap": Typed("as", [":0:1:2:", "b=c"]),
    }
    machine = values.parse_assignments(MACHINE_OPTIONS, ("ShutdownTimeoutUSec=2min", "Memory=2G"))
    assert machine == {"ShutdownTimeoutUSec": Typed("t", 120_000_000), "Memory": Typed("t", 2 << 30)}
    tables = values.parse_assignments(
        MACHINE_OPTIONS, ("Credentials=a=b=c", "credentials=d=", "Credentials=a=x")
    )
    assert tables == {"Credentials": Typed("a{ss}", {"a": "x", "d": ""})}


def test_credential_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert values.parse_credential_file("a.b:some:file") == ("a.b", f"{tmp_path}/some:file")
    for wrong in ("", "a", "a:", ":b"):
        with pytest.raises(CliError, match="NAME:FILE") as caught:
            values.parse_credential_file(wrong)
        assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize("named", [execute.execute, ssh.ssh])
@pytest.mark.parametrize("words", [("ls", "--json", "--"), ("--user",), ("--", "ls")])
def test_a_guests_command_is_its_own(named: click.Command, words: tuple[str, ...]) -> None:
    with named.make_context("it", ["dev", "--", *words]) as context:
        assert values.own_words(context.params["command"]) == words
    if words[0] != "--":
        assert values.own_words(words) == words


def test_how_ssh_is_called() -> None:
    called = ssh.arguments(Path("/k e y"), "dev", "[::1]:2222", ("-x", "a b"))
    assert called[0] == "ssh"
    assert called[-4:] == ["--", "::1", "-x", "a b"]
    assert called[called.index("-i") + 1] == "/k e y"
    assert called[called.index("-p") + 1] == "2222"
    for elsewhere in ("vsock:", "", "host", ":22", "vsock:x"):
        with pytest.raises(CliError, match="can't go"):
            ssh.arguments(Path("/k"), "dev", elsewhere, ())


def test_how_ssh_is_called_over_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/a %b/python3")
    called = ssh.arguments(Path("/k"), "dev", "vsock:4711", ("id",))
    assert called[-3:] == ["--", "vsock/4711", "id"]
    assert "-p" not in called
    assert "ProxyUseFdpass=yes" in called
    [proxy] = [word.removeprefix("ProxyCommand=") for word in called if word.startswith("ProxyCommand=")]
    words = shlex.split(proxy.replace("%%", "%"))
    assert (words[0], words[-2:]) == ("/opt/a %b/python3", ["4711", "22"])
    assert words[-3] == vsock_proxy.__file__


def test_a_connection_is_handed_to_ssh() -> None:
    guest, connection = socket.socketpair()
    mine, output = socket.socketpair()
    with guest, mine:
        with connection:
            vsock_proxy.hand_over(connection, output.detach())
        _, [descriptor], _, _ = socket.recv_fds(mine, 1, 2)
        with socket.socket(fileno=descriptor) as got:
            guest.send(b"SSH-2.0")
            assert got.recv(16) == b"SSH-2.0"
        assert guest.recv(1) == b"", "nobody else has it open"


def test_a_guest_that_is_not_there() -> None:
    """With the real AF_VSOCK, if this kernel has it: no guest has the last CID."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", vsock_proxy.__file__, str(0xFFFFFFFE), "22"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("port 22 of vsock:4294967294 can't be reached: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "assignment",
    [
        "XAttr",
        "=x",
        "Nope=1",
        "XAttr=maybe",
        "ThreadPoolSize=2K",
        "ThreadPoolSize=4294967296",
        "LimitNOFILE=99999999T",
        "CPUQuotaPerSecUSec=-5%",
        "CPUQuotaPerSecUSec=half%",
    ],
)
def test_assignments_malformed(assignment: str) -> None:
    with pytest.raises(CliError) as caught:
        values.parse_assignments(SHARE_OPTIONS, (assignment,))
    assert caught.value.code is Exit.USAGE


@pytest.mark.parametrize(
    ("text", "usec"), [("150%", 1_500_000), ("0.5%", 5000), ("500ms", 500_000), ("2", 2_000_000), ("0", 0)]
)
def test_a_quota_is_a_percentage_or_a_time(text: str, usec: int) -> None:
    made = values.parse_assignments(SHARE_OPTIONS, (f"CPUQuotaPerSecUSec={text}",))
    assert made == {"CPUQuotaPerSecUSec": Typed("t", usec)}


def test_limits_and_use_in_words() -> None:
    none: dict[str, Any] = dict.fromkeys(("MemoryMax", "CPUQuotaPerSecUSec", "IOWeight", "TasksMax"), 0)
    assert resources.limits_text(none) == ""
    some = {"MemoryMax": 3 << 30, "CPUQuotaPerSecUSec": 1_500_000, "IOWeight": 50, "TasksMax": 500}
    assert resources.limits_text(some) == "memory 3G, 150% of a processor, IO weight 50, 500 tasks"
    assert resources.used_text({}) == ""
    counted = {"MemoryCurrent": 5 << 20, "CPUUsageNSec": 61_250_000_000, "TasksCurrent": 9}
    assert resources.used_text(counted) == "memory 5M, 61.2 s of processor time, 9 tasks"


@pytest.mark.parametrize(("file", "table"), [("Share", SHARE_OPTIONS), ("Machine", MACHINE_OPTIONS)])
def test_options_are_those_of_the_interface(file: str, table: dict[str, Any]) -> None:
    tree = ET.parse(DBUS / f"org.vfsd1.{file}.xml")  # our own file
    writable = {
        node.attrib["name"]: node.attrib["type"]
        for node in tree.iter("property")
        if node.attrib["access"] != "read"
    }
    assert {name: option.signature for name, option in table.items()} == writable
    flags = options.SHARE_FLAGS if file == "Share" else options.MACHINE_FLAGS
    assert {flag.sets for flag in flags} <= set(writable)


def test_root_is_a_share_that_comes_first(tmp_path: Path) -> None:
    given: dict[str, Any] = dict.fromkeys((flag.parameter for flag in options.MACHINE_FLAGS), None)
    given |= {"assignments": (), "shares": (f"{tmp_path}:/x:ro",), "root": "/srv/root:ro", "memory": "2G"}
    made = boot.machine_options(options.MACHINE_FLAGS, given)
    assert made["RootShare"] == Typed("s", "root")
    assert made["Memory"] == Typed("t", 2 << 30)
    assert made["Shares"].value == [
        ["/srv/root", "", {"ReadOnly": Typed("b", True), "Tag": Typed("s", "root")}],
        [str(tmp_path), "/x", {"ReadOnly": Typed("b", True)}],
    ]


# what the escape key and a command's output are made of


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([(b"\x1d\x1d\x1d", 0.0)], True),
        ([(b"\x1d", 0.0), (b"\x1d", 0.5), (b"\x1d", 0.9)], True),
        ([(b"ls\n\x1d\x1d\x1d", 0.0)], True),
        ([(b"\x1d\x1d", 0.0)], False),
        ([(b"\x1d\x1dx\x1d", 0.0)], False),
        ([(b"\x1d", 0.0), (b"\x1d", 0.6), (b"\x1d", 1.2)], False),
        ([(b"\x1d", 0.0), (b"\x1d", 2.0), (b"\x1d\x1d", 2.1)], True),
    ],
)
def test_escape_key(typed: list[tuple[bytes, float]], expected: bool) -> None:
    key = console.EscapeKey()
    seen = [key.seen(keys, now) for keys, now in typed]
    assert any(seen) is expected


BOOT = b"SeaBIOS\r\n[    0.1] noise\r\nvfsd built-in guest, Linux 6.12; shares: none\r\n"


def chunks(data: bytes, sizes: list[int]) -> list[bytes]:
    cut, position = [], 0
    for size in sizes:
        cut.append(data[position : position + size])
        position += size
    return [*cut, data[position:]]


@given(
    st.lists(st.integers(1, 40)),
    st.integers(0, 255),
    st.sampled_from([b"", b"x", b"a\nb\n", b"vfsd: c", b"\r\n\r"]),
)
def test_command_output_is_cut_out_however_it_comes(sizes: list[int], code: int, text: bytes) -> None:
    on_the_console = text.replace(b"\n", b"\r\n")
    all_of_it = BOOT + on_the_console + b"vfsd: command exited %d\r\n[ 3.1] reboot: Power down\r\n" % code
    found = command.CommandOutput(newlines=True)
    assert b"".join(found.feed(chunk) for chunk in chunks(all_of_it, sizes)) == text
    assert found.exit_code == code


def test_a_command_may_print_the_closing_line_itself() -> None:
    found = command.CommandOutput(newlines=True)
    shown = found.feed(BOOT + b"vfsd: command exited 3\r\nmore\r\n") + found.feed(
        b"vfsd: command exited 0\r\n"
    )
    assert shown == b"vfsd: command exited 3\nmore\n"
    assert found.exit_code == 0


def test_a_boot_that_fails_leaves_its_last_lines() -> None:
    found = command.CommandOutput(newlines=True)
    assert found.feed(b"one\r\nKernel panic\r\n") == b""
    assert found.last_lines == "one\nKernel panic"
    assert not found.began
    assert found.exit_code is None


# what is printed


@given(st.text(), st.integers(3, 60))
def test_shortened_in_the_middle(text: str, width: int) -> None:
    short = output.shorten_middle(text, width)
    assert len(short) <= width
    if len(text) <= width:
        assert short == text
    else:
        assert short.count(output.ELLIPSIS) >= 1
        assert text.endswith(short.rsplit(output.ELLIPSIS, 1)[1])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_printed_moves_the_cursor(text: str) -> None:
    assert output.clean(text).isprintable()


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("\x9b2J\x7f\x1b")
def test_json_moves_no_cursor_either(text: str) -> None:
    printed = output._json({"MountedAt": text})
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", printed)
    assert json.loads(printed) == {"MountedAt": text}


def test_a_piped_table_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    source = "/srv/" + "long/" * 60 + "end\x1b[2J"
    output.print_table(
        [Column("A"), Column("N", right=True), Column("SOURCE", path=True)], [["x", "7", source]]
    )
    head, row = capsys.readouterr().out.splitlines()
    assert head == "A  N  SOURCE"
    assert row == f"x  7  {source[:-4]}\\x1b[2J"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_on_a_terminal_fits(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [["name", "listening", "[bold]/srv/" + "x" * 50 + "/end of it"], ["other", "failed", "/srv"]]
    output.print_table([Column("SHARE"), Column("STATE"), Column("SOURCE", path=True)], rows)
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert "end of it" in lines[1]
    assert "[bold]" in lines[1], "no markup in what others named"


def test_a_narrow_terminal_cuts_no_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("NO_COLOR", "1")
    columns = [Column("SHARE"), Column("STATE"), Column("PID", right=True), Column("SOURCE", path=True)]
    output.print_table(
        columns, [["box.a", "listening", "31415", "/srv/a"], ["box.b", "active", "9", "/srv/b"]]
    )
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["box.a", "listening", "31415"],
        ["box.b", "active", "9"],
    ]
    assert all(len(line) <= 30 for line in lines)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_locale_without_arrows(encoding: str, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.stdout.reconfigure(encoding='{encoding}', errors='strict')\n"
        "from vfsd.cli import main, output;"
        "main._open_standard_streams(); output.print_json({'Source': '/srv/\u2192\xe4'}); print('\u2192')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True, check=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    document, _, arrow = done.stdout.decode(encoding).rstrip().rpartition("\n")
    assert json.loads(document) == {"Source": "/srv/→ä"}
    assert arrow == ("→" if encoding == "utf-8" else "?")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1023, "1023"), (1 << 30, "1G"), (3 << 29, "1.5G"), (1 << 20, "1M"), (5 << 40, "5T")],
)
def test_size_for_people(number: int, text: str) -> None:
    assert output.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "less than 1s"),
        (0.4, "less than 1s"),
        (61, "1min 1s"),
        (3600, "1h"),
        (90061, "1d 1h"),
        (172800, "2d"),
    ],
)
def test_ago(seconds: float, text: str) -> None:
    assert status.ago(seconds) == text


def test_headline_names_the_bare_versions() -> None:
    manager = {
        "Version": "1",
        "Scope": "user",
        "QemuVersion": "QEMU emulator version 10.0.2 (x)",
        "VirtiofsdVersion": "",
    }
    assert status.headline(manager) == "vfsd 1 of this user, QEMU 10.0.2, no virtiofsd found yet"


STATE = Signal(
    "/org/vfsd1/machine/dev", "org.vfsd1.Machine", "StateChanged", ["starting", "failed", "why\x1b"]
)
ADDED = Signal(
    "/org/vfsd1", "org.freedesktop.DBus.ObjectManager", "InterfacesAdded", ["/org/vfsd1/share/dev_2esrc", {}]
)
CHANGED = Signal(
    "/org/vfsd1/share/_78", "org.freedesktop.DBus.Properties", "PropertiesChanged", ["i", {"MainPID": 7}, []]
)
OWNER = Signal("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", ["org.vfsd1", ":1.2", ""])


@pytest.mark.parametrize(
    ("signal", "text"),
    [
        (STATE, "starting → failed (why\\x1b)"),
        (ADDED, "added"),
        (CHANGED, "MainPID=7"),
        (CHANGED._replace(body=["i", {"State": "active", "StateChangedUSec": 1}, []]), ""),
        (OWNER, "vfsd has ended"),
        (STATE._replace(member="Later", body=["x"]), "Later ['x']"),
    ],
)
def test_signals_in_words(signal: Signal, text: str) -> None:
    assert click.unstyle(monitor.say_signal(signal)) == text


def test_signals_as_json() -> None:
    assert monitor.describe(STATE) == {
        "Signal": "StateChanged", "Kind": "machine", "Name": "dev", "Path": "/org/vfsd1/machine/dev",
        "Old": "starting", "New": "failed", "Reason": "why\x1b",
    }  # fmt: skip
    assert monitor.describe(ADDED)["Path"] == "/org/vfsd1/share/dev_2esrc"
    assert monitor.describe(OWNER)["Running"] is False


def test_monitor_of_one_machine_shows_its_own_shares_too() -> None:
    assert [monitor.concerns(signal, "dev") for signal in (STATE, ADDED, CHANGED, OWNER)] == [
        True,
        True,
        False,
        True,
    ]


# errors


def all_errors() -> list[type[domain.VfsdError]]:
    return [domain.VfsdError, *domain.VfsdError.__subclasses__()]


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("error", all_errors())
def test_each_error_has_a_sentence_and_a_hint(error: type[domain.VfsdError], scope: Scope) -> None:
    shown = explain(CallFailed(error.dbus_name, "share x is y"), scope)
    assert "share x is y" in shown.sentence
    assert shown.hint
    expected = Exit.NO_SUCH if error.__name__.startswith("NoSuch") else Exit.FAILED
    assert shown.code is expected


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize(
    "name",
    [
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
        "org.freedesktop.DBus.Error.NoReply",
        "org.freedesktop.DBus.Error.TimedOut",
        "org.freedesktop.DBus.Error.Disconnected",
        "org.freedesktop.DBus.Error.Spawn.ChildExited",
        "org.freedesktop.systemd1.NoSuchUnit",
        "org.freedesktop.systemd1.UnitMasked",
    ],
)
def test_a_vfsd_that_is_not_there(name: str, scope: Scope) -> None:
    shown = explain(CallFailed(name, ""), scope)
    assert shown.code is Exit.UNREACHABLE
    assert shown.sentence
    assert shown.hint


def test_access_denied_by_the_bus_and_by_vfsd() -> None:
    name = "org.freedesktop.DBus.Error.AccessDenied"
    rule = (
        'Rejected send message, 2 matched rules; type="method_call", sender=":1.9" (uid=1000 pid=1 comm="x")'
    )
    by_the_bus = explain(CallFailed(name, rule), Scope.SYSTEM)
    assert by_the_bus.code is Exit.UNREACHABLE
    assert "matched rules" not in by_the_bus.sentence
    assert "--user" in by_the_bus.hint
    by_vfsd = explain(CallFailed(name, "share x belongs to root"), Scope.SYSTEM)
    assert by_vfsd[::2] == ("share x belongs to root", Exit.FAILED)
    assert "vfsd(8)" in by_vfsd.hint
    required = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
    unasked = explain(CallFailed(required, "Reload needs authentication"), Scope.SYSTEM)
    assert unasked[::2] == ("Reload needs authentication", Exit.FAILED)
    assert "--no-ask-password" in unasked.hint
    assert "sudo vfsctl --system" in unasked.hint


def test_a_missing_bus() -> None:
    shown = explain_unreachable(Unreachable("there is no user bus"), Scope.USER)
    assert shown.code is Exit.UNREACHABLE
    assert "--system" in shown.hint


# the command line as a whole


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nope", "No such command"),
        ("--nope", "No such option"),
        ("share add x", "Missing argument 'SOURCE'"),
        ("share add x /y --cache sometimes", "not one of"),
        ("share add x /y --option Cache", "NAME=VALUE"),
        ("share add x /y -o Nope=1", 'no option "Nope"'),
        ("share add x ''", "path is empty"),
        ("machine add x --memory lots", "no size"),
        ("machine add x --share /a:b", "not an absolute path"),
        ("machine add x --root /a --root-share b", "exclude each other"),
        ("machine add x --root /a:/b", "no mount point"),
        ("machine shutdown x --timeout soon", "no time"),
        ("run", "Nothing to boot"),
        ("run --kernel /x --exec true", "--exec needs --builtin"),
        ("run --builtin --exec ''", "command is empty"),
        ("status --user --system", "exclude each other"),
        ("check --kernel /does/not/exist", "no kernel"),
        ("check --format pdf", "not one of"),
        ("machine", "Usage: vfsctl machine"),
        ("", "Usage: vfsctl"),
    ],
)
def test_wrong_usage(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["" if word == "''" else word for word in line.split()]
    assert main(arguments) == Exit.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    if not err.startswith("Usage"):
        assert err.startswith("Error: ")
        assert len(err.splitlines()) <= 2


@pytest.mark.parametrize("scope", ["--user", "--system"])
def test_no_bus_is_one_sentence_and_a_hint(scope: str, tmp_path: Path) -> None:
    nowhere = f"unix:path={tmp_path}/none"
    # A process of its own, because dbus-next leaves the socket open that it could not connect
    done = subprocess.run(
        [sys.executable, "-m", "vfsd.cli", scope, "status"],
        env={
            "PYTHONPATH": ":".join(sys.path),
            "DBUS_SYSTEM_BUS_ADDRESS": nowhere,
            "DBUS_SESSION_BUS_ADDRESS": nowhere,
        },
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == Exit.UNREACHABLE
    error, hint = done.stderr.splitlines()
    assert error.startswith("Error: There is no ")
    assert hint.startswith("Hint: ")


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == Exit.DONE
    text = capsys.readouterr().out
    assert all(f"\n    {code.value} " in text for code in Exit)


@pytest.mark.parametrize(
    ("line", "never"),
    [
        ("--help", {"dbus_next", "rich", "asyncio", "vfsd.model"}),
        ("--version", {"dbus_next", "rich", "asyncio", "vfsd.model"}),
        ("share --help", {"dbus_next", "rich"}),
        ("machine add --help", {"dbus_next", "rich"}),
        ("run --help", {"dbus_next", "rich", "vfsd.guest"}),
        ("check --help", {"dbus_next", "rich"}),
        ("monitor --help", {"dbus_next", "rich"}),
        ("nope", {"dbus_next", "rich", "asyncio"}),
        ("status --system --json", {"rich", "vfsd.model"}),
    ],
)
def test_what_is_never_imported(line: str, never: set[str], tmp_path: Path) -> None:
    program = (
        "import sys; from vfsd.cli.main import main; main(sys.argv[1:]);"
        f"print('imported:', sorted({never!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *line.split()],
        env={"PYTHONPATH": ":".join(sys.path), "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "imported: []", done.stderr


# consoles that were opened again, and viewers


@given(
    pieces=st.lists(st.text("ab\n", max_size=30).map(str.encode), max_size=5),
    away=st.text("ab\n", max_size=12).map(str.encode),
    split=st.integers(1, 7),
)
def test_a_console_that_was_opened_again_shows_nothing_twice(
    pieces: list[bytes], away: bytes, split: int
) -> None:
    continued = visitor.Continued()
    said = b"".join(pieces)
    assert b"".join(continued.feed(piece) for piece in pieces) == said
    for new in (b"", b"1" + away, b"2" + away):  # of which it can be told that it is new
        continued.again()
        said += new
        feeds = (continued.feed(said[place : place + split]) for place in range(0, len(said), split))
        assert b"".join(feeds) == new
    assert continued.feed(b"next") == b"next"


def test_a_long_console_that_was_opened_again() -> None:
    said = b"".join(b"%07d\n" % number for number in range(20_000))
    continued = visitor.Continued()
    for place in range(0, 100_000, 1000):
        assert continued.feed(said[place : place + 1000]) == said[place : place + 1000]
    continued.again()
    replay = said[: 100_000 + 4000][-visitor.REPLAY :]
    shown = b"".join(continued.feed(replay[place : place + 500]) for place in range(0, len(replay), 500))
    assert shown == said[100_000:104_000]
    assert continued.feed(b"next") == b"next"
    continued.again()
    assert continued.feed(said[-visitor.REPLAY :]) == said[-visitor.REPLAY :], (
        "all of it is new: much was missed"
    )


@pytest.mark.parametrize(
    ("kind", "installed", "expected"),
    [
        ("vnc", ["vncviewer", "remote-viewer"], ["vncviewer", "/run/x y/display"]),
        ("vnc", ["xtigervncviewer", "vncviewer"], ["xtigervncviewer", "/run/x y/display"]),
        ("vnc", ["remote-viewer"], ["remote-viewer", "vnc+unix:///run/x%20y/display"]),
        ("spice", ["remote-viewer", "spicy"], ["remote-viewer", "spice+unix:///run/x%20y/display"]),
        ("spice", ["spicy"], ["spicy", "--uri=spice+unix:///run/x%20y/display"]),
        ("spice", ["vncviewer"], None),
        ("vnc", ["spicy"], None),
    ],
)
def test_the_viewer_that_is_installed(
    kind: str,
    installed: list[str],
    expected: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in installed:
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.delenv(view.VIEWER, raising=False)
    if expected is None:
        with pytest.raises(CliError) as caught:
            view.viewer_command(kind, "/run/x y/display")
        assert view.TO_INSTALL[kind] in caught.value.hint
    else:
        program, *arguments = expected
        assert view.viewer_command(kind, "/run/x y/display") == [str(tmp_path / program), *arguments]


class Guest:
    """Takes the calls of a visitor, whose terminal changes its size while the first is under way."""

    def __init__(self, sizes: list[os.terminal_size], refuse: bool) -> None:
        self._sizes = sizes
        self._refuse = refuse
        self.commands: list[list[str]] = []

    async def call(self, *arguments: Any) -> list[Any]:
        assert arguments[1:4] == ("org.vfsd1.Machine", "Execute", "asa{sv}")
        self.commands.append(arguments[4])
        if len(self._sizes) > 1:
            self._sizes.pop(0)
        if self._refuse:
            raise CallFailed("org.freedesktop.DBus.Error.NotSupported", "the guest has no agent")
        return [0, b"", b""]


@pytest.mark.parametrize("refuse", [False, True])
async def test_the_guest_is_told_the_size_of_the_terminal(
    refuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [os.terminal_size((80, 24)), os.terminal_size((132, 50))]
    guest = Guest(sizes, refuse)
    client: Any = guest
    visit = visitor.Visitor(client, "x")
    monkeypatch.setattr(visitor, "_size", lambda: sizes[0])
    visit._resize()
    assert not guest.commands, "a guest without an agent is not asked"
    visit._learn(ready=True)
    visit._resize()
    assert visit._resizing is not None
    await visit._resizing
    stty = ["stty", "-F", "/dev/console"]
    assert guest.commands == [
        [*stty, "rows", "24", "cols", "80"],
        [*stty, "rows", "50", "cols", "132"],
    ]
