"""The manual says what there is, all of it, and nothing else.

org.vfsd1(5) is generated, so it can only be out of date or lack something. The other pages are written by hand and are
held against what the code knows.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import pytest

from vfsd import errors, service
from vfsd.cli.errors import Exit
from vfsd.cli.main import cli
from vfsd.config import load_machines, load_shares
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec, ShareSpec
from vfsd.names import Scope
from vfsd.options import Option

PROJECT = Path(__file__).resolve().parents[2]
MAN = PROJECT / "packaging/man"
DBUS = PROJECT / "dbus"


def _load_generator() -> ModuleType:
    loader = SourceFileLoader("generate", str(PROJECT / "packaging/manual/generate"))
    spec = importlib.util.spec_from_loader("generate", loader)
    assert spec is not None
    module = sys.modules["generate"] = importlib.util.module_from_spec(spec)  # its dataclasses look there
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """packaging/manual/generate."""
    return _load_generator()


# org.vfsd1(5)


def test_the_page_of_the_interfaces_is_what_is_generated(generator: ModuleType) -> None:
    page = (MAN / "org.vfsd1.5").read_text(encoding="utf-8")
    assert page == generator.page(), 'run "make manual"'


@pytest.mark.parametrize(
    ("file", "declaration"),
    [
        ("Manager", '<method name="Reload"/>'),
        ("Share", '<signal name="FilesRunningOut">'),
        ("Machine", '<property name="SparePorts"'),
    ],
)
def test_a_member_without_documentation_is_refused(
    generator: ModuleType, tmp_path: Path, file: str, declaration: str
) -> None:
    folder = tmp_path / "dbus"
    shutil.copytree(DBUS, folder)
    path = folder / f"org.vfsd1.{file}.xml"
    text = path.read_text(encoding="utf-8")
    before, found, after = text.partition(declaration)
    assert found
    path.write_text(before[: before.rindex("<!--")] + found + after, encoding="utf-8")
    with pytest.raises(generator.Undocumented, match=declaration.split('"')[1]):
        generator.page(folder)


def test_each_argument_that_is_described_stands_by_itself(generator: ModuleType) -> None:
    for path in DBUS.glob("*.xml"):
        for member in generator.read_interface(path).members:
            names = "|".join(argument.get("name") for argument in member.arguments)
            described = re.findall(rf"\b(?:{names})(?=(?:, \w+)*: )", member.text) if names else []
            items = [line for line in generator.documentation(member) if line.startswith(".It Fa")]
            shown = [word for line in items for word in line.split()[2:] if word != ","]
            assert set(shown) == set(described), member.name


def journal_fields() -> set[str]:
    """The fields that vfsd's entries can have: what is passed to `Journal.write`, and what that adds."""
    source = {path: path.read_text(encoding="utf-8") for path in (PROJECT / "vfsd").rglob("*.py")}
    fields = set(re.findall(r'"(VFSD_(?:SHARE|MACHINE)|OBJECT_SYSTEMD\w+|LOGGER)"', "".join(source.values())))
    for text in source.values():
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            writes = node.func.attr == "write" and ast.unparse(node.func.value).endswith("journal")
            if writes:
                given = {word.arg for word in node.keywords if word.arg and word.arg != "unit"}
                fields |= {f"VFSD_{name.upper()}" for name in given}
    return fields


