"""vfsctl --host: through a real sshd and systemd-stdio-bridge, to both buses."""

from __future__ import annotations

import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import only_user
from tests.integration.harness import TESTER, Vfsd, wait_for
from tests.integration.vfsctl import SMALL, Result, Terminal, ok, running, vfsctl

PORT = 10022
CONFIGURATION = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM yes
StrictModes no
PermitRootLogin yes
"""


@pytest.fixture
def ssh(vfsd: Vfsd) -> Iterator[Path]:
    """A folder with a program `ssh` that gets to an SSH server of this host, and a file that makes it fail."""
    folder = Path(tempfile.mkdtemp(prefix="vfsd-sshd-", dir="/srv"))
    folder.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=60
        )
    (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
    (folder / "sshd_config").write_text(CONFIGURATION.format(port=PORT, folder=folder))
    known = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
    (folder / "ssh").write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/called\nexec ssh -i {folder}/key {known} "$@"\n'
    )
    (folder / "ssh").chmod(0o755)
    (folder / "called").write_text("")
    (folder / "called").chmod(0o666)
    if vfsd.scope == "user":
        shutil.chown(folder / "key", TESTER)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config"])
    try:
        wait_for(listens, "sshd listens")
        yield folder
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder)


def listens() -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", PORT)) == 0


def remote(vfsd: Vfsd, ssh: Path, *arguments: str, stdin: str = "") -> Result:
    """Run vfsctl --host to the scope's user on this very host."""
    return vfsctl_through(vfsd, ssh, *options(vfsd), *arguments, stdin=stdin)


def vfsctl_through(vfsd: Vfsd, ssh: Path, *arguments: str, stdin: str = "") -> Result:
    """Run vfsctl with that program for ssh."""
    argv = vfsd.argv(["env", f"SYSTEMD_SSH={ssh}/ssh", "vfsctl", *arguments])
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=90, check=False, cwd="/")
    return Result(done)


def options(vfsd: Vfsd) -> list[str]:
    user = "root" if vfsd.scope == "system" else TESTER
    return ["--host", f"{user}@127.0.0.1:{PORT}", *(["--user"] if vfsd.scope == "user" else [])]


def test_shares_and_machines_of_another_host(vfsd: Vfsd, folder: Path, ssh: Path) -> None:
    made = remote(vfsd, ssh, "share", "add", "far", str(folder), "--json").json()
    assert made == vfsctl(vfsd, "share", "show", "far", "--json").json()
    for wrong, said in (("./far", "not an absolute path"), ("/does/not/exist", "does not exist")):
        refused = remote(vfsd, ssh, "share", "add", "wrong", wrong)
        assert refused.code in (1, 2)
        assert said in refused.err
    ok(vfsd, "machine", "add", "dev", "--builtin", *SMALL)
    assert remote(vfsd, ssh, "machine", "start", "dev").code == 0
    shown = remote(vfsd, ssh, "status", "dev")
    assert f"vfsctl {' '.join(options(vfsd))} logs dev" in shown.out
    # a program in the guest: what it gets and says is in messages, not in descriptors
    done = wait_for(lambda: run_in(vfsd, ssh, "cat"), "the guest's agent answers", 60)
    assert done.out == "typed"
    used = remote(vfsd, ssh, "top").out.splitlines()[1].split()
    assert used[0] == "dev"
    assert used[2].endswith("%"), "systemd there has counted it"
    assert used[4:] == ["-", "-"]
    logged = remote(vfsd, ssh, "logs", "dev", "-n", "1000")
    assert "running" in logged.out, logged.err
    assert "vfsd built-in guest" in logged.out, "the guest's console, too"
    assert remote(vfsd, ssh, "machine", "kill", "dev").code == 0
    assert remote(vfsd, ssh, "check", "--json").json() == vfsctl(vfsd, "check", "--by-vfsd", "--json").json()
    calls = (ssh / "called").read_text()
    assert f"-xT -p {PORT} -- " in calls


