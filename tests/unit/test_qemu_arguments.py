"""QEMU's command line: a pure function."""

from __future__ import annotations

import dataclasses
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
    escape,
    kernel_arguments,
    qemu_arguments,
)
from vfsd.image import File, Layer
from vfsd.model import Display, MachineSpec
from vfsd.opened import Opened

PLAN = QemuPlan(
    binary="/usr/bin/qemu-system-x86_64",
    architecture=MachineArchitecture.of("x86_64"),
    accelerator="tcg",
    boot=Boot(kernel=Opened(Path("/run/vfsd/machine/m/kernel"))),
    shares=(),
    slots=0,
    sockets=MachineSockets(4, 5, 6, 7, 8),
    has_hub=True,
    has_panic_device=True,
    has_panic_exit=True,
    display=Path("/run/vfsd/machine/m/display"),
)


def built(plan: QemuPlan = PLAN, **options: Any) -> list[str]:
    return qemu_arguments(MachineSpec(name="m", **options), plan)


def values(arguments: list[str], option: str) -> list[str]:
    """What follows each occurrence of an option."""
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def split(value: str) -> list[str]:
    """As QEMU takes a value apart: at commas that are not doubled (qemu-option.c)."""
    return [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]


def test_memory_is_shared_by_a_memfd() -> None:
    arguments = built(memory=256 << 20)
    assert values(arguments, "-m") == [f"{256 << 20}b"]
    [backend] = values(arguments, "-object")
    assert set(split(backend)) >= {"memory-backend-memfd", "share=on", f"size={256 << 20}", "id=mem"}
    assert "memory-backend=mem" in split(values(arguments, "-machine")[0])


def test_nothing_is_there_that_nobody_asked_for() -> None:
    arguments = built()
    assert {"-nodefaults", "-no-user-config"} <= set(arguments)
    assert values(arguments, "-display") == ["none"]
    assert [split(v)[0] for v in values(arguments, "-sandbox")] == ["on"]


def test_two_monitors_so_that_a_stop_needs_no_turn() -> None:
    arguments = built()
    chardevs = [split(value) for value in values(arguments, "-chardev")]
    assert [c for c in chardevs if "fd=4" in c and "server=on" in c]
    assert [c for c in chardevs if "fd=5" in c and "server=on" in c]
    assert len(values(arguments, "-mon")) == 2


def test_the_console_goes_to_the_journal_and_to_a_socket() -> None:
    chardevs = {split(value)[1]: split(value) for value in values(built(), "-chardev")}
    assert chardevs["id=console"][0] == "hub"
    assert "signal=off" in chardevs["id=journal"]
    assert "fd=6" in chardevs["id=terminal"]
    alone = built(dataclasses.replace(PLAN, has_hub=False))
    assert [split(v)[0] for v in values(alone, "-chardev")].count("stdio") == 1
    assert not any(v.startswith("hub") for v in values(alone, "-chardev"))


def test_a_panic_ends_qemu_with_an_exit_code_of_its_own() -> None:
    assert "pvpanic-pci" in values(built(), "-device")
    assert values(built(), "-action") == ["panic=exit-failure"]
    old = built(dataclasses.replace(PLAN, has_panic_exit=False))
    assert "pvpanic-pci" in values(old, "-device")
    assert "-action" not in old


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20), max_size=4, unique=True
    )
)
def test_each_share_has_its_device_and_its_tag(tags: list[str]) -> None:
    shares = [ShareDevice(tag=tag, slot=n, socket=Opened(Path("/x"), 17 + n)) for n, tag in enumerate(tags)]
    arguments = built(dataclasses.replace(PLAN, shares=shares, slots=len(shares)))
    devices = [d for d in values(arguments, "-device") if d.startswith("vhost-user-fs-pci,")]
    # a tag adds no option of its own: driver, id, chardev, tag, event_idx, bus, address
    assert [split(d)[3] for d in devices] == [f"tag={tag}" for tag in tags]
    assert {split(d)[4] for d in devices} <= {"event_idx=off"}, "a lost kick would be lost for ever"
    assert [split(d)[5:] for d in devices] == [["bus=bridge0", f"addr={n + 1:#x}"] for n in range(len(tags))]
    assert [f"fd={17 + n}" for n in range(len(tags))] == [
        part
        for value in values(arguments, "-chardev")
        for part in split(value)
        if part in ("fd=17", "fd=18", "fd=19", "fd=20")
    ]


@given(st.text())
def test_an_escaped_value_is_one_value(text: str) -> None:
    if "\0" not in text:
        assert escape(text).replace(",,", "\0").replace(",", "!").replace("\0", ",") == text


def test_a_share_by_its_path_where_systemd_can_not_open_it() -> None:
    share = ShareDevice(tag="t", slot=0, socket=Opened(Path("/run/a,b")))
    chardevs = values(built(dataclasses.replace(PLAN, shares=[share])), "-chardev")
    assert any(split(value)[-1] == "path=/run/a,b" for value in chardevs)


