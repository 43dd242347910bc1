"""The house stays as it was drawn: imports run one way, files are small, every member is documented."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfsd import errors
from vfsd.journal import MessageId
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS

SOURCE = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(SOURCE / "vfsd").with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SOURCE / "vfsd").rglob("*.py"))
}
MAX_LINES = 400

LAYERS = [
    {"names", "errors", "files"},
    {
        "options",
        "credentials",
        "forward",
        "paths",
        "turns",
        "devices",
        "opened",
        "host_proc",
        "binaries",
        "kernel_image",
        "power_off",
        "ctrl_alt_del",
        "lean",
        "vsock",
        "limits",
        "mac",
    },
    {"model"},
    {"document"},
    {"commands", "units", "hardening", "config", "store", "image"},
    {
        "supervisor",
        "registrar",
        "outcome",
        "journal",
        "qmp",
        "agent",
        "mounting",
        "told",
        "ssh",
        "migration",
        "meeting",
        "udev",
        "watch",
        "notifications",
        "mounts",
        "discovery",
        "kvm",
        "kernel",
        "guest",
        "host",
    },
    {
        *("sources", "context", "serving", "share", "virtiofsd", "root_share", "boot", "blame", "follower"),
        *("condition", "console", "inside", "lifecycle", "hotplug", "healing", "machine", "leftovers"),
        *("refresh", "outdated", "adoption", "saved", "sleep"),
        *("readiness", "open_files", "host_shutdown"),
    },
    {"registry", "upkeep"},
    {"bus", "systemd1", "machined", "login1", "prerequisites"},
    {"service"},
]
"""Each may import from its own layer and those before."""
OF_THE_CLIENT = {
    "names",
    "errors",
    "options",
    "forward",
    "model",
    "limits",
    "guest",
    "mounting",
    "paths",
    "files",
    "prerequisites",
    "journal",
    "document",
}
"""What vfsctl shares with the daemon: words and checks, nothing that runs."""
DBUS = {"bus", "systemd1", "cli.connection", "cli.proxy", "lean"}
"""Who may know the D-Bus library; lean only loads it quickly."""


def part(module: str) -> str:
    """The layer's word for a module: packages count as one."""
    return module.partition(".")[0]


