"""A guest's display on its socket, in the real protocols, and what `vfsctl view` does with it."""

from __future__ import annotations

import re
import shlex
import socket
import struct
import subprocess
import sys
from pathlib import Path

from tests.integration import rfb_client
from tests.integration.harness import MACHINE, Client, Vfsd
from tests.integration.tiny_guest import started, tiny_machine
from tests.integration.vfsctl import Result

VIEWER = shlex.join([sys.executable, rfb_client.__file__])
SPICE_LINK = b"REDQ" + struct.pack("<IIIIBBIII", 2, 2, 18, 0, 1, 0, 0, 0, 18)
"""Asks for the main channel without any capability (spice-protocol: SpiceLinkHeader, SpiceLinkMess)."""


def view(vfsd: Vfsd, name: str, **environment: str) -> Result:
    variables = [f"{key}={value}" for key, value in environment.items()]
    argv = vfsd.argv(["env", "-u", "DISPLAY", "-u", "WAYLAND_DISPLAY", *variables, "vfsctl", "view", name])
    return Result(subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/"))


async def test_vnc(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await tiny_machine(client, folder, Display=("s", "vnc"))
    assert await client.get(path, MACHINE, "DisplayPath") == ""
    done = view(vfsd, "tiny", VFSD_VIEWER=VIEWER)
    assert (done.code, done.out) == (1, "")
    assert "Machine tiny is stopped; only one that runs has a display." in done.err
    assert "vfsctl machine start tiny" in done.err

    await client.call(path, MACHINE, "Start")
    display = await client.get(path, MACHINE, "DisplayPath")
    assert re.fullmatch(r"[1-9]\d+x[1-9]\d+ QEMU \(tiny\)", rfb_client.look(display))
    done = view(vfsd, "tiny", VFSD_VIEWER=VIEWER)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(" QEMU (tiny)\n")
    assert Path(display).stat().st_mode & 0o077 == 0, "nobody else's"

    assert view(vfsd, "tiny", VFSD_VIEWER="sh -c 'exit 7'").code == 7
    assert view(vfsd, "tiny", VFSD_VIEWER="sh -c 'kill -15 $$'").code == 128 + 15
    done = view(vfsd, "tiny", VFSD_VIEWER="/nonexistent/viewer")
    assert done.code == 1
    assert "The viewer /nonexistent/viewer could not be started: No such file" in done.err
    done = view(vfsd, "tiny")
    assert done.code == 1
    assert "There is no screen here" in done.err
    done = view(vfsd, "tiny", DISPLAY=":0")
    assert done.code == 1
    assert "There is no viewer for vnc here" in done.err
    assert "Install tigervnc-viewer" in done.err
    await client.call(path, MACHINE, "Kill")
    assert await client.get(path, MACHINE, "DisplayPath") == ""


async def test_view_of_what_has_no_display(vfsd: Vfsd, client: Client, folder: Path) -> None:
    await started(client, folder)
    done = view(vfsd, "tiny", VFSD_VIEWER=VIEWER)
    assert done.code == 1
    assert "Machine tiny has no display." in done.err
    assert "Display to vnc" in done.err
    assert view(vfsd, "other", VFSD_VIEWER=VIEWER).code == 4


async def test_spice(vfsd: Vfsd, client: Client, folder: Path) -> None:
    path = await started(client, folder, Display=("s", "spice"))
    display = await client.get(path, MACHINE, "DisplayPath")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(display)
        connection.sendall(SPICE_LINK)
        answer = rfb_client.exactly(connection, 16)
        magic, major, _, size = struct.unpack("<4sIII", answer)
        assert (magic, major) == (b"REDQ", 2)
        error = struct.unpack("<I", rfb_client.exactly(connection, size)[:4])
        assert error == (0,), "linked"
    assert Path(display).stat().st_mode & 0o077 == 0, "nobody else's"
    shown = view(vfsd, "tiny", VFSD_VIEWER="echo")
    assert (shown.code, shown.out) == (0, f"spice+unix://{display}\n")
