"""A whole Debian 13 with its own systemd and the real guest agent: what the built-in guest only stands for.

Only on the system bus: nobody but root can serve a tree of root's. The machine is started once and used up from test to
test, the tests that end it last; a test that finds it unusable starts it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dbus_next import Variant

from tests.integration.conftest import kept_clean
from tests.integration.debian_guest import (
    NAME,
    PATH,
    SMALL,
    TREE,
    WHOLE,
    Debian,
    execute,
    later,
    make,
    sh,
    writable_tree,
)
from tests.integration.harness import MACHINE, SHARE, BusError, Client, Vfsd, until, wait_for
from tests.integration.sharing import command_line, family
from tests.integration.test_credentials import OTHER, SECRET, assert_untold
from tests.integration.test_endings import GUEST_EVENT
from tests.integration.test_healing import kill_virtiofsd
from tests.integration.test_hotplug import refused
from tests.integration.test_shutdown import BY_FORCE, GUEST_DONE, press_the_button
from tests.integration.tiny_guest import walked

ODD = "/mnt/two words ☃ ü"
LATE = "/mnt/plugged 'late'"
SOON = 60
"""Seconds that a running guest may take on a busy host for what takes a second."""


@pytest.fixture(scope="module")
def vfsd() -> Iterator[Vfsd]:
    """The system's, for all tests of this file."""
    with kept_clean("system") as service:
        yield service


@pytest.fixture(scope="module")
def sources() -> Iterator[Path]:
    """Folders to be shared."""
    made = Path(tempfile.mkdtemp(prefix="vfsd-test-", dir="/srv"))
    for name in ("plain", "odd", "late"):
        (made / name).mkdir()
        (made / name / "hello").write_text(f"from {name}\n")
    (made / "token").write_text(OTHER)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def machine(vfsd: Vfsd, sources: Path) -> Iterator[Debian]:
    """The machine, defined."""
    shares = [
        [str(sources / "plain"), "/mnt/plain", {}],
        [str(sources / "odd"), ODD, {"ReadOnly": Variant("b", True)}],
    ]
    with writable_tree() as root:
        yield make(
            vfsd,
            root,
            shares,
            SSH=("b", True),
            OnShareFailure=("s", "heal"),
            Credentials=("a{ss}", {"vfsd-test.secret": SECRET}),
            CredentialFiles=("a{ss}", {"vfsd-test.token": str(sources / "token")}),
        )
        if vfsd.get(PATH, MACHINE, "State") not in ("stopped", "failed"):
            vfsd.call(PATH, MACHINE, "Kill")


@pytest.fixture
def debian(machine: Debian) -> Debian:
    """The guest, all of it up and its agent answering."""
    machine.up(WHOLE)
    return machine


@pytest.fixture
def small(machine: Debian) -> Debian:
    """The guest as far as it takes to end it, told of its mounts by credential: its kernel's line has no room."""
    machine.up(f"{SMALL} padding=".ljust(1950, "x"))
    return machine


async def test_it_boots_from_a_share_and_nothing_else(debian: Debian, client: Client) -> None:
    arguments = command_line(debian.get("MainPID"))
    assert not {"-initrd", "-drive", "-blockdev", "-cdrom"} & set(arguments)
    assert debian.get("GuestSystem").startswith("Debian GNU/Linux 13 (")
    assert await sh(client, "systemctl is-system-running --wait") == "running\n"
    assert await sh(client, "systemctl --failed --plain --no-legend") == ""
    assert await sh(client, "findmnt --noheadings -o SOURCE,FSTYPE /") == "root virtiofs\n"
    # what it writes to its root lands in the share, owners and attributes with it, and nowhere else
    script = (
        "echo new >/opt/new; chown 1000:4 /opt/new; mv /usr/games /opt/old; setfattr -n user.x -v y /opt/new"
    )
    await sh(client, script)
    new = debian.root / "opt/new"
    assert (new.read_text(), new.stat().st_uid, new.stat().st_gid) == ("new\n", 1000, 4)
    assert os.getxattr(new, "user.x") == b"y"
    assert (debian.root / "opt/old").is_dir()
    assert not (debian.root / "usr/games").exists()
    assert (TREE / "usr/games").is_dir()
    assert not (TREE / "opt/new").exists()


