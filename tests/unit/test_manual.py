"""The manual says what there is, all of it, and nothing else.

org.vfsd1(5) is generated, so it can only be out of date or lack something. The other pages are written by hand and are
held against what the code knows.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MAN = PROJECT / "packaging/man"
DBUS = PROJECT / "dbus"


def _load_generator() -> ModuleType:
    loader = SourceFileLoader("generate", str(PROJECT / "packaging/manual/generate"))
    spec = importlib.util.spec_from_loader("generate", loader)
    assert spec is not None
    module = sys.modules["generate"] = importlib.util.module_from_spec(spec)  # its dataclasses look there
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """packaging/manual/generate."""
    return _load_generator()


# org.vfsd1(5)


def test_the_page_of_the_interfaces_is_what_is_generated(generator: ModuleType) -> None:
    page = (MAN / "org.vfsd1.5").read_text(encoding="utf-8")
    assert page == generator.page(), 'run "make manual"'


@pytest.mark.parametrize(
    ("file", "declaration"),
    [
        ("Manager", '<method name="Reload"/>'),
        ("Share", '<signal name="FilesRunningOut">'),
        ("Machine", '<property name="SparePorts"'),
    ],
)
def test_a_member_without_documentation_is_refused(
    generator: ModuleType, tmp_path: Path, file: str, declaration: str
) -> None:
    folder = tmp_path / "dbus"
    shutil.copytree(DBUS, folder)
    path = folder / f"org.vfsd1.{file}.xml"
    text = path.read_text(encoding="utf-8")
    before, found, after = text.partition(declaration)
    assert found
    path.write_text(before[: before.rindex("<!--")] + found + after, encoding="utf-8")
    with pytest.raises(generator.Undocumented, match=declaration.split('"')[1]):
        generator.page(folder)


def journal_fields() -> set[str]:
    """The fields that vfsd's entries can have: what is passed to `Journal.write`, and what that adds."""
    source = {path: path.read_text(encoding="utf-8") for path in (PROJECT / "vfsd").rglob("*.py")}
    fields = set(re.findall(r'"(VFSD_(?:SHARE|MACHINE)|OBJECT_SYSTEMD\w+|LOGGER)"', "".join(source.values())))
    for text in source.values():
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            writes = node.func.attr == "write" and ast.unparse(node.func.value).endswith("journal")
            if writes:
                given = {word.arg for word in node.keywords if word.arg and word.arg != "unit"}
                fields |= {f"VFSD_{name.upper()}" for name in given}
    return fields


def test_each_field_of_the_journal_is_documented() -> None:
    page = (MAN / "org.vfsd1.5").read_text(encoding="utf-8")
    section = re.split(r"^\.Sh (.*)\n", page, flags=re.MULTILINE)
    text = dict(zip(section[1::2], section[2::2], strict=True))["JOURNAL"]
    headings = re.findall(r"^\.It Li (.*=.*)$", text, re.MULTILINE)
    told = {word.rstrip("=") for heading in headings for word in heading.split() if word != ","}
    assert told == journal_fields()
