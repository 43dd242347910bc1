"""GNOME Shell, headless, with a virtual pointer and keyboard in it: what is on the screen is read back from it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, ClassVar

from tests.desktop.screen_reader import PROGRAM, Node, ScreenReader
from tests.desktop.session import Session, screenshots
from tests.integration.harness import wait_for

EXTENSION = "vfsd@vfsd1.org"
UNIT = "gnome-shell-test"
DRIVER = Path(__file__).parent / "driver.js"
SETTINGS = "org.gnome.shell.extensions.vfsd"
NOT_OURS = ("GeoClue", "GDM", "ibus", "calendar")
"""What a shell says in the lab anyway."""


class ShellError(AssertionError):
    """What was evaluated in the shell threw an error."""


class GnomeShell:
    """A shell that runs in the user's session."""

    _running: ClassVar[list[GnomeShell]] = []

    def __init__(self, session: Session) -> None:
        self._session = session
        self.user = session.user
        self.since = time.time()

    @property
    def is_running(self) -> bool:
        return self in self._running

    def start(self, size: str = "1280x800", **environment: str) -> None:
        """Start it with the extension and wait until it is up."""
        self.since = time.time()
        for schema, key, value in (
            ("org.gnome.shell", "enabled-extensions", f"['{EXTENSION}']"),
            ("org.gnome.shell", "disabled-extensions", "[]"),
            ("org.gnome.shell", "disable-user-extensions", "false"),
            ("org.gnome.shell", "welcome-dialog-last-shown-version", "'999'"),
            ("org.gnome.desktop.interface", "enable-animations", "false"),
        ):
            self.set(schema, key, value)
        options = ("--headless", "--wayland", "--no-x11", "--virtual-monitor", size, "--unsafe-mode")
        self._session.start(UNIT, "gnome-shell", *options, environment=environment)
        wait_for(self._is_up, "the shell comes up", 60)
        self._running.append(self)
        self.eval(DRIVER.read_text(encoding="utf-8"))
        self.run("Main.overview.hide(); await shell.until(() => !Main.overview.visible, 'no overview')")

    def _is_up(self) -> bool:
        try:
            return bool(self.eval("Main.layoutManager._startingUp === false"))
        except AssertionError:
            return False

    def close(self) -> None:
        """End it."""
        self._session.stop(UNIT)
        self._running.clear()

    @classmethod
    def close_running(cls) -> None:
        """End the one that runs, if any."""
        for shell in cls._running.copy():
            shell.close()

    def begin(self) -> None:
        """Make it as new: nothing open, nothing told, our settings as they come."""
        self.user.run("gsettings", "reset-recursively", SETTINGS)
        self.run("shell.close(); shell.dismissAll(); shell.told = [];")
        self.since = time.time()

    @property
    def pid(self) -> int:
        return int(self.user.unit_property(UNIT, "MainPID"))

    # asking

    def eval(self, script: str) -> Any:
        """Evaluate an expression in the shell; a promise is awaited. :raise ShellError: it threw."""
        call = ("call", "org.gnome.Shell", "/org/gnome/Shell", "org.gnome.Shell", "Eval", "s", script)
        out = self.user.run("busctl", "--user", "--json=short", *call)
        succeeded, value = json.loads(out)["data"]
        if not succeeded:
            if self.is_running:
                self.screenshot("failure")
            raise ShellError(f"{script}\n{value}")
        return json.loads(value) if value else None

    def run(self, body: str) -> Any:
        """Evaluate the body of an asynchronous function."""
        return self.eval(f"(async () => {{ {body} }})()")

    def until(self, condition: str, timeout: float = 10) -> None:
        """Wait until an expression holds."""
        what = json.dumps(condition)
        self.run(f"await shell.until(() => ({condition}), {what}, {timeout * 1000})")

    def texts(self) -> list[str]:
        """All texts of the menu, if it is open."""
        return list(self.eval("shell.texts(shell.toggle.menu.actor)"))

    def notifications(self) -> list[dict[str, Any]]:
        """Ours: title, body, actions."""
        return list(self.eval("shell.notifications()"))

    def errors(self) -> list[str]:
        """What the shell complained of since the last `begin`, as far as it is about us."""
        said = self._session.errors(
            UNIT, "JS ERROR", "CRITICAL", "WARNING", EXTENSION, "vfsd:", since=self.since
        )
        return [line for line in said if not any(word in line for word in NOT_OURS)]

    # acting

    def set(self, schema: str, key: str, value: str) -> None:
        """Change a setting of the user's."""
        self.user.run("gsettings", "set", schema, key, value)

    def click(self, *names: str) -> None:
        """Click on one thing after the other, each named as a screen reader would."""
        steps = "".join(f"await shell.click({json.dumps(name)});" for name in names)
        self.run(steps)

    def keys(self, *names: str) -> None:
        """Press keys together, each named as in Clutter."""
        self.run(f"await shell.keys(...{json.dumps(names)})")

    def walk(self, name: str, key: str = "Down") -> None:
        """Press a key until that has the focus."""
        self.run(f"await shell.walk({json.dumps(name)}, {json.dumps(key)})")

    def choose(self, means: str, name: str, action: str) -> None:
        """Choose an action of a machine or share in the menu, by Pointer or by Keyboard."""
        self.run(f"await shell.chooseBy{means}({json.dumps(name)}, {json.dumps(action)})")

    def enable(self, enabled: bool) -> None:
        """Enable or disable the extension, and wait until that is so: the shell loses one that comes too early."""
        self.eval(f"Main.extensionManager.{'enable' if enabled else 'disable'}Extension('{EXTENSION}')")
        self.until(f"Boolean(shell.toggle) === {json.dumps(enabled)}")

    def choose_own(self, means: str, name: str) -> None:
        """Choose what is no machine's or share's, in the menu that is open."""
        if means == "Pointer":
            self.click(name)
        else:
            self.walk(name)
            self.keys("Return")

    def open(self, means: str = "Pointer") -> None:
        """Open the menu."""
        self.run(f"await shell.openBy{means}()")

    def says(self, name: str, text: str, timeout: float = 10) -> None:
        """Wait until the row of a machine or share says something."""
        try:
            self.until(f"shell.said({json.dumps(name)}).includes({json.dumps(text)})", timeout)
        except ShellError as error:
            raise AssertionError(f"{self.texts()} and {self.notifications()}, not {text}") from error

    def nodes(self, application: str) -> list[Node]:
        """What a screen reader finds of an application; boxes are in the window, since none knows where it is."""
        with ScreenReader(self.user.argv(["python3", PROGRAM, "window"])) as reader:
            return reader.nodes(application)

    def click_in_window(self, title: str, node: Node) -> None:
        """Click on a thing in a window."""
        left, top = node.centre
        self.run(f"""
            const {{x, y}} = shell.window({json.dumps(title)}).get_frame_rect();
            await shell.clickAt(x + {left}, y + {top});
        """)

    def scale(self, factor: int) -> None:
        """Have the screen show everything larger."""
        bus, path = "org.gnome.Mutter.DisplayConfig", "/org/gnome/Mutter/DisplayConfig"
        call = ("busctl", "--user", "--json=short", "call", bus, path, bus)
        serial, monitors, _, _ = json.loads(self.user.run(*call, "GetCurrentState"))["data"]
        [[[connector, *_], modes, _]] = monitors
        temporary, top_left, upright, primary = "1", ("0", "0"), "0", "true"
        logical = ("1", *top_left, str(factor), upright, primary, "1", connector, modes[0][0], "0")
        signature = "uua(iiduba(ssa{sv}))a{sv}"
        self.user.run(*call, "ApplyMonitorsConfig", signature, str(serial), temporary, *logical, "0")
        self.run("await shell.sleep(300)")

    def screenshot(self, name: str) -> Path:
        """Take a picture of the screen."""
        path = screenshots() / f"gnome-{name}.png"
        bus, member = "org.gnome.Shell.Screenshot", "Screenshot"
        call = ("call", bus, "/org/gnome/Shell/Screenshot", bus, member, "bbs", "false", "false", str(path))
        assert '"b"' in self.user.run("busctl", "--user", "--json=short", *call) or path.exists()
        return path