async def test_shares_are_mounted_at_boot_by_argument(debian: Debian, client: Client, sources: Path) -> None:
    told = await sh(client, "cat /proc/cmdline; cat /etc/fstab; ls /run/credentials/@system")
    assert told.count("systemd.mount-extra=") == 2
    assert "virtiofs" not in told.partition("\n")[2]
    assert "fstab.extra" not in told
    await mounted_as_told(debian, client, sources)


async def mounted_as_told(debian: Debian, client: Client, sources: Path) -> None:
    """Both shares are where their MountPoint says, and vfsd knows."""
    plain, odd = debian.share("plain"), debian.share("odd")
    assert (await client.get(plain, SHARE, "MountedAt"), await client.get(odd, SHARE, "MountedAt")) == (
        "/mnt/plain",
        ODD,
    )
    assert (await client.get(plain, SHARE, "GuestOptions")).split(",")[0] == "rw"
    assert (await client.get(odd, SHARE, "GuestOptions")).split(",")[0] == "ro"
    mounts = "systemctl list-units --type=mount --plain --no-legend --full"
    lines = [line.split() for line in (await sh(client, mounts)).splitlines() if line.startswith("mnt-")]
    assert [line[1:4] for line in lines] == [["loaded", "active", "mounted"]] * 2
    assert await sh(client, 'cat /mnt/plain/hello "$1/hello"', ODD) == "from plain\nfrom odd\n"
    await sh(client, "echo written >/mnt/plain/by-guest")
    assert (sources / "plain/by-guest").read_text() == "written\n"
    status, _, errors = await execute(client, "touch", f"{ODD}/no")
    assert (status, b"Read-only file system" in errors) == (1, True)


async def test_credentials_reach_its_systemd_and_nobody_else(debian: Debian, client: Client) -> None:
    names = [
        line.split()[0] for line in (await sh(client, "systemd-creds --system list --no-legend")).splitlines()
    ]
    assert {"vfsd-test.secret", "vfsd-test.token", "ssh.authorized_keys.root"} <= set(names)
    assert await sh(client, "systemd-creds --system cat vfsd-test.secret") == SECRET
    assert await sh(client, "systemd-creds --system cat vfsd-test.token") == OTHER
    # a service in the guest is given it as systemd's own are
    script = (
        "systemd-run -q --wait --pipe -p ImportCredential='vfsd-test.*' systemd-creds cat vfsd-test.secret"
    )
    assert await sh(client, script) == SECRET
    # here
    pid = debian.get("MainPID")
    assert_untold("QEMU's command line", " ".join(command_line(pid)))
    assert_untold("ps", debian.vfsd.run("ps", "-eo", "args"))
    assert_untold("the unit", debian.vfsd.systemctl("show", f"vfsd-machine-{NAME}.service"))
    assert_untold("the objects", debian.vfsd.run("busctl", "--json=short", "introspect", "org.vfsd1", PATH))
    assert_untold("the journal", json.dumps(debian.vfsd.journal(f"VFSD_MACHINE={NAME}")))
    assert await client.get(PATH, MACHINE, "Credentials") == {"vfsd-test.secret": ""}
    # and there
    assert_untold("the guest's kernel", await sh(client, "cat /proc/cmdline"))
    assert_untold("the guest's ps", await sh(client, "ps -eo args e"))
    assert_untold("the guest's journal", await sh(client, "journalctl -b -o json --all"))
    assert (await execute(client, "su", "tester", "-c", "cat /run/credentials/@system/*"))[0] != 0


def test_vfsctl_exec(debian: Debian) -> None:
    script = "cat; echo no >&2; exit 5"
    done = debian.vfsctl("exec", NAME, "--", "sh", "-c", script, stdin="to the guest: ü\n")
    assert (done.code, done.out, done.err) == (5, "to the guest: ü\n", "no\n")
    done = debian.vfsctl("exec", NAME, "--", "sh", "-c", "echo first; kill -TERM $$")
    assert (done.code, done.out) == (128 + signal.SIGTERM, "first\n")
    done = debian.vfsctl("exec", NAME, "--", "sha256sum", stdin="x" * 1_000_000)
    assert done.out.split()[0] == hashlib.sha256(b"x" * 1_000_000).hexdigest()
    done = debian.vfsctl("exec", NAME, "--", "no-such-program")
    assert done.code == 125
    assert "no-such-program" in done.err


def test_vfsctl_ssh(debian: Debian) -> None:
    done = debian.vfsctl(
        "ssh", NAME, "--", "cat; cat /etc/hostname; id -un; echo no >&2; exit 7", stdin="in\n"
    )
    assert (done.code, done.out, done.err) == (7, f"in\n{NAME}\nroot\n", "no\n")


