"""What software centres, menus and panels know of vfsd: metadata, the desktop file, icons."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from vfsd import __version__

SOURCE = Path(__file__).parents[2]
SHARE = Path("/usr/share")
DESKTOP_FILE = SHARE / "applications/org.vfsd1.vfsd.desktop"
METADATA = [path.name for path in sorted((SOURCE / "applets").glob("*.metainfo.xml"))]
ICONS = {
    "org.vfsd1.vfsd": "scalable",
    "org.vfsd1.vfsd-symbolic": "symbolic",
    "org.vfsd1.vfsd-attention-symbolic": "symbolic",
}
SVG = "{http://www.w3.org/2000/svg}"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def icon(name: str) -> Path:
    return SHARE / f"icons/hicolor/{ICONS[name]}/apps/{name}.svg"


def desktop_entry() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DESKTOP_FILE, encoding="utf-8")
    return parser["Desktop Entry"]


def test_the_desktop_file() -> None:
    assert run("desktop-file-validate", DESKTOP_FILE) == ""
    entry = desktop_entry()
    assert shutil.which(entry["Exec"].split()[0])
    assert entry["Icon"] in ICONS
    for language in ("de", "fr"):
        assert entry[f"Comment[{language}]"] != entry["Comment"]


@pytest.mark.parametrize("name", METADATA)
def test_metadata(name: str) -> None:
    # There is no page of its own to point to.
    run(
        "appstreamcli",
        "validate",
        "--no-net",
        "--override=url-homepage-missing=info",
        SHARE / "metainfo" / name,
    )
    root = ET.parse(SHARE / "metainfo" / name).getroot()
    assert f"{root.findtext('id')}.metainfo.xml" == name
    assert [release.get("version") for release in root.iter("release")] == [__version__]
    assert root.findtext("icon") in ICONS
    languages = {item.get("{http://www.w3.org/XML/1998/namespace}lang") for item in root.iter("summary")}
    assert languages == {None, "de", "fr"}


def test_the_parts_know_each_other() -> None:
    roots = {name: ET.parse(SHARE / "metainfo" / name).getroot() for name in METADATA}
    (main,) = (root for root in roots.values() if root.get("type") == "desktop-application")
    addons = [root for root in roots.values() if root.get("type") == "addon"]
    assert len(addons) == 2
    for addon in addons:
        assert main.findtext("id") in [item.text for item in addon.iter("extends")]
    assert main.findtext("launchable") == DESKTOP_FILE.name
    assert [item.text for item in main.iter("category")] == desktop_entry()["Categories"].rstrip(";").split(
        ";"
    )


@pytest.mark.parametrize("name", ICONS)
@pytest.mark.parametrize("size", [16, 32, 256])
def test_an_icon_can_be_drawn(name: str, size: int, tmp_path: Path) -> None:
    drawn = tmp_path / "icon.png"
    run("rsvg-convert", f"--width={size}", f"--height={size}", f"--output={drawn}", icon(name))
    shown = run("identify", "-format", "%w %h %[opaque] %k", drawn).split()
    assert shown[:3] == [str(size), str(size), "False"]
    assert int(shown[3]) > 1, "it is empty"


@pytest.mark.parametrize("name", ICONS)
def test_an_icon_says_how_it_is_tinted(name: str) -> None:
    root = ET.parse(icon(name)).getroot()
    if ICONS[name] == "scalable":
        assert root.get("viewBox") == "0 0 128 128"
        return
    assert root.get("viewBox") == "0 0 16 16"
    style = root.find(f"{SVG}style")
    assert style is not None
    assert style.get("id") == "current-color-scheme"  # for KDE's
    drawn = [item for item in root if item is not style]
    for item in drawn:
        assert item.get("fill") == "currentColor"
        assert re.search(rf"\.{(item.get('class') or '').split()[0]}\b", style.text or "")
    # for GTK's, which has no colour for anything but warnings, errors and success
    accents = {word for item in drawn for word in (item.get("class") or "").split()[1:]}
    assert accents == ({"warning"} if "attention" in name else set())


def test_what_is_installed_is_uninstalled(tmp_path: Path) -> None:
    make = ("make", "--silent", f"--directory={SOURCE}", f"DESTDIR={tmp_path}", "WITH_QMP=system")
    run(*make, "install")
    installed = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        Path("usr/bin/vfsctl"),
        DESKTOP_FILE.relative_to("/"),
        icon("org.vfsd1.vfsd").relative_to("/"),
    } <= installed
    run(*make, "uninstall")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
