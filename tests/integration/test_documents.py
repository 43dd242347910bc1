"""What docs/ shows is what happens, and what the documents link to is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import only_system, only_user
from tests.integration.harness import Vfsd, wait_for
from tests.integration.test_readme import PROJECT, Reader, blocks, fenced, missing
from vfsd.config import load_machines
from vfsd.names import Scope

DOCUMENTS = sorted((*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("packaging/**/*.md")))
_LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|href)=\"([^\"]+)\"")


@only_user
def test_the_tutorial_can_be_followed(vfsd: Vfsd) -> None:
    reader = Reader(vfsd)
    subprocess.run(["rm", "-rf", reader.home / "vfsd-tutorial"], check=True)
    for block in blocks((PROJECT / "docs/tutorial.md").read_text(encoding="utf-8")):
        output = reader.run("\n".join(["set -e", *block.lines]))
        lost = missing(block.expected, output)
        assert not lost, f'the tutorial shows "{lost}", which is not in:\n{output}'
    assert output == "", "a machine is left"
    assert not (reader.home / "vfsd-tutorial").exists()


def anchors(document: Path) -> set[str]:
    """The headings of a document as its readers link to them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_somewhere(document: Path) -> None:
    for match in _LINK.finditer(document.read_text(encoding="utf-8")):
        path, _, anchor = (match[1] or match[2]).partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {path}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {path}#{anchor}"


RECIPES = PROJECT / "docs/recipes.md"
_INIT = """#!/bin/busybox sh
/bin/busybox mount -t virtiofs recipe /mnt
/bin/busybox cat /mnt/file > /mnt/answer
/bin/busybox poweroff -f
"""


def tiny_initrd(folder: Path) -> Path:
    """An initial RAM file system whose guest reads a file of the share, writes another and powers off."""
    root = folder / "root"
    for name in ("bin", "mnt"):
        (root / name).mkdir(parents=True)
    shutil.copy("/usr/bin/busybox", root / "bin")
    (root / "init").write_text(_INIT, encoding="utf-8")
    (root / "init").chmod(0o755)
    made = folder / "initrd"
    pack = f"cd {root} && find . | cpio --quiet -o -H newc >{made}"
    subprocess.run(["sh", "-c", pack], check=True)
    return made


@only_system
def test_a_qemu_of_somebody_else_gets_a_share(vfsd: Vfsd, tmp_path: Path) -> None:
    text = RECIPES.read_text(encoding="utf-8")
    reader = Reader(vfsd)
    folder = reader.home / "recipe"
    [kernel] = Path("/boot").glob("vmlinuz-*")
    boot = f"-kernel {kernel} -initrd {tiny_initrd(tmp_path)} -append panic=-1 -no-reboot -display none -net none"
    try:
        for block in blocks(text):
            reader.run("\n".join(["set -e", *block.lines]))
        [qemu] = fenced(text, "qemu")
        reader.run(qemu.replace("…", boot))
        assert (folder / "answer").read_text() == "hello\n"
        wait_for(lambda: "State=listening" in reader.run("vfsctl share show recipe"), "it listens again")
    finally:
        reader.run("vfsctl share remove recipe")
        shutil.rmtree(folder)


def test_the_build_machine_of_the_recipes_is_taken(tmp_path: Path) -> None:
    [text] = fenced(RECIPES.read_text(encoding="utf-8"), "toml")
    (tmp_path / "machines").mkdir()
    (tmp_path / "machines/builder.toml").write_text(text, encoding="utf-8")
    bad: list[str] = []
    [(_, spec)] = load_machines([tmp_path], Scope.SYSTEM, lambda _, reason: bad.append(reason))
    assert bad == []
    assert [share.mount_point for share in spec.shares] == ["/src", "/build"]
