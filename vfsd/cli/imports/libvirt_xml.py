"""Reading libvirt's XML: attributes, numbers, and elements in words."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from vfsd.cli.errors import CliError
from vfsd.cli.imports.found import Found

_SECRET = frozenset(("passwd",))
_TEXT_MAX = 80
"""Characters of an element's text that are shown."""


def attribute(element: ET.Element, path: str, name: str) -> str:
    """An attribute of the first element at a path; "" if there is none."""
    found = element.find(path)
    return found.get(name, "") if found is not None else ""


def attributes(element: ET.Element) -> str:
    """All of an element's attributes but secrets."""
    return " ".join(f"{name}={value}" for name, value in element.attrib.items() if name not in _SECRET)


def described(element: ET.Element) -> str:
    """An element in a line: its name without that of its schema, its attributes and its text."""
    text = " ".join((element.text or "").split())
    inner = text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "…"
    return " ".join(part for part in (element.tag.rpartition("}")[2], attributes(element), inner) if part)


def leave_others(found: Found, element: ET.Element, what: str, own: frozenset[str]) -> None:
    """Name the elements in one that are neither read nor vfsd's own affair."""
    for item in element:
        if item.tag not in own:
            found.leave(f"{what}: {described(item)}")


def number(text: str, what: str) -> int:
    """:raise CliError: it is none."""
    if not (text.isascii() and text.isdigit()):
        raise CliError(f'<{what}> can\'t be "{text}"', "write a whole number.")
    return int(text)
