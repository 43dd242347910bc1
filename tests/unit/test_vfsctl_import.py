"""vfsctl machine import: what becomes of libvirt's XML, of QEMU's command line, and of scripts that have one."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.cli.errors import CliError, Exit
from vfsd.cli.imports import libvirt, qemu, shell, virtiofsd
from vfsd.cli.imports.words import properties
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
exec -a "microvm@box" /nix/store/abc-qemu/bin/qemu-system-x86_64 -name box -M 'microvm,accel=kvm:tcg,acpi=on' \\
  -m 512M -smp 2 -nodefaults -no-user-config -no-reboot -kernel /nix/store/k/bzImage -initrd /nix/store/i/initrd \\
  -chardev 'stdio,id=stdio,signal=off' -device virtio-rng-pci -serial chardev:stdio -enable-kvm -cpu 'host,+x2apic' \\
  -append 'console=ttyS0 reboot=t panic=-1 init=/nix/store/s/init' \\
  -fw_cfg 'name=opt/io.systemd.credentials/key,file=/run/key' -nographic -sandbox on \\
  -qmp 'unix:box.sock,server,nowait' \\
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

[program:virtiofsd-src]
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
  --thread-pool-size 8 \\
  --posix-acl --xattr --cache=metadata --inode-file-handles=prefer --readonly --modcaps=+sys_admin
"""


def imported(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """What --dry-run prints, and what it says is not taken over."""
    assert main(["machine", "import", "--user", "--dry-run", *arguments]) == Exit.DONE
    out, err = capsys.readouterr()
    lines = err.splitlines()
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
    ):  # fmt: skip
        assert len([line for line in left if line.startswith(begin)]) == 1, begin
    assert len(left) == 10, "each thing that is lost once, and nothing else"


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


@pytest.mark.parametrize("through", ["supervisord", "script"])
def test_a_runner_of_microvm(
    tmp_path: Path, through: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("microvm-run").write_text(MICROVM)
    Path("daemon").write_text(VIRTIOFSD)
    Path("supervisord.conf").write_text(SUPERVISORD.format(command=tmp_path / "daemon"))
    made, left = imported(capsys, "microvm-run", "supervisord.conf" if through == "supervisord" else "daemon")
    assert made == {
        "memory": "512M", "cpus": 2, "kernel": "/nix/store/k/bzImage", "initrd": "/nix/store/i/initrd",
        "append": "console=ttyS0 reboot=t panic=-1 init=/nix/store/s/init", "image": f"{tmp_path}/var.img",
        "accelerator": "kvm", "forward": ["tcp::2222:22", "udp:127.0.0.1:53:53"],
        "credential_files": {"key": "/run/key"},
        "shares": [
            {"source": "/srv/my src", "tag": "src", "cache": "metadata", "posix_acl": True, "xattr": True,
             "read_only": True, "thread_pool_size": 8, "inode_file_handles": "prefer"},
            {"source": "/srv/nine", "tag": "nine", "read_only": True},
        ],
    }  # fmt: skip
    for begin in (
        "machine type microvm", "-machine acpi=on", "-no-reboot", "-cpu host,+x2apic",
        "read-only disk /nix/store/d.erofs", "virtiofsd's $OPT_RLIMIT", "virtiofsd's --modcaps",
        "the protocol of share nine", "network option guestfwd",
        "address 02:00:00:00:00:01", "guest-cid=7", "$EXTRA", "$@",
    ):  # fmt: skip
        assert len([line for line in left if line.startswith(begin)]) == 1, (begin, left)
    assert len(left) == 13, left


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
    assert [line.split(" ")[0] for line in left] == ["-smp", "firmware", "CD"]


def test_a_disk_without_an_option_and_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    made, left = imported(
        capsys, "--name", "x", "--", "qemu-system-x86_64", "-nodefaults", "/srv/disk.qcow2", "-m", "64"
    )
    assert (made, left) == ({"memory": "64M", "image": "/srv/disk.qcow2", "network": "none"}, [])


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
        ("a 2>&1 <in\nb", [["a"], ["in"], ["b"]]),
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


WORDS = st.sampled_from([
    *("-m", "-smp", "-drive", "-device", "-netdev", "-blockdev", "-fw_cfg", "-smbios", "-chardev", "-name", "-machine"),
    *("-nic", "-display", "-", "--", "=,", "1G", "user", "bridge", "{}", "[]", "cpus=0x1", "9999999999999"),
    *("file=/x,if=none,id=d", "virtio-blk-pci,drive=d", "vhost-user-fs-pci,tag=a,chardev=c", "socket,id=c,path=/s"),
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
        "<openfiles max='99999999999999999999999'/>", "<thread_pool size='-1'/>",
    ]),
    lambda inner: st.builds(
        "<{0}>{1}{2}</{0}>".format,
        st.sampled_from(["os", "devices", "filesystem", "binary", "idmap", "disk", "graphics", "cpu"]), inner, inner,
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
