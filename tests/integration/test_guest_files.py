"""A real guest on its shares: files, owners, odd names, read-only, the console, the power button; in one boot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from dbus_next import Variant

from tests.integration.harness import MACHINE, SHARE, Client, Vfsd, until
from tests.integration.test_shutdown import assert_clean, console
from tests.integration.tiny_guest import walked

SOURCES = [
    "a b",
    "comma,,x=y",
    "per%cent%%n",
    "${HOME}",
    "quo\"te's",
    "back\\slash\\x20",
    "co:lon",
    "new\nline",
    "ünï",
    " edge ",
]
MOUNT_POINTS = ["/mnt/a b", "/mnt/quo\"te's", "/mnt/ünï", "/mnt/per%cent%20", "/srv/deep/er/,;&$(x)"]


class Console:
    """The guest's console through ConsolePath, as a person uses it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._number = 0
        self.seen = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, path: str) -> AsyncIterator[Console]:
        """The console, closed at the end whatever happens."""
        console = await cls.open(path)
        try:
            yield console
        finally:
            await console.close()

    @classmethod
    async def open(cls, path: str) -> Console:
        return cls(*await asyncio.open_unix_connection(path))

    async def expect(self, pattern: str, timeout: float = 20) -> re.Match[str]:
        """Read until the pattern appears; what was read up to its end is taken away."""
        async with asyncio.timeout(timeout):
            while not (match := re.search(pattern, self.seen)):
                data = await self._reader.read(4096)
                assert data, f"the console ended: {self.seen[-500:]}"
                self.seen += data.decode(errors="replace")
        self.seen = self.seen[match.end() :]
        return match

    async def run(self, command: str) -> tuple[int, str]:
        """Run one line in the guest's shell; exit code and output."""
        self._number += 1
        # what is typed comes back as an echo, in which the marks have quotes
        self._writer.write(f"echo '<b'{self._number}; {command}; echo '<e'{self._number} $?.\n".encode())
        match = await self.expect(rf"(?s)<b{self._number}\r?\n(.*?)<e{self._number} (\d+)\.\r?\n")
        return int(match[2]), match[1].replace("\r", "").removesuffix("\n")

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_a_guest_on_its_shares(  # noqa: PLR0915  # a boot takes seconds: one for all
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    port = free_port()
    sources = [folder / f"{number}{name}" for number, name in enumerate(SOURCES)]
    for number, source in enumerate(sources):
        source.mkdir()
        (source / "from-host").write_text(f"host {number}")
        os.chown(source, vfsd.owner_uid, vfsd.owner_uid)
    closed = folder / "closed"
    closed.mkdir()
    (closed / "kept").write_text("kept")
    os.chown(closed, vfsd.owner_uid, vfsd.owner_uid)
    points = [*MOUNT_POINTS, *(f"/mnt/{number}" for number in range(len(MOUNT_POINTS), len(sources)))]
    shares = [
        [str(source), point, {"Tag": Variant("s", f"t{number}")}]
        for number, (source, point) in enumerate(zip(sources, points, strict=True))
    ]
    shares.append([str(closed), "/ro", {"Tag": Variant("s", "ro"), "ReadOnly": Variant("b", True)}])
    path = await client.create_machine(
        "guest",
        Builtin=("b", True),
        Memory=("t", 192 << 20),
        CPUs=("u", 2),
        Accelerator=("s", "tcg"),
        Forward=("as", [f"tcp:127.0.0.1:{port}:80"]),
        Shares=("a(ssa{sv})", shares),
    )
    await client.create_share("attached", closed)
    await client.call(
        path, MACHINE, "AttachShare", "sa{sv}", "attached", {"MountPoint": Variant("s", "/att")}
    )
    await client.call(path, MACHINE, "Start")
    pid = await client.get(path, MACHINE, "MainPID")
    stack = contextlib.AsyncExitStack()
    terminal = await stack.enter_async_context(Console.opened(await client.get(path, MACHINE, "ConsolePath")))
    banner = await terminal.expect(r"vfsd built-in guest, [^\r\n]*", 60)
    assert "not mounted" not in banner[0]
    await terminal.expect("# ")
    await all_are_served(terminal, sources, points, "first")

    # owners, links, renames
    point, source = points[0].replace(" ", r"\ "), sources[0]
    code, out = await terminal.run(
        f"cd {point} && echo data >file && ln file hard && ln -s file soft && mkdir dir && mv file dir/moved"
        " && chmod 640 hard && ls -l | wc -l && cat dir/moved && cd /"
    )
    assert (code, out.split()) == (0, ["7", "data"])  # total, check, dir, from-guest, from-host, hard, soft
    assert (source / "dir/moved").read_text() == "data\n"
    assert (source / "hard").stat().st_ino == (source / "dir/moved").stat().st_ino
    assert stat.S_IMODE((source / "hard").stat().st_mode) == 0o640
    assert (source / "soft").readlink() == Path("file")
    assert (source / "hard").stat().st_uid == vfsd.owner_uid
    code, out = await terminal.run(f"chown 1234:4321 {point}/hard; stat -c %u:%g {point}/hard")
    owner = ((source / "hard").stat().st_uid, (source / "hard").stat().st_gid)
    assert owner == ((1234, 4321) if vfsd.scope == "system" else (vfsd.owner_uid, vfsd.owner_uid)), out

    # read-only, here and there
    code, out = await terminal.run(
        "echo x >/ro/new; mount -o remount,rw /ro; echo x >/ro/new; rm -f /ro/kept; cat /ro/kept"
    )
    assert "Read-only file system" in out
    assert out.endswith("kept")
    assert [item.name for item in closed.iterdir()] == ["kept"]
    code, _ = await terminal.run("cat /att/kept && echo changed >/att/changed")
    assert code == 0
    assert (closed / "changed").read_text() == "changed\n"

    # the machine as it was asked for
    _, out = await terminal.run("nproc; grep MemTotal /proc/meminfo; ls /sys/class/net")
    assert out.split()[0] == "2"
    assert 120 << 10 < int(re.findall(r"MemTotal: *(\d+)", out)[0]) < 192 << 10
    assert "eth0" in out

    # the network: a port of the host leads into the guest
    await terminal.run(
        "for i in 1 2 3 4 5 6 7 8; do ip addr show eth0 | grep -q inet && break; sleep 0.5; done"
    )
    await terminal.run("httpd -p 80 -h /att")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /kept HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.")
    assert answer.endswith(b"kept")

    # systemd reads all of its units again, and starts anew
    for command in ("daemon-reload", "daemon-reexec", "daemon-reload"):
        await asyncio.to_thread(vfsd.systemctl, command)
    vfsd.restart()
    await all_are_served(terminal, sources, points, "second")
    assert await client.get(path, MACHINE, "State") == "running"
    assert await client.get(path, MACHINE, "Degraded") is False
    for share in await client.get(path, MACHINE, "Shares"):
        assert await client.get(share, SHARE, "State") == "active"

    # the journal has the console, found by the machine
    match = "VFSD_MACHINE=guest" if vfsd.scope == "system" else "_SYSTEMD_USER_SLICE=vfsd-guest.slice"
    told = [entry for entry in vfsd.journal(match, f"_PID={pid}") if banner[0][:30] in str(entry["MESSAGE"])]
    assert told

    # an administrator stops it: the guest is asked
    await terminal.close()
    await asyncio.to_thread(vfsd.systemctl, "stop", "vfsd-machine-guest.service")
    assert "vfsd: power button" in console(vfsd, pid)
    await until(lambda: walked(client.signals, path)[-1] == "stopped", "the machine is stopped")
    assert client.signals.states(path)[-1][2] == "the guest powered off"
    await client.call(path, MACHINE, "DetachShare", "s", "attached")
    await client.call(f"{path.rpartition('/machine')[0]}/share/attached", SHARE, "Remove")
    await until(lambda: not vfsd.units(), "systemd forgets the units")
    assert_clean(vfsd)


async def all_are_served(terminal: Console, sources: list[Path], points: list[str], word: str) -> None:
    """The guest reads and writes each source, at its mount point."""
    quoted = ["'" + point.replace("'", r"'\''") + "'" for point in points]
    lines = [f"cat {q}/from-host && echo $1-{n} >{q}/from-guest && echo" for n, q in enumerate(quoted)]
    (sources[0] / "check").write_text("\n".join(lines) + "\n")
    _, out = await terminal.run(f"sh {quoted[0]}/check {word}")
    assert out.split("\n") == [f"host {number}" for number in range(len(sources))]
    for number, source in enumerate(sources):
        assert (source / "from-guest").read_text() == f"{word}-{number}\n"
