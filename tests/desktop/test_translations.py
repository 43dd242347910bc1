"""Every text can be translated, and is: the template is up to its sources, the catalogues to the template."""

from __future__ import annotations

import gettext
import re
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
PO = SOURCE / "applets/po"
TEMPLATE = PO / "vfsd.pot"
LANGUAGES = (PO / "LINGUAS").read_text().split()
PLACEHOLDER = re.compile(r"%(?:[sd]|\d)|\{\w+\}")
ENTRY = re.compile(r'^(msgctxt|msgid|msgid_plural|msgstr(?:\[\d\])?) "(.*)"$', re.MULTILINE)
INSTALLED = {
    "vfsd": "/usr/share/locale",
    "plasma_applet_org.vfsd1.plasma": "/usr/share/plasma/plasmoids/org.vfsd1.plasma/contents/locale",
}
"""Where a domain is looked for."""


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def entries(path: Path) -> list[list[tuple[str, str]]]:
    """The entries of a template or catalogue but its head; each text with what it is."""
    text = run("msgattrib", "--no-wrap", "--no-obsolete", path)
    return [ENTRY.findall(block) for block in text.split("\n\n")[1:]]


def originals(path: Path) -> set[tuple[str, ...]]:
    """What is to be translated: context, singular, plural."""
    return {tuple(text for kind, text in entry if not kind.startswith("msgstr")) for entry in entries(path)}


def test_the_template_has_every_text(tmp_path: Path) -> None:
    run(PO / "update", tmp_path / "now.pot")
    assert originals(TEMPLATE) == originals(tmp_path / "now.pot"), "run applets/po/update, then translate"


def test_each_catalogue_is_named_once() -> None:
    assert sorted(path.stem for path in PO.glob("*.po")) == sorted(LANGUAGES) == ["de", "fr"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_is_complete(language: str) -> None:
    catalogue = PO / f"{language}.po"
    run("msgfmt", "--check", "--output-file=/dev/null", catalogue)
    run("msgcmp", catalogue, TEMPLATE)  # fails for what is missing, empty or fuzzy
    assert originals(catalogue) == originals(TEMPLATE)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_the_same_placeholders_and_end(language: str) -> None:
    for entry in entries(PO / f"{language}.po"):
        before = [text for kind, text in entry if kind.startswith("msgid")]
        after = [text for kind, text in entry if kind.startswith("msgstr")]
        assert after
        for text in after:
            assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(before[-1])), entry
            assert text.endswith("…") == before[0].endswith("…"), entry
            assert not {'\\"', "...", "'"} & set(re.findall(r"""\\"|\.\.\.|'""", text)), entry


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("domain", INSTALLED)
def test_it_is_installed_where_it_is_looked_for(language: str, domain: str) -> None:
    found = gettext.translation(domain, INSTALLED[domain], [language])
    assert found.gettext("Shut Down") == {"de": "Herunterfahren", "fr": "Éteindre"}[language]
