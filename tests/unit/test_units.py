"""Properties of transient units: nothing of the user's paths, nothing expanded, the right sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dbus_next import Variant
from hypothesis import given
from hypothesis import strategies as st

from vfsd import hardening, names, units
from vfsd.commands import virtiofsd_arguments
from vfsd.model import MachineSpec, Sandbox, ShareSpec
from vfsd.names import Scope
from vfsd.opened import Openings
from vfsd.paths import Paths
from vfsd.units import Unit

PATHS = Paths(Path("/run/vfsd"), Path("/var/lib/vfsd"), ())
ODD_PATH = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).map(
    lambda text: f"/MARK{text}"
)
SCOPES = st.sampled_from(list(Scope))


def share_units(
    source: str = "/MARK",
    scope: Scope = Scope.SYSTEM,
    name: str = "src",
    machine: str = "",
    **options: tuple[str, Any],
) -> tuple[Unit, Unit]:
    spec = ShareSpec.from_options(name, source, scope, options)
    arguments = virtiofsd_arguments("/usr/libexec/virtiofsd", spec, PATHS.mount)
    return units.share_units(spec, arguments, scope, PATHS, units.Place(machine))


def get(unit: Unit) -> dict[str, Any]:
    found = {name: value for name, _, value in unit.properties}
    names = [
        name for name, _, _ in unit.properties if name != "SystemCallFilter"
    ]  # what is taken from it comes next
    assert len(set(names)) == len(names), "no property twice"
    return found


@given(ODD_PATH, SCOPES, st.booleans(), st.sampled_from(["namespace", "chroot", "none"]))
def test_no_text_of_a_source_is_in_a_unit(source: str, scope: Scope, read_only: bool, sandbox: str) -> None:
    options = {"ReadOnly": ("b", read_only), "Sandbox": ("s", sandbox), "MountPoint": ("s", source)}
    for unit in share_units(source, scope, **options):  # type: ignore[arg-type]
        assert "MARK" not in repr(unit)
    plain = share_units("/other", scope, **options)  # type: ignore[arg-type]
    assert plain == share_units(source, scope, **options), "the units of two sources differ in nothing"  # type: ignore[arg-type]


@given(ODD_PATH, ODD_PATH, SCOPES)
def test_no_path_of_a_machines_is_in_its_units(one: str, other: str, scope: Scope) -> None:
    options = {"Kernel": ("s", one), "Initrd": ("s", other), "Image": ("s", one), "Append": ("s", "quiet")}
    spec = MachineSpec.from_options("dev", scope, options)
    stop = units.stop_command("/usr/bin/python3", Path("/lib/power_off.py"), PATHS.machine("dev"), 5)
    unit, aux = units.machine_units(spec, ["/usr/bin/qemu"], stop, ["src"], scope, PATHS, [])
    assert "MARK" not in repr([unit, *aux])


def test_what_lies_in_a_store_is_named_for_the_collector_of_garbage() -> None:
    """Each store path once, as far as it goes; and nothing at all where there is no store."""
    paths = PATHS.machine("dev")
    options = {"Kernel": ("s", "/nix/store/k-linux/bzImage"), "Image": ("s", "/gnu/store/i-$x.img")}
    spec = MachineSpec.from_options("dev", Scope.SYSTEM, options)
    arguments = ["/nix/store/q-qemu/bin/qemu", "-append", "init=/nix/store/t-system/init quiet"]
    stop = units.stop_command("/nix/store/p-python3.13/bin/python3", Path("/nix/store/v-vfsd/x.py"), paths, 5)
    unit, _ = units.machine_units(spec, arguments, stop, [], Scope.SYSTEM, PATHS, [])
    named = ["q-qemu", "t-system", "p-python3.13", "v-vfsd", "k-linux"]
    wanted = " ".join([*(f"/nix/store/{name}" for name in named), "/gnu/store/i-"])
    assert get(unit)["Environment"] == [f"VFSD_USES={wanted}"]
    _, service = share_units("/nix/store/s-site/share/a b")
    assert get(service)["Environment"] == ["VFSD_USES=/nix/store/s-site"]
    _, service = share_units("/srv/nix/stores")
    assert "Environment" not in get(service)


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}", fullmatch=True), SCOPES)
def test_properties_match_their_signatures(name: str, scope: Scope) -> None:
    spec = MachineSpec.from_options("dev", scope, {})
    stop = units.stop_command("/usr/bin/python3", Path("/lib/power_off.py"), PATHS.machine("dev"), 5)
    machine, aux = units.machine_units(spec, ["/usr/bin/qemu"], stop, [name], scope, PATHS, [])
    for unit in (*share_units(name=name, scope=scope), machine, *aux):
        get(unit)
        for _, signature, value in unit.properties:
            Variant(signature, value)  # raises if it does not


def test_commands_are_not_expanded() -> None:
    [[program, arguments, flags]] = units.command(["/bin/x", "${X}", "$X", "%n", "a b"])
    assert (program, arguments, flags) == ("/bin/x", ["/bin/x", "${X}", "$X", "%n", "a b"], ["no-env-expand"])
    assert units.command(["/bin/x"], "ignore-failure")[0][2] == ["no-env-expand", "ignore-failure"]
    for unit in share_units():
        assert not {"ExecStart", "ExecStop", "ExecStartPre"} & set(get(unit)), "only the Ex forms"


def test_a_share_that_stands_alone() -> None:
    socket, service = share_units()
    assert (socket.name, service.name) == ("vfsd-share-src.socket", "vfsd-share-src.service")
    listens = get(socket)
    assert listens["Listen"] == [["Stream", "/run/vfsd/share/src.sock"]]
    assert (listens["SocketMode"], listens["RemoveOnStop"], listens["FlushPending"]) == (0o600, True, True)
    assert listens["TriggerLimitIntervalUSec"] == 0
    assert "StopWhenUnneeded" not in listens, "it would vanish at once"
    serves = get(service)
    assert (serves["KillSignal"], serves["StartLimitIntervalUSec"], serves["Slice"]) == (2, 0, "vfsd.slice")
    assert not {"PartOf", "BindsTo", "SuccessExitStatus", "Restart"} & set(serves)
    assert serves["LogExtraFields"] == [b"VFSD_SHARE=src"]


def test_a_share_of_a_machine() -> None:
    socket, service = share_units(machine="d-v", SocketGroup=("s", "kvm"))
    assert get(socket)["StopWhenUnneeded"] is True
    assert (get(socket)["SocketMode"], get(socket)["SocketGroup"]) == (0o660, "kvm")
    assert get(socket)["Slice"] == get(service)["Slice"] == r"vfsd-d\x2dv.slice"
    assert get(service)["LogExtraFields"] == [b"VFSD_SHARE=src", b"VFSD_MACHINE=d-v"]


@pytest.mark.parametrize("machine", ["", "dev"])
def test_a_share_on_a_disk(machine: str) -> None:
    spec, place = ShareSpec.from_options("src", "/mnt/a b/c", Scope.SYSTEM, {}), units.Place(machine)
    made = units.share_units(spec, ["/v"], Scope.SYSTEM, PATHS, place, "/mnt/a b")
    assert "a b" not in repr(made), "a path that a user chose"
    socket, service = map(get, made)
    mount = r"mnt-a\x20b.mount"
    assert socket["After"] == service["After"] == [mount]
    assert socket.get("StopPropagatedFrom") == (None if machine else [mount])
    assert service["Asserts"] == [["AssertPathIsMountPoint", False, False, "/run/vfsd/mount-point/src"]]
    assert not {"Requires", "BindsTo", "RequiresMountsFor", "StopPropagatedFrom"} & service.keys(), (
        "a guest hangs"
    )


LIMITS = {"MemoryMax": 2 << 30, "CPUQuotaPerSecUSec": 1_500_000, "IOWeight": 50, "TasksMax": 500}


def test_limits_of_a_machine_are_those_of_its_slice() -> None:
    for limits in ({}, LIMITS):
        spec = MachineSpec.from_options(
            "dev", Scope.USER, {name: ("t", value) for name, value in limits.items()}
        )
        unit, aux = units.machine_units(spec, ["/q"], ["/s"], [], Scope.USER, PATHS, [])
        [found] = [get(one) for one in aux if one.name == "vfsd-dev.slice"]
        assert {name: found[name] for name in LIMITS if name in found} == limits
        assert not set(LIMITS) & set(get(unit)), "the slice covers QEMU and every virtiofsd"


def test_limits_of_a_share_are_those_of_its_service() -> None:
    for limits in ({}, LIMITS):
        options: dict[str, Any] = {name: ("t", value) for name, value in limits.items()}
        socket, service = share_units(**options)
        found = get(service)
        assert {name: found[name] for name in LIMITS if name in found} == limits
        assert not set(LIMITS) & set(get(socket))


def test_two_machines_of_one_name_at_once_share_nothing_but_the_slice() -> None:
    made = []
    for suffix in names.SUFFIXES:
        spec = MachineSpec.from_options("dev", Scope.SYSTEM, {})
        unit, aux = units.machine_units(spec, ["/q"], ["/s"], ["src"], Scope.SYSTEM, PATHS, [], suffix=suffix)
        share = ShareSpec.from_options("src", "/srv", Scope.SYSTEM, {})
        place = units.Place("dev", suffix=suffix)
        made.append([unit, *aux, *units.share_units(share, ["/v"], Scope.SYSTEM, PATHS, place)])
    first, second = ({unit.name for unit in one} for one in made)
    assert first & second == {"vfsd-dev.slice"}
    listens = [{where for unit in one for _, where in get(unit).get("Listen", [])} for one in made]
    assert not listens[0] & listens[1]
    assert "/run/vfsd/share/src.sock-2" in listens[1]
    assert get(made[1][0])["Wants"] == ["vfsd-share-src-2.socket"]


@pytest.mark.parametrize("opens", [True, False])
def test_a_machine(opens: bool) -> None:
    spec = MachineSpec.from_options("dev", Scope.SYSTEM, {"ShutdownTimeoutUSec": ("t", 7_000_000)})
    stop = units.stop_command("/usr/bin/python3", Path("/lib/power_off.py"), PATHS.machine("dev"), 7_000_000)
    shares = ["a", "b-c"]
    openings = Openings(units.FIRST_OPENED_FD, opens=opens)
    first = openings.add(Path("/run/vfsd/share/a.sock"), writable=True)
    second = openings.add(Path("/run/vfsd/machine/dev/kernel"))
    entries = openings.entries
    unit, aux = units.machine_units(spec, ["/q"], stop, shares, Scope.SYSTEM, PATHS, [], open_files=entries)
    has = get(unit)
    assert has["Wants"] == [names.share_socket_unit(share) for share in shares]
    assert set(has["After"]) >= {names.share_socket_unit("a"), names.share_service_unit("b-c")}
    assert not set(has["Wants"]) & set(has.get("Requires", [])), (
        "one socket stopped by hand must not stop the guest"
    )
    assert has["TimeoutStopUSec"] > 7_000_000
    opened = [["/run/vfsd/share/a.sock", "file9", 0], ["/run/vfsd/machine/dev/kernel", "file10", 1]]
    assert has.get("OpenFile") == (opened if opens else None)
    assert (first.descriptor, second.descriptor) == ((9, 10) if opens else (None, None))
    assert second.readable == ("/proc/self/fd/10" if opens else "/run/vfsd/machine/dev/kernel")
    assert second.block == ("/dev/fdset/10" if opens else "/run/vfsd/machine/dev/kernel")
    assert second.set_arguments == (["-add-fd", "fd=10,set=10"] if opens else [])
    [listening] = [other for other in aux if other.name == "vfsd-machine-dev.socket"]
    assert len(get(listening)["Listen"]) == units.FIRST_OPENED_FD - 3
    assert {other.name for other in aux} == {"vfsd-dev.slice", "vfsd-machine-dev.socket"}


@pytest.mark.parametrize("sandbox", list(Sandbox))
def test_the_system_sandbox_holds_only_what_is_needed(sandbox: Sandbox) -> None:
    plain = get(share_units(Sandbox=("s", sandbox.value))[1])
    capabilities = plain["CapabilityBoundingSet"]
    for capability in ("CAP_SYS_ADMIN", "CAP_SYS_CHROOT"):
        held = bool(capabilities >> hardening._CAPABILITIES[capability] & 1)
        wanted = sandbox is Sandbox.NAMESPACE or (
            sandbox is Sandbox.CHROOT and capability == "CAP_SYS_CHROOT"
        )
        assert held == wanted
    assert not capabilities >> hardening._CAPABILITIES["CAP_MKNOD"] & 1
    assert (plain["NoNewPrivileges"], plain["PrivateNetwork"], plain["ProtectSystem"]) == (
        True,
        True,
        "yes",  # what TemporaryFileSystem= of / goes with
    )
    assert plain["BindPaths"][0][:2] == ["/run/vfsd/source/src", "/run/vfsd/mnt"]


def may(unit: units.Unit, capability: str) -> bool:
    return bool(get(unit)["CapabilityBoundingSet"] >> hardening._CAPABILITIES[capability] & 1)


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("/usr/libexec/virtiofsd", False),  # as all of /usr is
        ("/nix/store/v-virtiofsd/bin/virtiofsd", False),
        ("/usr2/bin/virtiofsd", True),
        ("/home/u/.cargo/bin/virtiofsd", True),
        ("/home/a b/virtiofsd", False),  # would be two paths when systemd reads the unit again
    ],
)
def test_a_virtiofsd_elsewhere_sees_itself(program: str, shown: bool) -> None:
    spec = ShareSpec.from_options("src", "/srv", Scope.SYSTEM, {})
    sandbox = {name: value for name, _, value in hardening.virtiofsd(spec, Scope.SYSTEM, PATHS, program)}
    bound = [source for source, _, _, _ in sandbox["BindReadOnlyPaths"]]
    assert (program in bound) == shown


def test_each_relaxation_is_asked_for() -> None:
    assert get(share_units()[1])["RestrictSUIDSGID"] is True
    assert not may(share_units()[1], "CAP_SETFCAP")
    setuid = share_units(AllowSetuid=("b", True))[1]
    assert get(setuid)["RestrictSUIDSGID"] is False
    assert may(setuid, "CAP_SETFCAP")
    assert not may(setuid, "CAP_MKNOD")
    nodes = share_units(AllowDeviceNodes=("b", True))[1]
    assert get(nodes)["PrivateDevices"] is False
    assert get(nodes)["RestrictSUIDSGID"] is True
    assert may(nodes, "CAP_MKNOD")
    assert not may(nodes, "CAP_SETFCAP")
    read_only = get(share_units(ReadOnly=("b", True))[1])
    assert "BindPaths" not in read_only
    assert read_only["BindReadOnlyPaths"][-1][1] == "/run/vfsd/mnt"


def qemus_sandbox(
    scope: Scope = Scope.SYSTEM, accelerator: str = "tcg", opens: bool = True, **options: tuple[str, Any]
) -> dict[str, Any]:
    spec = MachineSpec.from_options("dev", Scope.SYSTEM, options)
    own = PATHS.machine("dev")
    properties = hardening.qemu(spec, scope, own, accelerator, opens=opens, kvm_group=104)
    return get(Unit("x", properties))


def test_a_qemu_is_nobody_and_can_do_nothing() -> None:
    plain = qemus_sandbox(Network=("s", "none"))
    assert (plain["DynamicUser"], plain["PrivateUsers"], plain["PrivateNetwork"]) == (True, True, True)
    assert (plain["CapabilityBoundingSet"], plain["AmbientCapabilities"]) == (0, 0)
    assert plain["RestrictAddressFamilies"] == [True, ["AF_UNIX"]]
    assert {"-/run/vfsd", "-/etc", "-/var"} <= set(plain["InaccessiblePaths"])
    assert not {"BindPaths", "DeviceAllow", "SupplementaryGroups", "RuntimeDirectory"} & set(plain)


def test_each_relaxation_of_a_qemu_is_asked_for() -> None:
    user = qemus_sandbox()
    assert user["PrivateNetwork"] is False
    assert "AF_INET" in user["RestrictAddressFamilies"][1]
    assert "-/etc" not in user["InaccessiblePaths"], "resolv.conf is there"
    tap = qemus_sandbox(Network=("s", "tap:t0"))
    assert tap["AmbientCapabilities"] == 1 << hardening._CAPABILITIES["CAP_NET_ADMIN"]
    assert (tap["PrivateUsers"], tap["DeviceAllow"]) == (False, [["/dev/net/tun", "rw"]])
    kvm = qemus_sandbox(accelerator="kvm")
    assert (kvm["DeviceAllow"], kvm["SupplementaryGroups"]) == ([["/dev/kvm", "rw"]], ["104"])
    display = qemus_sandbox(Display=("s", "vnc"))
    assert display["RuntimeDirectory"] == ["vfsd-display.dev"]


def test_a_qemu_that_must_reach_its_files_is_no_other_user() -> None:
    for sandbox in (qemus_sandbox(opens=False), qemus_sandbox(scope=Scope.USER)):
        assert not {"DynamicUser", "InaccessiblePaths", "PrivateUsers"} & set(sandbox)
        assert sandbox["LockPersonality"] is True
    assert qemus_sandbox(scope=Scope.USER, Network=("s", "bridge:br0")) == {}, "its helper is setuid"


def test_a_users_virtiofsd_may_map_ids() -> None:
    """Nothing that implies NoNewPrivileges: newuidmap is setuid."""
    ids = ("as", [":0:1000:1:"])
    for _, mapped in (share_units(scope=Scope.USER, UIDMap=ids), share_units(scope=Scope.USER, GIDMap=ids)):
        has = get(mapped)
        assert not {
            name for name in has if name.startswith(("Private", "Protect", "NoNew", "System", "Temp"))
        }
    plain = get(share_units(scope=Scope.USER)[1])
    assert (plain["PrivateUsers"], plain["CapabilityBoundingSet"]) == (True, 0)
    assert plain["BindPaths"][0][:2] == ["/run/vfsd/source/src", "/run/vfsd/mnt"]


def test_a_users_guest_makes_no_setuid_files_unless_it_may() -> None:
    assert get(share_units(scope=Scope.USER)[1])["RestrictSUIDSGID"] is True
    assert get(share_units(scope=Scope.USER, AllowSetuid=("b", True))[1])["RestrictSUIDSGID"] is False


def test_what_qemu_says_of_a_descriptor_is_said_of_the_file() -> None:
    openings = Openings(9, opens=True)
    openings.add(Path("/run/vfsd/machine/dev/kernel"))
    openings.add(Path("/run/vfsd/machine/dev/image"), writable=True)
    said = "no '/proc/self/fd/9', no \"/dev/fdset/10\", nor /proc/self/fd/11"
    assert openings.named(said) == (
        "no '/run/vfsd/machine/dev/kernel', no \"/run/vfsd/machine/dev/image\", nor /proc/self/fd/11"
    )
