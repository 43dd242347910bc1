"""Out of a share, by all that names files. Arguments: the host's path of what is outside, seconds for the race."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

from tests.integration.hostile.attack import SHARES, content, outcome, tell

OUTSIDE, SECONDS = sys.argv[1], float(sys.argv[2])
SHARE = SHARES / "rw"
UP = "../" * 40
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def exchange(one: Path, other: Path) -> None:
    libc = ctypes.CDLL(None)
    libc.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE)


def by_links() -> dict[str, str]:
    found = {}
    targets = {
        "absolute": f"{OUTSIDE}/secret",
        "dots": f"{UP}{OUTSIDE}/secret",
        "beside": "../../outside/secret",
        "above": "../../above",
        "magic": "/proc/self/root/../../../above",
    }
    for name, target in targets.items():
        (SHARE / f"link-{name}").symlink_to(target)
        found[name] = content(SHARE / f"link-{name}")
    # those that were there
    found["the host's, to a folder"] = content(SHARE / "out/secret")
    found["the host's, relative"] = content(SHARE / "relative")
    found["the host's, written through"] = outcome((SHARE / "relative").write_text, "by the guest")
    found["the host's, made below"] = outcome((SHARE / "out/made").touch)
    found["the host's, as it is"] = os.readlink(SHARE / "relative")
    return found


def by_descriptors() -> dict[str, str]:
    root = os.open(SHARE, os.O_PATH | os.O_DIRECTORY)
    folder = SHARE / "folder"
    folder.mkdir()
    inside = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    found = {
        "root ..": content("../../outside/secret", root),
        "beside": content("../secret", root),
        "magic": content(f"/proc/self/fd/{root}/../secret"),
        "magic, up": content(f"/proc/self/fd/{inside}/../../../outside/secret"),
    }
    # a folder that is moved while one stands in it
    (SHARE / "deeper").mkdir()
    folder.rename(SHARE / "deeper/folder")
    found["moved"] = content("../../../secret", inside)
    (SHARE / "deeper/folder").rename(SHARE / "folder")
    folder.rmdir()
    found["removed"] = content("../hello", inside)
    os.close(root)
    os.close(inside)
    return found


def by_hard_links() -> dict[str, str]:
    return {
        "to another share": outcome(os.link, SHARE / "hello", SHARES / "uncached/stolen"),
        "from the guest's own": outcome(os.link, "/dev/null", SHARE / "null"),
        "of a symbolic link": outcome(os.link, SHARE / "relative", SHARE / "linked", follow_symlinks=False),
        "what that is": os.readlink(SHARE / "linked"),
        "to a folder": outcome(os.link, SHARE / "deeper", SHARE / "again"),
        "rename to another share": outcome(os.rename, SHARE / "hello", SHARES / "uncached/stolen"),
        "rename the root": outcome(os.rename, SHARE, SHARES / "uncached/stolen"),
    }


def by_names() -> dict[str, str]:
    return {
        "mkdir ..": outcome(os.mkdir, SHARE / ".."),
        "unlink ..": outcome(os.rmdir, f"{SHARE}/deeper/.."),
        "rename ..": outcome(os.rename, f"{SHARE}/deeper/..", SHARE / "x"),
    }


def race() -> dict[str, object]:
    """A folder and a link to the outside change places, while a file below is opened: it is never that outside."""
    trap, link = SHARE / "trap", SHARE / "trap-link"
    trap.mkdir()
    (trap / "secret").write_text("inside\n")
    link.symlink_to(OUTSIDE)
    child = os.fork()
    if child == 0:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            exchange(trap, link)
        os._exit(0)
    seen: dict[str, int] = {}
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        found = content(trap / "secret")
        seen[found] = seen.get(found, 0) + 1
    return {"seen": sorted(seen), "tries": sum(seen.values())}


tell(
    {
        "links": by_links(),
        "descriptors": by_descriptors(),
        "hard links": by_hard_links(),
        "names": by_names(),
        "race": race(),
    }
)
