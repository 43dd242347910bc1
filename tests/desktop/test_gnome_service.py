"""How the extension follows vfsd as it comes and goes, and what it leaves behind itself."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from tests.desktop.gnome import GnomeShell
from tests.desktop.test_gnome import add_machine
from tests.desktop.test_gnome_look import BELOW
from tests.integration.harness import MACHINE, Client, Vfsd, wait_for

NOT_RUNNING = "shell.texts(shell.toggle.menu.actor).includes('vfsd is not running')"


def is_active(vfsd: Vfsd) -> bool:
    return vfsd.systemctl("is-active", "vfsd.service", check=False).strip() == "active"


def test_to_look_starts_nothing(gnome: GnomeShell, vfsd: Vfsd) -> None:
    add_machine(vfsd, "web")
    gnome.open()
    gnome.says("web", "Stopped")
    vfsd.systemctl("stop", "vfsd.service")
    gnome.until(NOT_RUNNING)
    gnome.screenshot("not-running")
    gnome.run("shell.close()")
    for means in ("Keyboard", "Pointer"):
        gnome.open(means)
        gnome.until(NOT_RUNNING)
    # as at login: the extension finds no vfsd
    gnome.enable(False)
    gnome.enable(True)
    gnome.until("shell.toggle.subtitle === 'Not running'")
    time.sleep(0.5)
    assert not is_active(vfsd)
    gnome.open()
    gnome.choose_own("Pointer", "Start vfsd")
    wait_for(lambda: is_active(vfsd), "it was started", 10)
    gnome.open()
    gnome.says("web", "Stopped")


def test_vfsd_restarts_and_crashes(gnome: GnomeShell, vfsd: Vfsd) -> None:
    add_machine(vfsd, "web")
    vfsd.manager("StartMachine", "s", "web")
    gnome.open()
    gnome.says("web", "Running")
    vfsd.restart()
    gnome.says("web", "Running")
    vfsd.crash()
    gnome.says("web", "Running")
    gnome.choose("Keyboard", "web", "Force off “web”")
    gnome.open("Keyboard")
    gnome.says("web", "Stopped")
    assert gnome.notifications() == []


def test_thirty_machines(gnome: GnomeShell, vfsd: Vfsd) -> None:
    gnome.open()
    for number in range(30):
        vfsd.manager("CreateMachine", "sa{sv}", f"machine-{number}", "1", "Builtin", "b", "true")
    gnome.says("machine-29", "Stopped")
    names = gnome.eval("[...shell.rows()].map(row => row.object.name)")
    assert names == [f"machine-{number}" for number in range(30)]
    gnome.screenshot("thirty")
    # the last one is reached by both means, and is in sight then
    gnome.choose("Keyboard", "machine-29", "Start “machine-29”")
    gnome.open("Keyboard")
    gnome.says("machine-29", "Running")
    gnome.run("await shell.walk('machine-29,')")
    assert gnome.eval("shell.isInSight(shell.row('machine-29'))")
    gnome.run("await shell.clickActor(shell.row('machine-29'))")
    gnome.click("Force off “machine-29”")
    gnome.open()
    gnome.says("machine-29", "Stopped")
    assert min(gnome.run(BELOW)) >= 6


def listening(vfsd: Vfsd, owner: str) -> list[str]:
    """What a connection wants to hear of us on the user's bus: of vfsd, or that a setting of ours changes."""
    bus = "org.freedesktop.DBus"
    call = ("call", bus, "/org/freedesktop/DBus", f"{bus}.Debug.Stats", "GetAllMatchRules")
    [rules] = json.loads(vfsd.run("busctl", "--user", "--json=short", *call))["data"]
    get = ("call", bus, "/org/freedesktop/DBus", bus, "GetNameOwner", "s", "org.vfsd1")
    [name] = json.loads(vfsd.run("busctl", "--user", "--json=short", *get))["data"]
    return [rule for rule in rules.get(owner, []) if "vfsd" in rule or f"'{name}'" in rule]


CENSUS = """({
    indicators: shell.quickSettings._indicators.get_n_children(),
    grid: shell.quickSettings.menu._grid.get_n_children(),
    overlay: shell.quickSettings.menu._overlay.get_n_children(),
    group: Main.uiGroup.get_n_children(),
    sources: Main.messageTray.getSources().length,
    style: imports.gi.St.ThemeContext.get_for_stage(global.stage).get_theme().get_custom_stylesheets().length,
})"""


def test_disabled_and_enabled_ten_times(gnome: GnomeShell, vfsd: Vfsd) -> None:
    add_machine(vfsd, "web")
    owner = str(gnome.eval("imports.gi.Gio.DBus.session.get_unique_name()"))
    assert len(listening(vfsd, owner)) >= 4
    gnome.enable(False)
    bare = gnome.eval(CENSUS)
    for number in range(10):
        gnome.enable(True)
        if number % 2:
            gnome.open()
            gnome.says("web", "Stopped")
            gnome.run("await shell.clickActor(shell.row('web'))")
        # with its menu open, too
        gnome.enable(False)
        gnome.run("shell.close()")
    assert gnome.eval(CENSUS) == bare
    # settings listen until they are collected
    gnome.run("imports.system.gc(); await shell.sleep(100)")
    left = listening(vfsd, owner)
    gnome.enable(True)
    assert left == []


def resident_memory(pid: int) -> int:
    """In KiB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmRSS:")))


async def test_a_thousand_signals_cost_no_memory(gnome: GnomeShell, vfsd: Vfsd) -> None:
    add_machine(vfsd, "web")
    vfsd.manager("StartMachine", "s", "web")
    gnome.open()
    gnome.says("web", "Running")
    client = await Client.connect(vfsd)
    path = str(vfsd.manager("GetMachine", "s", "web"))

    async def change(times: int) -> None:
        for _ in range(times):
            await client.call(path, MACHINE, "Pause")
            await client.call(path, MACHINE, "Resume")

    def measured() -> int:
        gnome.run("imports.system.gc(); await shell.sleep(50); imports.system.gc();")
        return resident_memory(gnome.pid)

    await change(25)
    before = await asyncio.to_thread(measured)
    seen = len(client.signals.seen)
    await change(250)
    await asyncio.to_thread(gnome.says, "web", "Running")
    signals = len(client.signals.seen) - seen
    grown = await asyncio.to_thread(measured) - before
    await client.close()
    print(f"{signals} signals: {grown} KiB")
    assert signals >= 1000
    # what a shell's memory varies by on its own
    assert grown < 4096, grown
