"""The initial RAM file system for a root share with an overlay: what is in it, and what it is made of."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vfsd.guest import overlay
from vfsd.guest.builtin import GuestUnavailable
from vfsd.kernel import KernelReport

VERSION = "6.1.0-test"
MODULE = b"\x7fELF of "
BUILTIN = "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/fuse/fuse.ko\n"
NEEDED = ("insmod", "mkdir", "mount", "poweroff", "sh", "switch_root")

DEPENDENCIES = "kernel/virtiofs.ko:\nkernel/stack.ko:\nkernel/overlay.ko: kernel/stack.ko\n"


def busybox(folder: Path, *applets: str) -> Path:
    """A program that says of itself that it has such applets."""
    program = folder / "busybox"
    program.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(applets))
    program.chmod(0o755)
    return program


def module_tree(parent: Path) -> Path:
    """A kernel's module tree in which virtio-pci is built in, virtiofs a module, and overlay one that needs another."""
    folder = parent / "lib/modules" / VERSION
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.builtin").write_text(BUILTIN)
    (folder / "modules.dep").write_text(DEPENDENCIES)
    for name in ("virtiofs", "stack", "overlay"):
        (folder / f"kernel/{name}.ko").write_bytes(MODULE + name.encode())
    return folder


def report(modules: Path | None = None, **options: str) -> KernelReport:
    return KernelReport(Path("/boot/the-kernel"), VERSION, "a test", modules, options=options)


def contents(image: Path) -> dict[str, bytes]:
    """Regular files of a cpio archive, unpacked by cpio(1), in order."""
    listed = subprocess.run(
        ["cpio", "-t", "--quiet"], input=image.read_bytes(), capture_output=True, check=True
    )
    into = image.parent / "unpacked"
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    options = ["-i", "--quiet", "--no-absolute-filenames", "--nonmatching", "dev/*"]
    subprocess.run(["cpio", *options], input=image.read_bytes(), cwd=into, check=True)
    paths = [into / name for name in listed.stdout.decode().split()]
    return {str(path.relative_to(into)): path.read_bytes() for path in paths if path.is_file()}


def build(
    tmp_path: Path, of: KernelReport, source: Path | None = None, cache: str = "cache"
) -> dict[str, bytes]:
    source = source or tmp_path / "empty"
    source.mkdir(exist_ok=True)
    return contents(overlay.build(of, source, tmp_path / cache, busybox=busybox(tmp_path, *NEEDED)))


def test_modules_come_in_the_order_in_which_they_are_loaded(tmp_path: Path) -> None:
    found = build(tmp_path, report(module_tree(tmp_path / "host")))
    assert [name for name in found if name.startswith("modules/")] == [
        "modules/00-virtiofs.ko",
        "modules/01-stack.ko",
        "modules/02-overlay.ko",
    ]
    assert found["modules/02-overlay.ko"] == MODULE + b"overlay"
    assert found["init"].startswith(b"#!/bin/busybox sh")
    assert found["bin/busybox"].startswith(b"#!")


def test_the_root_shares_own_modules_are_taken_where_the_host_has_none(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    module_tree(source / "usr")
    (source / "lib").symlink_to("usr/lib")
    assert "modules/02-overlay.ko" in build(tmp_path, report(), source)


def test_the_hosts_modules_come_first(tmp_path: Path) -> None:
    host, source = module_tree(tmp_path / "host"), tmp_path / "tree"
    (module_tree(source) / "kernel/overlay.ko").write_bytes(MODULE + b"the guest's")
    assert build(tmp_path, report(host), source)["modules/02-overlay.ko"] == MODULE + b"overlay"


def test_a_kernel_with_everything_built_in_needs_no_modules(tmp_path: Path) -> None:
    found = build(tmp_path, report(VIRTIO_FS="y", VIRTIO_PCI="y", OVERLAY_FS="y", MODULES="n"))
    assert sorted(found) == ["bin/busybox", "init"]


def test_the_same_ingredients_give_the_same_bytes_and_others_another_file(tmp_path: Path) -> None:
    folder, source = module_tree(tmp_path / "host"), tmp_path / "tree"
    source.mkdir()
    program = busybox(tmp_path, *NEEDED)
    first = overlay.build(report(folder), source, tmp_path / "one", busybox=program)
    second = overlay.build(report(folder), source, tmp_path / "two", busybox=program)
    assert (first.name, first.read_bytes()) == (second.name, second.read_bytes())
    stamp = first.stat().st_ino
    assert overlay.build(report(folder), source, tmp_path / "one", busybox=program).stat().st_ino == stamp
    first.write_bytes(b"damaged")
    assert (
        overlay.build(report(folder), source, tmp_path / "one", busybox=program).read_bytes()
        == second.read_bytes()
    )
    (folder / "kernel/overlay.ko").write_bytes(MODULE + b"another")
    assert overlay.build(report(folder), source, tmp_path / "one", busybox=program).name != first.name


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"VIRTIO_FS": "m", "VIRTIO_PCI": "y", "OVERLAY_FS": "y"}, "CONFIG_VIRTIO_FS"),
        ({"VIRTIO_FS": "y", "VIRTIO_PCI": "y", "OVERLAY_FS": "m"}, "CONFIG_OVERLAY_FS"),
        ({"VIRTIO_FS": "y", "VIRTIO_PCI": "y", "MODULES": "y"}, "CONFIG_OVERLAY_FS"),
    ],
)
def test_a_driver_that_can_be_found_nowhere_is_named(
    tmp_path: Path, options: dict[str, str], named: str
) -> None:
    with pytest.raises(GuestUnavailable, match=named) as raised:
        build(tmp_path, report(None, **options))
    assert "/boot/the-kernel" in raised.value.message
    assert f"lib/modules/{VERSION}" in raised.value.remedy


