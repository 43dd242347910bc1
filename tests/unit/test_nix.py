"""packaging/nix and flake.nix: evaluated by Nix against the stand-ins in tests/nix, and held against vfsd itself.

Nixpkgs is not there: what no stand-in can tell (names of packages, a build, a boot) is not tested.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vfsd import document
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS
from vfsd.names import Scope
from vfsd.options import Option

PROJECT = Path(__file__).resolve().parents[2]
NIX = PROJECT / "packaging" / "nix"
STAND_INS = PROJECT / "tests" / "nix"
SETTINGS = """experimental-features = nix-command flakes
sandbox = false
substitute = false
build-users-group =
flake-registry =
"""
Json = Any


@pytest.fixture(scope="module")
def nix_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nix")


class Nix:
    """Nix with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        self._environment = os.environ | {
            "NIX_CONFIG": SETTINGS,
            "HOME": str(folder),
            "NIX_STORE_DIR": str(self.store),
            "NIX_STATE_DIR": str(folder / "state"),
            "NIX_LOG_DIR": str(folder / "log"),
            "NIX_CONF_DIR": str(folder / "none"),
        }

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def evaluate(self, expression: str, **given: Json) -> Json:
        """What an expression is, in which `it` is tests/nix/eval.nix, and each of `given` has its name."""
        names = "".join(
            f"{name} = builtins.fromJSON ({_text(json.dumps(value))}); " for name, value in given.items()
        )
        whole = f"let it = import {STAND_INS}/eval.nix {{ project = {PROJECT}; }}; {names} in {expression}"
        return json.loads(
            self.run("nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", "-E", whole)
        )


def _text(value: str) -> str:
    """A text as Nix has it."""
    return json.dumps(value).replace("${", "\\${")


@pytest.fixture(scope="module")
def nix(nix_folder: Path) -> Nix:
    return Nix(nix_folder)


GOOD: dict[str, Json] = {
    "enable": True,
    "group": "vfsd",
    "machines": {
        "dev": {
            "builtin": True,
            "memory": "2G",
            "cpus": 2,
            "forward": ["tcp:127.0.0.1:2222:22"],
            "credentialFiles": {"ssh.authorized_keys.root": "/root/key.pub"},
            "shares": {
                "src": {"source": "/srv/src", "mountPoint": "/mnt/src", "readOnly": True, "cache": "always"},
                "out": {"source": '/srv/a "b" ${c} \\ ü', "tag": "results", "translateUID": ["map:0:1000:1"]},
            },
        }
    },
    "shares": {"lone": {"source": "/srv/lone", "posixACL": True, "limitNOFILE": 4096}},
}
DEV = """\
builtin = true
cpus = 2
credential_files = { "ssh.authorized_keys.root" = "/root/key.pub" }
forward = ["tcp:127.0.0.1:2222:22"]
memory = "2G"

[[shares]]
source = '/srv/a "b" ${c} \\ ü'
tag = "results"
translate_uid = ["map:0:1000:1"]

[[shares]]
source = "/srv/src"
tag = "src"
mount_point = "/mnt/src"
read_only = true
cache = "always"
"""
LONE = 'source = "/srv/lone"\nposix_acl = true\nlimit_nofile = 4096\n'


def machine(**options: Json) -> Json:
    return {"enable": True, "machines": {"box": {"builtin": True, **options}}}


def shares(**tags: Json) -> Json:
    return machine(shares=tags)


def share(**options: Json) -> Json:
    return shares(src={"source": "/srv", **options})


