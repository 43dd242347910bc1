"""Mounts as a real systemd understands them: its fstab generator, its units, its mounts.

The lab's systemd stands for the guest's, and tmpfs for virtio-fs, which a container has not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfsd.mounting import FSTAB_CREDENTIAL, Mount, fstab_line, mount_argument

GENERATOR = "/usr/lib/systemd/system-generators/systemd-fstab-generator"
UNITS = Path("/run/systemd/system")
BASE = "/run/vfsd-mount-test"
MOUNTS = [
    Mount.of(tag, f"{BASE}/{where}", options, read_only=read_only)
    for tag, where, options, read_only in (
        ("plain", "plain", "", False),
        ("a b:c", "two words", "nosuid,size=1m", True),
        ("d'e\"f\\g", "'single' \"double\" back\\slash\\x20not\\040", "", False),
        ("%p$HOME", "%p $HOME $ colon:tab\there", "noexec", False),
        ("☃#", "#hash/ümläut-☃/.dot", "fail", False),
        ("plain", "plain/in side", "x-systemd.mount-timeout=20", False),
    )
]


@pytest.fixture
def generated(tmp_path: Path) -> Iterator[Path]:
    """A folder for the generator; units that a test made of it are taken away again, and what they mounted."""
    yield tmp_path
    for unit in reversed([mount.unit for mount in MOUNTS]):
        subprocess.run(["systemctl", "stop", "--", unit], check=False, capture_output=True, timeout=60)
        (UNITS / unit).unlink(missing_ok=True)
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=60)
    shutil.rmtree(BASE, ignore_errors=True)


def generate(folder: Path, arguments: list[str], fstab: list[str]) -> list[Path]:
    """Run systemd's generator on a kernel's command line and a credential; returns the units of mounts."""
    credentials, units = folder / "credentials", folder / "units"
    for made in (credentials, units):
        made.mkdir()
    (credentials / FSTAB_CREDENTIAL).write_text("".join(f"{line}\n" for line in fstab))
    environment = {
        "SYSTEMD_PROC_CMDLINE": " ".join(["root=root rootfstype=virtiofs rw", *arguments]),
        "CREDENTIALS_DIRECTORY": str(credentials),
        "SYSTEMD_LOG_TARGET": "console",
    }
    done = subprocess.run(
        [GENERATOR, *[str(units)] * 3],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return [path for path in units.glob("*.mount") if path.name != "-.mount"]


def mounted() -> dict[str, tuple[str, str]]:
    """Source and options of what is mounted below BASE, by mount point."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        where, options, source = (unescape(fields[n]) for n in (4, 5, fields.index("-") + 2))
        if where.startswith(BASE):
            found[where] = (source, options)
    return found


def unescape(text: str) -> str:
    """The kernel's octal escapes (proc_pid_mountinfo(5)), of bytes."""
    raw = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), text.encode())
    return raw.decode()


@pytest.mark.parametrize("way", ["argument", "credential"])
def test_systemd_mounts_what_it_is_told(way: str, generated: Path) -> None:
    if way == "argument":
        arguments = [mount_argument(mount).replace(":virtiofs:", ":tmpfs:") for mount in MOUNTS]
        units = generate(generated, arguments, [])
    else:
        lines = [fstab_line(mount).replace(" virtiofs ", " tmpfs ") for mount in MOUNTS]
        units = generate(generated, [], lines)
    assert {path.name for path in units} == {mount.unit for mount in MOUNTS}
    for path in units:
        shutil.copy(path, UNITS)
    subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=60)
    for mount in MOUNTS:
        subprocess.run(["systemctl", "start", "--", mount.unit], check=True, timeout=60)
    found = mounted()
    assert {where: source for where, (source, _) in found.items()} == {
        mount.where: mount.tag for mount in MOUNTS
    }
    for mount in MOUNTS:
        options = found[mount.where][1].split(",")
        assert mount.options[0] in options
        assert {"nosuid", "noexec"} & set(mount.options) <= set(options)


def test_what_needs_local_file_systems_waits_for_a_mount_that_may_fail(generated: Path) -> None:
    lenient, fatal = MOUNTS[0], MOUNTS[4]
    units = {
        path.name: path for path in generate(generated, [mount_argument(m) for m in (lenient, fatal)], [])
    }
    assert all("Before=local-fs.target" in path.read_text().splitlines() for path in units.values())
    target = generated / "units/local-fs.target"
    assert (target.with_name(f"{target.name}.wants") / lenient.unit).is_symlink()
    assert (target.with_name(f"{target.name}.requires") / fatal.unit).is_symlink()


def test_odd_names_are_those_of_systemd_escape() -> None:
    places = [mount.where for mount in MOUNTS]
    command = ["systemd-escape", "--path", "--suffix=mount", "--", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [mount.unit for mount in MOUNTS]
