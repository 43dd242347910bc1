"""Opens files until its share has no descriptors left, then gives them back. Argument: how many at most."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.integration.hostile.attack import SHARES, name_of, outcome, tell

SHARE = SHARES / "few"
opened: list[int] = []
told = "done"
for number in range(int(sys.argv[1])):
    try:
        opened.append(os.open(SHARE / f"{number}", os.O_CREAT | os.O_RDWR))
    except OSError as error:
        told = name_of(error)
        break
found: dict[str, object] = {
    "told": told,
    "opened": len(opened),
    "what is open": outcome(os.write, opened[0], b"x"),
    "another": outcome(os.open, SHARE / "another", os.O_CREAT | os.O_RDWR),
    "listing": outcome(os.listdir, SHARE),
    "mkdir": outcome(os.mkdir, SHARE / "folder"),
}
for descriptor in opened:
    os.close(descriptor)
found["closed"] = outcome(os.open, SHARE / "0", os.O_RDWR)
# what the guest's kernel knows of a file holds a descriptor too
Path("/proc/sys/vm/drop_caches").write_text("2")
found["forgotten"] = outcome(os.open, SHARE / "again", os.O_CREAT | os.O_RDWR)
found["read"] = (SHARE / "hello").read_text()
tell(found)
