"""What a machine can boot, and what it is made of."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant

from tests.integration.harness import MACHINE, Client, Vfsd, until
from tests.integration.test_guest_files import Console
from tests.integration.test_shutdown import booted, console
from tests.integration.tiny_guest import HELLO, make_image, started, tiny_machine, walked
from vfsd.guest import build, find_busybox, find_kernel
from vfsd.guest.command_line import escape

ODD = " o dd,,\"q\" 'a' 100%s ${HOME} b\\s:c ü"


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Kernel and initrd of the built-in guest, as files that a user might have."""
    guest = build(find_kernel(), tmp_path_factory.mktemp("builtin"))
    return guest.kernel, guest.initrd


async def test_kernel_and_initrd_with_odd_paths(
    vfsd: Vfsd, client: Client, folder: Path, builtin: tuple[Path, Path]
) -> None:
    kernel, initrd = folder / f"kernel{ODD}", folder / f"initrd{ODD}"
    shutil.copy(builtin[0], kernel)
    shutil.copy(builtin[1], initrd)
    data = folder / "data"
    data.mkdir()
    shutil.chown(data, vfsd.owner_uid)
    command = "cat /proc/cmdline >/mnt/data/cmdline; ls /sys/class/net >/mnt/data/net"
    path = await client.create_machine(
        "direct",
        Kernel=("s", str(kernel)),
        Initrd=("s", str(initrd)),
        Append=("s", f'quiet panic=-1 my.word="a b,c" vfsd.mount=data vfsd.exec={escape(command)}'),
        Memory=("t", 192 << 20),
        Network=("s", "none"),
        Accelerator=("s", "tcg"),
        Shares=("a(ssa{sv})", [[str(data), "", {}]]),
    )
    await client.call(path, MACHINE, "Start")
    await until(lambda: walked(client.signals, path)[-1] != "running", "the guest powers off", 60)
    assert client.signals.states(path)[-1][1:] == ("stopped", "the guest powered off")
    given = (data / "cmdline").read_text()
    assert given.startswith("console=ttyS0 quiet panic=-1")
    assert 'my.word="a b,c"' in given
    assert (data / "net").read_text().split() == ["lo"]


async def test_a_directory_tree_as_root(vfsd: Vfsd, client: Client, folder: Path) -> None:
    tree = folder / "tree"
    for name in ("sbin", "bin", "proc", "dev"):
        (tree / name).mkdir(parents=True)
    shutil.copy(find_busybox(), tree / "bin/busybox")
    init = tree / "sbin/init"
    init.write_text(
        "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n"
        "/bin/busybox grep ' / ' /proc/mounts >/written; /bin/busybox sync\n"
        "echo the root is up\n/bin/busybox poweroff -f\n"
    )
    init.chmod(0o755)
    for item in (tree, *tree.rglob("*")):
        shutil.chown(item, vfsd.owner_uid, vfsd.owner_uid)
    path = await client.create_machine(
        "tree",
        Kernel=("s", str(find_kernel())),
        Append=("s", "quiet panic=-1 cryptomgr.notests"),
        RootShare=("s", "my-root"),
        Memory=("t", 192 << 20),
        Network=("s", "none"),
        Accelerator=("s", "tcg"),
        Shares=("a(ssa{sv})", [[str(tree), "", {"Tag": Variant("s", "my-root")}]]),
    )
    await client.call(path, MACHINE, "Start")
    pid = await client.get(path, MACHINE, "MainPID")
    await until(lambda: walked(client.signals, path)[-1] != "running", "the guest powers off", 60)
    assert "the root is up" in console(vfsd, pid)
    assert (tree / "written").read_text().startswith("my-root / virtiofs rw")
    assert client.signals.states(path)[-1][1:] == ("stopped", "the guest powered off")


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_an_image_with_an_odd_path(vfsd: Vfsd, client: Client, folder: Path, kind: str) -> None:
    raw = make_image(folder / "plain.img")
    image = folder / f"disk{ODD}.img"
    subprocess.run(["qemu-img", "convert", "-q", "-O", kind, str(raw), f"file:{folder}/made"], check=True)
    (folder / "made").rename(image)
    image.chmod(0o666)
    path, pid = await booted(vfsd, client, folder, Image=("s", str(image)))
    assert HELLO in console(vfsd, pid)
    # in the journal of the machine, as its user finds it
    match = "VFSD_MACHINE=tiny" if vfsd.scope == "system" else "_SYSTEMD_USER_SLICE=vfsd-tiny.slice"
    assert any(HELLO in str(entry["MESSAGE"]) for entry in vfsd.journal(match, f"_PID={pid}"))
    # and on its socket, both ways
    terminal = await Console.open(await client.get(path, MACHINE, "ConsolePath"))
    terminal._writer.write(b"echo, echo")
    await terminal.expect("echo, echo")
    await terminal.close()
    # whoever comes next is served too
    terminal = await Console.open(await client.get(path, MACHINE, "ConsolePath"))
    await client.call(path, MACHINE, "Reset")
    await terminal.expect(HELLO)
    await terminal.close()
    await client.call(path, MACHINE, "Kill")


async def test_uefi_firmware_starts(vfsd: Vfsd, client: Client, folder: Path) -> None:
    options: dict[str, Any] = {
        "Memory": ("t", 128 << 20),
        "Firmware": ("s", "uefi"),
        "Persistent": ("b", True),
    }
    path = await started(client, folder, **options)
    pid = await client.get(path, MACHINE, "MainPID")
    await until(
        lambda: "BdsDxe" in console(vfsd, pid) or "UEFI" in console(vfsd, pid), "the firmware speaks", 60
    )
    variables = list(vfsd.state.rglob("uefi-variables.fd"))
    assert [file.parent.name for file in variables] == ["tiny"]
    await client.call(path, MACHINE, "Kill")
    await client.call(path, MACHINE, "Remove")
    assert not list(vfsd.state.rglob("uefi-variables.fd"))


async def test_a_display_answers(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await started(client, folder, Display=("s", "vnc"))
    display = await client.get(path, MACHINE, "DisplayPath")
    reader, writer = await asyncio.open_unix_connection(display)
    assert (await asyncio.wait_for(reader.readexactly(4), 5)) == b"RFB "
    writer.close()
    await writer.wait_closed()
    assert Path(display).stat().st_mode & 0o077 == 0
    await client.call(path, MACHINE, "Kill")
    assert await client.get(path, MACHINE, "DisplayPath") == ""


async def test_further_arguments_reach_qemu(vfsd: Vfsd, client: Client, folder: Path) -> None:
    further = ["-device", "virtio-balloon-pci,id=my-balloon", "-name", "x,process=a ${HOME} %n \"q\" 'r'"]
    path = await tiny_machine(client, folder, ExtraArguments=("as", further))
    assert await client.get(path, MACHINE, "ExtraArguments") == further
    await client.call(path, MACHINE, "Start")
    pid = await client.get(path, MACHINE, "MainPID")
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    assert arguments[-5:-1] == further
    await client.call(path, MACHINE, "Kill")


async def test_the_tiny_guest_can_be_reset_and_comes_up_again(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    path, pid = await booted(vfsd, client, folder)
    await client.call(path, MACHINE, "Reset")
    await until(lambda: console(vfsd, pid).count(HELLO) == 2, "the guest comes up again")
    assert await client.get(path, MACHINE, "MainPID") == pid
    assert walked(client.signals, path) == ["starting", "running"]
    await client.call(path, MACHINE, "Kill")
