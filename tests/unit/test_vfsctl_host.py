"""vfsctl --host: which hosts, which ssh, and what is refused before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from vfsd.cli import remote
from vfsd.cli.errors import CallFailed, CliError, Exit, explain
from vfsd.cli.main import main
from vfsd.cli.session import Session
from vfsd.names import Scope


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("box", ["--", "box"]),
        ("me@box.example:22", ["-p", "22", "--", "me@box.example"]),
        ("[fe80::1%eth0]:2222", ["-p", "2222", "--", "fe80::1%eth0"]),
        ("me@[::1]", ["--", "me@::1"]),
    ],
)
def test_a_host_as_ssh_wants_it(host: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(remote.SSH, raising=False)
    assert remote.ssh_command(remote.check(host), "cmd") == ["ssh", "-xT", *words, "cmd"]
    monkeypatch.setenv(remote.SSH, "/opt/ssh")
    assert remote.ssh_command(host, "cmd")[0] == "/opt/ssh"


@pytest.mark.parametrize(
    "host",
    ["", "-oProxyCommand=x", "a b", "@", "host:port", "a:b:c", "a/container", "u@-oProxyCommand=x", "-u@a"],
)
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(CliError, match="names no host") as caught:
        remote.check(host)
    assert caught.value.code is Exit.USAGE


def test_no_host_is_not_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A script's variable may be empty."""
    assert main(["--host", "", "machine", "kill", "dev"]) == Exit.USAGE
    assert "names no host" in capsys.readouterr().err


def test_a_port_in_what_is_shown_to_be_typed() -> None:
    assert Session().login == ""
    assert Session(host="me@box:22").login == "-p 22 me@box"
    assert '"ssh -p 22 box ' in remote.unreachable("box:22", Scope.SYSTEM, 255).hint


@pytest.mark.parametrize("name", ["InteractiveAuthorizationRequired", "AccessDenied", "NoReply", "Failed"])
def test_a_failure_there_is_not_explained_as_one_here(name: str) -> None:
    failed = CallFailed(f"org.freedesktop.DBus.Error.{name}", "Start: no")
    hint = explain(failed, Scope.SYSTEM, "-p 22 box").hint
    assert "sudo" not in hint
    assert "--host root@" in hint or '"ssh -t -p 22 box journalctl -e -u vfsd.service"' in hint


def test_another_hosts_system_is_meant() -> None:
    assert Session(host="box").scope is Scope.SYSTEM
    assert Session(host="box").flag == "--host box "
    assert Session(host="box", chosen=Scope.USER).flag == "--host box --user "
    assert Session(chosen=Scope.USER).scope is Scope.USER


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("console dev", "ssh -t box vfsctl console dev"),
        ("view dev", "ssh -t box vfsctl view dev"),
        ("ssh dev", "ssh -t box vfsctl ssh dev"),
        ("run --builtin", "Run can't be done over --host"),
        ("tray", "Tray can't be done over --host"),
        ("check --kernel /boot/vmlinuz", "Check --kernel can't be done"),
        ("share add x relative", "a path of box"),
        ("machine add x --kernel ./vmlinuz", "a path of box"),
    ],
)
def test_what_is_refused(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called = tmp_path / "called"
    (tmp_path / "ssh").write_text(f"#!/bin/sh\ntouch {called}\nexit 1\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv(remote.SSH, str(tmp_path / "ssh"))
    assert main(["--host", "box", *line.split()]) == Exit.USAGE
    assert said in capsys.readouterr().err
    assert not called.exists()