def run_in(vfsd: Vfsd, ssh: Path, *command: str) -> Result | None:
    done = remote(vfsd, ssh, "exec", "dev", *command, stdin="typed")
    return done if done.code == 0 else None


def test_what_happens_there_is_told_here(vfsd: Vfsd, folder: Path, ssh: Path) -> None:
    argv = vfsd.argv(["env", f"SYSTEMD_SSH={ssh}/ssh", "vfsctl", *options(vfsd), "monitor", "--json"])
    watching = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        output = watching.stdout
        assert output is not None
        ok(vfsd, "share", "add", "far", str(folder))

        def told() -> bool:
            """Something happens until it is told: nobody knows when the other side has begun to listen."""
            ok(vfsd, "share", "stop", "far")
            ok(vfsd, "share", "start", "far")
            return bool(select.select([output], [], [], 0.2)[0])

        wait_for(told, "it is told", 30)
        assert '"Name":"far"' in output.readline()
        watching.terminate()
        assert watching.wait(20) == 0
    finally:
        watching.kill()
        watching.communicate(timeout=20)


@only_user
def test_what_can_not_be_done_from_here_says_where(vfsd: Vfsd, ssh: Path) -> None:
    for command in (["console", "dev"], ["view", "dev"], ["ssh", "dev"], ["run", "--builtin"], ["tray"]):
        refused = remote(vfsd, ssh, *command)
        assert refused.code == 2
        assert "can't be done over --host" in refused.err
        assert command == ["tray"] or "ssh -t " in refused.err
    assert (ssh / "called").read_text() == ""


@only_user
def test_a_host_that_is_not_reached(vfsd: Vfsd, ssh: Path) -> None:
    (ssh / "authorized_keys").write_text("")
    refused = remote(vfsd, ssh, "status")
    assert refused.code == 5
    assert "can't be reached" in refused.err
    assert "Permission denied" in refused.err, "ssh's own words"
    for host in ("-oProxyCommand=x", "a b", "", "@", "host:port"):
        wrong = vfsctl(vfsd, f"--host={host}", "status")
        assert wrong.code == 2, "an empty one is not this host"


@only_user
def test_ctrl_c_ends_what_watches_another_host(vfsd: Vfsd, ssh: Path) -> None:
    """ssh, which has the same terminal, is ended by it too, and with it the connection."""
    for command, begun in (("monitor", "Ctrl-C ends"), ("top", "0 machines")):
        here = {"SYSTEMD_SSH": f"{ssh}/ssh"}
        terminal = Terminal(vfsd, *options(vfsd), command, environment=here, columns=120)
        try:
            terminal.expect(begun)
            terminal.send("\x03")
            assert terminal.end(15) == 0, "it does not wait for answers that can't come"
            assert "Traceback" not in terminal.text
            assert "exception" not in terminal.text
        finally:
            terminal.close()


@only_user
def test_a_bridge_that_ends_is_told(vfsd: Vfsd, ssh: Path) -> None:
    (ssh / "ssh").write_text("#!/bin/sh\nexit 127\n")
    assert "there is no systemd-stdio-bridge" in remote(vfsd, ssh, "status").err.lower()
    (ssh / "ssh").write_text("#!/bin/sh\nread line\nexit 0\n")
    assert remote(vfsd, ssh, "status").code == 5
    with running(vfsd, "status") as here:
        assert here.wait(30) == 0
    # one that ends later, in the middle of something
    bus = "unix:path=/run/dbus/system_bus_socket"
    (ssh / "ssh").write_text(f"#!/bin/sh\nexec timeout 2 systemd-stdio-bridge --bus-path={bus}\n")
    begun = time.monotonic()
    for command in ("monitor", "top -n 100 -d 100ms"):
        ended = vfsctl_through(vfsd, ssh, "--host", "far:7", *command.split())
        assert ended.code == 5
        assert "the connection to the system bus there ended" in ended.err.lower()
        assert "exception" not in ended.err
    assert time.monotonic() - begun < 20, "it is noticed at once"
