"""Configuration folders: precedence, types, and what is said of a bad file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vfsd import config
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec, ShareSpec
from vfsd.names import Scope


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def read_shares(*folders: Path) -> tuple[dict[str, ShareSpec], dict[str, str]]:
    bad: dict[str, str] = {}
    found = config.load_shares(folders, Scope.USER, lambda path, reason: bad.update({path.name: reason}))
    return {path.stem: spec for path, spec in found}, bad


def read_machines(*folders: Path) -> tuple[dict[str, MachineSpec], dict[str, str]]:
    bad: dict[str, str] = {}
    found = config.load_machines(folders, Scope.USER, lambda path, reason: bad.update({path.name: reason}))
    return {path.stem: spec for path, spec in found}, bad


def test_no_folder_is_no_error(tmp_path: Path) -> None:
    assert read_shares(tmp_path / "none") == ({}, {})


def test_the_first_folder_wins_and_an_empty_file_hides(tmp_path: Path) -> None:
    high, low = tmp_path / "high", tmp_path / "low"
    write(high, "shares/a.toml", 'source = "/high"')
    write(low, "shares/a.toml", 'source = "/low"')
    write(low, "shares/b.toml", 'source = "/low"')
    write(high, "shares/c.toml", "")
    write(low, "shares/c.toml", 'source = "/low"')
    (high / "shares/d.toml").symlink_to("/dev/null")
    write(low, "shares/d.toml", 'source = "/low"')
    write(low, "shares/.e.toml", "rubbish")
    write(low, "shares/f.txt", "rubbish")
    shares, bad = read_shares(high, low)
    assert {name: spec.source for name, spec in shares.items()} == {"a": "/high", "b": "/low"}
    assert bad == {}


def test_a_bad_file_does_not_bring_up_that_of_a_later_folder(tmp_path: Path) -> None:
    high, low = tmp_path / "high", tmp_path / "low"
    write(high, "shares/a.toml", "source = ")
    write(low, "shares/a.toml", 'source = "/low"')
    shares, bad = read_shares(high, low)
    assert shares == {}
    assert list(bad) == ["a.toml"]


SAMPLES: dict[str, tuple[str, Any]] = {"s": ('"/x"', "/x"), "b": ("true", True), "u": ("3", 3), "t": ("3", 3)}
NUMBERS = {"memory_max": 16 << 20, "cpu_quota_per_sec_usec": 1000, "tasks_max": 8}
CHOICES = {"cache": "never", "sandbox": "none", "log_level": "trace", "inode_file_handles": "prefer"}


@pytest.mark.parametrize("name", SHARE_OPTIONS)
def test_each_option_of_a_share_has_its_key(tmp_path: Path, name: str) -> None:
    option = SHARE_OPTIONS[name]
    text, value = SAMPLES.get(option.signature, ('["x"]', ("x",)))
    if option.field in CHOICES:
        text, value = f'"{CHOICES[option.field]}"', CHOICES[option.field]
    if option.field in NUMBERS:
        text, value = str(NUMBERS[option.field]), NUMBERS[option.field]
    write(tmp_path, "shares/a.toml", f'source = "/srv"\n{option.field} = {text}\n')
    shares, bad = read_shares(tmp_path)
    assert bad == {}
    assert getattr(shares["a"], option.field) == value


def test_keys_are_the_names_of_the_contract() -> None:
    keys = {option.field for option in (*SHARE_OPTIONS.values(), *MACHINE_OPTIONS.values())}
    wanted = "cpus xattr posix_acl direct_io uid_map translate_uid limit_nofile read_only memory kill_priv mount_point"
    assert set(wanted.split()) <= keys
    assert all(key == key.lower() for key in keys)


@pytest.mark.parametrize(
    ("text", "size"),
    [("536870912", 512 << 20), ('"2G"', 2 << 30), ('"512M"', 512 << 20), ('"1T"', 1 << 40), ('"65536K"', 64 << 20),
     ('"67108864"', 64 << 20)],
)  # fmt: skip
def test_memory(tmp_path: Path, text: str, size: int) -> None:
    write(tmp_path, "machines/a.toml", f"memory = {text}")
    machines, bad = read_machines(tmp_path)
    assert bad == {}
    assert machines["a"].memory == size


@pytest.mark.parametrize(
    "text", ['"2g"', '"2 G"', '"G"', '"2GB"', '"1.5G"', '""', "2.0", "true", "-1", "[1]", '"-2G"']
)
def test_what_is_no_memory(tmp_path: Path, text: str) -> None:
    write(tmp_path, "machines/a.toml", f"cpus = 1\nmemory = {text}")
    machines, bad = read_machines(tmp_path)
    assert machines == {}
    assert bad["a.toml"].startswith("line 2: memory must be ")


def test_limits(tmp_path: Path) -> None:
    limits = 'memory_max = "2G"\ncpu_quota_per_sec_usec = 1500000\nio_weight = 50\ntasks_max = 500\n'
    write(tmp_path, "machines/a.toml", limits + '[[shares]]\nsource = "/a"\nmemory_max = "64M"\n')
    machines, bad = read_machines(tmp_path)
    assert bad == {}
    machine = machines["a"]
    assert (machine.memory_max, machine.cpu_quota_per_sec_usec) == (2 << 30, 1_500_000)
    assert (machine.io_weight, machine.tasks_max, machine.shares[0].memory_max) == (50, 500, 64 << 20)


def test_a_limit_without_room_for_the_guest(tmp_path: Path) -> None:
    write(tmp_path, "machines/a.toml", 'cpus = 1\nmemory = "2G"\nmemory_max = "2G"\n')
    machines, bad = read_machines(tmp_path)
    assert machines == {}
    assert bad["a.toml"].startswith(
        'line 3: machine "a" has MemoryMax 2147483648 and needs 2281701376 bytes; '
    )


def test_a_machines_shares(tmp_path: Path) -> None:
    text = '[[shares]]\nsource = "/a"\nmount_point = "/m"\n[[shares]]\nsource = "/b"\ntag = "t"\nread_only = true\n'
    write(tmp_path, "machines/dev.toml", text)
    machines, bad = read_machines(tmp_path)
    assert bad == {}
    told = [(s.name, s.source, s.mount_point, s.tag, s.read_only) for s in machines["dev"].shares]
    assert told == [("dev.a", "/a", "/m", "a", False), ("dev.t", "/b", "", "t", True)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("shares = 5", "line 1: shares must be [[shares]] tables"),
        ("shares = [5]", "line 1: shares must be [[shares]] tables"),
        ("[[shares]]\ntag = 'x'", "a share needs source"),
        ("[[shares]]\nsource = '/a'\nreadonly = true", 'line 3: "readonly" is no key'),
        ("[[shares]]\nsource = '/a'\npersistent = true", 'line 3: "persistent" is no key'),
        ("builtin = true\nkernel = '/x'", "can't be used with Builtin"),
        ("[network]\nkind = 'user'", "line 1: network must be a text"),
        ("forward = ['tcp:x']", "not of the form"),
        ("shares = 1\nshares = 2", "line 2: Cannot overwrite a value"),
    ],
)
def test_bad_machines(tmp_path: Path, text: str, reason: str) -> None:
    write(tmp_path, "machines/dev.toml", text)
    write(tmp_path, "machines/good.toml", "cpus = 2")
    machines, bad = read_machines(tmp_path)
    assert list(machines) == ["good"]
    assert reason in bad["dev.toml"]
