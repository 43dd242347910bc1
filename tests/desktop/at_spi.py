"""What a screen reader finds in an application, as JSON: role, name, whether it is shown, and its place in the window.

It runs as the user, alone; its argument is the application's name. A place is left, top, width and height.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import gi

gi.require_version("Atspi", "2.0")
from gi.repository import Atspi  # noqa: E402


def within(accessible: Any) -> Iterator[Any]:
    yield accessible
    # much of a shell is not shown, and all its questions take long
    states = accessible.get_state_set()
    if not states.contains(Atspi.StateType.SHOWING) and accessible.get_role() is not Atspi.Role.APPLICATION:
        return
    for number in range(accessible.get_child_count()):
        if child := accessible.get_child_at_index(number):
            yield from within(child)


def described(accessible: Any) -> list[Any]:
    component = accessible.get_component_iface()
    place = component.get_extents(Atspi.CoordType.WINDOW) if component else None
    extents = [place.x, place.y, place.width, place.height] if place else [0, 0, 0, 0]
    shown = accessible.get_state_set().contains(Atspi.StateType.SHOWING)
    return [accessible.get_role_name(), accessible.get_name(), shown, *extents]


Atspi.init()
desktop = Atspi.get_desktop(0)
applications = [desktop.get_child_at_index(number) for number in range(desktop.get_child_count())]
found = [described(item) for one in applications if one.get_name() == sys.argv[1] for item in within(one)]
print(json.dumps([item for item in found if item[1]]))
