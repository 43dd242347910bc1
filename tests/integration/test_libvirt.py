"""libvirt itself: a share in a domain, as docs/recipes.md has it, and what `machine import` makes of its words."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.integration.conftest import only_system
from tests.integration.harness import Vfsd, wait_for
from tests.integration.test_documents import RECIPES, tiny_initrd
from tests.integration.test_readme import Reader, fenced
from tests.integration.vfsctl import nothing_left, ok, vfsctl

_UNITS = ("libvirtd.service", "libvirtd.socket", "libvirtd-admin.socket", "libvirtd-ro.socket",
          "virtlogd.service", "virtlogd.socket", "virtlogd-admin.socket")  # fmt: skip
_SOCKET = "/run/vfsd/share/recipe.sock"


class Libvirt:
    """libvirt in a scope, started when it is first asked for."""

    def __init__(self, vfsd: Vfsd) -> None:
        self._vfsd = vfsd
        self.uri = "qemu:///system" if vfsd.scope == "system" else "qemu:///session"

    def start(self) -> None:
        """A user's starts when it is asked."""
        if self._vfsd.scope == "system":
            self._vfsd.systemctl("start", "virtlogd.socket", "libvirtd.socket")

    def virsh(self, *arguments: str, stdin: str = "", check: bool = True) -> str:
        """What virsh prints; with what it says of errors."""
        done = subprocess.run(
            # the user's own pipe, which is opened once more by the name /dev/stdin
            self._vfsd.argv(["sh", "-c", 'cat | virsh --quiet --connect "$@"', "sh", self.uri, *arguments]),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def define(self, xml: str) -> None:
        self.virsh("define", "/dev/stdin", stdin=xml)

    def runs(self, name: str) -> bool:
        return self.virsh("domstate", name).strip() == "running"

    def stop(self) -> None:
        """Nothing of it is left, but what it wrote into folders of its own."""
        for name in self.virsh("list", "--all", "--name").split():
            self.virsh("destroy", name, check=False)
            self.virsh("undefine", name, "--nvram")
        if self._vfsd.scope == "system":
            self._vfsd.systemctl("stop", *_UNITS)
            return
        for file in self._vfsd.runtime.parent.glob("libvirt/*d.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)


@pytest.fixture
def libvirt(vfsd: Vfsd) -> Iterator[Libvirt]:
    it = Libvirt(vfsd)
    it.start()
    try:
        yield it
    finally:
        it.stop()


def domain(recipe: str, folder: Path, socket: str) -> str:
    """A domain that does what the recipe says, boots the tiny guest and ends."""
    memory, file_system = recipe.replace(_SOCKET, socket).split("…\n")
    [kernel] = Path("/boot").glob("vmlinuz-*")
    return (
        "<domain type='qemu'><name>recipe</name><memory unit='MiB'>256</memory><features><acpi/></features><os>"
        f"<type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{folder}/initrd</initrd>"
        f"<cmdline>panic=-1</cmdline></os>{memory}<devices>{file_system}</devices></domain>"
    )


def recipe_section() -> str:
    [section] = re.findall(r"^### libvirt\n(.*?)^### ", RECIPES.read_text(), re.MULTILINE | re.DOTALL)
    return str(section)


def block(language: str) -> str:
    [text] = fenced(recipe_section(), language)
    return text


def command(uri: str) -> str:
    """The command of the recipe that makes the share, for root without sudo."""
    [line] = [line for line in block("console").splitlines() if line.endswith(uri)]
    return line.removeprefix("$ ").removeprefix("sudo ")


def test_a_domain_of_libvirts_gets_a_share(vfsd: Vfsd, libvirt: Libvirt, tmp_path_factory: Any) -> None:
    reader = Reader(vfsd)
    folder, boot = reader.home / "recipe", reader.home / "recipe-boot"
    try:
        reader.run(f"mkdir {folder} {boot} && echo hello >{folder}/file")
        shutil.copy(tiny_initrd(tmp_path_factory.mktemp("tiny")), boot)
        if vfsd.scope == "system":
            boot = Path(shutil.move(boot, "/srv/recipe-boot"))  # /root is closed to QEMU's user
        reader.run(command(libvirt.uri))
        socket = vfsctl(vfsd, "share", "show", "recipe", "--json").json()["SocketPath"]
        assert vfsd.scope == "user" or socket == _SOCKET
        recipe = block("xml")
        libvirt.define(domain(recipe, boot, socket))
        for _ in range(2 if vfsd.scope == "system" else 1):
            libvirt.virsh("start", "recipe")
            share = vfsctl(vfsd, "share", "show", "recipe", "--json").json()
            assert (share["State"], share["Machine"]) == ("active", "/")
            running = Path(f"/proc/{qemu_of(vfsd)}/cmdline").read_bytes()
            described = libvirt.virsh("dumpxml", "recipe")
            wait_for(lambda: not libvirt.runs("recipe"), "the guest has done its work", 60)
            assert answered(folder)
            wait_for(lambda: "State=listening" in ok(vfsd, "share", "show", "recipe"), "it listens again")
        is_taken_over(vfsd, tmp_path_factory.mktemp("import"), running, described)
        if vfsd.scope == "user":
            (boot / "cmdline").write_bytes(running)
            moves_to_vfsd(vfsd, boot / "cmdline", folder)
    finally:
        subprocess.run(["rm", "-rf", folder, boot], check=True)
    ok(vfsd, "share", "remove", "recipe")
    nothing_left(vfsd)


def answered(folder: Path) -> bool:
    """Whether a guest has read the file of the share, and written what it read."""
    answer = folder / "answer"
    text = answer.read_text()
    answer.unlink()
    return text == "hello\n"


def moves_to_vfsd(vfsd: Vfsd, running: Path, folder: Path) -> None:
    """The domain as a machine of vfsd's, with the share that it had."""
    ok(vfsd, "machine", "import", str(running), "--name", "box")
    ok(vfsd, "machine", "attach", "box", "recipe")
    ok(vfsd, "machine", "start", "box")
    wait_for(lambda: "State=stopped" in ok(vfsd, "machine", "show", "box"), "the guest has done its work", 60)
    assert answered(folder)
    ok(vfsd, "machine", "remove", "box")


def qemu_of(vfsd: Vfsd) -> str:
    """The process of libvirt's QEMU."""
    folder = "/run/libvirt/qemu" if vfsd.scope == "system" else f"{vfsd.runtime.parent}/libvirt/qemu/run"
    return Path(folder, "recipe.pid").read_text()


def is_taken_over(vfsd: Vfsd, folder: Path, running: bytes, described: str) -> None:
    """Both QEMU's words and the running domain's description make the machine that it was, but for the share."""
    folder.chmod(0o755)
    (folder.parent).chmod(0o755)
    (folder / "cmdline").write_bytes(running)
    (folder / "domain.xml").write_text(described)
    for name, lost in (
        ("cmdline", ["-cpu qemu64", "share recipe"]),
        ("domain.xml", ["cpu mode=custom qemu64", "filesystem recipe"]),
    ):
        made, left = imported(vfsd, folder / name, "--name", "box")
        assert Path(made.pop("kernel")).name.startswith("vmlinuz-")
        assert Path(made.pop("initrd")).name == "initrd"
        assert made == {"memory": "256M", "append": "panic=-1", "accelerator": "tcg", "network": "none"}
        assert [line.split(" (")[0] for line in left] == lost
        assert 'it is vfsd\'s share recipe, which "vfsctl machine attach"' in left[-1]


def imported(vfsd: Vfsd, file: Path, *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """What --dry-run prints, and what it says is not taken over."""
    done = vfsctl(vfsd, "machine", "import", "--dry-run", *arguments, str(file))
    assert done.code == 0, done.err
    return tomllib.loads(done.out), [line.removeprefix("Not taken over: ") for line in done.err.splitlines()]


@only_system
def test_what_the_recipe_says_of_mistakes(vfsd: Vfsd, libvirt: Libvirt, tmp_path: Path) -> None:
    ok(vfsd, "share", "add", "recipe", str(tmp_path))
    (tmp_path / "initrd").write_bytes(b"")
    xml = domain(block("xml"), tmp_path, _SOCKET)
    unshared = libvirt.virsh("define", "/dev/stdin", stdin=xml.replace("shared", "private"), check=False)
    libvirt.define(xml)
    refused = libvirt.virsh("start", "recipe", check=False)
    for said, output in (("'virtiofs' requires shared memory", unshared), ("Permission denied", refused)):
        assert said in recipe_section()
        assert said in output
    identity = ET.fromstring(libvirt.virsh("dumpxml", "recipe")).findtext("uuid")
    rules = subprocess.run(
        ["/usr/lib/libvirt/virt-aa-helper", "--dryrun", "--create", "--uuid", f"libvirt-{identity}"],
        input=libvirt.virsh("dumpxml", "recipe"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'"{tmp_path}/initrd" r,' in rules.stdout + rules.stderr, "these are the rules"
    assert _SOCKET not in rules.stdout + rules.stderr, (
        "then the recipe's rule for AppArmor is not needed any more"
    )
    ok(vfsd, "share", "remove", "recipe")


_VIRT_INSTALL = (
    *(
        "virt-install",
        "--virt-type",
        "qemu",
        "--memory",
        "512",
        "--osinfo",
        "linux2022",
        "--check",
        "all=off",
    ),
    *("--name", "box", "--import", "--print-xml"),
)
_IMAGE = "/srv/virt-install/a.qcow2"


class Installed(NamedTuple):
    """What virt-install is told, and what must become of it."""

    arguments: Sequence[str]
    made: dict[str, Any]
    lost: Sequence[str] = ()
    """How the lines begin that tell of what is lost of what it prints."""
    lost_of_kept: Sequence[str] = ()
    """The same of what libvirt adds to that."""
    lost_of_called: Sequence[str] = ()
    """The same of the command line of QEMU that libvirt makes of it."""


BY_VIRT_INSTALL = {
    "a cloud image": Installed(
        ["--disk", _IMAGE, "--network", "none", "--graphics", "none"],
        {"image": _IMAGE, "network": "none"},
    ),
    "UEFI, two disks and a window": Installed(
        ["--boot", "uefi", "--disk", _IMAGE, "--disk", "/srv/virt-install/b.raw,bus=scsi", "--controller",
         "scsi,model=virtio-scsi", "--network", "user", "--graphics", "spice", "--vcpus", "3"],
        {"image": _IMAGE, "firmware": "uefi", "display": "spice", "cpus": 3},
        ["address 52:54", "devices/redirdev", "devices/redirdev", "devices/sound", "disk /srv/virt-install/b.raw"],
        ["firmware /usr/share/OVMF", "os/loader secure=yes", "the firmware's variables"],
        ["-audiodev", "-device hda-", "-device ich9-intel-hda", "-device usb-redir", "-device usb-redir",
         "-global driver=cfi.pflash01", "address 52:54", "disk /srv/virt-install/b.raw", "firmware /usr/share/OVMF",
         "network {", "where spice is seen"],
    ),
    "directories and QEMU's own options": Installed(
        ["--disk", "none", "--boot", "kernel=/boot/k,initrd=/boot/i,kernel_args='a b'", "--network", "bridge=br0",
         "--memorybacking", "source.type=memfd,access.mode=shared", "--qemu-commandline=-device edu",
         "--filesystem", "source.dir=/srv/virt-install/a,target.dir=a,driver.type=virtiofs",
         "--filesystem", "source.dir=/srv/virt-install/b,target.dir=b,type=mount,accessmode=mapped,readonly=yes",
         "--graphics", "vnc,listen=0.0.0.0,port=5999,password=secret", "--memballoon", "none"],
        {"kernel": "/boot/k", "initrd": "/boot/i", "append": "a b", "network": "bridge:br0", "display": "vnc",
         "extra_arguments": ["-device", "edu"],
         "shares": [{"source": "/srv/virt-install/a", "tag": "a"},
                    {"source": "/srv/virt-install/b", "tag": "b", "read_only": True}]},
        ["accessmode=mapped", "address 52:54", "the protocol of filesystem b", "where vnc is seen"],
        [],
        ["-device edu", "address 52:54", "network {", "security_model=mapped", "share a (no virtiofsd",
         "the protocol of share b", "where vnc is seen"],
    ),
}  # fmt: skip
_KEPT = ("memory", "cpus", "kernel", "initrd", "append", "image", "firmware", "display", "accelerator")
"""What of a machine is in a command line of QEMU as it is in libvirt's XML."""


@only_system
@pytest.mark.parametrize("what", BY_VIRT_INSTALL)
def test_machines_of_virt_install(vfsd: Vfsd, libvirt: Libvirt, tmp_path: Path, what: str) -> None:
    """As it prints them, as libvirt keeps them, and as libvirt would call QEMU; what is kept can be defined."""
    told = BY_VIRT_INSTALL[what]
    wanted = {"memory": "512M", "cpus": 2, "accelerator": "tcg"} | told.made
    for name in "ab":
        Path("/srv/virt-install", name).mkdir(parents=True)
    try:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", _IMAGE, "1M"], check=True)
        Path("/srv/virt-install/b.raw").write_bytes(bytes(1 << 20))
        printed = subprocess.run(
            [*_VIRT_INSTALL, "--connect", libvirt.uri, *told.arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        libvirt.define(printed)
        kept = libvirt.virsh("dumpxml", "--security-info", "box")
        called = libvirt.virsh("domxml-to-native", "qemu-argv", "--domain", "box")
        for name, text in (("printed", printed), ("kept", kept), ("called", called)):
            (tmp_path / name).write_text(text)
        assert "secret" in kept or "password" not in str(told.arguments)
        assert_taken_over(vfsd, tmp_path / "printed", wanted, told.lost)
        assert_taken_over(
            vfsd, tmp_path / "kept", wanted, ["cpu mode=custom", *told.lost, *told.lost_of_kept]
        )
        made, left = imported(vfsd, tmp_path / "called", "--name", "box")
        assert {key: made.get(key) for key in _KEPT} == {key: wanted.get(key) for key in _KEPT}
        assert_begin(left, ["-cpu qemu64", *told.lost_of_called])
        ok(vfsd, "machine", "import", str(tmp_path / "kept"))
        ok(vfsd, "machine", "remove", "box")
    finally:
        shutil.rmtree("/srv/virt-install")
    nothing_left(vfsd)


def assert_taken_over(vfsd: Vfsd, file: Path, wanted: dict[str, Any], lost: Sequence[str]) -> None:
    made, left = imported(vfsd, file)
    assert made == wanted
    assert_begin(left, lost)


def assert_begin(lines: list[str], begins: Sequence[str]) -> None:
    """Each line begins with another of these."""
    assert len(lines) == len(begins), lines
    assert "secret" not in "".join(lines)
    for line, begin in zip(sorted(lines), sorted(begins), strict=True):
        assert line.startswith(begin), lines


@only_system
def test_a_description_of_an_installation_is_two(vfsd: Vfsd, libvirt: Libvirt, tmp_path: Path) -> None:
    command = [*_VIRT_INSTALL[:-2], "--connect", libvirt.uri, "--cdrom", "/usr/bin/busybox", "--disk", "none"]
    for step, code in (("", 1), ("2", 0)):
        printed = subprocess.run(
            [*command, "--graphics", "none", "--print-xml", *([step] if step else [])],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        (tmp_path / "box.xml").write_text(printed)
        done = vfsctl(vfsd, "machine", "import", "--dry-run", str(tmp_path / "box.xml"))
        assert done.code == code, done.err
        assert ("virt-install --print-xml 2" in done.err) == bool(code)
