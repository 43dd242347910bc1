"""The parts of the lab that only compute: which mirror, which tree, whether it is sound, which groups."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.lab import LabError, base, cgroup, cli, machine, mirror, packages, recipe, registry, seal

DEB822 = """\
# A comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://tools.example/apt
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
"""


def test_deb822_sources_give_the_mirror_that_is_debian_itself() -> None:
    found = mirror.choose(mirror.parse_deb822(DEB822))
    assert found == mirror.Mirror(
        "http://mirror.example/debian", "/usr/share/keyrings/debian-archive-keyring.gpg"
    )


def test_a_stanza_that_is_disabled_or_embeds_its_key_is_read_as_such() -> None:
    sources = list(mirror.parse_deb822(DEB822))
    assert not [source for source in sources if "off.example" in source.uri]
    assert [source.signed_by for source in sources if "tools.example" in source.uri] == [""]


@pytest.mark.parametrize(
    ("line", "uri", "signed_by"),
    [
        ("deb http://m.example/debian trixie main", "http://m.example/debian", ""),
        ("deb\thttp://m.example/debian/ trixie main contrib # why", "http://m.example/debian/", ""),
        (
            "deb [ arch=amd64 signed-by=/k.gpg ] http://m.example/debian sid main",
            "http://m.example/debian",
            "/k.gpg",
        ),
    ],
)
def test_one_line_sources(line: str, uri: str, signed_by: str) -> None:
    (source,) = mirror.parse_one_line(f"# deb http://no.example/debian sid main\n{line}\n")
    assert (source.uri, source.signed_by) == (uri, signed_by)
    chosen = mirror.choose([source])
    assert chosen
    assert chosen.keyring == (signed_by or mirror.KEYRING)


@pytest.mark.parametrize("line", ["", "deb-src http://m.example/debian sid main", "deb", "deb http://x"])
def test_lines_that_name_no_binary_source(line: str) -> None:
    assert not list(mirror.parse_one_line(line))


def test_a_host_without_debian_sources_has_to_be_told() -> None:
    ubuntu = "deb http://archive.example/ubuntu noble main universe\n"
    assert mirror.choose(mirror.parse_one_line(ubuntu)) is None
    foreign = "deb https://tools.example/apt bookworm main\n"
    assert mirror.choose(mirror.parse_one_line(foreign)) is None


def test_both_formats_are_read_and_the_variable_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    keyring = tmp_path / "ring.gpg"
    keyring.touch()
    (parts / "debian.list").write_text(f"deb [signed-by={keyring}] http://a.example/debian sid main\n")
    (parts / "ignored.save").write_text("deb http://b.example/debian sid main\n")
    monkeypatch.delenv("VFSD_LAB_MIRROR", raising=False)
    assert mirror.find(tmp_path) == mirror.Mirror("http://a.example/debian", str(keyring))
    (parts / "debian.list").unlink()
    with pytest.raises(LabError, match="VFSD_LAB_MIRROR"):
        mirror.find(tmp_path)
    monkeypatch.setenv("VFSD_LAB_MIRROR", "http://c.example/debian")
    monkeypatch.setattr(mirror, "KEYRING", str(keyring))
    assert mirror.find(tmp_path).uri == "http://c.example/debian"


def test_only_what_reaches_the_mirror_is_taken_from_the_hosts_apt() -> None:
    dump = (
        'APT::Architecture "amd64";\nAcquire::http::Proxy "http://p.example:3142";\n'
        'Acquire::https::CaInfo "/ca.pem";\nAcquire::Check-Date "false";\nAcquire::Changelogs "x";\n'
        'Acquire::http "";\nDPkg::Post-Invoke:: "true";\n'
    )
    assert mirror.apt_options(dump) == [
        'Acquire::http::Proxy "http://p.example:3142";',
        'Acquire::https::CaInfo "/ca.pem";',
        'Acquire::Check-Date "false";',
    ]


def test_the_key_follows_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    amd64, arm64 = recipe.ARCHITECTURES["amd64"], recipe.ARCHITECTURES["arm64"]
    key = recipe.key(amd64, desktop=False)
    assert key == recipe.key(amd64, desktop=False)
    assert key != recipe.key(arm64, desktop=False)
    monkeypatch.setattr(recipe, "COMMON", " ".join(reversed(recipe.COMMON.split())))
    assert recipe.key(amd64, desktop=False) == key
    monkeypatch.setattr(recipe, "COMMON", recipe.COMMON + " hello")
    assert recipe.key(amd64, desktop=False) != key


def test_no_package_is_named_twice() -> None:
    for arch in recipe.ARCHITECTURES.values():
        names = f"{recipe.COMMON} {recipe.DESKTOP} {arch.packages}".split()
        assert len(names) == len(set(names))


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/usr/bin/bash").write_bytes(b"#" * 1000)
    (tmp_path / "root/usr/bin/other").write_bytes(b"o" * 10)
    (tmp_path / "root/bin").symlink_to("usr/bin")
    seal.write(tmp_path, "KEY")
    return tmp_path


def test_a_sound_tree_passes(sealed: Path) -> None:
    assert seal.fault(sealed, "KEY") == ""


def test_every_kind_of_damage_is_seen(sealed: Path) -> None:
    assert "another tree" in seal.fault(sealed, "OTHER")
    bash, other = sealed / "root/usr/bin/bash", sealed / "root/usr/bin/other"
    bash.write_bytes(b"?" * 1000)
    assert "bash has other contents" in seal.fault(sealed, "KEY")
    os.truncate(other, 9)
    assert "other is missing or has another size" in seal.fault(sealed, "KEY")
    other.unlink()
    assert "other is missing or has another size" in seal.fault(sealed, "KEY")


def test_a_changed_seal_is_no_seal(sealed: Path) -> None:
    path = sealed / seal.NAME
    content = json.loads(path.read_text())
    content["sizes"].pop("usr/bin/other")
    path.write_text(json.dumps(content))
    assert "changed" in seal.fault(sealed, "KEY")
    path.write_text("{")
    assert "no JSON" in seal.fault(sealed, "KEY")
    path.write_text("[]")
    assert "changed" in seal.fault(sealed, "KEY")
    path.unlink()
    assert "no seal" in seal.fault(sealed, "KEY")


def test_a_tree_that_vanished_is_a_fault_not_a_crash(sealed: Path) -> None:
    (sealed / "root").rename(sealed / "gone")
    assert seal.fault(sealed, "KEY")


def test_the_sweep_takes_leftovers_but_neither_used_nor_recent_trees(sealed: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    for name in ("keep", "old", "recent", "used", "stale-1", "stale-used"):
        (top / name).mkdir()
        (top / name / seal.NAME).write_bytes((sealed / seal.NAME).read_bytes())
        held = base.hold(top / name)
        if not name.endswith("used"):
            os.close(held)
        if name != "recent":
            os.utime(top / name / "in-use", (0, 0))
    for name in ("building-x", "wheels"):
        (top / name).mkdir()
    base.sweep(top, keep="keep")
    assert sorted(entry.name for entry in top.iterdir()) == [
        *("keep", "recent", "stale-used", "used", "wheels")
    ]


def test_packages_are_built_anew_when_and_only_when_their_sources_change(tmp_path: Path) -> None:
    (tmp_path / "vfsd/__pycache__").mkdir(parents=True)
    source = tmp_path / "vfsd/a.py"
    source.write_text("1\n")
    first = packages.key(tmp_path, "TREE")
    (tmp_path / "vfsd/__pycache__/a.pyc").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/b.py").touch()
    os.utime(source, (0, 0))
    assert packages.key(tmp_path, "TREE") == first
    keys = {first, packages.key(tmp_path, "OTHER")}
    source.chmod(0o755)
    keys.add(packages.key(tmp_path, "TREE"))
    source.write_text("2\n")
    keys.add(packages.key(tmp_path, "TREE"))
    source.rename(tmp_path / "vfsd/c.py")
    keys.add(packages.key(tmp_path, "TREE"))
    assert len(keys) == 5


def test_packages_are_made_of_what_the_makefile_copies() -> None:
    makefile = (machine.PROJECT / "Makefile").read_text().replace("\\\n", " ")
    (copied,) = re.findall(r"tar -c --exclude=__pycache__ --exclude=node_modules (.*?) \|", makefile)
    assert sorted(copied.split()) == sorted(packages.INPUTS)


def test_packages_are_kept_while_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFSD_LAB_CACHE", str(tmp_path / "cache"))
    built = tmp_path / "built"
    (built / "arch").mkdir(parents=True)
    (built / "arch/PKGBUILD").touch()
    (built / "vfsd_1_all.deb").write_text("it")
    (built / "vfsd_1_amd64.changes").touch()
    assert packages.find("new") is None
    for name in ("old", "new"):
        packages.keep(name, built)
        os.utime(packages.folder() / name, (0, 0))
    found = packages.find("new")  # which makes it recent
    assert found
    assert sorted(path.name for path in found.iterdir()) == ["arch", "vfsd_1_all.deb"]
    assert (found / "arch/PKGBUILD").exists()
    packages.keep("newest", built)
    assert sorted(path.name for path in packages.folder().iterdir()) == ["new", "newest"]


MOUNTS = """\
30 29 0:26 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/memory rw shared:5 - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:6 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw shared:7 - cgroup2 cgroup2 rw
"""


def test_control_groups_of_a_hybrid_host() -> None:
    groups = cgroup.own(MOUNTS, "9:name=systemd:/a\n4:memory:/b\n0::/c/d\n")
    assert groups == [Path("/sys/fs/cgroup/systemd/a"), Path("/sys/fs/cgroup/unified/c/d")]


def test_control_groups_of_a_container_which_sees_a_part_only() -> None:
    mounts = "33 30 0:29 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert cgroup.own(mounts, "0::/docker/x\n") == [Path("/sys/fs/cgroup")]
    assert cgroup.own(mounts, "0::/docker/x/y\n") == [Path("/sys/fs/cgroup/y")]
    assert cgroup.own(mounts, "0::/elsewhere\n") == [Path("/sys/fs/cgroup")]


@pytest.mark.parametrize("name", ["dev", "run-1-abc", "0"])
def test_names_of_labs(name: str) -> None:
    assert registry.folder(name).name == name


@pytest.mark.parametrize("name", ["", "-x", "..", "a/b", "A", "a b", "a" * 41, "x\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(LabError):
        registry.folder(name)


def test_a_command_of_the_user_gets_the_users_bus() -> None:
    line = machine.entering(4711, ["id"], user=True)
    assert line[:3] == ["nsenter", "--target", "4711"]
    assert line[-1] == "id"
    assert "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus" in line
    assert "--reuid" in line
    assert "--reuid" not in machine.entering(4711, ["id"])


@pytest.mark.parametrize("line", [["run"], ["exec", "--"], ["up", "--", "true"], ["nonsense"]])
def test_wrong_command_lines_are_refused(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(line)
    assert caught.value.code == 2
    assert capsys.readouterr().err
