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