AT_EVALUATION: Mapping[str, tuple[Json, str]] = {
    "a tag of 37 bytes": (share(tag="ä" * 18 + "x"), "more than 36 bytes"),
    "a tag from a long name": (shares(**{"x" * 37: {"source": "/srv"}}), "more than 36 bytes"),
    "two shares on one tag": (
        shares(a={"source": "/a"}, b={"source": "/b", "tag": "a"}),
        "two shares with one tag",
    ),
    "ACLs with translated users": (share(posixACL=True, translateUID=["map:0:1:1"]), "posixACL"),
    "ACLs with translated groups": (share(posixACL=True, translateGID=["map:0:1:1"]), "posixACL"),
    "a map of users in a chroot": (share(uidMap=[":0:100000:65536:"]), 'sandbox = "namespace"'),
    "a share without a source": (shares(a={}), "has no source"),
    "a virtiofsd with too little memory": (share(memoryMax="8M"), "memoryMax 8M and needs 16777216"),
    "a virtiofsd with too few tasks": (share(threadPoolSize=8, tasksMax=15), "tasksMax 15 and needs 16"),
    "a share with too little time": (share(cpuQuotaPerSecUSec=999), "at least 1000"),
    "a share with a bad name": (
        {"enable": True, "shares": {"-a": {"source": "/srv"}}},
        "can't have that name",
    ),
    "a share of too long a name": (
        {"enable": True, "shares": {"a-" * 60: {"source": "/srv"}}},
        "can't have that name",
    ),
    "a machine with a bad name": (
        {"enable": True, "machines": {"a b": {"builtin": True}}},
        "can't have that name",
    ),
    "a machine of too long a name": (
        {"enable": True, "machines": {"x" * 65: {"builtin": True}}},
        "can't have that",
    ),
    "a machine with half a page of memory": (machine(memory=512 * 1024 * 1024 + 4096), "a multiple of 8192"),
    "a machine with little memory": (machine(memory="15M"), "give at least 16777216"),
    "an initrd without a kernel": (
        machine(builtin=False, image="/i", initrd="/i"),
        "initrd without a kernel",
    ),
    "a kernel of the built-in guest": (machine(kernel="/k"), "can't be used with builtin"),
    "an overlay over nothing": (machine(rootOverlay=True), "needs a rootShare"),
    "ports without a network": (machine(network="none", forward=["tcp::80:80"]), 'network = "user"'),
    "a port that is none": (machine(forward=["tcp::80:65536"]), "1 to 65535"),
    "a credential in two places": (
        machine(credentials={"a": "x"}, credentialFiles={"a": "/a"}),
        "take one out",
    ),
    "a credential with a colon": (machine(credentialFiles={"a:b": "/a"}), "printable letters"),
    "less memory for QEMU than for its guest": (machine(memory="1G", memoryMax="1G"), "needs 1207959552"),
    "too few tasks for QEMU": (machine(cpus=4, tasksMax=167), "tasksMax 167 and needs 168"),
    "too many shares": (shares(**{f"s{n}": {"source": "/srv"} for n in range(129)}), "128 are the most"),
}
"""What vfsd's own reader refuses as well, when it is written as TOML: configuration, part of the message."""

AT_START: Mapping[str, tuple[Json, str]] = {
    "nothing to boot": (machine(builtin=False), "nothing to boot"),
    "two shares on one mount point": (
        shares(a={"source": "/a", "mountPoint": "/m"}, b={"source": "/b", "mountPoint": "/m/"}),
        "two shares with one mount point",
    ),
    "a root share that is none": (
        machine(builtin=False, kernel="/k", rootShare="root", shares={"src": {"source": "/srv"}}),
        "no share with the tag",
    ),
    "a root share without a kernel": (
        machine(builtin=False, image="/i", rootShare="src", shares={"src": {"source": "/srv"}}),
        "needs a kernel",
    ),
    "a root share with the tag of a device": (
        machine(builtin=False, kernel="/k", rootShare="box.fd0", shares={"fd0": {"source": "/srv"}}),
        "for something else",
    ),
    "a root share with a blank in its tag": (
        machine(builtin=False, kernel="/k", initrd="/i", rootShare="a b", shares={"a b": {"source": "/srv"}}),
        "for something else",
    ),
    "a share over the built-in guest's devices": (share(mountPoint="/dev/shm"), "lives on /dev/shm itself"),
    "a share over the built-in guest's root": (share(mountPoint="/"), "lives on / itself"),
    "a share with the name of a machine's": (
        {**share(), "shares": {"box.src": {"source": "/srv"}}},
        "has the name of a share of machine",
    ),
}
"""What vfsd refuses only when it is used."""

