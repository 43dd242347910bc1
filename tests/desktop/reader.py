"""What a screen reader is told: a program of its own, which runs in the desktop's session.

It answers each line on standard input, the name of an application, with one line of JSON: all that is shown of it. Its
argument says what places are counted from: "screen" or "window".
"""

import json
import sys
from typing import Any

import gi

gi.require_version("Atspi", "2.0")
from gi.repository import Atspi, GLib  # noqa: E402  # the version has to be said first

SHOWN = (Atspi.StateType.SHOWING, Atspi.StateType.VISIBLE)
UNTOUCHED = (
    "label",
    "panel",
    "filler",
    "frame",
    "layered pane",
    "page tab",
    "tool bar",
    "unknown",
    "table cell",
)
"""Roles of what nobody points at; each question takes a while."""
TOLD = ("FOCUSED", "ENABLED", "CHECKED", "EXPANDED", "SELECTED", "PRESSED")


def nodes(name: str, coordinates: Any) -> list[dict[str, Any]]:
    """All that is shown of the applications of that name, in the order in which it is read."""
    found: list[dict[str, Any]] = []
    desktop = Atspi.get_desktop(0)
    for index in range(desktop.get_child_count()):
        application = desktop.get_child_at_index(index)
        if application is not None and application.get_name() == name:
            application.clear_cache()
            _walk(application, 0, coordinates, found)
    return found


def _walk(node: Any, depth: int, coordinates: Any, found: list[dict[str, Any]]) -> None:
    try:
        states = node.get_state_set()
        if depth > 1 and not all(states.contains(state) for state in SHOWN):
            return
        if depth:
            role = node.get_role_name()
            box = node.get_extents(coordinates) if role not in UNTOUCHED else Atspi.Rect()
            found.append(
                {
                    "depth": depth,
                    "role": role,
                    "name": node.get_name() or "",
                    "description": (node.get_description() or "") if role not in UNTOUCHED else "",
                    "box": [box.x, box.y, box.width, box.height],
                    "states": [one for one in TOLD if states.contains(getattr(Atspi.StateType, one))],
                }
            )
        children = [node.get_child_at_index(index) for index in range(node.get_child_count())]
    except GLib.Error:  # it went away meanwhile
        return
    for child in children:
        if child is not None:
            _walk(child, depth + 1, coordinates, found)


def main() -> None:
    """Answer until standard input ends."""
    Atspi.init()
    coordinates = getattr(Atspi.CoordType, sys.argv[1].upper())
    for line in sys.stdin:
        print(json.dumps(nodes(line.strip(), coordinates)), flush=True)


if __name__ == "__main__":
    main()
