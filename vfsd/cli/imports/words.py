"""The words of QEMU's command line: options, and the properties that they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

_ALONE = frozenset((
    *("enable-kvm", "no-kvm", "nodefaults", "no-user-config", "nographic", "no-reboot", "no-shutdown", "snapshot"),
    *("daemonize", "S", "s", "usb", "full-screen", "no-acpi", "no-hpet", "no-fd-bootchk", "preconfig"),
    *("only-migratable", "mem-prealloc", "win2k-hack", "curses", "async-teardown", "no-quit", "show-cursor"),
))  # fmt: skip
"""Options without a value (qemu(1))."""

Properties = list[tuple[str, str]]
"""`key=value,…`; the first may have no key, and one may stand more than once."""


def options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of options and their values; a word that belongs to none, which is a disk, has the name ""."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            yield "", word
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        yield name, "" if name in _ALONE or not rest else rest.pop(0)


def properties(text: str) -> Properties:
    """Take `key=value,…` apart; a doubled comma is one of the value's."""
    parts = [""]
    position = 0
    while position < len(text):
        if text.startswith(",,", position):
            parts[-1] += ","
            position += 2
        elif text[position] == ",":
            parts.append("")
            position += 1
        else:
            parts[-1] += text[position]
            position += 1
    found = []
    for number, part in enumerate(parts):
        key, equals, value = part.partition("=")
        found.append((key, value) if equals else ("", part) if number == 0 else (part, ""))
    return [item for item in found if item != ("", "")]


def flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """JSON as `a.b=c`, booleans as on and off."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return found
