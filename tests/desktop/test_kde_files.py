"""The applet's files by themselves: what Qt and Plasma say of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.integration.harness import Vfsd

PROJECT = Path(__file__).resolve().parents[2]
APPLET = PROJECT / "applets/kde"
QT = Path("/usr/lib/qt6/bin")
UNRESOLVED = ("main.qml", "config.qml", "Signals.qml")
"""qmllint knows neither PlasmoidItem nor ConfigModel nor, in Plasma 6.3, SignalWatcher."""


def test_qmllint() -> None:
    files = [path for path in sorted(APPLET.rglob("*.qml")) if path.name not in UNRESOLVED]
    # i18n() and the roles of a model come from the context
    command: list[str | Path] = [QT / "qmllint", "--unqualified", "disable", "--json", "-", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["files"]
    assert len(found) == len(files) >= 9
    complaints = [
        f"{Path(file['filename']).name}:{warning.get('line')}: {warning['message']}"
        for file in found
        for warning in file["warnings"]
        if warning["type"] != "info"
    ]
    assert complaints == [], "\n".join(complaints)


def test_logic() -> None:
    command: list[str | Path] = [
        QT / "qmltestrunner",
        "-platform",
        "offscreen",
        "-input",
        PROJECT / "tests/desktop/tst_logic.qml",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " 0 failed" in done.stdout
    assert "Totals: 3" in done.stdout, done.stdout  # thirty and some


def test_package(tmp_path: Path) -> None:
    """`make dist-kde` makes what Plasma's own tool installs and takes away again."""
    user = Vfsd("user")
    source = tmp_path / "source"
    shutil.copytree(PROJECT / "applets", source / "applets")
    shutil.copy(PROJECT / "Makefile", source)
    subprocess.run(["make", "--quiet", "dist-kde"], cwd=source, check=True, capture_output=True)
    [package] = (source / "dist").glob("*.plasmoid")
    subject = Path("/home/tester/applet.plasmoid")
    shutil.copy(package, subject)
    kpackagetool = ("kpackagetool6", "--type", "Plasma/Applet")
    user.run("env", "QT_QPA_PLATFORM=offscreen", *kpackagetool, "--install", str(subject))
    installed = Path("/home/tester/.local/share/plasma/plasmoids/org.vfsd1.plasma")
    assert json.loads((installed / "metadata.json").read_text())["KPlugin"]["Id"] == installed.name
    assert (installed / "contents/icons/org.vfsd1.vfsd-symbolic.svg").exists()
    assert (installed / "contents/locale/de/LC_MESSAGES/plasma_applet_org.vfsd1.plasma.mo").exists()
    user.run("env", "QT_QPA_PLATFORM=offscreen", *kpackagetool, "--remove", installed.name)
    assert not installed.exists()
    subject.unlink()
