"""`vfsctl guest-config` with a vfsd: what it finds out, and how it ends."""

from __future__ import annotations

from pathlib import Path

from tests.integration.harness import Vfsd
from tests.integration.vfsctl import ok, vfsctl


def test_it_prints_what_to_write(vfsd: Vfsd, folder: Path) -> None:
    for name in ("root", "a b", "plain"):
        (folder / name).mkdir()
    shares = ["--share", f"{folder}/a b:/mnt/a b:ro", "--share", f"{folder}/plain"]
    ok(vfsd, "machine", "add", "dev", "--kernel", "/k", "--root", f"{folder}/root", *shares)
    assert ok(vfsd, "guest-config", "dev").splitlines()[1:] == [
        "a_b /mnt/a\\040b virtiofs ro,nofail 0 0",
        "plain /mnt/plain virtiofs rw,nofail 0 0",
    ]
    assert "\nWhere=/mnt/a b\n" in ok(vfsd, "guest-config", "dev", "--format", "systemd")
    assert '"a_b"' in ok(vfsd, "guest-config", "--format", "nixos", "dev")
    assert ok(vfsd, "guest-config", "--format", "cloud-init", "dev").startswith("#cloud-config\n")
    found = vfsctl(vfsd, "guest-config", "dev", "--json").json()
    assert [(item["What"], item["Where"]) for item in found] == [("a_b", "/mnt/a b"), ("plain", "/mnt/plain")]


def test_it_says_what_it_cannot_express(vfsd: Vfsd, folder: Path) -> None:
    ok(vfsd, "share", "add", "odd", str(folder), "--tag", "#1")
    ok(vfsd, "machine", "add", "dev", "--builtin")
    ok(vfsd, "machine", "attach", "dev", "odd")
    done = vfsctl(vfsd, "guest-config", "dev")
    assert (done.code, done.out) == (1, "")
    assert 'tag "#1"' in done.err
    assert "Set a Tag" in done.err
    assert "What=#1\n" in ok(vfsd, "guest-config", "dev", "--format", "systemd")
    ok(vfsd, "machine", "detach", "dev", "odd")
    assert ok(vfsd, "guest-config", "dev").count("\n") == 1
    assert vfsctl(vfsd, "guest-config", "nobody").code == 4
    assert vfsctl(vfsd, "guest-config", "dev", "--format", "hieroglyphs").code == 2