TYPES: Mapping[str, Json] = {
    "an unknown option": machine(memmory="2G"),
    "an unknown option of a share": share(readonly=True),
    "a relative source": shares(a={"source": "srv"}),
    "a relative mount point": share(mountPoint="mnt"),
    "an unknown cache": share(cache="some"),
    "a text for a number": machine(cpus="2"),
    "no processor": machine(cpus=0),
    "too many processors": machine(cpus=4097),
    "a size of no kind": machine(memory="2GB"),
    "a negative size": machine(memory=-1),
    "an unknown network": machine(network="bridge:"),
    "an interface with a long name": machine(network="tap:0123456789abcdef"),
    "a forward that is none": machine(forward=["2222:22"]),
    "a blank among mount options": share(mountOptions="ro, noexec"),
    "a weight out of range": share(ioWeight=10001),
    "too many spare ports": machine(sparePorts=65),
    "no time to power off": machine(shutdownTimeoutUSec=0),
}


@pytest.fixture(scope="module")
def hosts(nix: Nix) -> dict[str, Json]:
    """All configurations, evaluated at once: none of them for what the types refuse."""
    cases = {
        "good": GOOD,
        **{name: case for name, (case, _) in {**AT_EVALUATION, **AT_START}.items()},
        **TYPES,
    }
    evaluated: dict[str, Json] = nix.evaluate("it.hosts cases", cases=cases)
    return evaluated


def read(text: str, kind: str, name: str, scope: Scope = Scope.SYSTEM) -> object:
    return (document.read_machine if kind == "machines" else document.read_share)(text, name, scope)


def files(host: Json) -> dict[tuple[str, str], str]:
    """Kind and name → text, of what is written below /etc/vfsd."""
    found = {}
    for target, source in host["files"].items():
        folder, kind, name = target.split("/")
        assert folder == "vfsd"
        found[kind, name.removesuffix(".toml")] = Path(source).read_text()
    return found


def test_every_file_is_nix(nix: Nix) -> None:
    paths = [PROJECT / "flake.nix", *NIX.rglob("*.nix"), *STAND_INS.rglob("*.nix")]
    assert len(paths) > 12
    nix.run("nix-instantiate", "--parse", *paths)


def test_each_key_has_an_option_and_the_other_way_round(nix: Nix) -> None:
    keys = nix.evaluate("{ inherit (it.options) shareKeys machineKeys; }")
    assert sorted(keys["shareKeys"].values()) == sorted([*fields(SHARE_OPTIONS), "source"])
    assert sorted(keys["machineKeys"].values()) == sorted(fields(MACHINE_OPTIONS))
    for name, key in {**keys["shareKeys"], **keys["machineKeys"]}.items():
        assert name.lower() == key.replace("_", ""), f"{name} does not read as {key}"


def fields(table: Mapping[str, Option]) -> list[str]:
    return [option.field for option in table.values()]


@pytest.mark.parametrize("kind", ["share", "machine"])
def test_an_option_takes_what_its_key_takes(nix: Nix, kind: str) -> None:
    """A value of the key's type is taken, one of another is not, and the choices of an enumeration are the same."""
    table = SHARE_OPTIONS if kind == "share" else MACHINE_OPTIONS
    names = {key: name for name, key in nix.evaluate(f"it.options.{kind}Keys").items()}
    odd = {"network": "none", "forward": ["udp::53:53"], "memory": 1 << 30, "ioWeight": 100}
    paths = {"mountPoint", "kernel", "initrd", "image"}
    wanted: dict[str, tuple[Json, bool]] = {}
    for option in table.values():
        name = names[option.field]
        by_signature: dict[str, Json] = {
            "s": "x",
            "b": True,
            "u": 7,
            "t": 1 << 30,
            "as": ["a"],
            "a{ss}": {"a": "/a"},
        }
        choices = getattr(option.parse, "__members__", {})
        good = [odd[name]] if name in odd else [by_signature[option.signature]]
        good = ["/x"] if name in paths else [choice.value for choice in choices.values()] or good
        wanted |= {f"{name} {number}": ({name: value}, True) for number, value in enumerate(good)}
        bad = "x" if option.signature != "s" else 1
        wanted[f"{name} bad"] = ({name: bad}, False)
        if choices:
            wanted[f"{name} none of them"] = ({name: "x"}, False)
    place = share if kind == "share" else machine
    results = nix.evaluate(
        "it.hosts cases", cases={case: place(**given) for case, (given, _) in wanted.items()}
    )
    for case, (_, good_one) in wanted.items():
        assert (results[case] is not None) == good_one, case


