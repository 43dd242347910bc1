"""Random values of any D-Bus type, with a liking for boundaries."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

from tests.fuzz.raw import Typed
from vfsd.bus.incoming import _complete

BASIC = "ybnqiuxtdsog"
_BITS = {"y": (8, 0), "n": (16, 1), "q": (16, 0), "i": (32, 1), "u": (32, 0), "x": (64, 1), "t": (64, 0)}
LARGE = 1 << 20
"""Bytes of a large text."""
DEEP = 30
"""Levels of variants in variants: the bus allows 64 levels of all kinds."""
TEXTS = (
    *(
        "",
        " ",
        "a",
        "-",
        ".",
        "..",
        "/",
        "//",
        "/etc",
        "/srv",
        "a/../b",
        "~",
        "*",
        "%n %s %i",
        "${X} $$ $(id)",
    ),
    *(
        "a b",
        "a\nb",
        "a\tb\r",
        "\x01\x7f\x1b[0m",
        '"',
        "'",
        "\\",
        "\\x2d",
        "a,b=c",
        "a;b",
        "a:b",
        "--help",
        "-x",
    ),
    *(
        "\u00e4\u65e5\U0001f600",
        "\u202eabc",
        "\ufeff",
        "\ufffe\uffff\U0010ffff",
        "e\u0301",
        "x" * 63,
        "x" * 255,
    ),
    *(
        "y" * 256,
        "z" * 4096,
        "user",
        "none",
        "auto",
        "never",
        "tap:x",
        "bridge:lo",
        "tcp:127.0.0.1:1:1",
        "namespace",
    ),
    *(
        "tcp:[::1]:65535:65535",
        "map:0:0:1",
        ":0:0:1:",
        "squash-host:0:0:4294967295",
        "heal",
        "vnc",
        "uefi",
        "off",
    ),
    *(
        "org.vfsd1.Share",
        "org.vfsd1.Machine",
        "org.freedesktop.DBus.Properties",
        "State",
        "2G",
        "NaN",
        "1e999",
    ),
)


class Chance:
    """A source of values that one seed determines."""

    def __init__(self, seed: object) -> None:
        self.random = random.Random(str(seed))
        self.words: list[str] = []
        """Texts that mean something: names, paths, options."""
        self.paths: list[str] = ["/"]

    def one_in(self, number: int) -> bool:
        return self.random.randrange(number) == 0

    def pick(self, items: Sequence[Any]) -> Any:
        return self.random.choice(items)

    def body(self, signature: str) -> list[Any]:
        """Values for a whole signature."""
        return [self.value(each) for each in _complete(signature)]

    def value(self, signature: str, depth: int = 0) -> Any:
        """A value of one complete type."""
        kind = signature[0]
        if kind in _BITS:
            return self._whole_number(*_BITS[kind])
        if kind == "b":
            return self.random.randrange(2)
        if kind == "d":
            special = [0.0, -0.0, float("nan"), float("inf"), -1.5, 5e-324]
            return self.pick([*special, struct.unpack("<d", self.random.randbytes(8))[0]])
        if kind == "h":
            return self.pick([0, 1, 249, (1 << 32) - 1])
        if kind == "a":
            return self._array(signature[1:], depth)
        if kind in "({":
            return [self.value(each, depth + 1) for each in _complete(signature[1:-1])]
        if kind == "v":
            return self._variant(depth)
        return {"s": self.text, "o": self.path, "g": self.signature}[kind]()

    def text(self) -> str:
        if self.one_in(300):
            return str(self.pick(["x", "\u00e4", "/x", "\n"])) * (LARGE // 2)
        if self.words and self.one_in(2):
            return str(self.pick(self.words))
        if self.one_in(4):
            # the bus takes no NUL and no surrogate
            letters = (self.random.randrange(1, 0x2FFF) for _ in range(self.random.randrange(1, 40)))
            return "".join(map(chr, letters))
        return str(self.pick(TEXTS))

    def path(self) -> str:
        """A valid object path."""
        if self.one_in(3):
            return str(self.pick(self.paths))
        if self.one_in(100):
            return "/" + "/".join("x" * 100 for _ in range(100))
        parts = [
            self.pick(["org", "vfsd1", "share", "machine", "_", "_2d", "_zz", "x" * 200]) for _ in range(4)
        ]
        return "/" + "/".join(parts[: self.random.randrange(5)])

    def signature(self, depth: int = 0) -> str:
        """A valid signature: some complete types."""
        return "".join(self.complete(depth) for _ in range(self.random.randrange(4)))

    def complete(self, depth: int = 0) -> str:
        """A signature of one complete type."""
        if depth > 3 or not self.one_in(3):
            return str(self.pick(BASIC))
        inner = self.complete(depth + 1)
        made = [f"a{inner}", f"({inner}{self.pick(BASIC)})", f"a{{{self.pick(BASIC)}{inner}}}", "v"]
        return str(self.pick(made))

    def _whole_number(self, bits: int, signed: int) -> int:
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        edges = [
            low,
            low + 1,
            0,
            1,
            2,
            high - 1,
            high,
            self.random.randrange(1 << self.random.randrange(1, bits)),
        ]
        return min(high, int(self.pick(edges)))

    def _array(self, element: str, depth: int) -> Any:
        if element == "y":
            return self.random.randbytes(self.pick([0, 1, 100, 1 << 20 if self.one_in(20) else 7]))
        count = self.pick([0, 1, 2, 3])
        if depth == 0 and element[0] in "ybnqiuxtdsg" and self.one_in(60):
            many = self.pick([1000, 30000])
            return (
                ["x" * self.random.randrange(20)] * many
                if element == "s"
                else [self.value(element, 1)] * many
            )
        return [self.value(element, depth + 1) for _ in range(count)]

    def _variant(self, depth: int) -> Typed:
        if depth == 0 and self.one_in(10):
            deep = Typed("s", "deep")
            for _ in range(self.random.randrange(1, DEEP)):
                deep = Typed("v", deep)
            return deep
        signature = self.complete(depth + 1)
        return Typed(signature, self.value(signature, depth + 1))
