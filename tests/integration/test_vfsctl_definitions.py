"""vfsctl set, export, import, edit and logs, against the real vfsd."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import only_user
from tests.integration.harness import MACHINE, SHARE, Vfsd, wait_for
from tests.integration.vfsctl import SMALL, Terminal, nothing_left, ok, vfsctl

EDITED = r"What you wrote is kept in (\S+);"


@pytest.fixture
def written() -> Iterator[Path]:
    """A folder for files that the scope's user reads."""
    made = Path(tempfile.mkdtemp(prefix="vfsd-written-", dir="/srv"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def edit(vfsd: Vfsd, kind: str, name: str, command: str) -> tuple[int, str, str]:
    """Edit with sed, or whatever the command is that gets the file as its last argument."""
    argv = vfsd.argv(["env", f"EDITOR={command}", "vfsctl", kind, "edit", name])
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_set_changes_options_and_says_what_was_done_before_a_refusal(vfsd: Vfsd, folder: Path) -> None:
    ok(vfsd, "share", "add", "src", str(folder))
    refused = vfsctl(vfsd, "share", "set", "src", "io_weight=50", "read-only=yes")
    assert refused.code == 1
    assert "IOWeight was set before" in refused.err
    ok(vfsd, "share", "stop", "src")
    ok(vfsd, "share", "set", "src", "read-only=yes", "translate-uid=map:0:1000:1", "IOWeight=0")
    shown = vfsctl(vfsd, "share", "show", "src", "--json").json()
    assert (shown["ReadOnly"], shown["IOWeight"], shown["TranslateUID"]) == (True, 0, ["map:0:1000:1"])
    ok(vfsd, "share", "set", "src", "translate-uid=")
    assert vfsd.get(vfsd.manager("GetShare", "s", "src"), SHARE, "TranslateUID") == []
    assert re.fullmatch(r"\S+, \S+ free\n", ok(vfsd, "share", "space", "src"))
    ok(vfsd, "machine", "add", "dev", "--builtin")
    ok(vfsd, "machine", "set", "dev", "memory=512M", "CPUs=2")
    assert vfsd.get(vfsd.manager("GetMachine", "s", "dev"), MACHINE, "Memory") == 512 << 20
    assert vfsctl(vfsd, "machine", "query-guest", "dev").code == 1
    found = vfsctl(vfsd, "check", "--by-vfsd", "--json")
    assert {"id", "status", "found", "required", "remedy"} == set(found.json()[0])


def test_an_exported_machine_comes_back_the_same(vfsd: Vfsd, folder: Path, written: Path) -> None:
    odd = folder / "a \"b' c"
    odd.mkdir()
    ok(vfsd, "share", "add", "other", str(folder), "--read-only")
    ok(
        vfsd, "machine", "add", "dev", *SMALL, "--cpus", "2", "--share", f"{odd}:/data:ro", "--display", "vnc",
        "-o", "Credentials=key=secret", "--builtin",
    )  # fmt: skip
    ok(vfsd, "machine", "attach", "dev", "other")
    exported = vfsctl(vfsd, "machine", "export", "dev")
    assert "secret" not in exported.out
    assert re.search(r"^Not exported: share other.*\nNot exported: what is in credential key", exported.err)
    (written / "copy.toml").write_text(exported.out)
    ok(vfsd, "machine", "import", str(written / "copy.toml"))
    first, copy = (vfsctl(vfsd, "machine", "show", name, "--json").json() for name in ("dev", "copy"))
    own = {"Name", "Unit", "Slice", "Shares", "StateChangedUSec"}
    assert {key: value for key, value in first.items() if key not in own} == {
        key: value for key, value in copy.items() if key not in own
    }
    shares = [
        vfsctl(vfsd, "share", "export", f"{name}.{first_tag(exported.out)}").out for name in ("dev", "copy")
    ]
    assert tomllib.loads(shares[0]) == tomllib.loads(shares[1])
    for name in ("dev", "copy"):
        ok(vfsd, "machine", "remove", name)
    # and a configuration folder takes it
    path = vfsd.config / "machines" / "configured.toml"
    vfsd.run("mkdir", "-p", str(path.parent))
    try:
        vfsd.run("cp", str(written / "copy.toml"), str(path))
        ok(vfsd, "reload")
        shown = vfsctl(vfsd, "machine", "show", "configured", "--json").json()
        assert (shown["Memory"], shown["CPUs"], shown["Display"]) == (256 << 20, 2, "vnc")
        refused = vfsctl(vfsd, "machine", "edit", "configured", "--file", str(path))
        assert refused.code == 1
        assert str(path) in refused.err
    finally:
        vfsd.run("rm", "-rf", str(path.parent))
        ok(vfsd, "reload")


def first_tag(text: str) -> str:
    return str(tomllib.loads(text)["shares"][0]["tag"]).replace(" ", "_").replace('"', "_").replace("'", "_")


def test_a_domain_of_libvirt_is_defined(vfsd: Vfsd, folder: Path) -> None:
    domain = (
        "<domain><name>box</name><memory unit='MiB'>256</memory><vcpu>1</vcpu><devices><tpm/><filesystem>"
        f"<driver type='virtiofs'/><source dir='{folder}'/><target dir='src'/></filesystem></devices></domain>"
    )
    done = vfsctl(vfsd, "machine", "import", "--persistent", "-", stdin=domain)
    assert done.code == 0, done.err
    assert done.err == "Not taken over: devices/tpm.\n"
    shown = vfsctl(vfsd, "machine", "show", "box", "--json").json()
    assert (shown["Memory"], shown["Network"], shown["Persistent"]) == (256 << 20, "none", True)
    assert vfsctl(vfsd, "share", "show", "box.src", "--json").json()["Source"] == str(folder)
    ok(vfsd, "machine", "remove", "box")
    nothing_left(vfsd)


def test_edit_changes_what_is_written(vfsd: Vfsd, folder: Path) -> None:
    ok(vfsd, "machine", "add", "dev", "--builtin", *SMALL, "--share", f"{folder}:/data")
    code, out, err = edit(vfsd, "machine", "dev", 'sed -i -e "1i cpus = 3" -e "s,/data,/other,"')
    assert (code, err) == (0, "")
    assert out == f"dev is changed: CPUs, share {folder.name}: MountPoint.\n"
    shown = vfsctl(vfsd, "share", "show", f"dev.{folder.name}", "--json").json()
    assert shown["MountPoint"] == "/other"
    assert edit(vfsd, "machine", "dev", "true")[1] == "Nothing was changed of dev.\n"
    assert edit(vfsd, "machine", "dev", "false")[0] == 1
    ok(vfsd, "share", "add", "src", str(folder))
    assert edit(vfsd, "share", "src", 'sed -i "$ a read_only = true"')[0] == 0
    shown = vfsctl(vfsd, "share", "show", "src", "--json").json()
    assert (shown["State"], shown["ReadOnly"]) == ("listening", True)


def test_a_share_that_edit_adds_is_one_of_its_own(vfsd: Vfsd, folder: Path) -> None:
    """As vfsctl(1) says: it is made by itself, so it outlives the machine; what edit takes away it takes away whole."""
    ok(vfsd, "machine", "add", "dev", "--builtin", *SMALL)
    more = f"[[shares]]\nsource = '{folder}'\ntag = 'more'\n"
    begin = ok(vfsd, "machine", "export", "dev")
    for _ in range(2):
        assert (
            ok(vfsd, "machine", "edit", "dev", "--file", "-", stdin=begin + more)
            == "dev is changed: with share more.\n"
        )
        assert "dev.more" in ok(vfsd, "share", "list")
        assert (
            ok(vfsd, "machine", "edit", "dev", "--file", "-", stdin=begin)
            == "dev is changed: without share dev.more.\n"
        )
        assert "dev.more" not in ok(vfsd, "share", "list")
    ok(vfsd, "machine", "edit", "dev", "--file", "-", stdin=begin + more)
    ok(vfsd, "machine", "remove", "dev")
    assert "State=listening" in ok(vfsd, "share", "show", "dev.more")
    ok(vfsd, "share", "remove", "dev.more")
    nothing_left(vfsd)


def test_a_bad_edit_is_kept_and_can_be_applied_later(vfsd: Vfsd, folder: Path) -> None:
    ok(vfsd, "machine", "add", "dev", "--builtin", *SMALL)
    code, _, err = edit(vfsd, "machine", "dev", 'sed -i "$ a cpus = many"')
    assert code == 2
    kept = Path(re.findall(EDITED, err)[0])
    try:
        assert kept.stat().st_mode & 0o077 == 0
        kept.write_text(
            kept.read_text().replace("many", "2") + f'[[shares]]\nsource = "{folder}"\ntag = "new"\n'
        )
        ok(vfsd, "machine", "edit", "dev", "--file", str(kept))
    finally:
        kept.unlink()
    shown = vfsctl(vfsd, "machine", "show", "dev", "--json").json()
    assert (shown["CPUs"], len(shown["Shares"])) == (2, 1)
    assert vfsctl(vfsd, "share", "show", "dev.new", "--json").json()["Machine"].endswith("/dev")
    ok(vfsd, "machine", "edit", "dev", "--file", "-", stdin="builtin = true\n")
    assert vfsctl(vfsd, "machine", "show", "dev", "--json").json()["Shares"] == []
    assert vfsctl(vfsd, "share", "show", "dev.new").code == 4


def test_what_a_running_machine_can_not_change_is_told_and_kept(vfsd: Vfsd) -> None:
    ok(vfsd, "machine", "add", "dev", "--builtin", *SMALL)
    ok(vfsd, "machine", "start", "dev")
    code, out, err = edit(vfsd, "machine", "dev", r'sed -i "$ a cpus = 2\nio_weight = 50"')
    assert (code, out) == (1, "dev is changed: IOWeight.\n")
    assert "must be stopped to change CPUs" in err
    kept = Path(re.findall(r"--file (\S+)\"", err)[0])
    try:
        logged = wait_for(
            lambda: "running" in ok(vfsd, "logs", "dev", "-n", "100") and ok(vfsd, "logs", "dev"), "logs"
        )
        assert "vfsd-machine-dev.service" in logged, "systemd's entries, too"
        ok(vfsd, "machine", "kill", "dev")
        ok(vfsd, "machine", "edit", "dev", "--file", str(kept))
        unknown = vfsctl(vfsd, "logs", "nobody", "-n", "1")
        assert unknown.err.startswith('There is no machine or share "nobody" now; ')
    finally:
        kept.unlink()
    shown = vfsctl(vfsd, "machine", "show", "dev", "--json").json()
    assert (shown["CPUs"], shown["IOWeight"]) == (2, 50)


@only_user
def test_a_bad_edit_can_be_edited_again(vfsd: Vfsd, written: Path) -> None:
    ok(vfsd, "machine", "add", "dev", "--builtin")
    editor = written / "editor"
    # bad the first time, good the second
    editor.write_text(
        '#!/bin/sh\nif grep -q many "$1"; then sed -i s/many/4/ "$1"; else echo "cpus = many" >> "$1"; fi\n'
    )
    editor.chmod(0o755)
    terminal = Terminal(vfsd, "machine", "edit", "dev", environment={"VISUAL": str(editor)})
    try:
        terminal.expect(r"Edit again\?")
        terminal.send("\n")
        terminal.expect("dev is changed: CPUs")
        assert terminal.end() == 0
    finally:
        terminal.close()


@only_user
def test_what_happens_while_somebody_edits(vfsd: Vfsd, folder: Path) -> None:
    ok(vfsd, "share", "add", "src", str(folder))
    assert edit(vfsd, "share", "src", "vfsctl share stop src; sed -i '$ a read_only = true'")[0] == 0
    shown = vfsctl(vfsd, "share", "show", "src", "--json").json()
    assert (shown["State"], shown["ReadOnly"]) == ("stopped", True), "it was stopped, and stays so"
    code, _, err = edit(vfsd, "share", "src", "vfsctl share set src xattr=yes; sed -i '$ a writeback = true'")
    assert (code, err) == (0, "")
    shown = vfsctl(vfsd, "share", "show", "src", "--json").json()
    assert (shown["XAttr"], shown["Writeback"]) == (True, True), "what another changed is left alone"
    code, _, err = edit(vfsd, "share", "src", "vfsctl share remove src; sed -i '$ a kill_priv = true'")
    assert code == 4
    kept = Path(re.findall(EDITED, err)[0])
    assert "kill_priv" in kept.read_text()
    kept.unlink()


@only_user
def test_an_editor_that_takes_the_file_away(vfsd: Vfsd) -> None:
    ok(vfsd, "machine", "add", "dev", "--builtin")
    code, _, err = edit(vfsd, "machine", "dev", "rm")
    assert (code, "kept" in err) == (1, False), "there is nothing to be kept"
    code, _, err = edit(vfsd, "machine", "dev", 'sh -c \'printf "\\\\377" > "$1"\' sh')
    assert (code, "is not UTF-8" in err) == (1, True)
    Path(re.findall(EDITED, err)[0]).unlink()


@only_user
def test_ctrl_c_is_the_editors_and_leaves_nothing_that_nobody_wrote(vfsd: Vfsd, written: Path) -> None:
    ok(vfsd, "machine", "add", "dev", "--builtin")
    editor = written / "editor"
    for action, code, said in (
        ('echo "cpus = 2" >> "$1"; exit 0', 0, "dev is changed: CPUs"),
        ("exit 130", 130, ""),
    ):
        editor.write_text(f"#!/bin/sh\ntrap 'kill $!; {action}' INT\nsleep 60 & echo \"at $1.\"; wait\n")
        editor.chmod(0o755)
        terminal = Terminal(vfsd, "machine", "edit", "dev", environment={"VISUAL": str(editor)}, columns=200)
        try:
            path = Path(re.findall(r"at (\S+)\.\r", terminal.expect(r"at \S+\.\r"))[0])
            terminal.send("\x03")
            assert terminal.end() == code
            assert said in terminal.text
            assert not path.exists()
        finally:
            terminal.close()
