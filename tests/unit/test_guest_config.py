"""`vfsctl guest-config`: what it prints, read by those who will read it in a guest."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vfsd import names
from vfsd.cli.errors import CliError
from vfsd.cli.guest_config import FORMATS, cloud_init, fstab, mounts_of, nixos, systemd
from vfsd.mounting import Mount

yaml: Any = importlib.import_module("yaml")  # it comes without types

ODD = [
    ("src", "/mnt/src"),
    ("with blank", "/mnt/a blank, a\ttab"),
    ("50%s", "/mnt/100%h %%"),
    ("a:b", "/mnt/colon:quote\"single'"),
    ("back\\slash", "/mnt/oct\\040al"),
    ("ünï", "/mnt/ünï 𝄞"),
    ("a$HOME", "/mnt/a$b"),
    ("-dash", "/mnt/-dash/.hidden"),
    ("bell", "/mnt/\x07\x7f\u2028."),
]


def mounts(options: str = "", *, read_only: bool = False) -> list[Mount]:
    found = [Mount.of(tag, where, options, read_only=read_only) for tag, where in ODD]
    assert not any(mount.complaint for mount in found)
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def entries(table: Path) -> list[tuple[str, str, str, str]]:
    """An fstab as libmount reads it, for mount(8)."""
    columns = ("source", "target", "fstype", "options")
    out = run("findmnt", "--fstab", "--tab-file", table, "--json", "--list", "-o", ",".join(columns))
    return [tuple(item[column] for column in columns) for item in json.loads(out)["filesystems"]]


def units(text: str, folder: Path) -> dict[str, Path]:
    """The files of --format systemd, written where their comments say, but below a folder."""
    written = {}
    for part in text.split("\n\n# /etc/systemd/system/")[1:]:
        name, _, content = part.partition("\n")
        written[name] = folder / name
        written[name].write_text(content.partition("\n\n# Then: ")[0] + "\n")
    return written


def property_of(text: str, name: str) -> list[str]:
    return [line.partition("=")[2] for line in text.split("\n") if line.startswith(f"{name}=")]


def test_fstab_as_mount_reads_it(tmp_path: Path) -> None:
    table = tmp_path / "fstab"
    table.write_text(fstab(mounts("noatime", read_only=True), "dev") + "\n")
    assert entries(table) == [(tag, where, "virtiofs", "ro,noatime,nofail") for tag, where in ODD]


def test_fstab_is_as_findmnt_wants_it(tmp_path: Path) -> None:
    table, where = tmp_path / "fstab", tmp_path / "a place"
    where.mkdir()
    table.write_text(fstab([Mount.of("src", str(where), "", read_only=False)], "dev") + "\n")
    out = subprocess.run(
        ["findmnt", "--verify", "--verbose", "--tab-file", table], capture_output=True, text=True, check=False
    ).stdout
    assert "Success, no errors or warnings detected" in out, out


def test_units_as_systemd_reads_them(tmp_path: Path) -> None:
    written = units(systemd(mounts(), "dev"), tmp_path)
    assert len(written) == len(ODD)
    for name, path in written.items():
        if ":" not in name:  # which would be the name to load it under
            run("systemd-analyze", "verify", "--man=no", path)
        [where] = property_of(path.read_text(), "Where")
        assert run("systemd-escape", "--path", "--suffix=mount", where.replace("%%", "%")) == f"{name}\n"


def test_a_unit_says_what_fstab_would(tmp_path: Path) -> None:
    own = "noatime,nofail,x-systemd.automount,x-systemd.idle-timeout=9"
    text = systemd([Mount.of("src", "/mnt/src", own, read_only=True)], "dev")
    written = units(text, tmp_path)
    assert sorted(written) == ["mnt-src.automount", "mnt-src.mount"]
    for path in written.values():
        run("systemd-analyze", "verify", "--man=no", path)
    mount, automount = written["mnt-src.mount"].read_text(), written["mnt-src.automount"].read_text()
    assert property_of(mount, "Options") == ["ro,noatime,nofail"]
    assert "Not for units: x-systemd.idle-timeout=9\n" in mount
    assert "[Install]" not in mount
    assert property_of(automount, "WantedBy") == ["local-fs.target"]
    assert text.endswith("enable --now 'mnt-src.automount'")


@pytest.mark.parametrize(
    ("own", "options", "installed", "enabled"),
    [
        ("", "rw", "WantedBy=local-fs.target", True),
        ("nofail", "rw,nofail", "WantedBy=local-fs.target", True),
        ("fail", "rw", "RequiredBy=local-fs.target", True),
        ("noauto,noexec", "rw,noexec", "", False),
    ],
)
def test_when_a_unit_is_mounted(own: str, options: str, installed: str, enabled: bool) -> None:
    text = systemd([Mount.of("src", "/mnt/src", own, read_only=False)], "dev")
    assert property_of(text, "Options") == [options]
    assert text.count("By=local-fs.target") == (1 if installed else 0)
    assert installed in text
    assert ("enable --now 'mnt-src.mount'" in text) is enabled


def test_user_data_as_cloud_init_reads_it(tmp_path: Path) -> None:
    text = cloud_init(mounts(), "dev")
    assert text.startswith("#cloud-config\n")
    told = yaml.safe_load(text)
    [written] = told["write_files"]
    assert (written["path"], written["append"]) == ("/etc/fstab", True)
    (tmp_path / "fstab").write_text(written["content"])
    assert entries(tmp_path / "fstab") == [(tag, where, "virtiofs", "rw,nofail") for tag, where in ODD]
    assert told["runcmd"] == [
        command for _, where in ODD for command in (["mkdir", "-p", where], ["mount", where])
    ]


def test_user_data_leaves_alone_what_is_not_mounted_at_boot() -> None:
    told = yaml.safe_load(cloud_init([Mount.of("src", "/mnt/src", "noauto", read_only=False)], "dev"))
    assert told["runcmd"] == [["mkdir", "-p", "/mnt/src"]]


def test_a_module_of_nixos(tmp_path: Path) -> None:
    found = [mount for mount in mounts() if "\\" not in mount.tag + mount.where]
    found.append(Mount.of('quo"te', "/mnt/${x", "", read_only=True))
    text = nixos(found, "dev")
    assert '  fileSystems."/mnt/src" = {\n    device = "src";\n    fsType = "virtiofs";\n' in text
    assert 'options = [ "rw" "nofail" "x-systemd.before=local-fs.target" ];' in text
    assert 'fileSystems."/mnt/\\${x" = {\n    device = "quo\\"te";' in text
    places = {f"NIX_{kind}_DIR": str(tmp_path / kind) for kind in ("STORE", "STATE", "LOG", "CONF")}
    done = subprocess.run(
        ["nix-instantiate", "--eval", "--strict", "--json", "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **places},
    )
    evaluated = json.loads(done.stdout)["fileSystems"]
    assert {where: item["device"] for where, item in evaluated.items()} == {m.where: m.tag for m in found}


def test_what_nixos_cannot_express_is_named() -> None:
    with pytest.raises(CliError, match=r"back\\slash.* at /mnt/x"):
        nixos([Mount.of("back\\slash", "/mnt/x", "", read_only=False)], "dev")


@pytest.mark.parametrize("wanted", FORMATS)
def test_nothing_to_mount(wanted: str) -> None:
    text = FORMATS[wanted]([], "dev")
    assert "dev" in text
    assert all(line.startswith("#") or line in ("{", "}") for line in text.splitlines())


def share(name: str, tag: str, where: str = "", **more: Any) -> dict[str, Any]:
    return {"Name": name, "Tag": tag, "MountPoint": where, "MountOptions": "", "ReadOnly": False, **more}


def of_shares(*shares: dict[str, Any], root: str = "") -> list[Mount]:
    objects = {f"/{number}": {names.SHARE_INTERFACE: item} for number, item in enumerate(shares)}
    return mounts_of({"Shares": [*objects, "/gone"], "RootShare": root}, objects)


def test_shares_of_a_machine() -> None:
    found = of_shares(
        share("a", "inner", "/srv/x/y/"),
        share("b", "outer", "/srv/x", ReadOnly=True, MountOptions="noatime"),
        share("c", "nowhere"),
        share("d", "the-root", "/elsewhere"),
        root="the-root",
    )
    assert [(mount.tag, mount.where, mount.options[0]) for mount in found] == [
        ("nowhere", "/mnt/nowhere", "rw"),
        ("outer", "/srv/x", "ro"),
        ("inner", "/srv/x/y", "rw"),
    ]
    assert "noatime" in found[1].options
    assert of_shares(share("d", "t"), root="d") == []


def test_what_nothing_can_express_is_refused() -> None:
    with pytest.raises(CliError, match=r'share "a".*line break'):
        of_shares(share("a", "t", "/a\nb"))
