"""Formats and files of disk images, with real ones of qemu-img."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vfsd import image
from vfsd.errors import InvalidArgs, PrerequisiteMissing
from vfsd.image import File
from vfsd.opened import Opened, Openings

QEMU = Path("/nowhere/qemu")
"""Beside which there is no qemu-img, so that it is that of PATH."""


def made(*arguments: str) -> None:
    subprocess.run(["qemu-img", "create", "-q", *arguments], check=True, timeout=30)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_plain_image(tmp_path: Path, kind: str) -> None:
    path = tmp_path / 'a "b",c'
    made("-f", kind, f"file:{path}", "1M")
    assert image.look(path, tmp_path / "state", "m", QEMU) == [File(path, kind, is_device=False)]


def test_what_a_guest_writes_into_a_raw_image_makes_no_other_of_it(tmp_path: Path) -> None:
    path, secret, state = tmp_path / "disk", tmp_path / "secret", tmp_path / "state"
    made("-f", "raw", str(path), "1M")
    secret.write_bytes(b"x" * 4096)
    assert image.look(path, state, "m", QEMU)[0].format == "raw"
    evil = tmp_path / "evil"
    made("-f", "qcow2", "-b", str(secret), "-F", "raw", str(evil))
    with path.open("r+b") as disk:
        disk.write(evil.read_bytes())
    assert image.look(path, state, "m", QEMU) == [File(path, "raw", is_device=False)]
    # another file in its place is the administrator's doing
    evil.replace(path)
    assert [file.path for file in image.look(path, state, "m", QEMU)] == [path, secret]


@pytest.mark.parametrize("record", ["", "[]", "{", '{"path": 1}', '{"format": "vmdk"}'])
def test_a_damaged_record_is_made_anew(tmp_path: Path, record: str) -> None:
    path, state = tmp_path / "disk", tmp_path / "state"
    made("-f", "qcow2", str(path), "1M")
    state.mkdir()
    (state / "image.json").write_text(record)
    assert image.look(path, state, "m", QEMU)[0].format == "qcow2"
    assert json.loads((state / "image.json").read_text())["format"] == "qcow2"


def test_an_image_of_several_files(tmp_path: Path) -> None:
    base, middle, top, data = (tmp_path / name for name in ("base", "middle", "top", "data"))
    made("-f", "raw", str(base), "1M")
    made("-f", "qcow2", "-b", "base", "-F", "raw", str(middle))
    made("-f", "qcow2", "-b", str(middle), "-F", "qcow2", "-o", f"data_file={data}", str(top))
    found = image.look(top, tmp_path / "state", "m", QEMU)
    assert found == [
        File(top, "qcow2", is_device=False, data=data),
        File(middle, "qcow2", is_device=False),
        File(base, "raw", is_device=False),
    ]
    openings = Openings(9, opens=True)
    layers = image.layers(found, openings)
    assert [(Path(path).name, flags) for path, _, flags in openings.entries] == [
        ("data", 0),
        ("top", 0),
        ("middle", 1),
        ("base", 1),
    ]
    assert layers[0].data == Opened(data, 9)


def test_what_belongs_to_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, top = tmp_path / "base", tmp_path / "top"
    made("-f", "raw", str(base), "1M")
    made("-f", "qcow2", "-b", str(base), "-F", "raw", str(top))
    base.unlink()
    with pytest.raises(InvalidArgs, match="is missing"):
        image.look(top, tmp_path / "state", "m", QEMU)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(PrerequisiteMissing, match="qemu-utils"):
        image.look(top, tmp_path / "state", "m", QEMU)


def test_qemus_own_qemu_img_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be in PATH: Nix's is not."""
    beside = Path(shutil.which("qemu-img") or "").with_name("qemu")
    base, top = tmp_path / "base", tmp_path / "top"
    made("-f", "raw", str(base), "1M")
    made("-f", "qcow2", "-b", str(base), "-F", "raw", str(top))
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert [file.path for file in image.look(top, tmp_path / "state", "m", beside)] == [top, base]
