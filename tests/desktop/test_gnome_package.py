"""The extension as a package, and what of it runs without the shell."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

PROJECT = Path(__file__).parents[2]
SOURCE = PROJECT / "applets/gnome"
INSTALLED = Path("/usr/share/gnome-shell/extensions/vfsd@vfsd1.org")


def test_plain_logic() -> None:
    script = Path(__file__).with_name("logic.js")
    done = subprocess.run(
        ["gjs", "-m", str(script), str(INSTALLED)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.startswith("0 failures")


def test_the_zip_is_complete_and_always_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    for target in (first, second):
        subprocess.run([str(SOURCE / "pack"), str(target)], check=True)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "unpacked")
    wanted = {path.name for path in SOURCE.glob("*.js")} | {"metadata.json", "stylesheet.css"}
    wanted |= {f"icons/{path.name}" for path in (INSTALLED / "icons").iterdir()}
    wanted |= {f"locale/{path.stem}/LC_MESSAGES/vfsd.mo" for path in (PROJECT / "applets/po").glob("*.po")}
    wanted.add("schemas/org.gnome.shell.extensions.vfsd.gschema.xml")
    assert names == wanted
    assert len([name for name in names if name.startswith("icons/")]) == 2
    # the site refuses what is not needed, such as compiled schemas; whoever installs it compiles them, strictly
    schemas = tmp_path / "unpacked/schemas"
    subprocess.run(["glib-compile-schemas", "--strict", str(schemas)], check=True)
    assert (schemas / "gschemas.compiled").exists()


def test_the_reviewers_rules(tmp_path: Path) -> None:
    """What those who review extensions for GNOME's site look for: shexli finds nothing."""
    subprocess.run([str(SOURCE / "pack"), str(tmp_path / "it.zip")], check=True)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "build/shexli"), "PYTHONSAFEPATH": ""}
    command = ["python3", "-m", "shexli", "--format", "json", str(tmp_path / "it.zip")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"applets/lint/fetch-shexli puts it into build/shexli: {done.stderr}"
    result = json.loads(done.stdout)
    assert result["artifacts"]["js_file_count"] == len(list(SOURCE.glob("*.js")))
    assert result["findings"] == []


def test_it_is_packed_by_gnomes_own_tool(tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    subprocess.run([str(SOURCE / "pack"), str(tmp_path / "it.zip")], check=True)
    with zipfile.ZipFile(tmp_path / "it.zip") as archive:
        archive.extractall(unpacked)
    modules = [path.name for path in unpacked.glob("*.js") if path.name not in ("extension.js", "prefs.js")]
    extras = [
        f"--extra-source={name}" for name in (*modules, "icons", "locale") if (unpacked / name).exists()
    ]
    command = ["gnome-extensions", "pack", *extras, "-o", str(tmp_path), str(unpacked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with zipfile.ZipFile(tmp_path / "vfsd@vfsd1.org.shell-extension.zip") as archive:
        metadata = json.loads(archive.read("metadata.json"))
        assert set(modules) < set(archive.namelist())
    assert metadata["shell-version"] == ["46", "47", "48", "49"]