async def test_a_share_is_plugged_mounted_and_given_back(
    debian: Debian, client: Client, sources: Path
) -> None:
    share = await client.create_share("late", sources / "late")
    options = {"MountPoint": Variant("s", LATE)}
    before = await client.get(PATH, MACHINE, "Shares")
    await client.call(PATH, MACHINE, "AttachShare", "sa{sv}", "late", options)
    assert await client.get(share, SHARE, "MountedAt") == LATE
    assert await client.get(share, SHARE, "GuestOptions") == "rw,relatime"
    assert await sh(client, 'cat "$1/hello"; echo in >"$1/x"', LATE) == "from late\n"
    assert (sources / "late/x").read_text() == "in\n"
    assert await client.get(PATH, MACHINE, "Shares") == [*before, share]
    # in use: refused, and all is as before
    pid = await client.get(share, SHARE, "MainPID")
    await sh(
        client, 'cd "$1" && exec systemd-run -q --service-type=exec --unit=user --same-dir sleep 600', LATE
    )
    detach = (PATH, MACHINE, "DetachShare", "s", "late")
    await refused(client.call(*detach), "ShareBusy", LATE)
    assert await client.get(share, SHARE, "MountedAt") == LATE
    assert await client.get(share, SHARE, "MainPID") == pid
    assert await client.get(PATH, MACHINE, "Shares") == [*before, share]
    assert await sh(client, 'cat "$1/x"', LATE) == "in\n"
    await sh(client, "systemctl stop user")
    await client.call(*detach)
    assert await client.get(share, SHARE, "MountedAt") == ""
    assert await client.get(PATH, MACHINE, "Shares") == before
    await until(lambda: debian.vfsd.get(share, SHARE, "State") == "listening", "it listens again")
    assert (await execute(client, "mountpoint", "-q", LATE))[0] != 0
    # and again, which its systemd survives too
    await client.call(PATH, MACHINE, "AttachShare", "sa{sv}", "late", options)
    assert await sh(client, 'cat "$1/x"; systemctl is-system-running', LATE) == "in\nrunning\n"
    await client.call(*detach)
    await client.call(share, SHARE, "Stop")
    await client.call(share, SHARE, "Remove")


async def test_pause_and_resume(debian: Debian, client: Client) -> None:
    await refused(client.call(PATH, MACHINE, "Resume"), "WrongState", "running")
    await refused(client.call(PATH, MACHINE, "Start"), "WrongState", "running")
    await client.call(PATH, MACHINE, "Pause")
    assert debian.get("State") == "paused"
    await refused(client.call(PATH, MACHINE, "Pause"), "WrongState", "paused")
    await refused(execute(client, "true"), "WrongState", "paused")
    await refused(client.call(PATH, MACHINE, "QueryGuest"), "WrongState", "paused")
    await client.call(PATH, MACHINE, "Resume")
    assert walked(client.signals, PATH) == ["paused", "running"]
    # nobody was told that the agent was away, and it is not
    assert client.signals.changes(PATH, "GuestReady") == []
    assert await sh(client, "cat /mnt/plain/hello") == "from plain\n"


BOOT_AND_HEALTH = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running"
COUNTER = "i=0; while sleep 0.1; do i=$((i + 1)); echo $i; done >/mnt/plain/count"


async def counts_on(sources: Path) -> None:
    """The guest's process goes on with the file that it has open, and no line is lost."""
    file = sources / "plain/count"

    def lines() -> list[str]:
        return file.read_text().splitlines()[:-1]

    before = len(lines())
    await until(lambda: len(lines()) > before + 2, "it counts on", SOON)
    assert lines() == [str(number + 1) for number in range(len(lines()))]


async def test_it_is_refreshed_with_its_root(debian: Debian, client: Client, sources: Path) -> None:
    """QEMU and every virtiofsd are others afterwards, that of the root with all its open files too."""
    await sh(client, 'systemd-run -q --unit=counter sh -c "$1"', COUNTER)
    boot = await sh(client, "cat /proc/sys/kernel/random/boot_id")
    for unit in ("vfsd-machine-debian-2.service", "vfsd-machine-debian.service"):
        pid = debian.get("MainPID")
        await client.call(PATH, MACHINE, "Refresh")
        assert debian.get("Unit") == unit
        assert debian.get("MainPID") not in (0, pid)
        await counts_on(sources)
        assert await sh(client, BOOT_AND_HEALTH) == f"{boot}running\n"
    # what was never read comes from the new one
    assert "NAME=" in await sh(client, "cat /etc/os-release; ls /usr/share/doc | head -n 3")
    assert debian.vfsctl("ssh", NAME, "--", "echo here").out == "here\n"
    assert client.signals.states(PATH) == []


