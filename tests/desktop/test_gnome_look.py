"""What the extension looks like, and what a screen reader is told; the pictures are for people to judge."""

from __future__ import annotations

from pathlib import Path

from tests.desktop.gnome import GnomeShell
from tests.desktop.test_gnome import add_machine, kill_virtiofsd
from tests.integration.harness import Vfsd

INTERFACE = "org.gnome.desktop.interface"
CONTROLS = """[...shell.within(shell.toggle.menu.actor)].filter(actor => actor.mapped && actor.can_focus)
    .map(actor => shell.nameOf(actor))"""
OUTSIDE = """
    const place = actor => {
        const [x] = actor.get_transformed_position();
        const [width] = actor.get_transformed_size();
        return [x, x + width];
    };
    const isScrollBar = actor => actor && (/ScrollBar/.test(actor) || isScrollBar(actor.get_parent()));
    const [left, right] = place(shell.toggle.menu.box);
    const sticksOut = ([start, end]) => start < left - 1 || end > right + 1;
    return [...shell.within(shell.toggle.menu.box)]
        .filter(actor => actor.mapped && !isScrollBar(actor) && sticksOut(place(actor)))
        .map(actor => `${actor} ${shell.nameOf(actor)}`);
"""
"""What sticks out of the menu at a side."""


BELOW = """
    const bottom = actor => actor.get_transformed_position()[1] + actor.get_transformed_size()[1];
    const outer = bottom(shell.quickSettings.menu.box);
    return [outer - bottom(shell.toggle.menu.box), global.stage.height - outer];
"""
"""How far the menu is from the lower edge of Quick Settings, and that from the screen's."""


def populate(vfsd: Vfsd, folder: Path) -> None:
    """A machine that lacks a share, one that runs, some that don't, and folders; with names short and long."""
    for name in ("Music", "Projects"):
        vfsd.run("mkdir", str(folder / name))
    add_machine(vfsd, "build", folder / "Projects", folder / "Music")
    add_machine(vfsd, "database")
    add_machine(vfsd, "web", folder / "Projects")
    vfsd.manager("CreateShare", "ssa{sv}", "Music", str(folder / "Music"), "0")
    for name in ("build", "web"):
        vfsd.manager("StartMachine", "s", name)
    kill_virtiofsd(vfsd, "build.Music")


def test_light_and_dark(gnome: GnomeShell, vfsd: Vfsd, folder: Path) -> None:
    populate(vfsd, folder)
    gnome.until("shell.toggle.subtitle === '1 problem'")
    gnome.run("shell.dismissAll()")
    gnome.open()
    # some are named by what they are only, which is why the others are named by what they do
    assert "" not in gnome.eval(CONTROLS)
    for scheme in ("prefer-light", "default"):
        gnome.set(INTERFACE, "color-scheme", scheme)
        gnome.run("await shell.sleep(200)")
        look = "light" if scheme == "prefer-light" else "dark"
        gnome.screenshot(f"{look}")
        assert min(gnome.run(BELOW)) >= 6
        gnome.run("await shell.clickActor(shell.row('build')); await shell.sleep(100)")
        assert gnome.run(OUTSIDE) == []
        gnome.screenshot(f"{look}-degraded")
        assert min(gnome.run(BELOW)) >= 6
        names = gnome.eval(CONTROLS)
        assert "" not in names
        assert {"Shut down “build”", "Restart “build”", "Show the log of “build”"} < set(names)
        assert len(names) == len(set(names)), names
        if scheme == "default":
            read = {node.name for node in gnome.nodes("gnome-shell")}
            assert set(names) < read
            assert "Open the menu of machines" in read
        gnome.run("await shell.clickActor(shell.row('build')); shell.scrollUp();")
