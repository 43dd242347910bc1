"""What docs/recipes.md does with a whole Debian: its own lines and file, with the lab's tree for what they name."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import only_system
from tests.integration.debian_guest import BOOT_TIMEOUT, SMALL, writable_tree
from tests.integration.harness import MACHINE, Vfsd, wait_for
from tests.integration.test_documents import RECIPES
from tests.integration.test_readme import fenced, section
from tests.integration.vfsctl import Terminal, nothing_left, vfsctl
from vfsd.guest import find_kernel

pytestmark = only_system
"""Nobody but root can serve a tree of root's."""
PATH = "/org/vfsd1/machine/builder"
SOURCE, BUILD = Path("/srv/src"), Path("/srv/build")
CONFIGURE = """#!/bin/sh
! touch "${0%/*}/written" 2>/dev/null || exit 1
cp "${0%/*}/Makefile" .
echo "configured on $(uname -n)"
"""
MAKEFILE = """all: one two three four
one two three four:
\tsed "s/name/$@/" /src/template >$@
"""


@pytest.fixture
def sources() -> Iterator[None]:
    """Something to build, and where to."""
    for folder in (SOURCE, BUILD):
        folder.mkdir()
    (SOURCE / "configure").write_text(CONFIGURE)
    (SOURCE / "configure").chmod(0o755)
    (SOURCE / "Makefile").write_text(MAKEFILE)
    (SOURCE / "template").write_text("made name\n")
    yield
    for folder in (SOURCE, BUILD):
        shutil.rmtree(folder)


def commands(heading: str) -> list[str]:
    """The commands in the recipe below a heading."""
    [block] = fenced(section(heading, RECIPES), "console")
    return block.replace("\\\n", "").removeprefix("$ ").rstrip().split("\n$ ")


def with_root(definition: str, root: Path) -> str:
    """The definition of a machine, its disk image replaced by a share as its root."""
    boot = f'kernel = "{find_kernel()}"\nroot_share = "root"\nappend = "{SMALL}"\naccelerator = "tcg"'
    changed, images = re.subn(r"^image = .*$", boot, definition, flags=re.MULTILINE)
    assert images == 1
    return f'{changed}\n[[shares]]\nsource = "{root}"\ntag = "root"\ncache = "always"\nxattr = true\n'


def test_a_directory_as_root(vfsd: Vfsd) -> None:
    made, line = commands("A directory as the guest's root")
    assert made.startswith("sudo mmdebstrap ")
    with writable_tree() as root:
        changed = line.replace("/srv/debian/vmlinuz", str(find_kernel())).replace("/srv/debian", str(root))
        sudo, program, *arguments = shlex.split(changed)
        assert (sudo, program, arguments[0]) == ("sudo", "vfsctl", "run")
        # the service manager of whoever logs in would take ten seconds
        append = f"{SMALL} systemd.wants=serial-getty@ttyS0.service systemd.mask=user@0.service"
        terminal = Terminal(vfsd, *arguments, "--accelerator", "tcg", "--append", append)
        try:
            terminal.expect(r"root@\S+:~# ", BOOT_TIMEOUT)
            terminal.send("touch /opt/new && ls /opt && findmnt -no FSTYPE / && poweroff\r")
            assert re.search(r"\bnew\r+\n.*overlay\r+\n", terminal.expect("overlay\r"), re.DOTALL)
            assert terminal.end(BOOT_TIMEOUT) == 0
        finally:
            terminal.close()
        assert not (root / "opt/new").exists()
    nothing_left(vfsd)


@pytest.mark.usefixtures("sources")
def test_a_build_machine(vfsd: Vfsd) -> None:
    [definition] = fenced(section("A build machine", RECIPES), "toml")
    start, build = commands("A build machine")
    file = vfsd.config / "machines/builder.toml"
    with writable_tree() as root:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(with_root(definition, root))
        try:
            vfsd.manager("Reload")
            vfsd.run("sh", "-ec", start)
            wait_for(lambda: vfsd.get(PATH, MACHINE, "GuestReady"), "the guest is ready", BOOT_TIMEOUT)
            said = vfsd.run("sh", "-ec", build, timeout=BOOT_TIMEOUT)
            assert said.startswith("configured on ")
            failed = vfsctl(
                vfsd, "exec", "builder", "sh", "-c", "cd /build && make five", timeout=BOOT_TIMEOUT
            )
        finally:
            file.unlink()
            # a file that is closed is with the host, also with Writeback
            if vfsd.get(PATH, MACHINE, "State") not in ("stopped", "failed"):
                vfsd.call(PATH, MACHINE, "Kill")
            vfsd.manager("Reload")
    assert (failed.code, failed.err.count("No rule to make target 'five'")) == (2, 1)
    made = {path.name: path.read_text() for path in BUILD.iterdir() if path.name != "Makefile"}
    assert made == {name: f"made {name}\n" for name in ("one", "two", "three", "four")}
    assert not (SOURCE / "written").exists()
