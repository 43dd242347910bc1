"""Finding QEMU and virtiofsd: the order of places, and what the binaries say about themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from vfsd.binaries import (
    ProbeError,
    host_architecture,
    probe_qemu,
    probe_virtiofsd,
    run_tool,
    version_tuple,
)
from vfsd.discovery import BinaryNotFound, SearchPaths, described_binaries, find_qemu, find_virtiofsd

NOWHERE = SearchPaths(path=(), descriptions=(), virtiofsd_folders=(), qemu_files=())
QEMU_NAME = f"qemu-system-{host_architecture()}"

RUST_VIRTIOFSD = """\
case $1 in
--version) echo 'virtiofsd 1.13.2';;
--print-capabilities) echo '{"type": "fs", "features": ["migrate-precopy"]}';;
--help) echo '      --fd <FD>'; echo '      --readonly'; echo '  -V, --version';;
esac
"""
C_VIRTIOFSD = """\
case $1 in
--version) echo 'virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)'
echo 'using FUSE kernel interface version 7.36';;
--print-capabilities) echo '{"type": "fs"}';;
--help) echo '    --fd=FDNUM                 use inherited fd';;
esac
"""
OLD_QEMU = """\
case $1 in
--version) echo 'QEMU emulator version 3.1.0 (Debian 1:3.1+dfsg-8)';;
-device) echo 'name "virtio-9p-pci", bus PCI';;
-accel) echo 'Possible accelerators: kvm, tcg';;
esac
"""
HANGING = "sleep 60 & wait\n"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return path


def is_running(pid: int) -> bool:
    """Whether a process is neither gone nor a zombie that nobody has reaped yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("virtiofsd 1.13.2", (1, 13, 2)),
        ("virtiofsd backend 1.7.2", (1, 7, 2)),
        ("QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)", (10, 0, 13)),
        ("QEMU emulator version 9.2.50 (v9.2.0-123-gabcdef)", (9, 2, 50)),
        ("no number", ()),
    ],
)
def test_version_tuple(text: str, version: tuple[int, ...]) -> None:
    assert version_tuple(text) == version


@pytest.mark.parametrize(
    ("machine", "name"),
    [("x86_64", "x86_64"), ("arm64", "aarch64"), ("ppc64le", "ppc64"), ("s390x", "s390x"), ("mips", "mips")],
)
def test_host_architecture(machine: str, name: str) -> None:
    assert host_architecture(machine) == name


@pytest.mark.parametrize(
    ("environ", "user", "expected"),
    [
        ({"XDG_CONFIG_HOME": "/c"}, True, "/c/qemu/vhost-user"),
        ({"HOME": "/home/u"}, True, "/home/u/.config/qemu/vhost-user"),
        ({"HOME": "/home/u"}, False, "/etc/qemu/vhost-user"),
        ({}, True, "/etc/qemu/vhost-user"),
    ],
)
def test_most_specific_description_folder(environ: Mapping[str, str], user: bool, expected: str) -> None:
    assert SearchPaths.from_environment(environ, user=user).descriptions[0] == Path(expected)


def test_search_paths_take_data_dirs_and_ignore_relative_folders() -> None:
    search = SearchPaths.from_environment({"XDG_DATA_DIRS": "/nix/a:rel", "PATH": ":bin:/usr/bin"})
    assert Path("/nix/a/qemu/vhost-user") in search.descriptions
    assert len(set(search.descriptions)) == len(search.descriptions)
    assert search.path == (Path("/usr/bin"),)