def test_a_module_tree_without_the_driver_is_no_help(tmp_path: Path) -> None:
    folder = module_tree(tmp_path / "host")
    (folder / "modules.dep").write_text("kernel/virtiofs.ko:\n")
    with pytest.raises(GuestUnavailable, match="no driver overlay"):
        build(tmp_path, report(folder))


def test_a_busybox_that_can_do_too_little_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuestUnavailable, match="without switch_root"):
        overlay.build(report(), tmp_path, tmp_path / "cache", busybox=busybox(tmp_path, *NEEDED[:-1]))


class TestHostileTree:
    """A guest wrote what lies in its root share; vfsd reads it as root and hands it to the guest."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        module_tree(tmp_path / "tree")
        (tmp_path / "secret.ko").write_bytes(MODULE + b"a secret of the host")
        return tmp_path / "tree"

    @pytest.mark.parametrize("target", ["absolute", "relative"])
    def test_a_module_that_links_out_of_the_share_is_refused(
        self, tmp_path: Path, source: Path, target: str
    ) -> None:
        module = source / "lib/modules" / VERSION / "kernel/overlay.ko"
        module.unlink()
        module.symlink_to(tmp_path / "secret.ko" if target == "absolute" else "../../../../../secret.ko")
        assert module.read_bytes().endswith(b"secret of the host")
        with pytest.raises(GuestUnavailable, match=r"overlay\.ko can't be read"):
            build(tmp_path, report(), source)

    @pytest.mark.parametrize("path", ["../../../../secret.ko", "{}/secret.ko"])
    def test_a_list_that_leads_out_of_the_share_is_refused(
        self, tmp_path: Path, source: Path, path: str
    ) -> None:
        lists = source / "lib/modules" / VERSION / "modules.dep"
        (tmp_path / "overlay.ko").write_bytes(MODULE + b"a secret of the host")
        path = path.format(tmp_path).replace("secret", "overlay")
        lists.write_text(f"kernel/virtiofs.ko:\n{path}:\n")
        assert (lists.parent / path).read_bytes().endswith(b"secret of the host")
        with pytest.raises(GuestUnavailable, match=r"overlay\.ko can't be read"):
            build(tmp_path, report(), source)

    def test_a_fifo_is_not_waited_for(self, tmp_path: Path, source: Path) -> None:
        lists = source / "lib/modules" / VERSION / "modules.dep"
        lists.unlink()
        os.mkfifo(lists)
        with pytest.raises(GuestUnavailable, match="CONFIG_OVERLAY_FS"):
            build(tmp_path, report(VIRTIO_FS="y", VIRTIO_PCI="y", OVERLAY_FS="m"), source)

    def test_a_huge_file_is_not_read(
        self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(overlay, "_LARGEST_FILE", 1000)
        module = source / "lib/modules" / VERSION / "kernel/overlay.ko"
        module.write_bytes(MODULE + bytes(1000))
        with pytest.raises(GuestUnavailable, match=r"overlay\.ko can't be read"):
            build(tmp_path, report(), source)
