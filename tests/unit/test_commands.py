"""Argument lists of virtiofsd and QEMU."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.commands import (
    Boot,
    MachineArchitecture,
    MachineSockets,
    QemuPlan,
    ShareDevice,
    UefiFirmware,
    VsockDevice,
    escape,
    kernel_arguments,
    qemu_arguments,
    virtiofsd_arguments,
)
from vfsd.image import File, Layer
from vfsd.limits import LIMITS
from vfsd.model import SHARE_OPTIONS, MachineSpec, ShareSpec
from vfsd.names import Scope
from vfsd.opened import Opened

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


def virtiofsd(**options: tuple[str, Any]) -> list[str]:
    spec = ShareSpec.from_options("src", "/the/source", Scope.USER, options)
    return virtiofsd_arguments("/usr/libexec/virtiofsd", spec, Path("/run/vfsd/mnt"))


def qemu(
    *,
    boot: Boot | None = None,
    shares: tuple[str, ...] = (),
    hub: bool = True,
    vsock: VsockDevice | None = None,
    **options: Any,
) -> list[str]:
    spec = MachineSpec.from_options("dev", Scope.USER, options)
    plan = QemuPlan(
        binary="/usr/bin/qemu-system-x86_64",
        architecture=MachineArchitecture.of("x86_64"),
        accelerator="tcg",
        boot=boot or Boot(),
        shares=[ShareDevice(tag, n, Opened(Path("/run/s.sock"), 7 + n)) for n, tag in enumerate(shares)],
        slots=len(shares) + 1,
        sockets=MachineSockets(4, 5, 6, 21, 22),
        has_hub=hub,
        has_panic_device=True,
        has_panic_exit=True,
        display=Path("/run/a,b/display"),
        vsock=vsock,
    )
    return qemu_arguments(spec, plan)


def unescape(text: str) -> dict[str, str]:
    """Options as QEMU reads them: commas part them, two make one."""
    parts = text.replace(",,", "\0").split(",")
    return {key: value.replace("\0", ",") for key, _, value in (part.partition("=") for part in parts)}


def values(arguments: list[str], option: str) -> list[str]:
    return [after for before, after in itertools.pairwise(arguments) if before == option]


DEFAULTS = [
    "/usr/libexec/virtiofsd", "--fd=3", "--shared-dir=/run/vfsd/mnt", "--sandbox=namespace", "--cache=auto",
    "--inode-file-handles=never", "--thread-pool-size=0", "--log-level=info",
    "--modcaps=-mknod:-setfcap",
]  # fmt: skip


def test_virtiofsd_by_default() -> None:
    assert virtiofsd() == DEFAULTS


FLAGS: dict[str, tuple[tuple[str, Any], list[str], list[str]]] = {
    # option: value, what comes, what goes
    "ReadOnly": (("b", True), ["--readonly"], []),
    "Cache": (("s", "never"), ["--cache=never"], ["--cache=auto"]),
    "Writeback": (("b", True), ["--writeback"], []),
    "DirectIO": (("b", True), ["--allow-direct-io"], []),
    "XAttr": (("b", True), ["--xattr"], []),
    "PosixACL": (("b", True), ["--xattr", "--posix-acl"], []),
    "AnnounceSubmounts": (("b", False), ["--no-announce-submounts"], []),
    "AnnounceTag": (("b", True), ["--tag=src"], []),
    "InodeFileHandles": (("s", "prefer"), ["--inode-file-handles=prefer"], ["--inode-file-handles=never"]),
    "ThreadPoolSize": (("u", 4), ["--thread-pool-size=4"], ["--thread-pool-size=0"]),
    "Sandbox": (("s", "none"), ["--sandbox=none"], ["--sandbox=namespace"]),
    "TranslateUID": (("as", ["map:0:1:1", "x"]), ["--translate-uid=map:0:1:1", "--translate-uid=x"], []),
    "TranslateGID": (("as", ["map:0:1:1"]), ["--translate-gid=map:0:1:1"], []),
    "UIDMap": (("as", [":0:1:1:"]), ["--uid-map=:0:1:1:"], []),
    "GIDMap": (("as", [":0:1:1:"]), ["--gid-map=:0:1:1:"], []),
    "XAttrMap": (("s", ":map::user.virtiofs.:"), ["--xattrmap=:map::user.virtiofs.:"], []),
    "KillPriv": (("b", True), ["--killpriv-v2"], []),
    "SecurityLabel": (("b", True), ["--security-label"], []),
    "AllowDeviceNodes": (("b", True), ["--modcaps=-setfcap"], ["--modcaps=-mknod:-setfcap"]),
    "AllowSetuid": (("b", True), ["--modcaps=-mknod"], ["--modcaps=-mknod:-setfcap"]),
    "LogLevel": (("s", "trace"), ["--log-level=trace"], ["--log-level=info"]),
    "LimitNOFILE": (("t", 4096), ["--rlimit-nofile=4096"], []),
}
ELSEWHERE = {"Tag", "MountPoint", "MountOptions", "SocketGroup", *LIMITS}
"""The guest's and the unit's business."""


@pytest.mark.parametrize("name", SHARE_OPTIONS)
def test_each_option_of_a_share_is_a_flag(name: str) -> None:
    if name in ELSEWHERE:
        value = {"b": True, "s": "/x", "t": 16 << 20 if name == "MemoryMax" else 5000}[
            SHARE_OPTIONS[name].signature
        ]
        assert virtiofsd(**{name: (SHARE_OPTIONS[name].signature, value)}) == DEFAULTS
        return
    value, come, go = FLAGS[name]
    arguments = virtiofsd(**{name: value})
    assert sorted(set(arguments) - set(DEFAULTS)) == sorted(come)
    assert sorted(set(DEFAULTS) - set(arguments)) == sorted(go)
    assert len(arguments) == len(set(arguments))


@given(TEXT, st.lists(TEXT, max_size=3))
def test_texts_reach_virtiofsd_as_they_are(xattr_map: str, rules: list[str]) -> None:
    arguments = virtiofsd(XAttrMap=("s", xattr_map), TranslateUID=("as", rules), UIDMap=("as", rules))
    assert f"--xattrmap={xattr_map}" in arguments
    assert [
        a.removeprefix("--translate-uid=") for a in arguments if a.startswith("--translate-uid=")
    ] == rules
    assert [a.removeprefix("--uid-map=") for a in arguments if a.startswith("--uid-map=")] == rules
    assert all(a.startswith("--") for a in arguments[1:]), "none is taken for an argument of its own"
    assert not any("/the/source" in a for a in arguments)


@given(st.text(max_size=20))
def test_commas_are_doubled(text: str) -> None:
    assert unescape(f"x={escape(text)}") == {"x": text} or "\0" in text


@given(st.lists(TEXT.filter(lambda t: len(t.encode()) <= 36), max_size=4, unique=True))
def test_each_share_is_one_device_with_its_tag(tags: list[str]) -> None:
    arguments = qemu(shares=tuple(tags))
    devices = [
        unescape(value) for value in values(arguments, "-device") if value.startswith("vhost-user-fs-pci,")
    ]
    assert [device["tag"] for device in devices] == tags
    assert all(
        set(device) == {"vhost-user-fs-pci", "id", "chardev", "tag", "event_idx", "bus", "addr"}
        for device in devices
    )
    chardevs = {unescape(v)["id"]: unescape(v) for v in values(arguments, "-chardev")}
    assert [chardevs[device["chardev"]]["fd"] for device in devices] == [str(7 + n) for n in range(len(tags))]


def test_memory_is_shared() -> None:
    arguments = qemu(Memory=("t", 1 << 29), CPUs=("u", 3))
    [memory] = values(arguments, "-object")
    assert unescape(memory) == {"memory-backend-memfd": "", "id": "mem", "size": str(1 << 29), "share": "on"}
    assert "memory-backend=mem" in values(arguments, "-machine")[0]
    assert values(arguments, "-m") == [f"{1 << 29}b"]
    assert values(arguments, "-smp") == ["3"]


@pytest.mark.parametrize(
    ("vsock", "device"),
    [
        (VsockDevice(4711, Opened(Path("/dev/vhost-vsock"), 11)), {"guest-cid": "4711", "vhostfd": "11"}),
        (VsockDevice(4711, Opened(Path("/dev/vhost-vsock"))), {"guest-cid": "4711"}),
    ],
)
def test_vsock(vsock: VsockDevice, device: dict[str, str]) -> None:
    before = values(qemu(), "-device")
    devices = values(qemu(vsock=vsock), "-device")
    [added] = [word for word in devices if word not in before]
    assert unescape(added) == {"vhost-vsock-pci": "", "id": "vsock0", **device}
    devices.remove(added)
    assert devices == before


def test_boot_from_an_image_with_an_odd_name() -> None:
    odd = Path('/a,b "c"')
    layers = [Layer(File(odd, "qcow2", is_device=False), Opened(odd))]
    boot = Boot(disk=layers, uefi=UefiFirmware(Opened(Path("/c,d")), Opened(Path("/v,w"))))
    arguments = qemu(boot=boot)
    files = [json.loads(node)["file"]["filename"] for node in values(arguments, "-blockdev")]
    assert files == ["/c,d", "/v,w", '/a,b "c"']


def test_boot_a_kernel() -> None:
    arguments = qemu(boot=Boot(kernel=Opened(Path("/k")), initrd=Opened(Path("/i"), 12), arguments="a b,c"))
    assert (values(arguments, "-kernel"), values(arguments, "-initrd"), values(arguments, "-append")) == (
        ["/k"], ["/proc/self/fd/12"], ["a b,c"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("network", "forward", "backend"),
    [
        ("user", [], {"user": "", "id": "net0"}),
        ("user", ["tcp:127.0.0.1:2222:22"], {"user": "", "id": "net0", "hostfwd": "tcp:127.0.0.1:2222-:22"}),
        ("bridge:br0", [], {"bridge": "", "id": "net0", "br": "br0"}),
        ("tap:t0", [], {"tap": "", "id": "net0", "ifname": "t0", "script": "no", "downscript": "no"}),
    ],
)
def test_networks(network: str, forward: list[str], backend: dict[str, str]) -> None:
    arguments = qemu(Network=("s", network), Forward=("as", forward))
    assert [unescape(value) for value in values(arguments, "-netdev")] == [backend]


def test_no_network() -> None:
    arguments = qemu(Network=("s", "none"))
    assert values(arguments, "-nic") == ["none"]
    assert values(arguments, "-netdev") == []


def test_displays() -> None:
    assert values(qemu(Display=("s", "vnc")), "-vnc") == ["unix:/run/a,,b/display"]
    [spice] = values(qemu(Display=("s", "spice")), "-spice")
    assert unescape(spice)["addr"] == "/run/a,b/display"
    assert values(qemu(), "-display") == ["none"]


def test_further_arguments_come_last() -> None:
    assert qemu(ExtraArguments=("as", ["-x", "a b,${X}"]))[-2:] == ["-x", "a b,${X}"]


def test_arguments_of_a_kernel() -> None:
    spec = MachineSpec.from_options("dev", Scope.USER, {"Append": ("s", "quiet x=y")})
    assert kernel_arguments(spec, "ttyS0", "", False) == "console=ttyS0 quiet x=y"
    wanted = "console=ttyS0 root=src rootfstype=virtiofs ro quiet x=y"
    assert kernel_arguments(spec, "ttyS0", "src", True) == wanted