def test_the_files_are_those_that_one_would_write_by_hand(hosts: dict[str, Json]) -> None:
    good = hosts["good"]
    assert good["failed"] == []
    written = files(good)
    assert list(written) == [("machines", "dev"), ("shares", "lone")]
    assert read(written["machines", "dev"], "machines", "dev") == document.read_machine(
        DEV, "dev", Scope.SYSTEM
    )
    assert read(written["shares", "lone"], "shares", "lone") == document.read_share(
        LONE, "lone", Scope.SYSTEM
    )


def test_the_host_gets_the_package_and_its_units(hosts: dict[str, Json]) -> None:
    good = hosts["good"]
    assert good["packages"] == {kind: ["/nix/store/vfsd"] for kind in ("units", "bus", "programs")}
    assert good["service"] == {
        "wantedBy": ["multi-user.target"],
        "serviceConfig": {"ExecReload": "/nix/store/vfsd/bin/vfsctl --system reload"},
    }
    assert good["triggers"] == list(good["files"].values())
    assert good["groups"] == ["vfsd"]
    assert good["polkit"]["enable"] is True
    assert 'subject.isInGroup("vfsd")' in good["polkit"]["extraConfig"]


@pytest.mark.parametrize("case", AT_EVALUATION)
def test_what_vfsd_refuses_is_said_at_evaluation(hosts: dict[str, Json], case: str) -> None:
    failed = hosts[case]["failed"]
    assert any(AT_EVALUATION[case][1] in message for message in failed), failed
    if case == "a machine with a bad name":  # such a file has no such name
        return
    refused = 0
    for (kind, name), text in files(hosts[case]).items():
        try:
            read(text, kind, name)
        except document.BadDocument:
            refused += 1
    assert refused == 1


@pytest.mark.parametrize("case", AT_START)
def test_what_would_fail_at_start_is_said_at_evaluation(hosts: dict[str, Json], case: str) -> None:
    assert [AT_START[case][1] in message for message in hosts[case]["failed"]] == [True]
    for (kind, name), text in files(hosts[case]).items():
        read(text, kind, name)


def test_a_root_share_that_others_mount_may_look_like_a_device(nix: Nix) -> None:
    given = {"builtin": False, "kernel": "/k", "rootShare": "fd0", "shares": {"fd0": {"source": "/srv"}}}
    cases = {"initrd": machine(**given, initrd="/i"), "overlay": machine(**given, rootOverlay=True)}
    assert [host["failed"] for host in nix.evaluate("it.hosts cases", cases=cases).values()] == [[], []]


@pytest.mark.parametrize("case", TYPES)
def test_types_refuse(hosts: dict[str, Json], case: str) -> None:
    assert hosts[case] is None


def test_secrets_in_the_store_are_warned_of(nix: Nix) -> None:
    host = nix.evaluate("it.hosts cases", cases={"a": machine(credentials={"a": "secret"})})["a"]
    assert host["failed"] == []
    assert "where everybody can read them" in host["warnings"][0]


