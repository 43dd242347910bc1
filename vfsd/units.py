"""Transient unit properties: pure functions from what is wanted to what systemd is told.

How the units hold together, and why (each point was found by running it):

- One StartTransientUnit call makes everything: the machine's service is the unit; its slice, its own socket and
  the socket and service of each share are auxiliary units. Either all come into being or none.
- A socket vanishes with its machine through StopWhenUnneeded=. A share that stands alone must not have it.
- The machine has Wants= on its share sockets, not Requires=: stopping one by hand must not stop the guest.
- KillSignal=SIGINT ends virtiofsd cleanly; on SIGTERM it exits 1 and the unit would show as failed.
- FlushPending= keeps a virtiofsd that cannot start from being started over and over by the connection that
  waits; StartLimitIntervalUSec=0 and TriggerLimitIntervalUSec=0 let a healthy one be started as often as clients
  come: otherwise the socket would be gone after 20 of them in 2 s.
- virtiofsd has neither PartOf= nor BindsTo= on the machine: they race with the end of the connection. After= on
  the machine's side gives the order: guest, QEMU, virtiofsd.
- A unit that runs can't be given more dependencies. So the socket of a share that comes later says it all from its
  side: BindsTo= and Before= the machine, which gives the same order and the same end.
- OpenFile= makes systemd connect to the share sockets and pass the descriptors on, so that QEMU needs no right
  to reach them. Passed sockets come first (in the order of Listen), then the OpenFile= ones, from 3 on.
- Commands are set with `no-env-expand`: otherwise ${X} in a path would be replaced.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfsd import hardening, limits, names
from vfsd.commands import MachineSockets
from vfsd.model import USEC_PER_SEC, MachineSpec, ShareSpec
from vfsd.names import FIRST, Scope
from vfsd.opened import OpenFile
from vfsd.paths import MachinePaths, Paths

Property = limits.Property
"""Name, D-Bus signature, value."""

STOP_GRACE_USEC = 10 * USEC_PER_SEC
"""What QEMU gets after the guest's own time is over, before systemd kills it."""

FILES_MAX = 1_000_000
"""Open files of one virtiofsd, what it asks for itself; systemd cuts it to what the system allows."""

CONSOLE_INPUT_FD = 3
"""Descriptors of the machine's own socket unit, in the order of its Listen: this, then those for QEMU."""
SOCKETS = MachineSockets(*range(4, 9))
FIRST_OPENED_FD = 9

UMASK = 0o077
"""QEMU's: nobody else may connect to its display."""

LEADER = Path(__file__).with_name("leader.sh")
"""What runs beside QEMU for systemd-machined."""
_IN_STORE = re.compile(r"/(?:nix|gnu)/store/[0-9A-Za-z+._?=-]+")
"""A path of Nix's or Guix's, of no other letters than these, down to the name that is collected or kept as a whole."""
_POWER_OFF_SIGNAL = signal.SIGRTMIN + 4
"""What machined sends to the leader of a machine that is to power off: systemd(1) takes it for that too."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One transient unit."""

    name: str
    properties: list[Property] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a share's units belong."""

    machine: str = ""
    """The machine that they are a part of."""
    plugged_into: str = ""
    """That machine's unit, if it runs already."""
    suffix: str = FIRST


ALONE = Place()


def command(arguments: Sequence[str], *flags: str) -> Any:
    """One entry of ExecStartEx=, ExecStopEx=: type a(sasas), nothing in it expanded."""
    return [[arguments[0], list(arguments), ["no-env-expand", *flags]]]


def share_units(
    spec: ShareSpec,
    arguments: Sequence[str],
    scope: Scope,
    paths: Paths,
    place: Place = ALONE,
    mount_point: str = "",
) -> tuple[Unit, Unit]:
    """Socket and service of one share.

    :param mount_point: where the file system of its source is mounted; "" for the root file system.
    """
    socket, service = _share_socket(spec, paths, place), _share_service(spec, arguments, scope, paths, place)
    if mount_point:
        # what is below the mount point is never served; the path itself must not be in a unit, hence the link
        link = str(paths.mount_point_link(spec.name))
        service.properties.append(("Asserts", "a(sbbs)", [["AssertPathIsMountPoint", False, False, link]]))
        _follow_mount(socket, service, names.mount_unit(mount_point), alone=not place.machine)
    return socket, service


def _follow_mount(socket: Unit, service: Unit, mount: str, *, alone: bool) -> None:
    """Be stopped before a file system is unmounted, at shutdown too. Neither mounts it nor keeps it mounted."""
    if mount:
        socket.properties.append(("After", "as", [mount]))
        service.properties.append(("After", "as", [mount]))
    if mount and alone:  # a guest would hang
        socket.properties.append(("StopPropagatedFrom", "as", [mount]))


