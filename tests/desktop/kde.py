"""Plasma as somebody in front of the screen has it: what a screen reader reads, a pointer, a keyboard, the screen."""

from __future__ import annotations

import json
import os
import secrets
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.desktop.screen_reader import PROGRAM, Node, ScreenReader, Words, matching
from tests.desktop.session import Session, screenshots
from tests.integration.harness import TESTER, Vfsd

DISPLAY = ":93"
APPLET = "org.vfsd1.plasma"
SHELL_UNIT = "plasma-plasmashell.service"
FRAMEBUFFER = Path("/tmp/desktop-x11/Xvfb_screen0")
"""What is on the screen, as xwd(1) has it."""
PATIENCE = 10.0
"""Seconds that anything on the screen may take."""

ENVIRONMENT = {
    "DISPLAY": DISPLAY,
    "QT_QPA_PLATFORM": "xcb",
    "QT_QUICK_BACKEND": "software",
    "QT_LINUX_ACCESSIBILITY_ALWAYS_ON": "1",
    "XDG_CURRENT_DESKTOP": "KDE",
    "XDG_SESSION_TYPE": "x11",
    "XDG_MENU_PREFIX": "plasma-",
    "KDE_FULL_SESSION": "true",
    "KDE_SESSION_VERSION": "6",
}


