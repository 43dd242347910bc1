"""Every member of the contract can be reached from vfsctl, and vfsctl(1) says how."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import click
import pytest

from vfsd.cli import main, values
from vfsd.cli.values import Typed
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS

SOURCE = Path(__file__).parents[2]
_ROW = re.compile(r"^\.It Li (Manager|Share|Machine)\.(\w+) Ta Cm ([a-z-]+(?: [a-z-]+)?)", re.MULTILINE)


def members() -> dict[tuple[str, str], str]:
    """The man page's table: interface and member, command."""
    text = (SOURCE / "packaging/man/vfsctl.1").read_text(encoding="utf-8")
    rows = _ROW.findall(text)
    assert len(rows) == len({row[:2] for row in rows})
    return {(interface, member): command for interface, member, command in rows}


def command_of(words: str) -> click.Command:
    found: click.Command = main.cli
    for word in words.split():
        assert isinstance(found, click.Group)
        next_one = found.get_command(click.Context(found), word)
        assert next_one is not None, f"there is no vfsctl {words}"
        found = next_one
    return found


def test_every_method_and_signal_has_a_command() -> None:
    declared = {
        (interface, str(node.get("name")))
        for interface in ("Manager", "Share", "Machine")
        for tag in ("method", "signal")
        for node in ET.parse(SOURCE / f"dbus/org.vfsd1.{interface}.xml").iter(tag)  # our own file
    }
    assert set(members()) == declared


@pytest.mark.parametrize("words", sorted(set(members().values())))
def test_the_commands_of_the_table_exist(words: str) -> None:
    assert not isinstance(command_of(words), click.Group)


def test_the_commands_that_people_are_told_to_call_exist() -> None:
    """In the journal's explanations and in the documents."""
    texts = [
        path.read_text(encoding="utf-8") for path in (SOURCE / "README.md", *(SOURCE / "docs").glob("*.md"))
    ]
    explained = (SOURCE / "units/vfsd.catalog").read_text(encoding="utf-8")
    found = re.findall(
        r'(?:"|with: |run: )vfsctl (?:--\S+ )*([a-z][a-z-]*) ?([a-z-]*)', re.sub(r"\s+", " ", explained)
    )
    for text in texts:
        code = re.findall(
            r"^```\w*\n.*?^```$|(?<!`)`[^`\n]+`(?!`)|^    [^\n]*$", text, re.MULTILINE | re.DOTALL
        )
        found += re.findall(r"\bvfsctl (?:--\S+ )*([a-z][a-z-]*)\b ?([a-z-]*)", "\n".join(code))
    assert len(found) > 80
    for first, second in found:
        command = main.cli.get_command(click.Context(main.cli), first)
        assert command is not None, f"vfsctl {first}"
        if isinstance(command, click.Group) and second:
            command_of(f"{first} {second}")


@pytest.mark.parametrize(("group", "table"), [("share", SHARE_OPTIONS), ("machine", MACHINE_OPTIONS)])
def test_every_option_can_be_set(group: str, table: dict[str, Any]) -> None:
    command_of(f"{group} set")
    samples = {"b": "yes", "u": "1", "t": "1", "s": "x", "as": "x", "a{ss}": "x=y"}
    for name, option in table.items():
        made = values.parse_settings(table, (f"{name}={samples[option.signature]}",))
        assert made[name].signature == option.signature


def test_an_empty_value_empties_a_list_and_nothing_else() -> None:
    assert values.parse_settings(MACHINE_OPTIONS, ("Forward=", "credentials=", "Kernel=", "CPUs=2")) == {
        "Forward": Typed("as", []),
        "Credentials": Typed("a{ss}", {}),
        "Kernel": Typed("s", ""),
        "CPUs": Typed("u", 2),
    }
