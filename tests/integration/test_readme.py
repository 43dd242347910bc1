"""What the documentation shows is what happens: the commands of README.md, the demo, the man pages.

README.md's blocks marked `sh` below "A tour with busctl" are run line by line, as its reader would: by a user on the
session bus, and by root on the system bus without `--user`. The lines of the `text` block after one must be in its
output, in that order; `…` stands for anything. A block after `<!-- in the background -->` runs to the section's end.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

import vfsd as package
from tests.integration.conftest import only_system
from tests.integration.harness import TESTER, Vfsd, wait_for

PROJECT = Path(__file__).resolve().parents[2]
README = PROJECT / "README.md"
BACKGROUND = "<!-- in the background -->"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Commands, and what must be seen of their output."""

    lines: list[str]
    expected: list[str]
    background: bool


def section(heading: str, document: Path = README) -> str:
    """The text of a document below a heading of the second level."""
    parts = re.split(r"^## (.*)\n", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[heading]


def fenced(text: str, language: str) -> list[str]:
    """What stands in the blocks of a language."""
    return [match[2] for match in _FENCE.finditer(text) if match[1] == language]


def blocks(text: str) -> list[Block]:
    """The blocks to run of a section."""
    found: list[Block] = []
    position = 0
    for match in _FENCE.finditer(text):
        language, content = match[1], match[2].splitlines()
        if language == "sh":
            found.append(Block(content, [], BACKGROUND in text[position : match.start()]))
        elif language == "text":
            found[-1].expected.extend(content)
        position = match.end()
    return found


def missing(expected: list[str], output: str) -> str:
    """The first expected line that is not in the output, after those before it; "" if all are."""
    lines = iter(output.splitlines())
    for wanted in expected:
        pattern = ".*".join(re.escape(part) for part in wanted.rstrip().split("…"))
        if not any(re.fullmatch(pattern, line.rstrip()) for line in lines):
            return wanted
    return ""


class Reader:
    """Somebody who copies README.md's lines into a shell."""

    def __init__(self, vfsd: Vfsd) -> None:
        self.vfsd = vfsd
        self.home = Path("/root") if vfsd.scope == "system" else Path("/home") / TESTER
        self._monitors: list[tuple[Block, subprocess.Popen[str], Path]] = []

    def argv(self, line: str) -> list[str]:
        """The command of a line, as this scope's user types it."""
        if line.startswith("journalctl") and self.vfsd.scope == "user":
            # the lab's journal is volatile, hence not split by users: here only root can read it
            line, scope = line.replace(" --user", "") + f" _UID={self.vfsd.owner_uid}", Vfsd("system")
        elif self.vfsd.scope == "system":
            line, scope = line.replace(" --user", ""), self.vfsd
        else:
            scope = self.vfsd
        return scope.argv(["bash", "-o", "pipefail", "-c", line])

    def follow(self, text: str, folder: Path) -> None:
        """Do what a section says."""
        for number, block in enumerate(blocks(text)):
            if block.background:
                self._watch(block, folder / str(number))
                continue
            output = "".join(self.run(line) for line in block.lines)
            lost = missing(block.expected, output)
            assert not lost, f'README.md shows "{lost}", which is not in:\n{output}'

    def run(self, line: str) -> str:
        """The output of a line that is to succeed."""
        done = subprocess.run(
            self.argv(line),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{line}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def _watch(self, block: Block, file: Path) -> None:
        [line] = block.lines
        with file.open("w") as output:
            process = subprocess.Popen(
                self.argv(f"exec {line}"), stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True
            )
        self._monitors.append((block, process, file))
        wait_for(lambda: "Monitoring" in file.read_text(), f"{line} begins")

    def close(self) -> None:
        """End what runs in the background."""
        for _, process, _ in self._monitors:
            process.send_signal(signal.SIGTERM)
            process.wait(10)

    def check_background(self) -> None:
        """:raise AssertionError: README.md shows what a command in the background did not print."""
        for block, _, file in self._monitors:
            wait_for(lambda b=block, f=file: not missing(b.expected, f.read_text()), "the signals came", 10)  # type: ignore[misc]


@pytest.mark.parametrize("heading", ["A tour with busctl", "vfsctl in ten lines"])
def test_the_readme_can_be_followed(vfsd: Vfsd, tmp_path: Path, heading: str) -> None:
    reader = Reader(vfsd)
    subprocess.run(["rm", "-rf", reader.home / "vfsd-tour"], check=True)
    try:
        reader.follow(section(heading), tmp_path)
        reader.check_background()
    finally:
        reader.close()
        subprocess.run(["rm", "-rf", reader.home / "vfsd-tour"], check=True)


def test_the_definition_in_a_file_is_read(vfsd: Vfsd) -> None:
    [text] = fenced(section("Definitions in files"), "toml")
    file = vfsd.config / "machines/build.toml"
    vfsd.run("mkdir", "-p", str(file.parent))
    try:
        file.write_text(text)
        vfsd.run("vfsctl", "reload")
        assert [name for name, *_ in vfsd.manager("ListMachines")] == ["build"]
        path = vfsd.manager("GetMachine", "s", "build")
        assert vfsd.get(path, "org.vfsd1.Machine", "CPUs") == tomllib.loads(text)["cpus"]
    finally:
        file.unlink(missing_ok=True)
        vfsd.run("vfsctl", "reload")
    assert vfsd.manager("ListMachines") == []


@only_system
def test_the_demo_runs(vfsd: Vfsd) -> None:
    done = subprocess.run(
        [PROJECT / "tests/lab/demo"], capture_output=True, text=True, timeout=120, check=False
    )
    subprocess.run(["rm", "-rf", "/srv/demo"], check=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b[" not in done.stdout, "colours, although it is no terminal"


def test_the_documents_are_about_this_version() -> None:
    news = (PROJECT / "NEWS.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", news, re.MULTILINE)[0] == package.__version__


@pytest.mark.parametrize(
    "page", sorted((PROJECT / "packaging/man").glob("*.[1-8]")), ids=lambda page: page.name
)
def test_the_man_pages_are_well_formed(page: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "style", page], capture_output=True, text=True, check=False
    )
    # the lab has neither the manual pages of other packages nor a database of manual pages
    found = [line for line in (done.stdout + done.stderr).splitlines() if f"{page.name}:" in line]
    assert [line for line in found if "referenced manual not found" not in line] == []