def description(binary: str, kind: str = "fs") -> str:
    return json.dumps({"description": "d", "type": kind, "binary": binary})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/50-virtiofsd.json": description("/a")}, ["/a"]),
        # Ordered by file name over all folders, not by folder
        (
            {"user/60-virtiofsd.json": description("/b"), "sys/50-virtiofsd.json": description("/a")},
            ["/a", "/b"],
        ),
        # The same name in the more specific folder overrides
        (
            {"etc/50-virtiofsd.json": description("/b"), "sys/50-virtiofsd.json": description("/a")},
            ["/b"],
        ),
        # A zero-length file hides
        ({"user/50-virtiofsd.json": "", "sys/50-virtiofsd.json": description("/a")}, []),
        # So does one that is broken: it is the file that counts
        ({"user/50-virtiofsd.json": "{", "sys/50-virtiofsd.json": description("/a")}, []),
        ({"sys/50-virtiofsd.json": description("/gpu", "gpu")}, []),
        ({"sys/50-gpu.json": description("/a")}, []),
        ({"sys/50-virtiofsd.json": description("relative/a")}, []),
        ({"sys/50-virtiofsd.json": "[]"}, []),
        ({"sys/50-virtiofsd.json": '{"type": "fs", "binary": 7}'}, []),
        (
            {"sys/50-qemu-virtiofsd.json": description("/c"), "sys/50-virtiofsd.json": description("/c")},
            ["/c"],
        ),
    ],
)
def test_descriptions(tmp_path: Path, files: Mapping[str, str], expected: list[str]) -> None:
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    folders = [tmp_path / name for name in ("user", "etc", "sys", "missing")]
    assert described_binaries(folders) == [Path(name) for name in expected]


def test_rust_virtiofsd_from_description_before_path(tmp_path: Path) -> None:
    described = script(tmp_path / "described/fsd", RUST_VIRTIOFSD)
    script(tmp_path / "bin/virtiofsd", RUST_VIRTIOFSD)
    (tmp_path / "50-virtiofsd.json").write_text(description(str(described)))
    search = replace(NOWHERE, descriptions=(tmp_path,), path=(tmp_path / "bin",))
    found = find_virtiofsd(search)
    assert found.path == described
    assert (found.version, found.version_text, found.is_rust) == ((1, 13, 2), "virtiofsd 1.13.2", True)
    assert found.features == {"migrate-precopy"}
    assert found.options == {"fd", "readonly", "version"}
    assert found.has("--fd")
    assert found.missing(["--fd=3", "--translate-uid=x", "--translate-uid=y", "-o", "z"]) == ["translate-uid"]


def test_c_virtiofsd_is_passed_over(tmp_path: Path) -> None:
    script(tmp_path / "a/virtiofsd", C_VIRTIOFSD)
    rust = script(tmp_path / "b/virtiofsd", RUST_VIRTIOFSD)
    assert find_virtiofsd(replace(NOWHERE, path=(tmp_path / "a", tmp_path / "b"))).path == rust


def test_only_c_virtiofsd_is_reported(tmp_path: Path) -> None:
    fake = script(tmp_path / "virtiofsd", C_VIRTIOFSD)
    assert probe_virtiofsd(fake).version == (7, 2, 22)
    with pytest.raises(BinaryNotFound, match=r"C virtiofsd of QEMU 7\.2\.22") as caught:
        find_virtiofsd(replace(NOWHERE, virtiofsd_folders=(tmp_path,)))
    assert caught.value.what == "virtiofsd"
    assert "Rust" in caught.value.remedy


def test_real_c_virtiofsd_is_recognised() -> None:
    path = Path("/usr/lib/qemu/virtiofsd")
    # Debian 13 keeps the name as a link to the Rust one
    if path.is_symlink() or not path.exists():
        pytest.skip("QEMU's C virtiofsd is not installed here")
    assert not probe_virtiofsd(path).is_rust


def test_old_rust_virtiofsd_is_rust(tmp_path: Path) -> None:
    fake = script(tmp_path / "virtiofsd", "echo virtiofsd backend 1.7.2\n")
    assert probe_virtiofsd(fake).is_rust


def test_nothing_installed() -> None:
    with pytest.raises(BinaryNotFound, match="virtiofsd is not installed"):
        find_virtiofsd(NOWHERE)
    with pytest.raises(BinaryNotFound, match=f"{QEMU_NAME} is not installed"):
        find_qemu(NOWHERE)


@pytest.mark.parametrize("text", [None, "echo something else 1.2\n", "exit 1\n"])
def test_bad_override_is_an_error_not_a_fallback(tmp_path: Path, text: str | None) -> None:
    override = tmp_path / "mine"
    if text:
        script(override, text)
    script(tmp_path / "bin/virtiofsd", RUST_VIRTIOFSD)
    search = SearchPaths.from_environment({"VFSD_VIRTIOFSD": str(override), "PATH": str(tmp_path / "bin")})
    with pytest.raises(BinaryNotFound, match="VFSD_VIRTIOFSD names"):
        find_virtiofsd(search)


