"""Imports asyncio and dbus-next without what they load besides and vfsd never uses; to be imported before them.

asyncio takes ssl if it is there, and dbus-next GLib: together a fifth of the time that the two take to load. Both
do without, as they must where Python was built without the one and the other is not installed.
"""

from __future__ import annotations

import sys

_UNUSED = [name for name in ("ssl", "gi") if name not in sys.modules]

for _name in _UNUSED:
    sys.modules[_name] = None  # type: ignore[assignment]  # Python's own way to say "can't be imported"
try:
    import asyncio  # noqa: F401

    import dbus_next  # noqa: F401
finally:
    for _name in _UNUSED:
        del sys.modules[_name]
