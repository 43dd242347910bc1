"""Credentials reach the guest, and nobody else; and so does vfsd's key for SSH."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import only_system
from tests.integration.harness import MACHINE, BusError, Client, Vfsd, until, wait_for
from tests.integration.tiny_guest import started, tiny_machine
from vfsd.credentials import SMBIOS_MAX, TOTAL_MAX
from vfsd.guest import command_line

SECRET = "vfsd-test-secret-3e1b"  # noqa: S105  # that is the test
OTHER = "vfsd-test-secret-77aa"


def encoded(*texts: str) -> list[str]:
    """The texts, and how they look as base64 at each of three offsets, without the ends that depend on neighbours."""
    forms = list(texts)
    for text in texts:
        forms += [base64.b64encode(b"x" * n + text.encode()).decode()[4:-4] for n in range(3)]
    return forms


def assert_untold(what: str, text: str) -> None:
    for form in encoded(SECRET, OTHER):
        assert form not in text, f"{what} tells a secret"


async def test_nobody_is_shown_a_value(vfsd: Vfsd, client: Client, folder: Path) -> None:
    since = time.time()
    (folder / "token").write_text(OTHER)
    large = {"large": SECRET + "x" * SMBIOS_MAX}
    path = await started(
        client,
        folder,
        Credentials=("a{ss}", {"secret": SECRET, **large}),
        CredentialFiles=("a{ss}", {"token": str(folder / "token")}),
    )
    pid = await client.get(path, MACHINE, "MainPID")
    arguments = Path(f"/proc/{pid}/cmdline").read_text()
    assert arguments.count("type=11,path=") == 2
    assert "opt/io.systemd.credentials/large" in arguments
    assert_untold("QEMU's command line", arguments)
    assert_untold("its environment", Path(f"/proc/{pid}/environ").read_text())
    assert_untold("the unit", vfsd.systemctl("show", "vfsd-machine-tiny.service"))
    # QEMU has read the files
    assert not (vfsd.runtime / "machine/tiny/private").exists()

    shown = await client.get(path, MACHINE, "Credentials")
    assert shown == {"secret": "", "large": ""}
    assert await client.get(path, MACHINE, "CredentialFiles") == {"token": str(folder / "token")}
    objects = str(
        {
            p: {i: {n: v.value for n, v in d.items()} for i, d in o.items()}
            for p, o in (await client.objects()).items()
        }
    )
    assert_untold("GetManagedObjects", objects)
    assert_untold("vfsctl", vfsd.run("vfsctl", vfsd.flag, "machine", "show", "tiny"))

    await client.call(path, MACHINE, "Kill")
    await client.call(
        path,
        "org.freedesktop.DBus.Properties",
        "Set",
        "ssv",
        MACHINE,
        "Credentials",
        *_table({"secret": OTHER}),
    )
    with pytest.raises(BusError) as refused:
        await client.call(
            path,
            "org.freedesktop.DBus.Properties",
            "Set",
            "ssv",
            MACHINE,
            "Credentials",
            *_table({"a/b": SECRET}),
        )
    assert refused.value.name == "InvalidArgs"
    assert_untold("the error", refused.value.message)
    assert_untold("signals", str([message.body for message in client.signals.seen]))
    assert_untold("the journal", json.dumps(vfsd.journal(since=since)))


def _table(values: dict[str, str]) -> list[Any]:
    from dbus_next import Variant

    return [Variant("a{ss}", values)]


async def test_definitions_keep_values_where_nobody_reads_them(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    path = await tiny_machine(
        client, folder, Credentials=("a{ss}", {"a": SECRET, "b": "2"}), Persistent=("b", True)
    )
    [definition] = (vfsd.state / "definitions").glob("machine-tiny.json")
    assert definition.stat().st_mode & 0o077 == 0
    assert SECRET in definition.read_text()

    # what reads back may be written back
    read = await client.get(path, MACHINE, "Credentials")
    await client.call(
        path,
        "org.freedesktop.DBus.Properties",
        "Set",
        "ssv",
        MACHINE,
        "Credentials",
        *_table({**read, "c": "3"}),
    )
    assert json.loads(definition.read_text())["options"]["Credentials"] == {"a": SECRET, "b": "2", "c": "3"}
    await client.call(
        path, "org.freedesktop.DBus.Properties", "Set", "ssv", MACHINE, "Credentials", *_table({"b": ""})
    )
    assert json.loads(definition.read_text())["options"]["Credentials"] == {"b": "2"}


async def test_a_vfsd_that_was_killed_leaves_none_behind(vfsd: Vfsd, client: Client, folder: Path) -> None:
    await started(client, folder, "runs")
    await tiny_machine(client, folder, "stopped")
    left = [vfsd.runtime / "machine" / name / "private" for name in ("runs", "stopped")]
    for made in left:
        vfsd.run("mkdir", "-p", "-m", "0700", str(made))
        vfsd.run("touch", str(made / "0"))
    vfsd.restart()
    wait_for(lambda: not any(made.exists() for made in left), "they are gone")
    assert all(made.parent.exists() for made in left)


async def test_files_are_read_at_each_start(vfsd: Vfsd, client: Client, folder: Path) -> None:
    file = folder / "token"
    path = await tiny_machine(client, folder, CredentialFiles=("a{ss}", {"token": str(file)}))
    with pytest.raises(BusError) as missing:
        await client.call(path, MACHINE, "Start")
    assert (missing.value.name, 'credential "token"' in missing.value.message) == ("InvalidArgs", True)
    assert str(file) in missing.value.message
    # everybody is told why, but not of the path
    assert await client.get(path, MACHINE, "State") == "failed"
    assert str(file) not in await client.get(path, MACHINE, "Reason")

    with file.open("wb") as opened:
        opened.truncate(TOTAL_MAX + 1)
    with pytest.raises(BusError, match="more than"):
        await client.call(path, MACHINE, "Start")
    file.write_text("fine")
    await client.call(path, MACHINE, "Start")
    assert not (vfsd.runtime / "machine/tiny/private").exists()


async def test_what_does_not_fit_is_refused_before_anything_runs(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    name = "name-that-is-too-long-for-fw_cfg"
    path = await tiny_machine(client, folder, Credentials=("a{ss}", {name: "x" * SMBIOS_MAX}))
    with pytest.raises(BusError, match="at most 28 bytes") as refused:
        await client.call(path, MACHINE, "Start")
    assert refused.value.name == "InvalidArgs"
    assert vfsd.units() == []
    assert not (vfsd.runtime / "machine/tiny/private").exists()


async def test_configuration_files_have_credentials(vfsd: Vfsd, client: Client) -> None:
    file = vfsd.config / "machines/secretive.toml"
    vfsd.run("mkdir", "-p", str(file.parent))
    try:
        file.write_text(
            f'builtin = true\ncredentials = {{ a = "{SECRET}" }}\n[credential_files]\ntoken = "/etc/hostname"\n'
        )
        await client.manager("Reload")
        path = await client.manager("GetMachine", "s", "secretive")
        assert await client.get(path, MACHINE, "Credentials") == {"a": ""}
        assert await client.get(path, MACHINE, "CredentialFiles") == {"token": "/etc/hostname"}

        since = time.time()
        file.write_text(f'builtin = true\n[credentials]\n"a/b" = "{SECRET}"\n')
        await client.manager("Reload")
        told = await until(
            lambda: vfsd.journal("MESSAGE_ID=beff5b513f22407bb223684b9299d930", since=since), "told"
        )
        assert "can't be named" in told[0]["MESSAGE"]
        assert_untold("the journal", json.dumps(told))
    finally:
        file.unlink()
        await client.manager("Reload")


@only_system
async def test_a_guest_finds_them_and_is_reached_at_its_ssh_port(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    # behind the five bytes of its header an SMBIOS table has its strings, each with a NUL
    strings = "tail -c +6 /sys/firmware/dmi/entries/11-0/raw | tr '\\000' '\\n'"
    read = f"{strings}; mount | grep /data; echo greeting | nc -l -p 22"
    path = await client.create_machine(
        "guest",
        Builtin=("b", True),
        Accelerator=("s", "tcg"),
        Memory=("t", 256 << 20),
        SSH=("b", True),
        Append=("s", f"vfsd.exec={command_line.escape(read)}"),
        Credentials=("a{ss}", {"secret": SECRET, "ssh.authorized_keys.root": "ssh-rsa mine"}),
        Shares=(
            "a(ssa{sv})",
            [[str(folder), "/data/two words", _variants(MountOptions="nosuid,nofail,x-systemd.automount")]],
        ),
    )
    since = time.time()
    await client.call(path, MACHINE, "Start")
    address = await client.get(path, MACHINE, "SSHAddress")
    host, _, port = address.rpartition(":")
    assert host == "127.0.0.1"
    assert client.signals.changes(path, "SSHAddress") == [address]

    greeting = b""
    end = time.monotonic() + 60
    while not greeting and time.monotonic() < end:  # until somebody listens in the guest
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionResetError):
            greeting = await asyncio.wait_for(reader.read(100), 60)
        writer.close()
        await asyncio.sleep(0.1)
    assert greeting == b"greeting\n"

    console = "\n".join(
        str(entry["MESSAGE"])
        for entry in vfsd.journal("_SYSTEMD_UNIT=vfsd-machine-guest.service", since=since)
    )
    assert f"io.systemd.credential.binary:secret={base64.b64encode(SECRET.encode()).decode()}" in console
    public = (vfsd.state / "ssh/id_ed25519.pub").read_text().strip()
    keys = base64.b64encode(f"ssh-rsa mine\n{public}\n".encode()).decode()
    assert f"io.systemd.credential.binary:ssh.authorized_keys.root={keys}" in console
    [mount] = [line for line in console.splitlines() if "on /data/two words type" in line]
    assert "nosuid" in mount

    await until(lambda: client.signals.changes(path, "SSHAddress")[-1] == "", "the guest powers off", 60)
    assert (vfsd.state / "ssh/id_ed25519").stat().st_mode & 0o777 == 0o600


def _variants(**options: str) -> dict[str, Any]:
    from dbus_next import Variant

    return {name: Variant("s", value) for name, value in options.items()}


async def test_the_port_stays_the_same_and_is_known_after_a_restart(
    vfsd: Vfsd, client: Client, folder: Path
) -> None:
    path = await started(client, folder, Network=("s", "user"), SSH=("b", True))
    address = await client.get(path, MACHINE, "SSHAddress")
    vfsd.restart()
    wait_for(lambda: vfsd.get(path, MACHINE, "SSHAddress") == address, "the address is known again")
    await client.call(path, MACHINE, "Kill")
    await client.call(path, MACHINE, "Start")
    assert await client.get(path, MACHINE, "SSHAddress") == address
    taken = subprocess.run(
        ["ss", "-Hltn", f"sport = :{address.rpartition(':')[2]}"], capture_output=True, text=True, check=True
    )
    assert "127.0.0.1" in taken.stdout


async def test_a_port_that_is_taken_meanwhile_is_not_insisted_on(client: Client, folder: Path) -> None:
    path = await started(client, folder, Network=("s", "user"), SSH=("b", True))
    address = await client.get(path, MACHINE, "SSHAddress")
    await client.call(path, MACHINE, "Kill")
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", int(address.rpartition(":")[2])
    )
    async with server:
        await client.call(path, MACHINE, "Start")
        assert await client.get(path, MACHINE, "SSHAddress") not in ("", address)


@pytest.mark.parametrize(
    ("forward", "network", "ssh", "address"),
    [
        (["tcp:127.0.0.1:0:80"], "user", False, ""),
        (["tcp:127.0.0.1:0:22"], "user", False, "127.0.0.1:PORT"),
        (["tcp::0:22"], "user", True, "127.0.0.1:PORT"),
        ([], "none", True, ""),
    ],
)
@only_system
async def test_a_forward_of_the_users_own_is_enough(
    client: Client, folder: Path, forward: list[str], network: str, ssh: bool, address: str
) -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()
    path = await started(
        client,
        folder,
        Network=("s", network),
        SSH=("b", ssh),
        Forward=("as", [text.replace(":0:", f":{port}:") for text in forward]),
    )
    assert await client.get(path, MACHINE, "SSHAddress") == address.replace("PORT", port)
