"""Reads a file in a folder that the host exchanges with a link to its outside. Arguments: share, seconds."""

from __future__ import annotations

import sys
import time

from tests.integration.hostile.attack import SHARES, content, tell

end = time.monotonic() + float(sys.argv[2])
seen: dict[str, int] = {}
while time.monotonic() < end:
    found = content(SHARES / sys.argv[1] / "swapped/secret")
    seen[found] = seen.get(found, 0) + 1
tell({"seen": sorted(seen), "tries": sum(seen.values())})
