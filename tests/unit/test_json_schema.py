"""The schema of vfsctl's JSON is a schema, and knows every member of the interface and every command."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from vfsd.bus.authorisation import OPEN
from vfsd.cli import main

SOURCE = Path(__file__).parents[2]
SCHEMA = json.loads((SOURCE / "docs/vfsctl.schema.json").read_text(encoding="utf-8"))
TYPES = {
    "s": "string",
    "b": "boolean",
    "u": "integer",
    "t": "integer",
    "as": "array",
    "ao": "array",
    "a{ss}": "object",
}


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    referred = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(SCHEMA)))
    assert referred == set(SCHEMA["$defs"])


@pytest.mark.parametrize("name", ["Manager", "Share", "Machine"])
def test_it_has_the_properties_of_the_interface(name: str) -> None:
    tree = ET.parse(SOURCE / f"dbus/org.vfsd1.{name}.xml")  # our own file
    declared = {str(node.get("name")): str(node.get("type")) for node in tree.iter("property")}
    described: dict[str, dict[str, Any]] = SCHEMA["$defs"][name]["properties"]
    assert set(described) == set(declared)
    for member, signature in declared.items():
        shown = described[member]
        if "$ref" in shown:
            assert signature == "o"
        elif "enum" in shown:
            assert signature == "s"
        else:
            assert shown["type"] == TYPES[signature], member
    assert set(SCHEMA["$defs"][name]["required"]) == OPEN[f"org.vfsd1.{name}"], "what everybody may see"


def test_its_commands_exist_and_the_document_lists_them() -> None:
    document = (SOURCE / "docs/json.md").read_text(encoding="utf-8")
    for words in SCHEMA["properties"]:
        command: click.Command = main.cli
        for word in words.removesuffix(" NAME").split():
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), word)
            assert found is not None, words
            command = found
        assert words.split()[-1] in document
    for name in re.findall(r"^\| .*$", document, re.MULTILINE):
        for definition in re.findall(r"`([A-Z]\w+)`", name):
            assert definition in SCHEMA["$defs"]


def test_a_module_that_prints_json_is_among_them() -> None:
    """A command that begins to print JSON fails here until it is described."""
    prints = re.compile(r"\b(print_json|print_json_line|to_json)\(")
    modules = (SOURCE / "vfsd/cli").rglob("*.py")
    printing = {path.stem for path in modules if prints.search(path.read_text(encoding="utf-8"))}
    assert printing == {
        *(
            "check",
            "common",
            "guest_config",
            "machine",
            "monitor",
            "objects",
            "output",
            "share",
            "status",
            "top",
        ),
        "transfer",
    }
