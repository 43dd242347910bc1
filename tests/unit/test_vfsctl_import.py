"""vfsctl machine import: what becomes of libvirt's XML, of QEMU's command line, and of scripts that have one."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfsd import document
from vfsd.cli.errors import CliError, Exit
from vfsd.cli.imports import command, libvirt, qemu, shell, virtiofsd
from vfsd.cli.imports.words import options, properties
from vfsd.cli.main import main
from vfsd.names import Scope

LIBVIRT = """\
<domain type='kvm'>
  <name>build box</name>
  <uuid>0b9d7f4e-5b0e-4b53-a2a6-c1a4f6a5a0f1</uuid>
  <memory unit='GiB'>2</memory>
  <vcpu placement='static'>4</vcpu>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os firmware='efi'>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd.img</initrd>
    <cmdline>console=ttyS0 quiet</cmdline>
  </os>
  <cpu mode='custom'><model>EPYC</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/srv/box.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'><source file='/srv/data.raw'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <filesystem type='mount' accessmode='passthrough'>
      <driver type='virtiofs' queue='1024'/>
      <binary path='/usr/libexec/virtiofsd' xattr='on'>
        <cache mode='always'/><sandbox mode='chroot'/><thread_pool size='16'/><lock posix='on'/>
      </binary>
      <source dir='/srv/src &amp; more'/><target dir='src'/><readonly/>
    </filesystem>
    <filesystem type='mount' accessmode='mapped'><source dir='/srv/old'/><target dir='old'/></filesystem>
    <filesystem type='mount'>
      <driver type='virtiofs'/><source socket='/run/other.sock'/><target dir='other'/>
    </filesystem>
    <interface type='bridge'><mac address='52:54:00:11:22:33'/><source bridge='virbr0'/></interface>
    <interface type='network'><source network='default'/></interface>
    <graphics type='spice' autoport='yes'/>
    <hostdev mode='subsystem' type='usb'/>
    <tpm model='tpm-crb'/>
  </devices>
</domain>
"""

MICROVM = """\
set -eou pipefail
# Clean up
rm -f 'my box.sock'
if [ ! -e var.img ]; then
  touch 'var.img' 2>/dev/null
fi
exec -a "microvm@box" /nix/store/abc-qemu/bin/qemu-system-x86_64 -name box \\
  -M 'microvm,accel=kvm:tcg,acpi=on,mem-merge=on,pcie=on,pic=off' \\
  -m 512M -smp 2 -nodefaults -no-user-config -no-reboot -kernel /nix/store/k/bzImage -initrd /nix/store/i/initrd \\
  -chardev 'stdio,id=stdio,signal=off' -device virtio-rng-pci -serial chardev:stdio -enable-kvm -cpu 'host,+x2apic' \\
  -append 'console=ttyS0 reboot=t panic=-1 init=/nix/store/s/init' \\
  -fw_cfg 'name=opt/io.systemd.credentials/key,file=/run/key' -nographic -sandbox on \\
  -device virtio-balloon,id=balloon0 -qmp 'unix:box.sock,server,nowait' \\
  -drive 'id=store,format=raw,read-only=on,file=/nix/store/d.erofs,if=none,aio=io_uring' \\
  -device 'virtio-blk-pci,drive=store' \\
  -drive 'id=vda,format=raw,file=var.img,if=none,aio=io_uring,discard=unmap,read-only=off' \\
  -device virtio-blk-pci,drive=vda \\
  -numa node,memdev=mem -object memory-backend-memfd,id=mem,size=512M,share=on \\
  -chardev 'socket,id=fs0,path=box-virtiofs-src.sock' -device vhost-user-fs-pci,chardev=fs0,tag=src \\
  -fsdev local,id=fs1,path=/srv/nine,security_model=none,readonly=true -device virtio-9p-pci,fsdev=fs1,mount_tag=nine \\
  -netdev 'user,id=net,hostfwd=tcp::2222-:22,hostfwd=udp:127.0.0.1:53-10.0.2.15:53,guestfwd=tcp:10.0.2.9:1-cmd:nc' \\
  -device 'virtio-net-pci,netdev=net,mac=02:00:00:00:00:01,romfile=' \\
  -device vhost-vsock-pci,guest-cid=7 $EXTRA "$@"
