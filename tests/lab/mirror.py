"""Where to get Debian from: the mirror which the host itself is set up to use.

A host in a company or a CI farm often reaches only its own mirror, and knows that one already.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tests.lab import LabError

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_SUITE = re.compile(r"(stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke)(-updates)?")
_OPTION = re.compile(r"\[([^]]*)\]")


@dataclass(frozen=True)
class Source:
    """One repository: a URI with one of its suites."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True)
class Mirror:
    """A Debian mirror and the keyring file which vouches for it."""

    uri: str
    keyring: str


def parse_one_line(text: str) -> Iterator[Source]:
    """Read the old format: `deb [option=value …] uri suite component …`."""
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        if not line.startswith("deb") or not line[3:4].isspace():
            continue
        line = line[3:].strip()
        signed_by = ""
        if match := _OPTION.match(line):
            for option in match[1].split():
                name, _, value = option.partition("=")
                if name.lower() == "signed-by":
                    signed_by = value
            line = line[match.end() :].strip()
        match line.split():
            case [uri, suite, *components]:
                yield Source(uri, suite, tuple(components), signed_by)


def parse_deb822(text: str) -> Iterator[Source]:
    """Read the new format: stanzas of `Field: value` with continuation lines."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                if name:
                    fields[name] += "\n" + line.strip()
                continue
            name, colon, value = line.partition(":")
            name = name.strip().lower() if colon else ""
            if name:
                fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        # A key that stands in the file itself is no path: the archive keyring has to do then.
        signed_by = fields.get("signed-by", "")
        signed_by = "" if "\n" in signed_by else signed_by
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri, suite, tuple(fields.get("components", "").split()), signed_by)


def choose(sources: Iterable[Source]) -> Mirror | None:
    """Pick the source that is Debian itself, among others that use Debian's suite names too."""
    best: tuple[int, Source] | None = None
    for source in sources:
        if source.uri.startswith("cdrom:") or "main" not in source.components:
            continue
        if not _SUITE.fullmatch(source.suite):
            continue
        score = 0
        if "debian-archive" in source.signed_by:
            score += 4
        if PurePosixPath(urlsplit(source.uri).path).stem == "debian":
            score += 2
        if score and (best is None or score > best[0]):
            best = score, source
    if best is None:
        return None
    source = best[1]
    return Mirror(source.uri, source.signed_by if source.signed_by.startswith("/") else KEYRING)


def read(etc_apt: Path) -> Iterator[Source]:
    """Read every source which apt would read."""
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if path.suffix not in {".list", ".sources"} or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        yield from parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)


def find(etc_apt: Path = Path("/etc/apt")) -> Mirror:
    """Return the mirror to use: VFSD_LAB_MIRROR if set, else the host's own."""
    if chosen := os.environ.get("VFSD_LAB_MIRROR"):
        mirror = Mirror(chosen, KEYRING)
    elif (found := choose(read(etc_apt))) is not None:
        mirror = found
    else:
        raise LabError(
            "The apt sources of this machine name no Debian mirror. "
            "Set VFSD_LAB_MIRROR to the address of one and try again."
        )
    if not Path(mirror.keyring).is_file():
        raise LabError(
            f"{mirror.keyring} is missing: install the package debian-archive-keyring "
            "(tests/lab/prepare does)."
        )
    return mirror


def apt_options(dump: str) -> list[str]:
    """Choose from `apt-config dump` what the host needs to reach its mirror: proxies, its CAs, …."""
    wanted = re.compile(r'Acquire::(https?(::[^ ]+)?|Check-[A-Za-z-]+|Retries) ".+";')
    return [line for line in map(str.strip, dump.splitlines()) if wanted.fullmatch(line)]