def imports(path: Path, *, typing: bool = False) -> Iterator[str]:
    """Modules that a file imports; without those for types alone unless `typing`."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(path.read_text()))


def own_imports(module: str) -> set[str]:
    """Modules of vfsd that a module of vfsd imports."""
    found = set()
    for name in imports(MODULES[module]):
        words = name.split(".")
        if words[0] != "vfsd":
            continue
        inner = [".".join(words[1:end]) for end in range(len(words), 1, -1)]
        match = next((candidate for candidate in inner if candidate in MODULES), None)
        if match:
            found.add(match)
    return found


def layer(module: str) -> int:
    return next(number for number, members in enumerate(LAYERS) if part(module) in members)


def test_every_module_has_its_place() -> None:
    placed = set().union(*LAYERS)
    assert {part(module) for module in MODULES} - {"__init__", "vfsd", "", "cli"} == placed
    assert sum(map(len, LAYERS)) == len(placed)


@pytest.mark.parametrize("module", [name for name in MODULES if part(name) not in ("cli", "__init__", "")])
def test_imports_run_one_way(module: str) -> None:
    for other in own_imports(module):
        assert part(other) != "cli", f"{module} imports the client"
        assert layer(other) <= layer(module), f"{module} imports {other}, which is built upon it"


@pytest.mark.parametrize("module", [name for name in MODULES if part(name) == "cli"])
def test_the_client_shares_only_words_with_the_daemon(module: str) -> None:
    assert {part(other) for other in own_imports(module)} <= OF_THE_CLIENT | {"cli", "__init__"}


def test_imports_make_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join([*above, module])
        if module not in done:
            for other in own_imports(module) - {module}:
                # a package's own __init__ is loaded before its modules anyway
                if not module.startswith(f"{other}.") and not other.startswith(f"{module}."):
                    visit(other, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("dbus_next", DBUS),
        ("systemd", {"journal", "service"}),
        ("pyudev", {"udev"}),
        ("qemu", {"qmp"}),
        ("click", {"cli"}),
        ("rich", {"cli"}),
    ],
)
def test_each_library_has_one_door(library: str, allowed: set[str]) -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] == library for name in imports(path, typing=True))
    }
    assert users
    assert {user for user in users if not {user, part(user)} & allowed} == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_one_idea(module: str) -> None:
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "each module says what it is"


@pytest.mark.parametrize(
    "path", sorted((SOURCE / "dbus").glob("org.vfsd1.*.xml")), ids=lambda path: path.stem
)
def test_each_member_is_documented(path: Path) -> None:
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    [found] = ET.fromstring(path.read_text(), parser).iter("interface")
    before = ""
    for child in found:
        is_comment = not isinstance(child.tag, str)  # then it is a function, ET.Comment
        if not is_comment:
            assert len(before.split()) > 2, f"{child.get('name')} has no comment before it"
        before = (child.text or "") if is_comment else ""


@pytest.mark.parametrize(("name", "table"), [("Share", SHARE_OPTIONS), ("Machine", MACHINE_OPTIONS)])
def test_options_and_interface_agree(name: str, table: dict[str, object]) -> None:
    declared = {
        item.get("name"): item.get("type")
        for item in ET.parse(SOURCE / f"dbus/org.vfsd1.{name}.xml").iter("property")
        if item.get("access") == "readwrite"
    }
    assert declared == {key: getattr(option, "signature", "") for key, option in table.items()}


def all_errors(base: type[errors.VfsdError] = errors.VfsdError) -> Iterator[type[errors.VfsdError]]:
    for error in base.__subclasses__():
        if error.__module__ == errors.__name__:
            yield error
        yield from all_errors(error)


def test_each_error_has_a_name_of_its_own() -> None:
    names = [error.dbus_name for error in all_errors()]
    assert len(set(names)) == len(names)
    for error in all_errors():
        assert error.dbus_name.rpartition(".")[2] == error.__name__


def test_errors_that_the_interface_names_exist() -> None:
    known = {error.__name__ for error in all_errors()} | {"Failed"}
    told: set[str] = set()
    for path in (SOURCE / "dbus").glob("org.vfsd1.*.xml"):
        for listed in re.findall(r"Errors: (.*?)(?:-->|$)", path.read_text(), re.DOTALL):
            told |= set(
                re.findall(
                    r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", re.sub(r"\(.*?\)", "", listed, flags=re.DOTALL)
                )
            )
    told -= {error for error in told if error in SHARE_OPTIONS or error in MACHINE_OPTIONS}
    assert told - {"QEMU"} <= known
    assert {"ShareBusy", "WrongState", "UnitFailed"} <= told


def test_the_catalog_explains_each_message() -> None:
    text = (SOURCE / "units/vfsd.catalog").read_text()
    assert text.count("\n-- ") == text.count("\n\n-- "), (
        "without an empty line before it journald takes it for text"
    )
    entries = re.findall(r"^-- ([0-9a-f]{32})\n((?:.+\n)+)\n((?:.*\n?)*?)(?=^-- |\Z)", text, re.MULTILINE)
    assert [entry[0] for entry in entries] == list(dict.fromkeys(entry[0] for entry in entries))
    assert {entry[0] for entry in entries} == {item.value for item in MessageId}
    for _, header, body in entries:
        assert re.search(r"^Subject: \S", header, re.MULTILINE)
        assert "Defined-By: vfsd" in header
        assert len(body.split()) > 5


def test_no_time_limit_hangs_on_the_wall_clock() -> None:
    """Somebody may set it by hours. Who reads it: for people, for the guest's clock, and for the journal's lines."""
    reads = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.now\(")
    readers = {name for name, path in MODULES.items() if reads.search(path.read_text(encoding="utf-8"))}
    daemon = {name for name in readers if part(name) not in ("cli", "guest", "prerequisites")}
    assert daemon == {"context", "inside", "saved", "refresh"}