"""
SUPERVISORD = """\
[supervisord]
nodaemon=true

[eventlistener:notify]
command=/nix/store/e-supervisord-event-handler
events=PROCESS_STATE

[program:virtiofsd-src]
autorestart=true
command={command}
stderr_syslog=true
"""
VIRTIOFSD = """\
#!/bin/sh
if [ $(id -u) = 0 ]; then
  OPT_RLIMIT="--rlimit-nofile 1048576"
fi
exec /nix/store/v/bin/virtiofsd \\
  --socket-path='box-virtiofs-src.sock' \\
  --socket-group=kvm \\
  --shared-dir='/srv/my src' \\
  $OPT_RLIMIT \\
  --thread-pool-size `nproc` \\
  --posix-acl --xattr --cache=metadata --inode-file-handles=prefer --readonly --modcaps=+sys_admin
"""


def imported(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """What --dry-run prints, and what it says is not taken over."""
    assert main(["machine", "import", "--user", "--dry-run", *arguments]) == Exit.DONE
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert document.write_machine(document.read_machine(out, "box", Scope.USER), Scope.USER) == out
    assert all(line.startswith("Not taken over: ") for line in lines)
    return tomllib.loads(out), [line.removeprefix("Not taken over: ") for line in lines]


def test_a_domain_of_libvirt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.xml").write_text(LIBVIRT)
    made, left = imported(capsys, str(tmp_path / "x.xml"))
    assert made == {
        "memory": "2G", "cpus": 4, "kernel": "/boot/vmlinuz", "initrd": "/boot/initrd.img",
        "append": "console=ttyS0 quiet", "image": "/srv/box.qcow2", "firmware": "uefi", "network": "bridge:virbr0",
        "display": "spice",
        "shares": [
            {"source": "/srv/src & more", "tag": "src", "read_only": True, "cache": "always", "sandbox": "chroot",
             "xattr": True, "thread_pool_size": 16},
            {"source": "/srv/old", "tag": "old"},
        ],
    }  # fmt: skip
    for begin in (
        "cpu mode=custom", "disk /srv/data.raw", "filesystem src: binary /usr/libexec/virtiofsd",
        "filesystem src: binary/lock", "the protocol of filesystem old", "filesystem other",
        "address 52:54:00:11:22:33", "interface of type network: default", "devices/hostdev", "devices/tpm",
        "accessmode=mapped of filesystem old",
    ):  # fmt: skip
        assert len([line for line in left if line.startswith(begin)]) == 1, begin
    assert len(left) == 11, "each thing that is lost once, and nothing else"


def test_the_names_of_others_are_made_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown in (("build box", "build_box"), (".x", "x")):
        found = libvirt.read(f"<domain><name>{name}</name><memory>65536</memory></domain>")
        assert found.name == name
        (tmp_path / "d.xml").write_text(
            "<domain><name>" + name + "</name><memory>65536</memory><vcpu>0</vcpu></domain>"
        )
        assert main(["machine", "import", "--dry-run", str(tmp_path / "d.xml")]) == Exit.FAILED
        assert f'machine "{shown}" has 0 processors' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><domain><name>&b;</name></domain>',
            "document type",
        ),
        ('<!DOCTYPE d SYSTEM "file:///etc/passwd"><domain/>', "document type"),
        ("<domain><name>&undefined;</name></domain>", "no XML"),
        ("<domain>", "no XML"),
        ("<network/>", "not a <domain>"),
        ("<domain><memory unit='EiB'>1</memory></domain>", "no unit"),
        ("<domain><vcpu>many</vcpu></domain>", "vcpu"),
    ],
)
def test_xml_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(CliError, match=said):
        libvirt.read(text)


@pytest.mark.parametrize(
    ("memory", "size"), [("<memory>1048576</memory>", 1 << 30), ("<memory unit='MB'>100</memory>", 100_007_936),
                         ("<memory unit='M'>100</memory>", 100 << 20), ("<memory unit='bytes'>1</memory>", 8192)],
)  # fmt: skip
def test_libvirts_units(memory: str, size: int) -> None:
    assert libvirt.read(f"<domain>{memory}</domain>").options["Memory"].value == size


def test_ports_of_libvirts_user_network() -> None:
    found = libvirt.read(
        "<domain><devices><interface type='user'><portForward proto='tcp' address='::1'><range start='2222' to='22'/>"
        "<range start='80' end='90'/></portForward></interface></devices></domain>"
    )
    assert found.options["Forward"].value == ["tcp:[::1]:2222:22"]
    assert [line.startswith("portForward tcp start=80") for line in found.left] == [True]


@pytest.mark.parametrize("through", ["virtiofsd-run", "supervisord.conf", "daemon"])
def test_a_runner_of_microvm(
    tmp_path: Path, through: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("microvm-run").write_text(MICROVM)
    Path("daemon").write_text(VIRTIOFSD)
    Path("supervisord.conf").write_text(SUPERVISORD.format(command=tmp_path / "daemon"))
    Path("virtiofsd-run").write_text(
        "#!/bin/sh\nexec /nix/store/s/bin/supervisord --configuration supervisord.conf\n"
    )
    made, left = imported(capsys, "microvm-run", through)
    assert made == {
        "memory": "512M", "cpus": 2, "kernel": "/nix/store/k/bzImage", "initrd": "/nix/store/i/initrd",
        "append": "console=ttyS0 reboot=t panic=-1 init=/nix/store/s/init", "image": f"{tmp_path}/var.img",
        "accelerator": "kvm", "forward": ["tcp::2222:22", "udp:127.0.0.1:53:53"],
        "credential_files": {"key": "/run/key"},
        "shares": [
            {"source": "/srv/my src", "tag": "src", "cache": "metadata", "posix_acl": True, "xattr": True,
             "read_only": True, "inode_file_handles": "prefer"},
            {"source": "/srv/nine", "tag": "nine", "read_only": True},
        ],
    }  # fmt: skip
    for begin in (
        "machine type microvm", "-machine pcie=on,pic=off", "-no-reboot", "-cpu host,+x2apic",
        "read-only disk /nix/store/d.erofs", "virtiofsd's $OPT_RLIMIT", "virtiofsd's --modcaps",
        "virtiofsd's --thread-pool-size=`nproc`",
        "the protocol of share nine", "network option guestfwd",
        "address 02:00:00:00:00:01", "guest-cid=7", "$EXTRA", "$@",
    ):  # fmt: skip
        assert len([line for line in left if line.startswith(begin)]) == 1, (begin, left)
    assert len(left) == 14, left


def test_what_stands_beside_the_runner_of_microvm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "share/microvm/virtiofs/src"
    notes.mkdir(parents=True)
    (notes / "socket").write_text("box-virtiofs-src.sock\n")
    (notes / "source").write_text("/srv/my src\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/microvm-run").write_text(MICROVM)
    made, left = imported(capsys, str(tmp_path / "bin/microvm-run"))
    assert made["shares"][0] == {"source": "/srv/my src", "tag": "src"}
    assert "virtiofsd's options, as its command line is not given, of share src." in left
    (tmp_path / "daemon").write_text(VIRTIOFSD)
    made, _ = imported(capsys, str(tmp_path / "bin/microvm-run"), str(tmp_path / "daemon"))
    assert made["shares"][0]["read_only"] is True


def test_a_share_without_its_virtiofsd_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text(MICROVM)
    made, left = imported(capsys, str(tmp_path / "run"))
    assert [share["tag"] for share in made["shares"]] == ["nine"]
    assert any("share src (no virtiofsd with --socket-path=box-virtiofs-src.sock" in line for line in left)


def test_a_command_line_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    made, left = imported(
        capsys, "--name", "x", "--", "qemu-system-x86_64", "-m", "size=1.5G", "-smp", "sockets=1,cores=2,threads=2",
        "-bios", "/usr/share/OVMF/OVMF_CODE.fd", "-blockdev", '{"driver": "qcow2", "node-name": "d", "file": "f"}',
        "-blockdev", "driver=file,node-name=f,filename=/srv/a,,b.qcow2", "-device", "virtio-blk-pci,drive=d",
        "-netdev", "tap,id=n,ifname=tap0,script=no", "-net", "nic", "-vnc", ":1", "-cdrom", "/srv/cd.iso",
        "-smbios", "type=11,value=io.systemd.credential:a=b", "-smbios",
        "type=11,value=io.systemd.credential.binary:c=ZAo=", "--display", "none",
    )  # fmt: skip
    assert made == {
        "memory": "1536M", "cpus": 4, "image": "/srv/a,b.qcow2", "firmware": "uefi", "network": "tap:tap0",
        "display": "vnc", "credentials": {"a": "b", "c": "d\n"},
    }  # fmt: skip
    assert [line.split(" ")[0] for line in left] == ["-smp", "firmware", "where", "CD"]


def test_a_disk_without_an_option_and_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    made, left = imported(
        capsys, "--name", "x", "--", "qemu-system-x86_64", "-nodefaults", "/srv/disk.qcow2", "-m", "64"
    )
    assert made == {"memory": "64M", "image": "/srv/disk.qcow2", "network": "none"}
    assert left == ["bus ide of disk /srv/disk.qcow2 (the guest finds vfsd's on virtio)."]


@pytest.mark.parametrize(
    ("rule", "forward"),
    [
        ("tcp::2222-:22", "tcp::2222:22"),
        (":2222-:22", "tcp::2222:22"),
        ("udp:127.0.0.1:1-10.0.2.15:2", "udp:127.0.0.1:1:2"),
        ("tcp:[::1]:1-:2", "tcp:[::1]:1:2"),
        ("tcp::1-10.0.2.99:2", None),
        ("unix:/x-:2", None),
        ("tcp::0-:2", None),
    ],
)
def test_forwarded_ports(rule: str, forward: str | None) -> None:
    found = qemu.read(["-netdev", f"user,id=n,hostfwd={rule}"], {})
    assert (found.options["Forward"].value if "Forward" in found.options else []) == (
        [forward] if forward else []
    )
    assert len(found.left) == (0 if forward else 1)


def test_options_take_a_value_as_qemu_has_it() -> None:
    """Else the next option would be taken for it, or it for a disk."""
    said = subprocess.run(["qemu-system-x86_64", "-help"], capture_output=True, text=True, check=True).stdout
    alone = set(re.findall(r"^-([\w-]+)(?: {2,}\S|\t|$)", said, re.MULTILINE)) - {"dtb"}  # "-dtb    file"
    valued = set(re.findall(r"^-([\w-]+) (?! )", said, re.MULTILINE)) - {"h"}  # "-h or -help"
    assert len(alone) > 15
    assert len(valued) > 60
    # what comes after one without a value is an option of its own
    assert {name for name in alone | valued if len(list(options([f"-{name}", "-m"]))) == 2} == alone


def test_options_of_virtiofsd_take_a_value_as_it_has_it() -> None:
    said = subprocess.run(
        ["/usr/libexec/virtiofsd", "--help"], capture_output=True, text=True, check=True
    ).stdout
    valued = set(re.findall(r"--([\w-]+) <", said)) - {"compat", "o"}
    assert len(valued) > 15
    for name in valued:
        served = virtiofsd.read(["--shared-dir=/x", f"--{name}", "value"])
        assert served is not None
        assert "value" not in served.left, f"--{name} was taken for one without a value"


def test_properties_with_commas() -> None:
    assert properties("user,a=b,,c=d,on") == [("", "user"), ("a", "b,c=d"), ("on", "")]
    assert properties("a=b,a=c,") == [("a", "b"), ("a", "c")]
    assert properties("") == []


def test_a_virtiofsd_of_old() -> None:
    served = virtiofsd.read(["-o", "source=/srv,cache=always,xattr,no_flock", "--socket-path=/run/s", "-f"])
    assert served is not None
    assert (served.socket, served.share.source, served.left) == ("/run/s", "/srv", ["--no_flock"])
    assert {name: typed.value for name, typed in served.share.options.items()} == {
        "Cache": "always",
        "XAttr": True,
    }
    assert virtiofsd.read(["--version"]) is None


def test_what_a_running_qemu_and_its_virtiofsd_were_called_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words as /proc/PID/cmdline has them; nothing in them is a shell's affair."""
    qemu_words = ("/usr/bin/qemu-system-x86_64", "-nodefaults", "-m", "64", "-name", "a b", "-chardev",
                  "socket,id=c,path=/run/s", "-device",
                  '{"driver":"vhost-user-fs-pci","chardev":"c","tag":"src"}')  # fmt: skip
    virtiofsd_words = ("/usr/libexec/virtiofsd", "--socket-path=/run/s", "--shared-dir", "/srv/it's; here")
    other_words = ("/usr/libexec/virtiofsd", "--socket-path=/run/other", "--shared-dir", "/srv/other")
    for name, words in (("1", qemu_words), ("2", virtiofsd_words), ("3", other_words)):
        (tmp_path / name).write_bytes("".join(f"{word}\0" for word in words).encode())
    made, left = imported(capsys, *(str(tmp_path / name) for name in ("1", "2", "3")))
    assert made["shares"] == [{"source": "/srv/it's; here", "tag": "src"}]
    assert left == ["directory /srv/other (no device is connected to its virtiofsd at /run/other)."]


