"""Definitions as TOML: what is written reads back the same."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd import document
from vfsd.errors import InvalidArgs
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec, Sandbox, ShareSpec
from vfsd.names import Scope

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
paths = texts.map(lambda text: f"/{text}")


@st.composite
def shares(draw: st.DrawFn, scope: Scope) -> ShareSpec:
    return ShareSpec(
        name="m.x",
        source=draw(paths),
        sandbox=draw(st.sampled_from(Sandbox)),
        tag=draw(st.text("abc.-", min_size=1, max_size=8)),
        mount_point=draw(st.one_of(st.just(""), paths)),
        read_only=draw(st.booleans()),
        announce_submounts=draw(st.booleans()),
        translate_uid=tuple(draw(st.lists(texts, max_size=2))),
        thread_pool_size=draw(st.integers(0, 1 << 20)),
        xattr_map=draw(texts),
    )


@given(st.data(), st.sampled_from(Scope))
def test_a_share_reads_back(data: st.DataObject, scope: Scope) -> None:
    spec = data.draw(shares(scope))
    assert document.read_share(document.write_share(spec, scope), spec.name, scope) == spec


@given(st.data(), st.sampled_from(Scope))
def test_a_machine_reads_back(data: st.DataObject, scope: Scope) -> None:
    own = data.draw(st.lists(shares(scope), max_size=3, unique_by=lambda share: share.tag))
    spec = MachineSpec(
        name="m",
        shares=tuple(own),
        memory=data.draw(st.integers(2048, 1 << 20)) * 8192,
        kernel=data.draw(st.one_of(st.just(""), paths)),
        append=data.draw(texts),
        extra_arguments=tuple(data.draw(st.lists(texts, max_size=3))),
        credentials=tuple(
            sorted(data.draw(st.dictionaries(st.text("ab. ", min_size=3, max_size=5), texts)).items())
        ),
    )
    back = document.read_machine(document.write_machine(spec, scope), "m", scope)
    # the name of a machine's own share is made anew, of its tag
    assert [dataclasses.replace(share, name="m.x") for share in back.shares] == own
    assert dataclasses.replace(back, shares=()) == dataclasses.replace(spec, shares=())


def test_what_has_its_default_is_not_written() -> None:
    assert (
        document.write_share(ShareSpec(name="src", source="/srv/a b"), Scope.USER) == 'source = "/srv/a b"\n'
    )
    assert document.write_machine(MachineSpec(name="dev"), Scope.USER) == ""
    for scope in Scope:
        share = ShareSpec(name="m.x", source="/x", tag="x", sandbox=Sandbox.default(scope))
        machine = MachineSpec(name="m", memory=3 << 29, builtin=True, shares=(share,))
        text = document.write_machine(machine, scope)
        assert text == 'memory = "1536M"\nbuiltin = true\n\n[[shares]]\nsource = "/x"\ntag = "x"\n'


@pytest.mark.parametrize(("kind", "table"), [("share", SHARE_OPTIONS), ("machine", MACHINE_OPTIONS)])
def test_each_option_has_a_line(kind: str, table: dict[str, object]) -> None:
    """No option may be lost on the way, one that is added later neither."""
    others = {"b": True, "u": 3, "t": 1 << 30, "s": "/x", "as": ["x"], "a{ss}": {"x": "y"}}
    default = ShareSpec(name="a", source="/") if kind == "share" else MachineSpec(name="a")
    for name, option in table.items():
        assert isinstance(option, type(SHARE_OPTIONS["Tag"]))
        value = others[option.signature]
        if option.signature == "b":
            value = not getattr(default, option.field)
        line = f"{option.field} = {document._value(option.field, value)}\n"
        assert document._options(table, tomllib.loads(line))[name] == (option.signature, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source = 1", "line 1: a share needs source"),
        ('source = "/x"\ncash = "auto"', 'line 2: "cash" is no key'),
        ('source = "/x"\n\ncache = "maybe"', "line 3: Cache is"),
        ('source = "/x', "line 1: "),
        ('source = "x"', "line 1: the source of"),
    ],
)
def test_a_bad_document_names_the_line(text: str, said: str) -> None:
    with pytest.raises(document.BadDocument) as caught:
        document.read_share(text, "a", Scope.USER)
    assert str(caught.value).startswith(said)
    assert not isinstance(caught.value, InvalidArgs)