async def test_it_is_suspended_and_goes_on(debian: Debian, client: Client, sources: Path) -> None:
    boot = await sh(client, "cat /proc/sys/kernel/random/boot_id")
    await client.call(PATH, MACHINE, "Suspend")
    assert (debian.get("State"), debian.get("Suspended")) == ("stopped", True)
    await asyncio.sleep(3)
    await client.call(PATH, MACHINE, "Thaw")
    await counts_on(sources)
    debian.wait_ready()
    assert await sh(client, BOOT_AND_HEALTH) == f"{boot}running\n"

    async def late() -> float:
        return abs(float(await sh(client, "date +%s")) - time.time())

    # its clock stood still too; the agent was told
    end = time.monotonic() + SOON
    while await late() > 2:
        assert time.monotonic() < end, await late()
    assert debian.vfsctl("ssh", NAME, "--", "echo here").out == "here\n"
    await sh(client, "systemctl stop counter")


# an agent that does not do what it should


async def test_an_agent_that_is_stopped(debian: Debian, client: Client) -> None:
    debian.ssh("systemctl stop qemu-guest-agent")
    await until(lambda: client.signals.changes(PATH, "GuestReady")[-1:] == [False], "its end is seen", SOON)
    assert await client.get(PATH, MACHINE, "GuestSystem") == ""
    await refused(execute(client, "true"), "NotSupported", "qemu-guest-agent")
    await refused(client.call(PATH, MACHINE, "QueryGuest"), "NotSupported", "qemu-guest-agent")
    assert await client.get(PATH, MACHINE, "State") == "running"
    debian.ssh("systemctl start qemu-guest-agent")
    await until(lambda: client.signals.changes(PATH, "GuestReady")[-1:] == [True], "it is found", SOON)
    await until(lambda: debian.get("GuestSystem").startswith("Debian"), "so is the system", SOON)
    assert await sh(client, "echo back") == "back\n"


async def test_an_agent_that_hangs(debian: Debian, client: Client) -> None:
    debian.ssh("kill -STOP $(pidof qemu-ga)")
    begun = time.monotonic()
    await refused(execute(client, "true", seconds=2), "GuestTimeout", NAME)
    assert time.monotonic() - begun < 10
    assert await client.get(PATH, MACHINE, "GuestReady") is False
    # it is asked again each time, and no call waits for ever
    begun = time.monotonic()
    await refused(client.call(PATH, MACHINE, "QueryGuest"), "GuestTimeout", NAME)
    assert time.monotonic() - begun < 20
    debian.ssh("kill -CONT $(pidof qemu-ga)")
    assert await sh(client, "echo back") == "back\n"
    assert client.signals.changes(PATH, "GuestReady") == [False, True]
    # what was asked while it hung is answered to nobody
    assert await sh(client, "echo in step") == "in step\n"


LIAR = r"""
import json, sys, time
kind, port = sys.argv[1], open("/dev/virtio-ports/org.qemu.guest_agent.0", "r+b", buffering=0)
def answers(request):
    name = request.get("execute")
    if name == "guest-sync-delimited":
        yield b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n"
    elif name == "guest-ping":
        yield b'{"return": {}}\n'
    elif kind == "garbage":
        yield bytes(range(256)) * 16 + b"\n"
    elif kind == "types":
        yield b'{"return": {"pid": "one", "exited": 1, "count": [], "pretty-name": 7, "buf-b64": {}}}\n'
    elif kind == "nested":
        yield b"[" * 60000 + b"\n"
    elif kind == "huge":
        yield b'{"return": "'
        for _ in range(16):
            yield b"A" * (1 << 20)
        yield b'"}\n'
    elif kind == "endless":
        while True:
            yield b"B" * (1 << 16)
while True:
    try:
        line = port.readline()
        if not line:  # nobody is connected
            time.sleep(0.05)
            continue
        for answer in answers(json.loads(line.strip(b"\xff"))):
            while answer:
                answer = answer[port.write(answer):]
    except (ValueError, OSError):
        continue
"""
MEMORY = 32 << 10
"""KiB by which vfsd may grow over a guest's lies: the largest answer that it reads, a few times over."""