def test_a_virtiofsd_that_was_given_its_socket_is_nobodys() -> None:
    """libvirt passes both ends as descriptors, which tell nothing of which share it is."""
    found = command._from_commands([  # what a script with both would be
        ["virtiofsd", "--fd=20", "--shared-dir=/srv/a"],
        ["qemu-kvm", "-chardev", "socket,id=c,fd=3", "-device", "vhost-user-fs-pci,chardev=c,tag=b"],
    ])  # fmt: skip
    assert found.shares == []
    assert [line.split(" (")[0] for line in found.left] == ["share b", "directory /srv/a"]


@pytest.mark.parametrize("read_only", ["readonly", "readonly=on", "readonly=true"])
def test_a_directory_that_was_read_only_stays_so(read_only: str) -> None:
    found = qemu.read(["-virtfs", f"local,path=/srv,mount_tag=t,security_model=mapped-xattr,{read_only}"], {})
    assert found.shares[0].options["ReadOnly"].value is True
    assert [line.split(" ")[0] for line in found.left] == ["the", "security_model=mapped-xattr"]


@pytest.mark.parametrize(
    ("drive", "image", "left"),
    [
        ("file=/srv/a,if=virtio,readonly", None, "read-only disk /srv/a"),
        ("file=nbd://h/x,if=virtio", None, "disk nbd://h/x (vfsd's image is a file"),
        ("file=fat:rw:/srv,if=virtio", None, "disk fat:rw:/srv (vfsd's image is a file"),
        ("file=/srv/a.vmdk,if=virtio,format=vmdk", None, "disk /srv/a.vmdk of format vmdk"),
        ("file=/srv/a,if=floppy", None, "-drive file=/srv/a,if=floppy"),
        ("file=$DISK,if=virtio", None, "-drive file=$DISK,if=virtio (a shell"),
        ("file=/srv/a,if=virtio,snapshot=on", "/srv/a", "disk /srv/a: snapshot=on"),
        ("file=/srv/a,format=raw", "/srv/a", "bus ide of disk /srv/a"),
    ],
)
def test_disks_that_are_not_the_same(drive: str, image: str | None, left: str) -> None:
    found = qemu.read(["-drive", drive], {})
    assert (found.options["Image"].value if "Image" in found.options else None) == image
    assert [line.startswith(left) for line in found.left] == [True], found.left


