"""vfsd's own SSH key, and the port that leads to a guest's SSH server."""

from __future__ import annotations

from pathlib import Path

import pytest

from vfsd import ssh
from vfsd.errors import PrerequisiteMissing
from vfsd.model import MachineSpec
from vfsd.names import Scope


def machine(*forward: str) -> MachineSpec:
    return MachineSpec.from_options("dev", Scope.USER, {"Forward": ("as", list(forward))})


def test_a_key_is_made_once_and_belongs_to_nobody_else(tmp_path: Path) -> None:
    private = tmp_path / "ssh/id_ed25519"
    public = ssh.public_key(private)
    assert public.startswith("ssh-ed25519 ")
    assert public.endswith(" vfsd")
    assert private.stat().st_mode & 0o777 == 0o600
    assert private.parent.stat().st_mode & 0o777 == 0o700
    assert ssh.public_key(private) == public
    assert sorted(path.name for path in private.parent.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


@pytest.mark.parametrize("lost", ["id_ed25519", "id_ed25519.pub"])
def test_half_a_key_is_replaced_by_a_whole_one(lost: str, tmp_path: Path) -> None:
    private = tmp_path / "ssh/id_ed25519"
    before = ssh.public_key(private)
    (private.parent / lost).unlink()
    assert ssh.public_key(private) != before
    assert private.exists()


@pytest.mark.parametrize(("script", "complaint"), [(None, "is not installed"), ("exit 1", "could not make")])
def test_what_is_missing_is_named(
    script: str | None, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script:
        (tmp_path / "ssh-keygen").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "ssh-keygen").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrerequisiteMissing, match=complaint) as caught:
        ssh.public_key(tmp_path / "ssh/id_ed25519")
    assert "openssh-client" in str(caught.value)
    assert list((tmp_path / "ssh").iterdir()) == []


@pytest.mark.parametrize(
    ("forward", "address"),
    [
        ("tcp:127.0.0.1:2222:22", "127.0.0.1:2222"),
        ("tcp:192.0.2.1:2222:22", "192.0.2.1:2222"),
        ("tcp::2222:22", "127.0.0.1:2222"),
        ("tcp:0.0.0.0:2222:22", "127.0.0.1:2222"),
        ("tcp:[::1]:2222:22", "[::1]:2222"),
        ("tcp:127.0.0.1:22:80", ""),
        ("udp:127.0.0.1:2222:22", ""),
    ],
)
def test_which_forward_leads_to_an_ssh_server(forward: str, address: str) -> None:
    assert ssh.forwarded(machine("tcp:127.0.0.1:8080:80", forward)) == address