async def test_an_agent_that_lies(debian: Debian, client: Client) -> None:
    (debian.root / "opt/liar").write_text(LIAR)
    pid = debian.vfsd.main_pid()
    before = memory(pid)
    debian.ssh("systemctl stop qemu-guest-agent")
    for kind in ("garbage", "types", "nested", "huge", "endless"):
        debian.ssh(f"systemd-run -q --unit=liar python3 /opt/liar {kind}")
        assert await answer_of_a_liar(client, there=True) in ("Failed", "GuestTimeout"), kind
        assert await answer_of_a_liar(client, there=True) in ("Failed", "GuestTimeout"), kind
        debian.ssh("systemctl stop liar")
        await answer_of_a_liar(client, there=False)
    assert debian.vfsd.main_pid() == pid
    assert memory(pid) - before < MEMORY
    debian.ssh("systemctl start qemu-guest-agent")
    debian.wait_ready()
    assert await sh(client, "echo honest") == "honest\n"


async def answer_of_a_liar(client: Client, *, there: bool) -> str:
    """The error for a program that is to be run, once an agent is there or is not; others are served meanwhile."""
    end = time.monotonic() + SOON
    while True:
        asked = asyncio.ensure_future(execute(client, "true", seconds=4))
        while not asked.done():
            begun = time.monotonic()
            assert [name for name, _, _ in await client.manager("ListMachines")] == [NAME]
            assert time.monotonic() - begun < 2
            await asyncio.sleep(0.05)
        error = asked.exception()
        assert isinstance(error, BusError)
        if there is not ("no agent" in error.message):
            return error.name
        assert time.monotonic() < end, error