def _share_socket(spec: ShareSpec, paths: Paths, place: Place) -> Unit:
    properties: list[Property] = [
        ("Description", "s", f"virtio-fs share {spec.name} (socket)"),
        ("Listen", "a(ss)", [["Stream", str(paths.share_socket(spec.name, place.suffix))]]),
        ("SocketMode", "u", 0o660 if spec.socket_group else 0o600),
        ("RemoveOnStop", "b", True),
        ("FlushPending", "b", True),
        ("TriggerLimitIntervalUSec", "t", 0),
        ("CollectMode", "s", "inactive-or-failed"),
        ("Slice", "s", _slice(place.machine)),
        ("LogExtraFields", "aay", _log_fields(share=spec.name, machine=place.machine)),
    ]
    if spec.socket_group:
        properties.append(("SocketGroup", "s", spec.socket_group))
    if place.plugged_into:
        properties += [("BindsTo", "as", [place.plugged_into]), ("Before", "as", [place.plugged_into])]
    elif place.machine:
        properties.append(("StopWhenUnneeded", "b", True))
    return Unit(names.share_socket_unit(spec.name, place.suffix), properties)


def _share_service(
    spec: ShareSpec, arguments: Sequence[str], scope: Scope, paths: Paths, place: Place
) -> Unit:
    properties: list[Property] = [
        ("Description", "s", f"virtio-fs share {spec.name}"),
        ("Type", "s", "exec"),
        ("ExecStartEx", "a(sasas)", command(arguments)),
        ("KillSignal", "i", 2),
        ("StartLimitIntervalUSec", "t", 0),
        ("CollectMode", "s", "inactive-or-failed"),
        ("Slice", "s", _slice(place.machine)),
        ("SyslogIdentifier", "s", "virtiofsd"),
        ("LimitNOFILE", "t", spec.limit_nofile or FILES_MAX),
        ("LogExtraFields", "aay", _log_fields(share=spec.name, machine=place.machine)),
        ("TimeoutStopUSec", "t", STOP_GRACE_USEC),
        *limits.properties(spec),
        *hardening.virtiofsd(spec, scope, paths, arguments[0]),
        *_in_use(*arguments, spec.source),
    ]
    if place.plugged_into:
        properties.append(("Before", "as", [place.plugged_into]))
    return Unit(names.share_service_unit(spec.name, place.suffix), properties)


def machine_units(
    spec: MachineSpec,
    arguments: Sequence[str],
    stop_command: Sequence[str],
    share_names: Sequence[str],
    scope: Scope,
    paths: Paths,
    sandbox: Sequence[Property],
    *,
    open_files: Sequence[OpenFile] = (),
    suffix: str = FIRST,
    reboot_command: Sequence[str] = (),
    umask: int = UMASK,
) -> tuple[Unit, list[Unit]]:
    """The machine's service, and its socket and slice, which go before the shares' units in the call.

    :param sandbox: what QEMU may not do.
    :param open_files: what QEMU gets opened (OpenFile=), the sockets of the shares among it.
    :param reboot_command: what asks the guest to reboot, for a leader that is to run beside QEMU; its FIFO exists
        then.
    :param umask: for the sockets that QEMU makes by itself.
    """
    own = paths.machine(spec.name, suffix)
    sockets = [names.share_socket_unit(share, suffix) for share in share_names]
    services = [names.share_service_unit(share, suffix) for share in share_names]
    socket = names.machine_socket_unit(spec.name, suffix)
    properties: list[Property] = [
        ("Description", "s", f"virtual machine {spec.name}"),
        ("Type", "s", "exec"),
        ("ExecStartEx", "a(sasas)", command(with_console_input(arguments))),
        ("ExecStopEx", "a(sasas)", command(stop_command, "ignore-failure", "privileged")),
        ("NotifyAccess", "s", "exec"),
        ("Requires", "as", [socket]),
        ("Wants", "as", sockets),
        ("After", "as", [socket, *sockets, *services]),
        ("CollectMode", "s", "inactive-or-failed"),
        ("Slice", "s", names.machine_slice(spec.name)),
        ("KillMode", "s", "control-group"),  # QEMU's end is that of the leader too
        ("UMask", "u", umask),
        ("TimeoutStopUSec", "t", spec.shutdown_timeout_usec + STOP_GRACE_USEC),
        ("SyslogIdentifier", "s", f"vfsd-{spec.name}"),
        ("LogExtraFields", "aay", _log_fields(machine=spec.name)),
        ("StandardOutput", "s", "journal"),
        ("StandardError", "s", "journal"),
        *sandbox,
    ]
    if open_files:
        properties.append(("OpenFile", "a(sst)", [list(entry) for entry in open_files]))
    unit = Unit(names.machine_unit(spec.name, suffix), properties)
    if reboot_command:
        beside = leader_command(unit.name, own, scope, reboot_command)
        properties.append(("ExecStartPostEx", "a(sasas)", command(beside, "ignore-failure", "privileged")))
    properties += _in_use(*arguments, *stop_command, *reboot_command, spec.kernel, spec.initrd, spec.image)
    return unit, [_machine_slice(spec), _machine_socket(spec, own)]


