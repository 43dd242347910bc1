"""What is on a screen as a screen reader knows it, and things that are found on it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = str(Path(__file__).with_name("reader.py"))


@dataclass(frozen=True)
class Node:
    """One thing on the screen, as a screen reader knows it."""

    depth: int
    role: str
    name: str
    description: str
    box: tuple[int, int, int, int]
    """Left, top, width and height: in the window, or on the screen where windows know where they are."""
    states: tuple[str, ...]

    @property
    def centre(self) -> tuple[int, int]:
        x, y, width, height = self.box
        return x + width // 2, y + height // 2


Words = str | re.Pattern[str]


def matching(nodes: list[Node], name: Words, role: str = "", description: Words = "") -> list[Node]:
    """Those of a name and role, whose description has these words; patterns are searched for."""

    def fits(node: Node) -> bool:
        same = node.name == name if isinstance(name, str) else bool(name.search(node.name))
        told = (
            description in node.description
            if isinstance(description, str)
            else bool(description.search(node.description))
        )
        return same and told and role in ("", node.role)

    return [node for node in nodes if fits(node)]


class ScreenReader:
    """reader.py, which runs in the desktop's session."""

    def __init__(self, argv: Sequence[str]) -> None:
        """:param argv: how PROGRAM is run there, with what it takes."""
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> ScreenReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()
        self._process.wait(10)

    def nodes(self, application: str) -> list[Node]:
        """All that is shown of an application, in the order in which it is read."""
        assert self._process.stdin
        assert self._process.stdout
        print(application, file=self._process.stdin, flush=True)
        found: list[dict[str, Any]] = json.loads(self._process.stdout.readline())
        return [Node(**{**one, "box": tuple(one["box"]), "states": tuple(one["states"])}) for one in found]
