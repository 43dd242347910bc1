"""Booting from a share: what the kernel must have, and the overlay that leaves the share as it is."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, BusError, Client, Vfsd, until
from tests.integration.test_shutdown import console
from tests.integration.tiny_guest import walked
from vfsd.guest import find_busybox, find_kernel

INIT = """#!/bin/busybox sh
busybox=/bin/busybox
$busybox grep -E '^[^ ]+ (/|/proc|/sys|/dev) ' /proc/mounts | $busybox sed 's/,.*//; s/^/mounted: /'
echo changed >/file
echo new >/directory/new
$busybox rm /gone
echo "arguments: $*"
echo "now: $($busybox cat /file /directory/new); $($busybox ls /)" | $busybox tr '\\n' ' '
$busybox poweroff -f
"""


@pytest.fixture
def tree(vfsd: Vfsd, folder: Path) -> Path:
    """A root file system of busybox and a script, whose init is an absolute link, as is usual."""
    made = folder / "tree"
    for name in ("sbin", "bin", "opt", "directory"):
        (made / name).mkdir(parents=True)
    shutil.copy(find_busybox(), made / "bin/busybox")
    (made / "opt/init").write_text(INIT)
    (made / "opt/init").chmod(0o755)
    (made / "sbin/init").symlink_to("/opt/init")
    for name in ("file", "gone"):
        (made / name).write_text("as it was\n")
    for item in (made, *made.rglob("*")):
        os.lchown(item, vfsd.owner_uid, vfsd.owner_uid)
    return made


def options(tree: Path, **changed: tuple[str, Any]) -> dict[str, tuple[str, Any]]:
    return {
        "Kernel": ("s", str(find_kernel())),
        "Append": ("s", "quiet panic=-1 cryptomgr.notests"),
        "RootShare": ("s", "root"),
        "Memory": ("t", 256 << 20),
        "Network": ("s", "none"),
        "Accelerator": ("s", "tcg"),
        "Shares": ("a(ssa{sv})", [[str(tree), "", {"Tag": Variant("s", "root")}]]),
        **changed,
    }


async def ran(vfsd: Vfsd, client: Client, path: str) -> str:
    """Start a machine and return what its console said until it ended."""
    await client.call(path, MACHINE, "Start")
    pid = await client.get(path, MACHINE, "MainPID")
    await until(lambda: walked(client.signals, path)[-1] != "running", "the guest ends", 90)
    return console(vfsd, pid)


async def test_an_overlay_takes_the_writes(vfsd: Vfsd, client: Client, tree: Path) -> None:
    path = await client.create_machine(
        "tree",
        **options(tree, RootOverlay=("b", True), Append=("s", "quiet panic=-1 cryptomgr.notests single")),
    )
    said = await ran(vfsd, client, path)
    mounted = dict(re.findall(r"mounted: (\S+ \S+) \S+ (\w+)", said))
    assert mounted == {"overlay /": "rw", "proc /proc": "rw", "sysfs /sys": "rw", "devtmpfs /dev": "rw"}
    assert "arguments: single" in said
    assert "now: changed new; bin dev directory file opt proc sbin sys" in said
    assert client.signals.states(path)[-1][1:] == ("stopped", "the guest powered off")
    assert (tree / "file").read_text() == (tree / "gone").read_text() == "as it was\n"
    assert sorted(item.name for item in tree.iterdir()) == ["bin", "directory", "file", "gone", "opt", "sbin"]
    assert list((tree / "directory").iterdir()) == []


@only_system
async def test_an_overlay_boots_what_init_names(vfsd: Vfsd, client: Client, tree: Path) -> None:
    (tree / "opt/other").write_text("#!/bin/busybox sh\necho the other init\n/bin/busybox poweroff -f\n")
    (tree / "opt/other").chmod(0o755)
    append = "quiet panic=-1 cryptomgr.notests init="
    path = await client.create_machine(
        "tree", **options(tree, RootOverlay=("b", True), Append=("s", f"{append}/opt/other"))
    )
    assert "the other init" in await ran(vfsd, client, path)
    # one that is not there is said, and not replaced by another
    await client.call(
        path,
        "org.freedesktop.DBus.Properties",
        "Set",
        "ssv",
        MACHINE,
        "Append",
        Variant("s", f"{append}/gone/init"),
    )
    assert "vfsd: the root share root has no /gone/init, which init= names" in await ran(vfsd, client, path)


def lying_kernel(folder: Path, **lies: str) -> Path:
    """A real kernel, with a configuration beside it that says otherwise."""
    kernel = folder / "vmlinuz"
    shutil.copy(find_kernel(), kernel)
    version = find_kernel().name.removeprefix("vmlinuz-")
    told = {"MODULES": "y", "VIRTIO_FS": "y", "VIRTIO_PCI": "y", **lies}
    lines = (
        f"CONFIG_{name}={value}" if value else f"# CONFIG_{name} is not set" for name, value in told.items()
    )
    (folder / f"config-{version}").write_text("\n".join(lines))
    return kernel


@pytest.mark.parametrize(
    ("option", "value", "word"), [("VIRTIO_FS", "m", "module"), ("VIRTIO_PCI", "", "lacks")]
)
async def test_a_kernel_that_cannot_is_refused_before_it_boots(
    vfsd: Vfsd, client: Client, folder: Path, tree: Path, option: str, value: str, word: str
) -> None:
    kernel = lying_kernel(folder, **{option: value})
    path = await client.create_machine("tree", **options(tree, Kernel=("s", str(kernel))))
    with pytest.raises(BusError) as raised:
        await client.call(path, MACHINE, "Start")
    assert raised.value.name == "PrerequisiteMissing"
    for named in (str(kernel), f"CONFIG_{option}", word, "Initrd", "RootOverlay"):
        assert named in raised.value.message
    assert walked(client.signals, path) == ["starting", "failed"]
    reason = await client.get(path, MACHINE, "Reason")
    assert f"CONFIG_{option}" in reason
    assert str(folder) not in reason
    # it is looked into again when it changes
    lying_kernel(folder)
    shutil.copy(find_kernel(), kernel)
    assert vfsd.units() == []
    await client.call(path, MACHINE, "Start")
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the guest powers off", 60)


@only_system
async def test_a_kernel_that_does_not_tell_is_tried(
    vfsd: Vfsd, client: Client, folder: Path, tree: Path
) -> None:
    kernel = folder / "nothing known"
    kernel.write_bytes(b"whatever this is" * 1000)
    since = time.time()
    path = await client.create_machine("tree", **options(tree, Kernel=("s", str(kernel))))
    with pytest.raises(BusError) as raised:
        await client.call(path, MACHINE, "Start")
    assert raised.value.name == "UnitFailed"  # QEMU knows no such kernel
    told = [str(entry["MESSAGE"]) for entry in vfsd.journal("VFSD_MACHINE=tree", "PRIORITY=5", since=since)]
    assert any("CONFIG_VIRTIO_FS" in line and "RootOverlay" in line for line in told), told


@only_system
@pytest.mark.parametrize("tag", ["beef", "8:1", "LABEL=root", "a root", 'quoted"'])
async def test_a_tag_that_the_kernel_would_misread_is_refused(client: Client, tree: Path, tag: str) -> None:
    shares = [[str(tree), "", {"Tag": Variant("s", tag)}]]
    given = options(tree, RootShare=("s", tag), Shares=("a(ssa{sv})", shares))
    path = await client.create_machine("tree", **given)
    with pytest.raises(BusError, match="set another Tag") as raised:
        await client.call(path, MACHINE, "Start")
    assert raised.value.name == "InvalidArgs"


@only_system
@pytest.mark.parametrize(
    "given",
    [
        {"Kernel": ("s", "/k"), "RootOverlay": ("b", True)},
        {
            "Kernel": ("s", "/k"),
            "Initrd": ("s", "/i"),
            "RootShare": ("s", "r"),
            "RootOverlay": ("b", True),
        },
        {"Builtin": ("b", True), "RootOverlay": ("b", True)},
    ],
)
async def test_an_overlay_that_makes_no_sense_is_refused(
    client: Client, given: dict[str, tuple[str, Any]]
) -> None:
    with pytest.raises(BusError, match="RootOverlay") as raised:
        await client.create_machine("tree", **given)
    assert raised.value.name == "InvalidArgs"
