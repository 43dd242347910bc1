"""What is known of systemd-machined without asking it: which names it takes, and who is the leader."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_power_off import Qemu
from vfsd import ctrl_alt_del, units
from vfsd.machined import is_name, leader_among
from vfsd.model import MachineSpec
from vfsd.names import Scope
from vfsd.paths import Paths
from vfsd.supervisor import Process

PATHS = Paths(Path("/run/vfsd"), Path("/var/lib/vfsd"), ())
STOP, REBOOT = ["/bin/stop"], ["/bin/reboot", "it"]


@pytest.mark.parametrize("name", ["a", "dev", "Dev-2", "a--b", "1.2.3", "x" * 64])
def test_names_that_machined_takes(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", "my_vm", "_", "a-", "-a", "a..b", "a.", ".host", "a.-b", "a-.b", "x" * 65]
)
def test_names_that_it_refuses(name: str) -> None:
    assert not is_name(name)


def test_the_leader_among_a_units_processes() -> None:
    leader = Process(
        12, f"/bin/sh {units.LEADER} vfsd-machine-dev.service --system /run/vfsd/machine/dev/leader 38"
    )
    qemu = Process(10, f"/usr/bin/qemu -kernel {units.LEADER} -m 1")
    stop = Process(
        13, "/usr/bin/python3 -I -S /usr/lib/vfsd/vfsd/power_off.py /run/vfsd/machine/dev/qmp-stop"
    )
    assert leader_among([qemu, stop, leader], main_pid=10) == 12
    assert leader_among([qemu, stop], main_pid=10) == 0
    assert leader_among([], main_pid=0) == 0


@pytest.mark.parametrize("scope", list(Scope))
def test_only_a_machine_that_is_registered_has_a_leader(scope: Scope) -> None:
    spec = MachineSpec.from_options("d-v", scope, {})
    plain, _ = units.machine_units(spec, ["/q"], STOP, [], scope, PATHS, [])
    led, _ = units.machine_units(spec, ["/q"], STOP, [], scope, PATHS, [], reboot_command=REBOOT)
    [(name, _, [[program, arguments, flags]])] = [
        item for item in led.properties if item not in plain.properties
    ]
    assert (name, program) == ("ExecStartPostEx", "/bin/sh")
    assert arguments[-6:] == [
        r"vfsd-machine-d\x2dv.service",
        f"--{scope}",
        "/run/vfsd/machine/d-v/leader",
        str(signal.SIGRTMIN + 4),
        *REBOOT,
    ]
    assert set(flags) == {"no-env-expand", "ignore-failure", "privileged"}
    # the manager's PATH need not have it
    assert re.fullmatch(r'exec /\S*/setsid --fork "\$0" "\$@"', arguments[2])


# the program for `machinectl reboot`


@pytest.mark.parametrize(("answer", "code"), [("return", 0), ("error", 1)])
def test_the_keys_are_pressed(tmp_path: Path, answer: str, code: int) -> None:
    qemu = Qemu(tmp_path / "qmp", lambda qemu, name: reply(qemu, name, answer))
    assert press(qemu.path) == code
    qemu.close()
    assert [name for name, _ in qemu.commands] == ["qmp_capabilities", "send-key"]


def test_a_qemu_that_ends_first(tmp_path: Path) -> None:
    qemu = Qemu(tmp_path / "qmp", lambda qemu, name: qemu.end() if name == "send-key" else None)
    assert press(qemu.path) == 1
    qemu.close()


def test_no_monitor(tmp_path: Path) -> None:
    assert press(tmp_path / "none") == 1


def reply(qemu: Qemu, name: str, answer: str) -> None:
    if name == "send-key" and qemu.client:
        qemu.client.sendall(f'{{"event": "X"}}\r\n{{"{answer}": {{}}, "id": "pressed"}}\r\n'.encode())


def press(monitor: Path) -> int:
    """As the leader does."""
    command = [sys.executable, "-I", "-S", ctrl_alt_del.__file__, str(monitor)]
    return subprocess.run(command, timeout=10, check=False).returncode