@pytest.mark.parametrize(
    ("words", "accelerator"),
    [
        (["-accel", "kvm"], "kvm"),
        (["-accel", "kvm", "-accel", "tcg"], None),
        (["-M", "q35,accel=kvm:tcg"], None),
        (["-M", "q35,accel=kvm:tcg", "-enable-kvm"], "kvm"),
        (["-M", "q35,accel=tcg"], "tcg"),
    ],
)
def test_accelerators(words: list[str], accelerator: str | None) -> None:
    found = qemu.read(words, {})
    assert (found.options["Accelerator"].value if "Accelerator" in found.options else None) == accelerator
    assert found.left == []


def test_a_second_network_brings_no_ports(capsys: pytest.CaptureFixture[str]) -> None:
    made, left = imported(
        capsys,
        "--name",
        "x",
        "--",
        "qemu-kvm",
        "-nic",
        "tap,ifname=t0,script=/x",
        "-nic",
        "user,hostfwd=tcp::1-:2",
    )
    assert (made["network"], "forward" in made) == ("tap:t0", False)
    assert [line.split(" (")[0] for line in left] == [
        "network option script=/x.",
        "network user,hostfwd=tcp::1-:2",
    ]


def test_each_thing_of_a_domain_that_is_lost_is_told() -> None:
    found = libvirt.read(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<memory unit='MiB'>512</memory><currentMemory unit='MiB'>256</currentMemory>"
        "<memoryBacking><hugepages/><access mode='shared'/></memoryBacking><blkiotune><weight>2</weight></blkiotune>"
        "<os><type arch='mips' machine='malta'>hvm</type><boot dev='network'/><bootmenu enable='yes'/></os>"
        "<cpu mode='host-passthrough'><topology cores='2'/><numa><cell/><cell/></numa></cpu>"
        "<clock offset='localtime'/><features><acpi/><hyperv/></features><on_reboot>destroy</on_reboot>"
        "<seclabel type='none'/><genid>7</genid><sysinfo type='smbios'><system><entry name='serial'>s</entry></system>"
        "<oemStrings><entry>io.systemd.credential:a=b</entry><entry>c</entry></oemStrings></sysinfo>"
        "<sysinfo type='fwcfg'><entry name='opt/io.systemd.credentials/d'>e</entry><entry name='f'>g</entry></sysinfo>"
        "<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='edu'/><qemu:env name='E'/></qemu:commandline>"
        "<devices><disk><source file='/a'/><target bus='sata'/><transient/></disk>"
        "<disk><source file='/b'/><boot order='1'/><driver type='qcow2'/></disk>"
        "<interface type='network'><source network='n' bridge='br9'/><filterref filter='x'/><model type='e1000'/>"
        "</interface>"
        "<filesystem><driver type='virtiofs'/><source socket='/run/vfsd/share/s.sock'/><target dir='t'/></filesystem>"
        "<filesystem><driver type='virtiofs'/><binary><cache mode='none'/></binary><source dir='/c'/>"
        "<target dir='c'/></filesystem>"
        "<serial type='tcp'><source host='h'/></serial><channel type='unix'><target name='other'/></channel>"
        "<channel type='unix'><target name='org.qemu.guest_agent.0'/></channel><watchdog model='i6300esb'/>"
        "<watchdog model='itco'/><memballoon model='virtio' autodeflate='on'/><vsock><cid address='5'/></vsock>"
        "<graphics type='vnc' port='5901' passwd='secret'/><input type='evdev'/></devices></domain>"
    )
    options = {name: typed.value for name, typed in found.options.items()}
    assert options == {
        "Memory": 512 << 20, "Image": "/b", "Network": "bridge:br9", "Display": "vnc",
        "Credentials": {"a": "b", "d": "e"}, "ExtraArguments": ["-device", "edu"],
    }  # fmt: skip
    assert [share.options["Cache"].value for share in found.shares] == ["never"]
    assert "secret" not in "".join(found.left)
    for begin in (
        "currentMemory 256 MiB", "memoryBacking: hugepages", "blkiotune (io_weight", "architecture mips",
        "machine type malta", "os/boot dev=network", "os/bootmenu", "cpu: topology cores=2", "cpu: numa",
        "clock offset=localtime", "features: hyperv", "on_reboot destroy", "seclabel type=none", "genid 7",
        "sysinfo/system: entry name=serial s", "sysinfo/oemStrings: entry c", "sysinfo: fw_cfg f", "QEMU's env name=E",
        "disk /a", "interface of type network: filterref", "network card e1000", "filesystem t (it is vfsd's share s",
        "devices/serial type=tcp h", "devices/channel type=unix", "devices/watchdog model=i6300esb",
        "devices/memballoon", "vsock: cid 5", "where vnc is seen", "devices/input type=evdev",
    ):  # fmt: skip
        assert len([line for line in found.left if line.startswith(begin)]) == 1, (begin, found.left)
    assert len(found.left) == 29, found.left


