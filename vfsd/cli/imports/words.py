"""The words of QEMU's command line: options, and the properties that they take."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence

_ALONE = frozenset((
    *("enable-kvm", "no-kvm", "nodefaults", "no-user-config", "nographic", "no-reboot", "no-shutdown", "snapshot"),
    *("daemonize", "S", "s", "usb", "full-screen", "no-acpi", "no-hpet", "no-fd-bootchk", "preconfig", "xen-attach"),
    *("only-migratable", "mem-prealloc", "win2k-hack", "curses", "async-teardown", "no-quit", "show-cursor", "nouuid"),
    *("xen-domid-restrict", "enable-fips", "alt-grab", "ctrl-grab", "no-frame", "sdl", "singlestep", "portrait"),
    *("perfmap", "jitdump", "enable-sync-profile", "h", "help", "version"),
))  # fmt: skip
"""Options without a value (qemu(1)), those of older versions too."""
_PROPERTY = re.compile(r"((?:[^,]|,,)*)(?:,|$)")

_ON = ("", "on", "yes", "true", "y")
"""What QEMU takes for yes (its parse_option_bool); a property that stands alone has no value."""

Properties = list[tuple[str, str]]
"""`key=value,…`; the first may have no key, and one may stand more than once."""


def options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of options and their values; a word that belongs to none, which is a disk, has the name ""."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            yield "", word
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        yield name, "" if name in _ALONE else next(rest, "")


def properties(text: str) -> Properties:
    """Take `key=value,…` apart, where a doubled comma is one of the value's, or the same as an object of JSON."""
    if text.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            return list(_flat(json.loads(text)))
    found = []
    for number, match in enumerate(_PROPERTY.finditer(text)):
        key, equals, value = match[1].replace(",,", ",").partition("=")
        found.append((key, value) if equals else ("", key) if number == 0 else (key, ""))
    return [item for item in found if item != ("", "")]


def is_on(given: Mapping[str, str], name: str) -> bool:
    """Whether a property is there, and on."""
    return given.get(name, "off") in _ON


def _flat(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """JSON as `a.b=c`, booleans as on and off; each item of a list by itself."""
    for key, value in tree.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                # a list of strings is one of objects that have nothing but these
                yield from (
                    _flat({key: item["str"]}, prefix)
                    if item.keys() == {"str"}
                    else _flat(item, f"{prefix}{key}.")
                )
            else:
                yield prefix + key, ("on" if item else "off") if isinstance(item, bool) else str(item)