def test_a_users_machines_lie_in_the_home(nix: Nix) -> None:
    given = {name: value for name, value in GOOD.items() if name != "group"}
    mapped = {"enable": True, "shares": {"mapped": {"source": "/home/x", "uidMap": [":0:100000:65536:"]}}}
    homes = nix.evaluate("it.homes cases", cases={"good": given, "mapped": mapped})
    # a user's sandbox is a namespace by default
    assert homes["mapped"]["failed"] == homes["good"]["failed"] == []
    good = homes["good"]
    written = {target: source for target, source in good["files"].items() if target.endswith(".toml")}
    assert list(written) == ["vfsd/machines/dev.toml", "vfsd/shares/lone.toml"]
    text = Path(written["vfsd/machines/dev.toml"]).read_text()
    assert document.read_machine(text, "dev", Scope.USER) == document.read_machine(DEV, "dev", Scope.USER)
    assert good["changes"]["vfsd/machines/dev.toml"] == "/nix/store/vfsd/bin/vfsctl --user reload || true"
    assert good["files"]["systemd/user/default.target.wants/vfsd.service"].endswith(
        "/systemd/user/vfsd.service"
    )
    assert good["packages"] == good["bus"] == ["/nix/store/vfsd"]


HOSTS_DISKS: Json = {
    "swapDevices": [{"device": "/dev/sda2"}],
    "boot": {"initrd": {"luks": {"devices": {"root": {"device": "/dev/sda3"}}}}},
    "fileSystems": {
        "/": {"device": "/dev/mapper/root", "fsType": "ext4"},
        "/boot": {"device": "/dev/disk/by-uuid/1234-ABCD", "fsType": "vfat", "options": ["nofail"]},
        "/var/lib": {"device": "/dev/vda", "fsType": "ext4"},
    },
}
"""Of a system that a machine is made of as well."""


def test_a_guest_mounts_its_shares(nix: Nix) -> None:
    shares = {"src": {"mountPoint": "/mnt/src"}, "ro": {"mountPoint": "/r", "tag": "t", "readOnly": True}}
    cases = {
        "shares": {"vfsd": {"guest": {"shares": shares}}},
        "store": {"vfsd": {"guest": {"store": True, "agent": False}}, **HOSTS_DISKS},
        "off": {"vfsd": {"guest": {"enable": False, "shares": shares}}},
        "long": {"vfsd": {"guest": {"shares": {"x" * 37: {"mountPoint": "/x"}}}}},
        "twice": {"vfsd": {"guest": {"shares": {tag: {"mountPoint": "/x"} for tag in "ab"}}}},
    }
    guests = nix.evaluate("it.guests cases", cases=cases)
    mounts = {
        where: (one["device"], one["fsType"], one["options"])
        for where, one in guests["shares"]["fileSystems"].items()
    }
    assert mounts == {"/mnt/src": ("src", "virtiofs", []), "/r": ("t", "virtiofs", ["ro"])}
    assert {"virtiofs", "virtio_pci"} <= set(guests["shares"]["initrd"])
    assert "console=ttyS0" in guests["shares"]["kernelParams"]
    assert (guests["shares"]["agent"], guests["shares"]["grub"]) == (True, True)
    store = guests["store"]
    assert store["fileSystems"]["/"]["fsType"] == "tmpfs"
    assert store["fileSystems"]["/nix/store"]["neededForBoot"] is True
    assert (store["swap"], store["luks"]) == ([], {})
    assert (store["agent"], store["grub"]) == (False, False)
    assert guests["off"]["fileSystems"] == {}
    assert ["36 bytes" in message for message in guests["long"]["failed"]] == [True]
    assert ["one mount point" in message for message in guests["twice"]["failed"]] == [True]


@pytest.mark.parametrize(
    "disk",
    [{"device": "/dev/disk/by-label/boot", "fsType": "vfat"}, {"device": "tank/home", "fsType": "zfs"}],
)
def test_a_machine_has_not_the_hosts_disks(nix: Nix, disk: Json) -> None:
    """Its boot would wait for them, and end in a rescue shell."""
    guest = {"fileSystems": {"/x": disk}}
    cases = {"store": {"vfsd": {"guest": {"store": True}}, **guest}, "image": guest}
    found = nix.evaluate("it.guests cases", cases=cases)
    assert any(
        f'"/x" is on {disk["device"]}, and this guest' in message for message in found["store"]["failed"]
    )
    assert not any('"/x"' in message for message in found["image"]["failed"])


