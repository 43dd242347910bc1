"""Which UEFI firmware a machine gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vfsd import host
from vfsd.binaries import QemuBinary

DESCRIBED = {
    "interface-types": ["uefi"],
    "mapping": {"device": "flash", "executable": {"format": "raw"}, "nvram-template": {}},
    "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
    "features": ["acpi-s3"],
}


def test_qemus_own_firmware_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NixOS, where there is nothing in /usr and /etc."""
    monkeypatch.setattr(host, "_FIRMWARE_FOLDERS", ())
    folder = tmp_path / "qemu" / "share" / "qemu" / "firmware"
    folder.mkdir(parents=True)
    code, template = folder / "code.fd", folder / "vars.fd"
    code.write_text("code")
    template.write_text("variables")
    described = json.loads(json.dumps(DESCRIBED))
    described["mapping"]["executable"]["filename"] = str(code)
    described["mapping"]["nvram-template"]["filename"] = str(template)
    (folder / "60-edk2-x86_64.json").write_text(json.dumps(described))
    nothing: frozenset[str] = frozenset()
    qemu = QemuBinary(
        tmp_path / "qemu/bin/qemu", (10, 0), "10.0", "x86_64", nothing, nothing, nothing, nothing
    )
    variables = tmp_path / "state" / "variables"
    assert host._uefi(qemu, variables) == (code, variables)
    assert variables.read_text() == "variables"
