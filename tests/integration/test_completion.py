"""What bash, zsh and fish offer at a Tab: each of them really, with vfsctl's own completions as they are installed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.integration.conftest import only_user
from tests.integration.harness import Vfsd
from tests.integration.vfsctl import Terminal, ok

SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], "source /usr/share/bash-completion/completions/vfsctl"),
    # a package of Debian's has it in the second folder
    "zsh": (
        ["-f", "-i"],
        "fpath=(/usr/share/zsh/site-functions /usr/share/zsh/vendor-completions $fpath); "
        "autoload -Uz compinit; compinit -D -u",
    ),
}
CASES = {
    "vfsctl mon": "vfsctl monitor",
    "vfsctl machine start al": "vfsctl machine start alpha",
    "vfsctl machine remove alpha be": "vfsctl machine remove alpha beta",
    "vfsctl machine attach alpha fi": "vfsctl machine attach alpha files",
    "vfsctl exec be": "vfsctl exec beta",
    "vfsctl status fi": "vfsctl status files",
    "vfsctl share add --read-o": "vfsctl share add --read-only",
    "vfsctl share add new /usr/sha": "vfsctl share add new /usr/share/",
    "vfsctl machine add x --kernel /etc/hostn": "vfsctl machine add x --kernel /etc/hostname",
}


@pytest.fixture
def objects(vfsd: Vfsd) -> Iterator[Vfsd]:
    """Two machines and a share."""
    for name in ("alpha", "beta"):
        ok(vfsd, "machine", "add", name, "--builtin")
    ok(vfsd, "share", "add", "files", "/srv")
    yield vfsd
    ok(vfsd, "machine", "remove", "alpha", "beta")
    ok(vfsd, "share", "remove", "files")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes(objects: Vfsd, shell: str) -> None:
    arguments, prepare = SHELLS[shell]
    terminal = Terminal(objects, *arguments, columns=200, program=shell)
    try:
        terminal.send(f"PS1='> '; {prepare}; echo re''ady\n")
        terminal.expect("(?s)ready\r.*> ")
        for typed, completed in CASES.items():
            terminal.send(f"{typed}\t")
            terminal.expect(re.escape(completed.removeprefix(typed).rstrip("/")), 20)
            terminal.send("\x01echo is: \n")  # the whole line is shown, whatever the shell printed on the way
            line = re.escape(completed.rstrip("/"))  # zsh takes a slash away that it put there
            terminal.expect(rf"(?s)[\r\n]is: {line}[/ ]?\r.*> ", 20)
        terminal.send("exit\n")
        terminal.process.wait(20)
    finally:
        terminal.process.kill()
        terminal.close()


def test_fish_completes(objects: Vfsd) -> None:
    for typed, completed in CASES.items():
        offered = objects.run("fish", "-c", f"complete -C '{typed}'")
        assert [line.partition("\t")[0] for line in offered.splitlines()] == [completed.split()[-1]], typed


def offered(vfsd: Vfsd, *words: str) -> list[str]:
    """What vfsctl tells a shell after these words."""
    asked = (
        "env",
        f"COMP_WORDS={' '.join(words)}",
        f"COMP_CWORD={len(words) - 1}",
        "_VFSCTL_COMPLETE=bash_complete",
    )
    return [line.partition(",")[2] for line in vfsd.run(*asked, "vfsctl").split()]


def test_only_what_fits_is_offered(objects: Vfsd) -> None:
    assert offered(objects, "vfsctl", "machine", "kill", "") == ["alpha", "beta"]
    assert offered(objects, "vfsctl", "share", "show", "") == ["files"]
    assert offered(objects, "vfsctl", "status", "") == ["alpha", "beta", "files"]
    assert offered(objects, "vfsctl", "console", "") == ["alpha", "beta"]
    assert offered(objects, "vfsctl", "machine", "add", "") == []
    assert offered(objects, "vfsctl", "machine", "remove", "beta", "") == ["alpha"]


@only_user
def test_a_tab_starts_no_vfsd(vfsd: Vfsd) -> None:
    ok(vfsd, "machine", "add", "alpha", "--builtin")
    vfsd.systemctl("stop", "vfsd.service")
    try:
        assert offered(vfsd, "vfsctl", "machine", "start", "") == []
        assert offered(vfsd, "vfsctl", "machine", "st") == ["start"]
        assert vfsd.systemctl("is-active", "vfsd.service", check=False).strip() == "inactive"
    finally:
        vfsd.systemctl("start", "vfsd.service")
    assert offered(vfsd, "vfsctl", "machine", "start", "") == ["alpha"]
