"""A terminal for the tests, installed as xdg-terminal-exec, which is the user's own choice: it keeps what is printed.

It runs as the user, alone, with Python's standard library; its folder is its first argument.
"""

import json
import os
import pty
import sys
from pathlib import Path

folder, command = Path(sys.argv[1]), sys.argv[2:]
with (folder / "started").open("a") as log:
    log.write(json.dumps(command) + "\n")
with (folder / "output").open("ab", buffering=0) as output:

    def keep(descriptor: int) -> bytes:
        data = os.read(descriptor, 1024)
        output.write(data)
        return data

    # nobody types
    sys.stdin = open(os.pipe()[0])  # noqa: SIM115, PTH123
    os.dup2(sys.stdin.fileno(), 0)
    pty.spawn(command, keep)