def sections(page: str) -> dict[str, str]:
    """The text of a page's sections by their headings."""
    parts = re.split(r"^\.Sh (.*)\n", (MAN / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_field_of_the_journal_is_documented() -> None:
    headings = re.findall(r"^\.It Li (.*=.*)$", sections("org.vfsd1.5")["JOURNAL"], re.MULTILINE)
    told = {word.rstrip("=") for heading in headings for word in heading.split() if word != ","}
    assert told == journal_fields()


def test_nothing_is_named_without_a_word_about_it() -> None:
    for path in MAN.iterdir():
        lists = re.split(r"^\.(?:Bl|El|Sh|Ss)\b.*\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for text in lists:
            parts = re.split(r"^(\.It .*\n)", text, flags=re.MULTILINE)[1:]
            for number, (heading, body) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
                told = re.sub(r"^\.(?:Pp|Dl .*|Bd [^$]*?^\.Ed)\n", "", body, flags=re.MULTILINE).strip()
                shares = heading.startswith((".It Cm", ".It Fl")) and 2 * number + 3 < len(
                    parts
                )  # with the next one
                assert told or shares or " Ta " in heading, f"{path.name}: {heading}"


@pytest.mark.parametrize(
    ("page", "codes"),
    [("vfsctl.1", set(Exit)), ("vfsd.8", {0, 1, 2, service.EXIT_NO_BUS, service.EXIT_NAME_TAKEN})],
)
def test_each_exit_code_is_documented(page: str, codes: set[int]) -> None:
    told = re.findall(r"^\.It (\d+)$", sections(page)["EXIT STATUS"], re.MULTILINE)
    assert sorted(map(int, told)) == sorted(codes)


FROM_OTHERS = {
    *("DISPLAY", "LISTEN_FDNAMES", "LISTEN_PID", "NOTIFY_SOCKET"),
    *("PATH", "TERM", "WATCHDOG_USEC", "WAYLAND_DISPLAY"),
}
"""Variables that nobody sets for vfsd."""


def test_each_variable_of_the_environment_is_documented() -> None:
    used = set()
    for path in (PROJECT / "vfsd").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"\benviron(?:\.get\(|\[)([\w\"]+)", text):
            constant = re.search(rf'^{name} = "(\w+)"$', text, re.MULTILINE)
            used.add(constant[1] if constant else name.strip('"'))
        used |= set(re.findall(r'"(VFSD_[A-Z_]+)"', text))
    told: set[str] = set()
    for page in ("vfsctl.1", "vfsd.8"):
        for heading in re.findall(r"^\.It Ev (.*)$", sections(page)["ENVIRONMENT"], re.MULTILINE):
            told |= set(heading.split(" , "))
    assert told == used - FROM_OTHERS - journal_fields()


# vfsd.share(5) and vfsd.machine(5)


class Kind(NamedTuple):
    """Definition files of one kind, and the page about them."""

    page: str
    options: dict[str, Option]
    besides: dict[str, str]
    """Keys that are no options, and what is said of them."""
    default: Any
    needed: str
    """What an example needs besides, if it does not say so itself."""


KINDS = {
    "shares": Kind(
        "vfsd.share.5",
        dict(SHARE_OPTIONS),
        {"source": "text , required"},
        ShareSpec(name="a", source="/a"),
        'source = "/srv"\n',
    ),
    "machines": Kind(
        "vfsd.machine.5", dict(MACHINE_OPTIONS), {"shares": "list of tables"}, MachineSpec(name="a"), ""
    ),
}
_NUMBER = {"u": "number", "t": "number"}
_TYPES = {"s": "text", "b": "boolean", "as": "list of texts", "a{ss}": "table of texts", **_NUMBER}


def facts(option: Option, default: Any) -> str:
    """What the heading of a key has to say: its type, and its default if that is not empty and always the same."""
    kind = _TYPES[option.signature]
    if option.field in ("memory", "memory_max"):
        kind = "size"
    elif option.field.endswith("_usec"):
        kind = "microseconds"
    value = option.to_dbus(default)
    if option.signature == "b":
        shown = str(value).lower()
    elif option.field == "memory":
        shown = f"{value >> 30}G"
    elif isinstance(value, str):
        shown = f"\\(dq{value}\\(dq" if value and option.field not in ("tag", "sandbox") else ""
    else:
        shown = "" if value in ([], {}) else str(value)
    return f"{kind} , default {shown}" if shown else kind


def items(text: str) -> dict[str, tuple[str, str]]:
    """The keys that a page documents: what the heading says, and the text below it."""
    parts = re.split(r"^\.It Li (\w+) Pq (.*)\n", text, flags=re.MULTILINE)
    return {
        name: (said, body) for name, said, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


def examples(body: str) -> str:
    """The TOML that is shown."""
    lines = re.findall(r"^\.Dl (.*)$", body, re.MULTILINE)
    blocks = re.findall(r"^\.Bd -literal -offset indent\n(.*?)^\.Ed$", body, re.MULTILINE | re.DOTALL)
    return "\n".join([*lines, *blocks]).replace("\\(dq", '"')


def read(folder: Path, kind: str, text: str) -> list[Any]:
    """What vfsd makes of a file with that text, and what it finds wrong."""
    file = folder / kind / "example.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    found: list[Any] = []
    load = load_shares if kind == "shares" else load_machines
    found += [spec for _, spec in load([folder], Scope.USER, lambda _, reason: found.append(reason))]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_key_is_documented(kind: str) -> None:
    page, options, besides, default, _ = KINDS[kind]
    documented = {name: said for name, (said, _) in items(sections(page)["KEYS"]).items()}
    assert documented == {option.field: facts(option, default) for option in options.values()} | besides


def test_defaults_that_depend_are_told() -> None:
    documented = items(sections("vfsd.share.5")["KEYS"])
    for name in ("tag", "sandbox"):
        assert "\nDefault: " in documented[name][1]


@pytest.mark.parametrize("kind", KINDS)
def test_each_key_has_an_example_that_vfsd_takes(kind: str, tmp_path: Path) -> None:
    for name, (_, body) in items(sections(KINDS[kind].page)["KEYS"]).items():
        text = examples(body)
        assert re.search(rf"^(\[\[)?{name}\b", text, re.MULTILINE), f"{name} has no example"
        needed = "" if "source =" in text else KINDS[kind].needed
        [spec] = read(tmp_path, kind, needed + text)
        assert not isinstance(spec, str), f"{name}: {spec}"
        if name not in ("source", "shares"):
            assert getattr(spec, name) != getattr(KINDS[kind].default, name) or name == "sandbox"


@pytest.mark.parametrize("kind", KINDS)
def test_each_choice_is_documented(kind: str) -> None:
    documented = items(re.sub(r"^\.Dl .*\n", "", sections(KINDS[kind].page)["KEYS"], flags=re.MULTILINE))
    for option in KINDS[kind].options.values():
        for choice in getattr(option.parse, "__members__", {}).values():
            assert f"\\(dq{choice}\\(dq" in documented[option.field][1], f"{option.field} = {choice}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_of_whole_files_are_taken(kind: str, tmp_path: Path) -> None:
    found = re.findall(
        r"^\.Bd .*?\n(.*?)^\.Ed", sections(KINDS[kind].page)["EXAMPLES"], re.MULTILINE | re.DOTALL
    )
    assert len(found) == 2
    for text in found:
        [spec] = read(tmp_path, kind, text)
        assert not isinstance(spec, str), spec


# vfsctl(1)

_MACROS = {"Ar", "Fl", "Oo", "Op", "Oc", "Ns"}


class Verb(NamedTuple):
    """What vfsctl(1) says of a command."""

    options: set[str]
    """Those of its headings."""
    text: str


def verbs() -> dict[str, Verb]:
    """The commands that vfsctl(1) documents. Headings that follow one another have one text."""
    found: dict[str, Verb] = {}
    parts = re.split(r"((?:^\.It Cm .*\n)+)", sections("vfsctl.1")["COMMANDS"], flags=re.MULTILINE)
    for headings, text in zip(parts[1::2], parts[2::2], strict=True):
        for heading in headings.splitlines():
            words = heading.split()[2:]
            end = next((number for number, word in enumerate(words) if word in _MACROS), len(words))
            *before, _ = first = " ".join(words[:end]).split(" | ")[0].split()
            options = options_in(heading)
            for name in (first[-1], *" ".join(words[:end]).split(" | ")[1:]):
                verb = " ".join((*before, name))
                known = found.get(verb, Verb(set(), ""))
                found[verb] = Verb(known.options | options, known.text + headings + text)
    return found


def options_in(text: str) -> set[str]:
    """The options that a text names, as they are typed."""
    return {f"-{name}" for name in re.findall(r"\bFl (-?[\w-]+)", text)}


def commands(
    group: click.Group, context: click.Context, prefix: str = ""
) -> Iterator[tuple[str, click.Command]]:
    """All commands of vfsctl, with their groups' names before theirs."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, context, f"{prefix}{name} ")
        elif not command.hidden:
            yield prefix + name, command


ALL_COMMANDS = dict(commands(cli, click.Context(cli)))


def test_each_command_is_documented() -> None:
    assert set(verbs()) == set(ALL_COMMANDS)


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_each_option_of_a_command_is_documented(name: str) -> None:
    common = options_in(sections("vfsctl.1")["DESCRIPTION"])
    boot = options_in(sections("vfsctl.1")["COMMANDS"].partition(".Ss Boot options")[2])
    verb = verbs()[name]
    parameters = [item for item in ALL_COMMANDS[name].params if isinstance(item, click.Option)]
    for option in parameters:
        told = set(option.opts) & (options_in(verb.text) | common | boot)
        assert told or option.hidden, f"vfsctl {name}: {option.opts}"
    known = {text for option in parameters for text in option.opts}
    assert verb.options <= known, f"vfsctl(1) gives {name} options that it has not got"


# docs/troubleshooting.md


def test_each_error_has_a_remedy() -> None:
    text = (PROJECT / "docs/troubleshooting.md").read_text(encoding="utf-8").partition("## By error")[2]
    told: set[str] = set()
    for table in re.split(r"^\| `(?=org\.)", text, flags=re.MULTILINE)[1:]:
        prefix = table.partition("`")[0]
        for names, meaning, remedy in re.findall(r"^\| ([\w, ]+) \| (.+?) \| (.+?) \|$", table, re.MULTILINE):
            assert meaning and remedy
            told |= {prefix + name for name in names.split(", ")}
    known = {
        error.dbus_name
        for error in vars(errors).values()
        if isinstance(error, type) and hasattr(error, "dbus_name")
    }
    assert told == known
