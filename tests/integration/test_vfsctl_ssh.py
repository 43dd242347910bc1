"""`vfsctl ssh`: into a guest with an SSH server that knows nothing but the credential."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.integration.conftest import only_system, only_user
from tests.integration.harness import Vfsd
from tests.integration.vfsctl import ok, vfsctl
from vfsd.guest.command_line import escape

TREE = Path("/usr/share/vfsd-lab/tree")
"""A Debian with OpenSSH's server, read-only."""
SERVER = r"""
tree=/mnt/tree
for name in dev proc; do mount -o bind /$name $tree/$name; done
for name in run root tmp; do mount -t tmpfs tmpfs $tree/$name; done
mkdir -m 0755 $tree/run/sshd
mkdir -m 0700 $tree/root/.ssh
tr '\0' '\n' </sys/firmware/dmi/entries/11-0/raw |
	sed -n 's/.*binary:ssh[.]authorized_keys[.]root=//p' | base64 -d >$tree/root/.ssh/authorized_keys
chroot $tree ssh-keygen -q -t ed25519 -N '' -f /tmp/key
chroot $tree /usr/sbin/sshd -D -e -h /tmp/key -f /dev/null -o UsePAM=no -o StrictModes=no
"""
BOOT_TIMEOUT = 120
"""Seconds; sshd needs some of them on a busy host to make its key."""


@only_user  # root's would take as long again and find the same
def test_into_a_guest(vfsd: Vfsd, folder: Path) -> None:
    (folder / "server").write_text(SERVER)
    given = ["--builtin", "--memory", "256M", "--accelerator", "tcg", "--ssh"]
    shares = ["--share", f"{TREE}:ro", "--share", f"{folder}:/mnt/own"]
    ok(
        vfsd,
        "machine",
        "add",
        "dev",
        *given,
        *shares,
        "--append",
        f"vfsd.exec={escape('sh /mnt/own/server')}",
    )
    done = vfsctl(vfsd, "ssh", "dev", "true")
    assert done.code == 1
    assert "stopped" in done.err
    ok(vfsd, "machine", "start", "dev")
    end = time.monotonic() + BOOT_TIMEOUT
    while (done := vfsctl(vfsd, "ssh", "dev", "echo", "I am $(id -un)")).code == 255:  # nobody listens yet
        assert time.monotonic() < end, done.err
        time.sleep(0.5)
    assert (done.code, done.out, done.err) == (0, "I am root\n", "")
    # what is typed goes in, the exit code comes out, and options are the command's
    done = vfsctl(vfsd, "ssh", "dev", "--", "cat; ls -d / /gone; exit 7", stdin="typed\n")
    assert (done.code, done.out) == (7, "typed\n/\n")
    assert "/gone" in done.err
    assert vfsctl(vfsd, "ssh", "dev", "printf", "%s", "--json").out == "--json"
    # a vfsd that was restarted knows the way
    vfsd.restart()
    assert ok(vfsd, "ssh", "dev", "hostname") == "guest\n"


@only_system
@pytest.mark.parametrize(
    ("given", "hint"),
    [([], "--ssh"), (["--ssh", "--network", "none"], "--network user")],
)
def test_why_not(vfsd: Vfsd, folder: Path, given: list[str], hint: str) -> None:
    ok(vfsd, "machine", "add", "dev", "--builtin", "--memory", "256M", "--accelerator", "tcg", *given)
    ok(vfsd, "machine", "start", "dev")
    done = vfsctl(vfsd, "ssh", "dev")
    assert done.code == 1
    assert hint in done.err
    assert vfsctl(vfsd, "ssh", "nobody").code == 4


@only_system
def test_what_is_missing_is_named(vfsd: Vfsd, folder: Path) -> None:
    ok(vfsd, "machine", "add", "dev", "--builtin", "--memory", "256M", "--accelerator", "tcg", "--ssh")
    ok(vfsd, "machine", "start", "dev")
    key = vfsd.state / "ssh/id_ed25519"
    hidden = key.with_name("hidden")
    key.rename(hidden)
    try:
        done = vfsctl(vfsd, "ssh", "dev", "true")
    finally:
        hidden.rename(key)
    assert done.code == 1
    assert "key" in done.err
    python = os.path.realpath("/usr/bin/python3")
    (folder / "python3").symlink_to(python)
    done_without = vfsd.run(
        "sh", "-c", f"PATH={folder}; export PATH; exec /usr/bin/vfsctl ssh dev true 2>&1", check=False
    )
    assert "openssh-client" in done_without


def test_a_file_is_handed_over(vfsd: Vfsd, folder: Path) -> None:
    (folder / "token").write_text("given in a file")
    options = ["--credential", f"token:{folder}/token", "-o", "Credentials=a=b=c", "-o", "Credentials=d="]
    ok(vfsd, "machine", "add", "dev", "--builtin", *options)
    found = vfsctl(vfsd, "machine", "show", "dev", "--json").json()
    assert found["CredentialFiles"] == {"token": f"{folder}/token"}
    assert found["Credentials"] == {"a": "", "d": ""}