def test_an_image_is_a_node_of_its_format() -> None:
    path = Path("/run/vfsd/machine/m/image")
    boot = Boot(disk=[Layer(File(path, "qcow2", is_device=False), Opened(path, 11))])
    arguments = built(dataclasses.replace(PLAN, boot=boot))
    [node] = map(json.loads, values(arguments, "-blockdev"))
    assert (node["driver"], node["file"]) == ("qcow2", {"driver": "file", "filename": "/dev/fdset/11"})
    assert values(arguments, "-add-fd") == ["fd=11,set=11"]
    assert node["backing"] is None, "its header's is not followed by QEMU"


def test_an_image_of_several_files() -> None:
    data, base = Path("/run/vfsd/machine/m/image-data"), Path("/dev/vg/base")
    top = Layer(
        File(Path("/top"), "qcow2", is_device=False, data=data), Opened(Path("/top"), 12), Opened(data, 11)
    )
    boot = Boot(disk=[top, Layer(File(base, "raw", is_device=True), Opened(base, 13))])
    arguments = built(dataclasses.replace(PLAN, boot=boot))
    [node] = map(json.loads, values(arguments, "-blockdev"))
    assert node["data-file"] == {"driver": "file", "filename": "/dev/fdset/11"}
    assert node["backing"] == {
        "driver": "raw",
        "file": {"driver": "host_device", "filename": "/dev/fdset/13"},
        "read-only": True,
    }
    assert values(arguments, "-add-fd") == ["fd=12,set=12", "fd=11,set=11", "fd=13,set=13"]
    assert "-kernel" not in arguments


def test_uefi_has_its_code_read_only_and_its_variables_not() -> None:
    uefi = UefiFirmware(Opened(Path("/code,1")), Opened(Path("/variables"), 12))
    arguments = built(dataclasses.replace(PLAN, boot=Boot(uefi=uefi)))
    code, variables = map(json.loads, values(arguments, "-blockdev"))
    assert (code["file"]["filename"], code["read-only"]) == ("/code,1", True)
    assert (variables["file"]["filename"], variables["read-only"]) == ("/dev/fdset/12", False)
    assert {"pflash0=pflash0", "pflash1=pflash1"} <= set(split(values(arguments, "-machine")[0]))
    assert values(arguments, "-add-fd") == ["fd=12,set=12"]


def test_kernel_arguments_end_with_what_the_user_appends() -> None:
    spec = MachineSpec(name="m", kernel="/k", append="quiet x=y")
    assert kernel_arguments(spec, "ttyS0", "", False) == "console=ttyS0 quiet x=y"
    with_root = kernel_arguments(spec, "ttyS0", "tag", True)
    assert with_root == "console=ttyS0 root=tag rootfstype=virtiofs ro quiet x=y"
    boot = Boot(kernel=Opened(Path("/k")), initrd=Opened(Path("/i")), arguments="a b")
    arguments = built(dataclasses.replace(PLAN, boot=boot))
    assert (values(arguments, "-initrd"), values(arguments, "-append")) == (["/i"], ["a b"])


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("user", "user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-:53"),
        ("bridge:br0", "bridge,id=net0,br=br0"),
        ("tap:tap0", "tap,id=net0,ifname=tap0,script=no,downscript=no"),
    ],
)
def test_networks(network: str, expected: str) -> None:
    forward = ("tcp:127.0.0.1:2222:22", "udp::53:53") if network == "user" else ()
    assert values(built(network=network, forward=forward), "-netdev") == [expected]
    spawn = "spawn=deny" in split(values(built(network=network), "-sandbox")[0])
    assert spawn == (not network.startswith("bridge:"))  # qemu-bridge-helper is a process


def test_a_network_card_has_an_address_of_its_own() -> None:
    [card] = [
        device
        for device in values(built(dataclasses.replace(PLAN, mac="02:00:00:00:00:01")), "-device")
        if "net0" in device
    ]
    assert split(card) == ["virtio-net-pci", "netdev=net0", "romfile=", "mac=02:00:00:00:00:01"]


def test_no_network() -> None:
    arguments = built(network="none")
    assert values(arguments, "-nic") == ["none"]
    assert "-netdev" not in arguments


def test_displays() -> None:
    assert values(built(display=Display.VNC), "-vnc") == ["unix:/run/vfsd/machine/m/display"]
    [spice] = values(built(display=Display.SPICE), "-spice")
    assert {"unix=on", "addr=/run/vfsd/machine/m/display", "disable-ticketing=on"} == set(split(spice))


def test_the_processor_fits_the_accelerator() -> None:
    assert values(built(), "-cpu") == ["max"]
    kvm = built(dataclasses.replace(PLAN, accelerator="kvm"))
    assert values(kvm, "-cpu") == ["host"]
    assert values(kvm, "-accel") == ["kvm"]
    assert values(built(), "-accel") == ["tcg,split-wx=on"], "no memory is writable and executable"


def test_further_arguments_come_last_and_unchanged() -> None:
    further = ("-device", "x,y", "", "${HOME} %n")
    assert built(extra_arguments=further)[-4:] == list(further)


@pytest.mark.parametrize(
    ("name", "machine", "console"), [("aarch64", "virt", "ttyAMA0"), ("x86_64", "q35", "ttyS0")]
)
def test_architectures(name: str, machine: str, console: str) -> None:
    architecture = MachineArchitecture.of(name)
    assert architecture.machine.split(",")[0] == machine
    assert architecture.console == console
