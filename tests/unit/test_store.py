"""Stored definitions: what is written is read again; what is damaged is told and does no harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfsd.model import MachineSpec, ShareSpec
from vfsd.names import Scope
from vfsd.paths import Paths
from vfsd.store import Definition, Kind, Memory, NotWritten, Origin, Store

ODD = "/srv/a b,c%n${X}\"'\\:\n ü"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "run", tmp_path / "state", ())
    made.make()
    return made


@pytest.fixture
def store(paths: Paths) -> Store:
    return Store(paths, Scope.USER)


def load(store: Store) -> tuple[list[Definition], list[str]]:
    bad: list[str] = []
    return list(store.load(lambda path, _: bad.append(path.name))), bad


def share(name: str = "src", **options: tuple[str, Any]) -> ShareSpec:
    return ShareSpec.from_options(name, ODD, Scope.USER, options)


def machine() -> MachineSpec:
    options = {
        "Shares": ("a(ssa{sv})", [(ODD, "/mnt/x", {"ReadOnly": ("b", True)}), ("/srv", "", {})]),
        "ExtraArguments": ("as", ["-x", "a,b"]),
        "Persistent": ("b", True),
    }
    return MachineSpec.from_options("dev", Scope.USER, options)


@pytest.mark.parametrize("persistent", [True, False])
def test_what_is_saved_is_loaded(store: Store, paths: Paths, persistent: bool) -> None:
    spec = share(Persistent=("b", persistent), UIDMap=("as", [":0:1:1:"]), LimitNOFILE=("t", (1 << 64) - 1))
    saved = [Definition(spec, 1000), Definition(machine(), (1 << 32) - 1)]
    for definition in saved:
        store.save(definition)
    assert load(store) == (saved, [])
    folder = paths.definitions if persistent else paths.runtime_definitions
    assert (folder / "share-src.json").exists()
    store.remove(Kind.SHARE, "src")
    store.remove(Kind.MACHINE, "dev")
    assert load(store) == ([], [])
    assert [*paths.definitions.iterdir(), *paths.runtime_definitions.iterdir()] == []


def test_a_definition_that_can_not_be_written_leaves_the_old_one(
    store: Store, paths: Paths, monkeypatch: Any
) -> None:
    store.save(Definition(share(), 0))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(NotWritten, match="No space"):
        store.save(Definition(share(Tag=("s", "other")), 0))
    monkeypatch.undo()
    [definition], bad = load(store)
    assert isinstance(definition.spec, ShareSpec)
    assert (definition.spec.tag, bad) == ("src", [])
    assert [path.name for path in paths.runtime_definitions.iterdir()] == ["share-src.json"]


def test_memory(store: Store, paths: Paths) -> None:
    assert store.recall(Kind.SHARE, "src") == Memory()
    memory = Memory(stopped=True, failure="why", restarts=3, since_usec=1 << 60)
    store.remember(Kind.SHARE, "src", memory)
    assert store.recall(Kind.SHARE, "src") == memory
    assert store.recall(Kind.MACHINE, "src") == Memory()
    store.remember(Kind.SHARE, "src", Memory())
    assert list(paths.runtime_definitions.iterdir()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*Memory.__dataclass_fields__, "unknown"]), JSON))
def test_a_damaged_memory_is_none_or_sound(store: Store, paths: Paths, document: dict[str, Any]) -> None:
    (paths.runtime_definitions / "share-src.memory").write_text(json.dumps(document))
    memory = store.recall(Kind.SHARE, "src")
    for name in Memory.__dataclass_fields__:
        assert type(getattr(memory, name)) is type(getattr(Memory(), name))
    assert 0 <= memory.restarts < 1 << 32
    assert 0 <= memory.since_usec < 1 << 64


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["format", "owner", "source", "options"]), JSON)
def test_a_value_of_any_kind_is_told_or_sound(store: Store, paths: Paths, key: str, value: Any) -> None:
    store.save(Definition(share(), 0))
    path = paths.runtime_definitions / "share-src.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    definitions, bad = load(store)
    assert len(definitions) + len(bad) == 1
    for definition in definitions:
        assert 0 <= definition.owner < 1 << 32
        assert isinstance(definition.spec, ShareSpec)
        assert definition.spec.source.startswith("/")
        definition.spec.source.encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["Tag", "ReadOnly", "ThreadPoolSize", "LimitNOFILE", "UIDMap", "Cache"]), JSON)
def test_an_option_of_any_kind_is_told_or_fits(store: Store, paths: Paths, key: str, value: Any) -> None:
    from vfsd.model import SHARE_OPTIONS

    store.save(Definition(share(), 0))
    path = paths.runtime_definitions / "share-src.json"
    document = json.loads(path.read_text())
    document["options"][key] = value
    path.write_text(json.dumps(document))
    definitions, bad = load(store)
    assert len(definitions) + len(bad) == 1
    for definition in definitions:
        assert SHARE_OPTIONS[key].fits(SHARE_OPTIONS[key].to_dbus(definition.spec))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.integers(0, 400))
def test_any_bytes_do_no_harm(store: Store, paths: Paths, damage: bytes | int) -> None:
    """Garbage, or the beginning of a definition."""
    store.save(Definition(share("good"), 0))
    store.save(Definition(share(), 0))
    path = paths.runtime_definitions / "share-src.json"
    path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[:damage])
    definitions, bad = load(store)
    assert "good" in [definition.spec.name for definition in definitions]
    assert bad == ["share-src.json"]


def test_folders_and_their_modes(paths: Paths) -> None:
    modes = {
        folder.name: folder.stat().st_mode & 0o777 for folder in (paths.runtime, paths.state, paths.shares)
    }
    assert modes == {"run": 0o711, "state": 0o700, "share": 0o711}
    assert paths.runtime_definitions.stat().st_mode & 0o777 == 0o700
    assert paths.definitions.stat().st_mode & 0o777 == 0o700


def test_where_a_source_lay(store: Store, paths: Paths) -> None:
    origin = Origin("/mnt/a b\udcff", "1234-ABCD", "sdb1", "50:2")
    store.remember_origin("src", origin)
    store.remember_origin("other", origin)
    assert store.recall_origin("src") == origin
    assert load(store) == ([], [])
    store.forget_all_but({Kind.SHARE: {"src"}, Kind.MACHINE: ()})
    assert [path.name for path in paths.definitions.iterdir()] == ["share-src.origin"]
    store.remove(Kind.SHARE, "src")
    assert list(paths.definitions.iterdir()) == []
    assert store.recall_origin("src") == Origin()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"place": 5}', '{"place": "/mnt", "more": "x"}'])
def test_a_damaged_origin_is_none(store: Store, paths: Paths, text: str) -> None:
    (paths.definitions / "share-src.origin").write_text(text)
    assert store.recall_origin("src") == Origin()
