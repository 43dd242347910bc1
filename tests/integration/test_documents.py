"""What docs/ shows is what happens, and what the documents link to is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import only_user
from tests.integration.harness import Vfsd
from tests.integration.test_readme import PROJECT, Reader, blocks, missing

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
