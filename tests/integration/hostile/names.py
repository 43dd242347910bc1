"""Names of all kinds, many files, and a deep tree. Argument: how many files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.integration.hostile.attack import SHARES, outcome, tell

COUNT = int(sys.argv[1])
SHARE = SHARES / "rw"
ODD = {
    "255 bytes": b"n" * 255,
    "256 bytes": b"n" * 256,
    "85 characters of 3": "€".encode() * 85,
    "not UTF-8": b"\xff\xfe\x80 latin-1 \xe9",
    "half a character": b"\xe2\x82",
    "newline": b"two\nlines",
    "escapes": b"\x1b[2J\x1b]0;title\x07\r",
    "all bytes": bytes(byte for byte in range(1, 256) if byte != ord("/")),
    "dashes": b"--help",
    "percent": b"%s%n%2F..%2f",
    "blanks": b"  ",
    "backslash": b"..\\..\\x",
    "dots": b"...",
}


def odd() -> dict[str, str]:
    folder = os.fsencode(SHARE / "odd")
    os.mkdir(folder)
    found = {}
    for name, text in ODD.items():
        path = folder + b"/" + text
        found[name] = outcome(os.mkdir, path)
        if found[name] == "done":
            os.rmdir(path)
            with open(path, "xb") as file:
                file.write(text)
    found["listed"] = "all" if len(os.listdir(folder)) == len(ODD) - 1 else "not all"
    return found


def many() -> dict[str, float]:
    """Made here, and looked at where the host made them."""
    folder = SHARE / "many"
    folder.mkdir()
    place = os.open(folder, os.O_PATH)
    begun = time.monotonic()
    for number in range(COUNT):
        os.close(os.open(f"{number:x}", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    made = time.monotonic()
    os.close(place)
    with os.scandir(SHARE / "crowd") as listing:
        entries = list(listing)
    listed = time.monotonic()
    sizes = forgotten = 0
    for entry in entries:
        while (told := outcome(entry.stat, follow_symlinks=False)) == "ENFILE":
            # virtiofsd has one open for each that the guest's kernel knows of
            Path("/proc/sys/vm/drop_caches").write_text("2")
            forgotten += 1
        sizes += entry.stat(follow_symlinks=False).st_size if told == "done" else 0
    seen = time.monotonic()
    took = {"made": made - begun, "listed": listed - made, "looked": seen - listed}
    return {"sizes": sizes, "forgotten": forgotten, **{name: round(value, 2) for name, value in took.items()}}


def deep() -> dict[str, object]:
    """Deeper than any path may be long."""
    os.mkdir(SHARE / "deep")
    os.chdir(SHARE / "deep")
    levels = 24
    for _ in range(levels):
        os.mkdir("d" * 255)
        os.chdir("d" * 255)
    with open("bottom", "x") as file:
        file.write("bottom\n")
    found: dict[str, object] = {
        "absolute": outcome(os.stat, f"{SHARE}/deep" + ("/" + "d" * 255) * levels),
        "getcwd": outcome(os.getcwd),
        "relative": outcome(os.stat, "bottom"),
    }
    os.chdir("/")
    return found


tell({"odd": odd(), "many": many(), "deep": deep()})