def test_a_long_description_takes_no_long_time() -> None:
    """Up to 4 MiB are read; each step is done once for each letter, or for each word."""
    begin = time.monotonic()
    long = "x," * (1 << 18)
    qemu.read(["-device", long, *["-S"] * (1 << 18)], {})
    virtiofsd.read(["--syslog"] * (1 << 18))
    for text in ("a " * (1 << 18), f'"{long}"', "$(" * (1 << 18) + ")" * (1 << 18), "<<a\n" * (1 << 14)):
        list(shell.commands(text))
    with contextlib.suppress(CliError):
        libvirt.read("<domain>" + "<a>" * (1 << 18))
    assert time.monotonic() - begin < 30, "it takes 3 s"


def test_a_configuration_that_names_itself_is_read_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("conf").write_text("#!/bin/sh\n[program:a]\ncommand=conf\n[program:b]\ncommand=fifo\n")
    assert list(shell.commands(Path("conf").read_text())) == [["[program:a]"], ["command=conf"], ["[program:b]"],
                                                              ["command=fifo"], ["fifo"]]  # fmt: skip


def test_a_value_that_virtiofsd_would_refuse_is_left() -> None:
    served = virtiofsd.read(["--shared-dir=/x", "--cache=sometimes", "--thread-pool-size=$(nproc)", "--translate-uid=a",
                             "--translate-uid=b"])  # fmt: skip
    assert served is not None
    assert [line.split(" ")[0] for line in served.left] == [
        "--cache=sometimes",
        "--thread-pool-size=$(nproc)",
    ]
    assert served.share.options["TranslateUID"].value == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("a b; c 'd e' && f\n", [["a", "b"], ["c", "d e"], ["f"]]),
        ("a 2>&1 <in -x >>log -y &>l\nb", [["a", "-x", "-y"], ["b"]]),
        (
            'a -smp $(nproc --all) -k `x y` -m ${M:-\'1 G\'} "$(b "c d")" e # don\'t\nf#g',
            [["a", "-smp", "$(nproc --all)", "-k", "`x y`", "-m", "${M:-'1 G'}", '$(b "c d")', "e"], ["f#g"]],
        ),
        ("exec 3<>/dev/tap$(< /sys/x)\na <(b c) -d", [["exec"], ["a", "<(b c)", "-d"]]),
        ("cat <<EOF >x; a 'b'\ndon't $(\nEOF\nc", [["cat"], ["a", "b"], ["c"]]),
        ("cat <<-'E F'\nx\n\tE F\nc <<<word d", [["cat"], ["c", "d"]]),
        ("a '' \"b\\\"c\\d\" \\'e\x0bf", [["a", "", 'b"c\\d', "'e\x0bf"]]),
        ("a\0-b\0\0c d\0", [["a", "-b", "", "c d"]]),
        ("  # comment 'with a quote\na --b='c d' \\\n e", [["a", "--b=c d", "e"]]),
        ("", []),
    ],
)
def test_commands_of_a_script(text: str, commands: list[list[str]]) -> None:
    assert list(shell.commands(text)) == commands


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.sh", "#!/bin/sh\necho 'open", "quotes"),
        ("x.sh", '#!/bin/sh\necho "open', "quotes"),
        ("x.sh", "#!/bin/sh\nqemu-system-x86_64 -m $(echo", "quotes"),
        ("x.sh", "Q=/usr/bin/qemu-system-x86_64\n$Q -m 1G\n", "o command line of QEMU is in it"),
        ("x.xml", "<domain type='lxc'/>", "a domain of type lxc"),
        ("x.xml", "<domain/><domain/>", "virt-install --print-xml 2"),
        ("x.sh", "#!/bin/sh\necho hello\n", "o command line of QEMU is in it"),
        ("x.sh", "qemu-system-x86_64 -m 1G\nqemu-system-x86_64 -m 2G\n", "2 command lines of QEMU are in it"),
        ("x.sh", "qemu-system-x86_64 -smp many\n", "a number that is none"),
        ("x.toml", "memory = 1", "line 1: "),
        ("x.toml", "memory == 1", "line 1: "),
        ("no name.toml", "cpus = 2", "--name"),
    ],
)
def test_what_is_no_machine(
    tmp_path: Path, name: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["machine", "import", "--dry-run", str(tmp_path / name)]) in (Exit.FAILED, Exit.USAGE)
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="'\"\\ ab#\n", max_size=14))
def test_words_are_those_that_bash_has(text: str) -> None:
    """With variables, substitutions and redirections left out, which are not carried out here."""
    script = f"p {text}"
    done = subprocess.run(
        ["bash", "-c", f"p() {{ printf '%s\\0' p \"$@\"; exit; }}; {script}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:  # a quote is open: the one mistake that can be made with these letters
        with pytest.raises(CliError, match="not closed"):
            list(shell.commands(script))
    else:
        assert next(shell.commands(script)) == done.stdout.removesuffix("\0").split("\0")


WORDS = st.sampled_from([
    *("-m", "-smp", "-drive", "-device", "-netdev", "-blockdev", "-fw_cfg", "-smbios", "-chardev", "-name", "-machine"),
    *("-nic", "-display", "-", "--", "=,", "1G", "user", "bridge", "{}", "[]", "cpus=0x1", "9999999999999"),
    *("file=/x,if=none,id=d", "virtio-blk-pci,drive=d", "vhost-user-fs-pci,tag=a,chardev=c", "socket,id=c,path=/s"),
    *('{"driver":"virtio-blk-pci","drive":"d"}', '{"a":' * 3000, '{"driver":null}', "q35,pflash0=d", "-accel"),
    *("user,hostfwd=:-", '{"file":{"filename":1}}', "type=11,value=io.systemd.credential.binary:a=?"),
])  # fmt: skip


@given(st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=8))
def test_any_words_make_a_machine_or_one_sentence(words: list[str]) -> None:
    with contextlib.suppress(CliError):
        qemu.read(words, {}).spec("m", Scope.USER)
    virtiofsd.read(words)
    with contextlib.suppress(CliError):
        list(shell.commands(" ".join(words)))


ELEMENTS = st.recursive(
    st.sampled_from([
        "<memory/>", "<vcpu>2</vcpu>", "<name>a</name>", "<source dir='/a'/>", "<target dir='t'/>", "<disk/>",
        "<idmap/>", "<interface type='user'><portForward><range/></portForward></interface>", "<binary/>", "text",
        "<openfiles max='99999999999999999999999'/>", "<thread_pool size='-1'/>", "<boot order='first'/>",
        "<sysinfo type='fwcfg'><entry/></sysinfo>", "<cell/>", "<cid address='x'/>", "<model/>", "<currentMemory/>",
    ]),
    lambda inner: st.builds(
        "<{0}>{1}{2}</{0}>".format,
        st.sampled_from(["os", "devices", "filesystem", "binary", "idmap", "disk", "graphics", "cpu",
                         "sysinfo", "oemStrings", "interface", "serial", "numa", "vsock"]), inner, inner,
    ),
    max_leaves=12,
)  # fmt: skip


@given(ELEMENTS, ELEMENTS)
def test_any_domain_makes_a_machine_or_one_sentence(first: str, second: str) -> None:
    with contextlib.suppress(CliError):
        libvirt.read(f"<domain>{first}<devices>{second}</devices></domain>").spec("m", Scope.USER)


def test_toml_comes_out_as_it_went_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = 'memory = "2G"\nbuiltin = true\n\n[[shares]]\nsource = "/srv"\ntag = "srv"\nmount_point = "/mnt/qemu-x"\n'
    (tmp_path / "dev.toml").write_text(text)
    assert main(["machine", "import", "--dry-run", str(tmp_path / "dev.toml")]) == Exit.DONE
    assert capsys.readouterr() == (text, "")
    (tmp_path / "src.toml").write_text('source = "/srv"\n')
    assert main(["share", "import", "--dry-run", str(tmp_path / "src.toml")]) == Exit.DONE
    assert capsys.readouterr() == ('source = "/srv"\n', "")
    assert main(["share", "import", str(tmp_path / "none.toml")]) == Exit.FAILED
    assert main(["share", "import", "--dry-run", str(tmp_path / "dev.toml")]) == Exit.FAILED