def memory(pid: int) -> int:
    """The most that a process ever had in memory, in KiB."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


# what fails under it


async def test_a_share_is_healed(debian: Debian, client: Client, sources: Path) -> None:
    plain = debian.share("plain")
    await sh(client, "cd /mnt/plain && exec systemd-run -q --unit=inside --same-dir sleep 600")
    # virtiofsd does not answer any more when somebody asks for something, and then it is killed
    pid = await client.get(plain, SHARE, "MainPID")
    for process in family(pid):
        os.kill(process, signal.SIGSTOP)
    await sh(client, "systemd-run -q --unit=stuck stat /mnt/plain/nothing")
    assert await sh(client, "systemctl is-active stuck; systemctl kill -s KILL stuck") == "active\n"
    begun = time.monotonic()
    kill_virtiofsd(debian.vfsd, plain)
    await until(lambda: True in client.signals.changes(PATH, "Degraded"), "the machine is degraded")
    await until(lambda: client.signals.changes(PATH, "Degraded")[-1] is False, "it is healed", SOON)
    took = time.monotonic() - begun
    print(f"healed {took:.2f} s after the kill")
    assert took < 8
    assert await sh(client, "cat /mnt/plain/hello; echo after >/mnt/plain/y") == "from plain\n"
    assert (sources / "plain/y").read_text() == "after\n"
    assert await client.get(plain, SHARE, "MountedAt") == "/mnt/plain"
    assert await client.get(plain, SHARE, "State") == "active"
    assert await client.get(plain, SHARE, "MainPID") not in (0, pid)
    reason = await client.get(plain, SHARE, "Reason")
    assert "healed after virtiofsd was killed by SIGKILL" in reason
    assert "mounted again at /mnt/plain" in reason
    assert "processes that were inside a request hang until the guest reboots" in reason
    # which is so
    assert (
        await sh(client, "ps -o state=,args= -p $(systemctl show --value -p MainPID stuck)")
        == "D /usr/bin/stat /mnt/plain/nothing\n"
    )
    assert await sh(client, "systemctl --failed --plain --no-legend") == ""


def told(debian: Debian, since: float) -> list[str]:
    """What the journal has about the guest since then, in order."""
    entries = debian.vfsd.journal(GUEST_EVENT, f"VFSD_MACHINE={NAME}", since=since)
    return [entry["MESSAGE"].partition(": ")[2] for entry in entries]


async def test_a_reset_is_not_the_guests(debian: Debian, client: Client) -> None:
    since = time.time()
    before = debian.get("Reason")
    await client.call(PATH, MACHINE, "Reset")
    await until(lambda: client.signals.changes(PATH, "GuestReady")[-1:] == [False], "it is reset", SOON)
    wait_for(lambda: told(debian, since) == ["it was reset on request"], "the journal has it")
    assert debian.get("State") == "running"
    assert debian.get("Reason") == before
    # a guest that boots is killed like any other
    await client.call(PATH, MACHINE, "Kill")
    assert walked(client.signals, PATH) == ["stopped"]
    assert client.signals.states(PATH)[-1][2] == "killed on request"


# the guest as far as it takes to end it


async def test_shares_are_mounted_at_boot_by_credential(small: Debian, client: Client, sources: Path) -> None:
    assert "mount-extra" not in await sh(client, "cat /proc/cmdline")
    fstab = await sh(client, "systemd-creds --system cat fstab.extra")
    assert [line.split()[:3] for line in fstab.splitlines()] == [
        ["plain", "/mnt/plain", "virtiofs"],
        ["odd", ODD.replace(" ", r"\040"), "virtiofs"],
    ]
    await mounted_as_told(small, client, sources)


async def test_a_reboot_is_the_guests_own(small: Debian, client: Client, sources: Path) -> None:
    since = time.time()
    await later(client, "systemctl reboot")
    await until(lambda: "the guest rebooted" in client.signals.changes(PATH, "Reason"), "it is told", SOON)
    assert client.signals.changes(PATH, "GuestReady")[-1] is False
    small.wait_ready()
    assert small.get("Reason") == "the guest rebooted"
    assert walked(client.signals, PATH) == []
    assert told(small, since) == ["the guest rebooted"]
    await mounted_as_told(small, client, sources)


async def test_a_panic_is_a_failure(small: Debian, client: Client) -> None:
    since = time.time()
    await later(client, "echo c >/proc/sysrq-trigger")
    await until(lambda: "failed" in walked(client.signals, PATH), "the machine is failed", SOON)
    assert client.signals.states(PATH) == [("running", "failed", "the guest panicked")]
    assert (small.get("State"), small.get("Reason")) == ("failed", "the guest panicked")
    assert told(small, since) == ["the guest panicked"]


async def test_it_powers_off_from_inside(small: Debian, client: Client) -> None:
    await later(client, "systemctl poweroff")
    await until(lambda: walked(client.signals, PATH), "the guest powers off", SOON)
    assert client.signals.states(PATH) == [("running", "stopped", GUEST_DONE)]
    assert (small.get("State"), small.get("Reason")) == ("stopped", GUEST_DONE)


async def test_a_shutdown_goes_through_the_agent(small: Debian, client: Client) -> None:
    """The guest's logind does not react to the button, as that of many a cloud image."""
    folder = "/run/systemd/logind.conf.d"
    ignoring = f"mkdir -p {folder}; printf '[Login]\nHandlePowerKey=ignore\n' >{folder}/ignoring.conf"
    await sh(client, f"{ignoring}; systemctl restart systemd-logind")
    await press_the_button(small.vfsd, "qmp-stop", machine=NAME)
    await asyncio.sleep(3)
    assert await sh(client, "systemctl list-jobs --no-legend; systemctl is-system-running") == "running\n"
    await client.call(PATH, MACHINE, "Shutdown", "t", 0)
    await until(lambda: walked(client.signals, PATH)[-1:] == ["stopped"], "the guest powers off", SOON)
    assert walked(client.signals, PATH) == ["stopping", "stopped"]
    assert client.signals.states(PATH)[-1][2] == GUEST_DONE


async def test_a_guest_that_never_ends_is_ended(small: Debian, client: Client) -> None:
    """It does as it is told, and one of its services takes for ever over it."""
    stubborn = "-p TimeoutStopSec=infinity -p ExecStop='/usr/bin/sleep infinity' /usr/bin/sleep infinity"
    await sh(client, f"systemd-run -q --unit=stubborn {stubborn}")
    begun = time.monotonic()
    await client.call(PATH, MACHINE, "Shutdown", "t", 8_000_000)
    assert time.monotonic() - begun < 5
    assert small.get("State") == "stopping"
    await until(lambda: walked(client.signals, PATH)[-1:] == ["stopped"], "it is ended", SOON)
    assert 7.8 < time.monotonic() - begun < 14
    assert client.signals.states(PATH)[-1] == ("stopping", "stopped", BY_FORCE)