def _machine_socket(spec: MachineSpec, own: MachinePaths) -> Unit:
    listen = [
        ["FIFO", str(own.console_input)],
        ["Stream", str(own.monitor)],
        ["Stream", str(own.stop_monitor)],
        ["Stream", str(own.console)],
        ["Stream", str(own.console_tap)],
        ["Stream", str(own.agent)],
    ]
    properties: list[Property] = [
        ("Description", "s", f"virtual machine {spec.name} (monitors and console)"),
        ("Listen", "a(ss)", listen),
        ("SocketMode", "u", 0o600),
        ("RemoveOnStop", "b", True),
        ("FlushPending", "b", True),
        ("StopWhenUnneeded", "b", True),
        ("CollectMode", "s", "inactive-or-failed"),
        ("Slice", "s", names.machine_slice(spec.name)),
        ("LogExtraFields", "aay", _log_fields(machine=spec.name)),
    ]
    return Unit(names.machine_socket_unit(spec.name, own.suffix), properties)


def _machine_slice(spec: MachineSpec) -> Unit:
    properties: list[Property] = [
        ("Description", "s", f"virtual machine {spec.name} and its shares"),
        ("StopWhenUnneeded", "b", True),
        ("CollectMode", "s", "inactive-or-failed"),
        *limits.properties(spec),
    ]
    return Unit(names.machine_slice(spec.name), properties)


def _slice(machine: str) -> str:
    return names.machine_slice(machine) if machine else names.ROOT_SLICE


def _in_use(*texts: str) -> list[Property]:
    """Keep what these name in /nix/store for as long as the unit runs, also when vfsd or the guest were replaced.

    A garbage collection of Nix's (or Guix's) takes everything away that neither a profile nor a process refers to. It
    looks at the processes' environment, and does not see what they were called with, or, after a pivot_root(), where
    they run from.
    """
    found = dict.fromkeys(path for text in texts for path in _IN_STORE.findall(text))
    return [("Environment", "as", [f"VFSD_USES={' '.join(found)}"])] if found else []


def _log_fields(*, share: str = "", machine: str = "") -> list[bytes]:
    fields = {"VFSD_SHARE": share, "VFSD_MACHINE": machine}
    return [f"{key}={value}".encode() for key, value in fields.items() if value]


def with_console_input(arguments: Sequence[str]) -> list[str]:
    """Run QEMU with the FIFO of its socket unit as standard input.

    QEMU's console ends with its standard input, so that must be a FIFO that never ends. StandardInput=fd: would
    do the same, were it not that systemd applies it to ExecStop= too, to which it passes no sockets.
    """
    return ["/bin/sh", "-c", f'exec "$0" "$@" <&{CONSOLE_INPUT_FD} {CONSOLE_INPUT_FD}<&-', *arguments]


def leader_command(unit: str, own: MachinePaths, scope: Scope, reboot_command: Sequence[str]) -> list[str]:
    """What ExecStartPost= runs: leaves the machine's leader behind, for systemd-machined. See leader.sh.

    It runs outside QEMU's sandbox, which need not be set up once more for it. A shell would ignore SIGINT in what it
    leaves in the background, for good; setsid doesn't. It is named by its path, since the PATH of NixOS's service
    manager has systemd's programs only.
    """
    setsid = shlex.quote(shutil.which("setsid") or "setsid")
    told = [unit, f"--{scope}", str(own.leader_input), str(_POWER_OFF_SIGNAL), *reboot_command]
    return ["/bin/sh", "-c", f'exec {setsid} --fork "$0" "$@"', "/bin/sh", str(LEADER), *told]


def qemu_of(command: Sequence[str]) -> str:
    """The QEMU that such a command runs; "" if it is none."""
    return command[3] if len(command) > 3 else ""


def stop_command(python: str, script: Path, own: MachinePaths, timeout_usec: int) -> list[str]:
    """What ExecStop= runs: asks the guest to power off, and waits for it.

    It runs outside QEMU's sandbox, whose set-up would take longer than all the rest of a machine's end, and reaches
    a socket that is root's; what QEMU says to it is counted, never read.

    The shell asks first whether QEMU still runs (systemd sets MAINPID only then), since this is run after the
    guest powered itself off too, and a shell takes a tenth of Python's time to say so.
    """
    ask = 'test -z "$MAINPID" || exec "$0" "$@"'
    helper = [python, "-I", "-S", str(script), str(own.stop_monitor), str(own.deadline), str(timeout_usec)]
    return ["/bin/sh", "-c", ask, *helper]