def test_qemu_override_and_symbolic_links(tmp_path: Path) -> None:
    real = script(tmp_path / "store/qemu", OLD_QEMU)
    link = tmp_path / "link"
    link.symlink_to(real)
    qemu = find_qemu(SearchPaths.from_environment({"VFSD_QEMU": str(link)}))
    assert qemu.path == real
    assert qemu.version == (3, 1, 0)
    assert not qemu.vhost_user_fs
    assert not qemu.chardev_hub
    assert not qemu.panic_exit


def test_qemu_kvm_of_enterprise_linux_comes_after_path(tmp_path: Path) -> None:
    other = script(tmp_path / "libexec/qemu-kvm", OLD_QEMU)
    search = replace(NOWHERE, path=(tmp_path / "bin",), qemu_files=(other,))
    assert find_qemu(search).path == other
    first = script(tmp_path / "bin" / QEMU_NAME, OLD_QEMU)
    assert find_qemu(search).path == first


def test_hanging_binary_costs_its_limit_and_leaves_no_process(tmp_path: Path) -> None:
    # The child keeps the pipe open after its parent was killed
    script(tmp_path / QEMU_NAME, f"sleep 60 & echo $! > {tmp_path}/child; wait\n")
    started = time.monotonic()
    with pytest.raises(BinaryNotFound, match=r"did not answer within 0\.[45] s"):
        find_qemu(replace(NOWHERE, path=(tmp_path,)), timeout=0.5)
    assert time.monotonic() - started < 2
    assert not is_running(int((tmp_path / "child").read_text()))


def test_hanging_binary_is_passed_over_for_one_that_works(tmp_path: Path) -> None:
    script(tmp_path / "a/virtiofsd", HANGING)
    good = script(tmp_path / "b/virtiofsd", RUST_VIRTIOFSD)
    search = replace(NOWHERE, path=(tmp_path / "a", tmp_path / "b"))
    assert find_virtiofsd(search, timeout=0.5).path == good


def test_answers_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    fake = script(tmp_path / "virtiofsd", f"echo $1 >> {log}\n{RUST_VIRTIOFSD}")
    first = probe_virtiofsd(fake)
    asked = log.read_text()
    assert probe_virtiofsd(fake) is first
    assert log.read_text() == asked
    script(fake, RUST_VIRTIOFSD.replace("1.13.2", "1.14.0"))
    assert probe_virtiofsd(fake).version == (1, 14, 0)


def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    text = tmp_path / "virtiofsd"
    text.write_text("not a program")
    text.chmod(0o755)
    with pytest.raises(ProbeError, match="does not start"):
        probe_virtiofsd(text)
    with pytest.raises(ProbeError, match="can't be read"):
        probe_qemu(tmp_path / "missing")


def test_run_tool_speaks_c_locale_and_has_no_input() -> None:
    assert run_tool(["sh", "-c", "echo $LC_ALL; cat"], timeout=5).stdout == "C\n"


def test_real_qemu() -> None:
    try:
        qemu = find_qemu()
    except BinaryNotFound as error:
        pytest.skip(error.message)
    assert qemu.path.is_absolute()
    assert qemu.version >= (4, 2)
    assert qemu.vhost_user_fs
    assert qemu.memory_backend_memfd
    assert {"socket", "stdio"} <= qemu.chardevs
    assert not any(name.endswith(":") for name in qemu.objects)
    assert qemu.chardev_hub == (qemu.version >= (10, 0))
    assert qemu.panic_exit


def test_real_virtiofsd() -> None:
    try:
        virtiofsd = find_virtiofsd()
    except BinaryNotFound as error:
        pytest.skip(error.message)
    assert virtiofsd.is_rust
    assert virtiofsd.has("fd")
    assert virtiofsd.has("shared-dir")
    assert virtiofsd.has("translate-uid") == (virtiofsd.version >= (1, 13))