@pytest.mark.parametrize(
    ("kernel", "lacks"),
    [
        ("{ features = { }; }", ""),
        ('{ features = { }; structuredExtraConfig.VIRTIO_FS.tristate = "n"; }', "VIRTIO_FS"),
        ('{ config.isEnabled = name: name != "VIRTIO_FS"; }', "VIRTIO_FS"),
        ('{ config.isEnabled = name: name != "VIRTIO_PCI"; }', "VIRTIO_PCI"),
        ("{ config.isEnabled = name: true; }", ""),
    ],
)
def test_a_kernel_without_virtio_fs_is_no_guests(nix: Nix, kernel: str, lacks: str) -> None:
    found = nix.evaluate(
        f"{{ guest = it.guests {{ a.boot.kernelPackages.kernel = {kernel}; }};"
        f'  machine = it.machine [ {{ boot.kernelPackages.kernel = {kernel} // {{ outPath = "/k"; }}; }} ]; }}'
    )
    assert [f"CONFIG_{lacks}" in message for message in found["guest"]["a"]["failed"]] == [True] * bool(lacks)
    assert (found["machine"] is None) == bool(lacks)


def test_a_nixos_system_is_a_machine(nix: Nix) -> None:
    """Also if it has the guest module already, and a disk."""
    found = nix.evaluate(
        """
        let machine = it.machine [
          it.guestModule
          { networking.hostName = "web"; fileSystems."/" = { device = "/dev/sda1"; fsType = "ext4"; }; }
        ];
          given = { enable = true; machines.web = machine // { memory = "1G"; }; };
        in { inherit machine; host = (it.hosts { a = given; }).a; }
        """
    )
    web = found["machine"]
    assert web["append"].split()[0] == "init=/nix/store/toplevel-web/init"
    assert {"loglevel=4", "console=ttyS0"} <= set(web["append"].split())
    assert web["kernel"].endswith("-linux/bzImage")
    assert web["initrd"] == "/nix/store/initrd/initrd"
    assert found["host"]["failed"] == []
    spec = document.read_machine(files(found["host"])["machines", "web"], "web", Scope.SYSTEM)
    assert [(one.source, one.tag, one.read_only) for one in spec.shares] == [
        (str(nix.store), "nix-store", True)
    ]
    assert spec.kernel == web["kernel"]


def test_the_vm_tests_are_python_and_declare_what_vfsd_takes(nix: Nix) -> None:
    """They are not run: that takes nixpkgs."""
    found = nix.evaluate("{ inherit (it) scripts; hosts = it.hosts it.testHosts; }")
    assert found["scripts"].keys() == found["hosts"].keys() == {"nixos-guest", "shares"}
    for script in found["scripts"].values():
        calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
        assert len(calls) > 5
    for host in found["hosts"].values():
        assert host["failed"] == []
    assert "toplevel-guest/init" in files(found["hosts"]["nixos-guest"])["machines", "guest"]


@pytest.fixture(scope="module")
def package(nix: Nix) -> Path:
    """The package, built by its own phases with the system's tools."""
    expression = (
        f"(import {STAND_INS}/eval.nix {{ project = {PROJECT}; system = builtins.currentSystem; }}).package"
    )
    return Path(nix.run("nix-build", "--no-out-link", "-E", expression).strip())