@dataclass
class Plasma:
    """The session of the user tester, on an X server of its own."""

    session: Session
    application: str = "plasmashell"
    """Whose windows are read."""
    _reader: ScreenReader | None = None

    @property
    def user(self) -> Vfsd:
        return self.session.user

    # the session

    def start(self) -> None:
        """Start everything that a Plasma session on X11 consists of."""
        sockets = Path("/tmp/.X11-unix")
        sockets.mkdir(exist_ok=True)
        sockets.chmod(0o1777)
        self.user.run("mkdir", "-p", str(FRAMEBUFFER.parent))
        screen = ("-screen", "0", "1280x800x24", "-fbdir", str(FRAMEBUFFER.parent))
        self.session.start("desktop-x11", "Xvfb", DISPLAY, *screen, "-nolisten", "tcp")
        self.until((sockets / f"X{DISPLAY[1:]}").exists, "the X server is up")
        for settings in Path(f"/home/{TESTER}/.config").glob("plasma*"):  # of an earlier session
            settings.unlink()
        assignments = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        self.run("dbus-update-activation-environment", "--systemd", *assignments)
        self.user.systemctl("start", "plasma-kwin_x11.service")
        self.user.systemctl("start", SHELL_UNIT)
        self._reader = ScreenReader(self._argv("python3", PROGRAM, "screen"))
        self.until(lambda: matching(self.nodes(), "Application Launcher"), "the panel is there", 30)

    def stop(self) -> None:
        if self._reader:
            self._reader.close()
        for unit in (SHELL_UNIT, "plasma-kwin_x11.service", "desktop-x11.service"):
            self.session.stop(unit)
        self.user.systemctl("unset-environment", *ENVIRONMENT)

    def _argv(self, *command: str) -> list[str]:
        return self.user.argv(["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items()), *command])

    def run(self, *command: str) -> str:
        """Run a command in the session; returns its standard output."""
        done = subprocess.run(self._argv(*command), capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def window(
        self, environment: dict[str, str] | None = None, *, arguments: Sequence[str] = (), bus: str = "user"
    ) -> Iterator[None]:
        """The applet alone in a window, which has the focus."""
        settings = Path(f"/home/{TESTER}/.config/plasmawindowedrc")
        self.session.write(
            settings,
            f"[Applets][3]\nplugin={APPLET}\n\n[Applets][3][Configuration][General]\nbus={bus}\n",
        )
        name = f"desktop-window-{time.monotonic_ns()}"
        given = ENVIRONMENT | (environment or {})
        self.session.start(name, "plasmawindowed", *arguments, APPLET, environment=given)
        before, self.application = self.application, "plasmawindowed"
        try:
            self.until(self.nodes, "the window is there")
            window = self.run(
                "xdotool", "search", "--sync", "--onlyvisible", "--class", "plasmawindowed"
            ).split()[0]
            # the pointer chooses a row too, if it is over one
            self.run("xdotool", "mousemove", "9", "400", "windowsize", "--sync", window, "460", "600")
            self.run("xdotool", "windowactivate", "--sync", window)
            yield
        finally:
            self.application = before
            self.session.stop(f"{name}.service")
            settings.unlink(missing_ok=True)

    # the eyes

    def nodes(self) -> list[Node]:
        """All that is shown."""
        assert self._reader
        return self._reader.nodes(self.application)

    def until(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Wait until a condition holds, and return its value."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < end, f"{what}: not within {timeout} s"
            time.sleep(0.05)
        return value

    def find(self, name: Words, role: str = "", description: Words = "", timeout: float = PATIENCE) -> Node:
        """The first of that name, role and description, as soon as it is there."""
        seen: list[Node] = []

        def look() -> list[Node]:
            seen[:] = self.nodes()
            return matching(seen, name, role, description)

        try:
            return self.until(look, f"{role or 'anything'} {name!r} {description!r}", timeout)[0]  # type: ignore[no-any-return]
        except AssertionError as error:
            self.screenshot("missing")
            shown = "\n".join(f"{' ' * one.depth}{one.role} {one.name!r} {one.description!r}" for one in seen)
            raise AssertionError(f"{error}; there is\n{shown}") from None

    def gone(self, name: Words, role: str = "", timeout: float = PATIENCE) -> None:
        """Wait until nothing of that name is there."""
        self.until(lambda: not matching(self.nodes(), name, role), f"{name!r} is gone", timeout)

    def screenshot(self, name: str) -> None:
        (screenshots() / f"kde-{name}.png").write_bytes(png(FRAMEBUFFER.read_bytes()))

    def open_popup(self, summary: str = "") -> None:
        """Click on the icon in the tray, once it says so."""
        if not matching(self.nodes(), "Keep Open", "check box"):
            self.click(self.find("vfsd", "button", summary))
            self.find("Keep Open", "check box")

    def close_popup(self) -> None:
        if matching(self.nodes(), "Keep Open", "check box"):
            self.keys("Escape", "Escape")
            self.gone("Keep Open")

    # the hands

    def point(self, node: Node) -> None:
        """Move the pointer there; a notification stays while it is pointed at."""
        x, y = node.centre
        self.run("xdotool", "mousemove", str(x), str(y))

    def click(self, node: Node) -> None:
        self.point(node)
        self.run("xdotool", "click", "1")

    def press(self, name: Words, role: str = "button") -> None:
        """Click on what is called so."""
        self.click(self.find(name, role))

    def keys(self, *keys: str) -> None:
        self.run("xdotool", "key", "--delay", "60", *keys)

    def write(self, text: str) -> None:
        self.run("xdotool", "type", "--delay", "20", text)

    def focused(self, name: str, timeout: float = PATIENCE) -> None:
        """Wait until that has the focus."""

        def has_focus() -> bool:
            return any("FOCUSED" in node.states for node in matching(self.nodes(), name))

        self.until(has_focus, f"{name!r} has the focus", timeout)

    def tab_to(self, name: str, key: str) -> None:
        """Press the tabulator until that has the focus, then a key."""
        self.find(name)
        for _ in range(20):
            if any("FOCUSED" in node.states for node in matching(self.nodes(), name)):
                self.keys(key)
                return
            self.keys("Tab")
        raise AssertionError(f"{name!r} can't be reached by the tabulator")

    def expand_by_keyboard(self, name: str) -> None:
        """Open the first row, which is called so."""
        for _ in range(5):  # a key is lost while the popup is being opened
            self.keys("Down")
            try:
                self.focused(name, 2)
                break
            except AssertionError:
                continue
        self.focused(name)
        self.keys("space")

    # the shell

    def script(self, text: str) -> str:
        """Run a script of Plasma's own kind in the shell."""
        call = ("org.kde.plasmashell", "/PlasmaShell", "org.kde.PlasmaShell", "evaluateScript", "s", text)
        return str(json.loads(self.run("busctl", "--user", "--json=short", "call", *call))["data"][0])

    @contextmanager
    def dark(self) -> Iterator[None]:
        """Dark colours."""
        self.run("plasma-apply-colorscheme", "BreezeDark")
        self.run("plasma-apply-desktoptheme", "breeze-dark")
        try:
            yield
        finally:
            self.run("plasma-apply-desktoptheme", "default")
            self.run("plasma-apply-colorscheme", "BreezeLight")

    def complaints(self, since: float) -> list[str]:
        """What was said of the applet's files in the user's journal."""
        entries = self.user.journal("_UID=" + str(self.user.owner_uid), since=since)
        said = [str(entry.get("MESSAGE", "")) for entry in entries]
        # Plasma's settings dialog makes every applet's page so.
        usual = "Created graphical object was not placed in the graphics scene"
        return [line for line in said if f"{APPLET}/contents" in line and usual not in line]

    def memory(self) -> int:
        """Resident memory of the shell in bytes."""
        pid = self.user.unit_property(SHELL_UNIT, "MainPID")
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def png(xwd: bytes) -> bytes:
    """A picture of 32 bits for each pixel, blue first, from one format to another; tools take seconds for it."""
    fields = struct.unpack_from(">20I", xwd)
    header, width, height, line, colours = fields[0], fields[4], fields[5], fields[12], fields[19]
    pixels = xwd[header + 12 * colours :][: line * height]
    rgb = bytearray(3 * width * height)
    for channel in range(3):
        rgb[channel::3] = pixels[2 - channel :: 4]
    rows = b"".join(b"\0" + rgb[start : start + 3 * width] for start in range(0, len(rgb), 3 * width))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    image = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows, 3)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


@contextmanager
def authenticating(plasma: Plasma, system: Vfsd) -> Iterator[str]:
    """Plasma's own agent of polkit, in a login session, without which polkit knows none.

    :return: what the administrator has to say.
    """
    secret = secrets.token_hex(4)
    subprocess.run(["chpasswd"], input=f"root:{secret}\n", text=True, check=True)
    session = ("PAMName=login", f"User={TESTER}", "Environment=XDG_SESSION_TYPE=x11 XDG_SESSION_CLASS=user")
    properties = [f"--property={one}" for one in session]
    system.run(
        "systemd-run", "--quiet", "--collect", "--unit=desktop-login", *properties, "sleep", "infinity"
    )
    agent = "plasma-polkit-agent.service"
    since = time.time()
    try:
        plasma.until(lambda: " user " in system.run("loginctl", "--no-legend"), "the session is there")
        plasma.user.systemctl("start", agent)
        plasma.until(
            lambda: plasma.session.errors(agent, "agent result: true", since=since), "the agent is known"
        )
        yield secret
    finally:
        plasma.session.stop(agent)
        system.systemctl("stop", "desktop-login.service")
        subprocess.run(["passwd", "--quiet", "--lock", "root"], check=True)