def test_the_package_names_only_the_store(package: Path, nix: Nix) -> None:
    for unit in ("system/vfsd.service", "user/vfsd.service"):
        text = (package / "lib/systemd" / unit).read_text()
        assert f"ExecStart={package}/bin/vfsd --" in text
    for program in ("vfsd", "vfsctl"):
        started = (package / "libexec" / program).read_text()
        assert started.startswith(f"#!{nix.store}/")
        assert "/usr/" not in started
        assert f'"{package}/lib/vfsd"' in started
        wrapper = (package / "bin" / program).read_text()
        assert "VFSD_VIRTIOFSD=${VFSD_VIRTIOFSD-/nix/store/virtiofsd/bin/virtiofsd}" in wrapper
        assert "VFSD_QEMU=${VFSD_QEMU-/nix/store/qemu/bin/qemu-system-" in wrapper
        assert "VFSD_GUEST_BUSYBOX=${VFSD_GUEST_BUSYBOX-/nix/store/busybox/bin/busybox}" in wrapper
        assert f"VFSD_USES={package}\n" in wrapper
    for place in (
        "share/dbus-1/system.d/org.vfsd1.conf",
        "share/dbus-1/services/org.vfsd1.service",
        "share/polkit-1/actions/org.vfsd1.policy",
        "share/man/man8/vfsd.8",
        "share/gnome-shell/extensions/vfsd@vfsd1.org/schemas/gschemas.compiled",
        "lib/vfsd/vfsd/service.py",
    ):
        assert (package / place).is_file(), place


@pytest.mark.parametrize("path", ["/usr/local/bin:/usr/bin", ""])
def test_the_hosts_own_programs_come_first(package: Path, path: str) -> None:
    """Nix's ssh stumbles over the configuration of other distributions' ssh; NixOS's services have none in PATH."""
    exports = (package / "bin/vfsd").read_text().rpartition("exec ")[0]
    shell = ["/bin/bash", "-c", f'{exports}\nprintf %s "$PATH"']
    done = subprocess.run(shell, env={"PATH": path}, capture_output=True, text=True, timeout=10, check=True)
    ours = [f"/nix/store/{name}/bin" for name in ("openssh", "systemd", "util-linux", "xz", "zstd")]
    assert done.stdout.split(":") == [*filter(None, path.split(":")), *ours, "/run/wrappers/bin"]


def test_the_package_runs_and_has_a_guests_kernel_with_modules(package: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    command = [str(package / "bin/vfsctl"), "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "vfsctl" in done.stdout
    wrapper = (package / "bin/vfsd").read_text()
    kernel = Path(wrapper.partition("VFSD_GUEST_KERNEL-")[2].partition("}")[0])
    assert kernel.is_file()
    assert not kernel.is_symlink()  # or the modules beside it would not be found
    assert (kernel.parent / "lib/modules/6.12.0/modules.builtin").is_file()


def test_the_flake_is_sound(nix: Nix, tmp_path: Path) -> None:
    for name in ("Makefile", "applets", "dbus", "flake.nix", "packaging", "units", "vfsd"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copyfile
        copy(PROJECT / name, tmp_path / name)
    nixpkgs = ("--override-input", "nixpkgs", f"path:{STAND_INS / 'nixpkgs'}")
    nix.run("nix", "flake", "check", "--no-build", "--no-write-lock-file", *nixpkgs, f"path:{tmp_path}")
    shown = json.loads(
        nix.run(
            "nix",
            "flake",
            "show",
            "--json",
            "--all-systems",
            "--no-write-lock-file",
            *nixpkgs,
            f"path:{tmp_path}",
        )
    )
    assert shown["apps"]["x86_64-linux"].keys() == {"default", "vfsctl"}
    assert shown["checks"]["aarch64-linux"].keys() == {"nixos-guest", "package", "shares", "version"}
    assert shown["nixosModules"].keys() == {"default", "guest", "vfsd"}


def test_the_package_has_vfsds_version() -> None:
    version = (PROJECT / "pyproject.toml").read_text().partition('\nversion = "')[2].partition('"')[0]
    assert f'version = "{version}";' in (NIX / "package.nix").read_text()


def test_nix_run_is_a_script_that_a_shell_takes(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", NIX / "run.sh"], timeout=10, check=True)
