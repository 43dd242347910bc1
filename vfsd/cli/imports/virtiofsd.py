"""virtiofsd's command line: which directory is behind which socket, and how it is served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vfsd import files
from vfsd.cli.errors import CliError
from vfsd.cli.imports.found import FoundShare
from vfsd.cli.imports.shell import SHELL, is_unknown
from vfsd.cli.values import absolute, parse_value
from vfsd.errors import VfsdError
from vfsd.model import SHARE_OPTIONS, ShareSpec

_FLAGS = {
    "readonly": "ReadOnly",
    "writeback": "Writeback",
    "xattr": "XAttr",
    "posix-acl": "PosixACL",
    "allow-direct-io": "DirectIO",
    "security-label": "SecurityLabel",
    "killpriv-v2": "KillPriv",
    # of the C virtiofsd
    "posix_acl": "PosixACL",
    "allow_direct_io": "DirectIO",
    "security_label": "SecurityLabel",
    "killpriv_v2": "KillPriv",
}
_VALUES = {
    "cache": "Cache",
    "sandbox": "Sandbox",
    "thread-pool-size": "ThreadPoolSize",
    "inode-file-handles": "InodeFileHandles",
    "rlimit-nofile": "LimitNOFILE",
    "log-level": "LogLevel",
    "xattrmap": "XAttrMap",
    "translate-uid": "TranslateUID",
    "translate-gid": "TranslateGID",
    "uid-map": "UIDMap",
    "gid-map": "GIDMap",
}
_SOCKET = {"socket-path", "socket", "fd", "tag", "socket-group"}
_OWN = {
    *_SOCKET,
    "announce-submounts",
    "no-killpriv-v2",
    "syslog",
    "print-capabilities",
    "f",
    "d",
    "foreground",
}
"""What vfsd sees to by itself, or what is its default. Its sockets are its own, and so is who may open them."""
_TAKES_VALUE = {
    *_VALUES,
    *_SOCKET,
    "shared-dir",
    "modcaps",
    "seccomp",
    "o",
    "migration-mode",
    "migration-on-error",
}


@dataclass
class Served:
    """What one virtiofsd serves."""

    socket: str
    share: FoundShare
    left: list[str]


def read(words: Sequence[str]) -> Served | None:
    """What the virtiofsd that these words call would serve; None if that is no directory.

    :param words: its arguments, without the program.
    """
    source = socket = ""
    share = FoundShare("")
    left: list[str] = []
    for name, value in _options(words):
        if name in ("shared-dir", "source"):
            source = value
        elif name in ("socket-path", "socket", "vhost_user_socket"):
            socket = value
        elif is_unknown(name) or is_unknown(value):
            left.append(f"{_shown(name, value)} ({SHELL})")
        elif name == "no-announce-submounts":
            share.set("AnnounceSubmounts", False)
        elif name in _FLAGS and not value:
            share.set(_FLAGS[name], True)
        elif name in _VALUES and value:
            if why := _set(share, _VALUES[name], value):
                left.append(f"{_shown(name, value)} ({why})")
        elif name not in _OWN:
            left.append(_shown(name, value))
    if not source:
        return None
    if is_unknown(source):
        return Served(socket, FoundShare(""), [*left, f"{_shown('shared-dir', source)} ({SHELL})"])
    share.source = absolute(source)
    return Served(socket, share, left)


def beside(script: Path) -> Iterator[Served]:
    """What microvm.nix notes beside its scripts: the source and the socket of each share, not how it is served."""
    for folder in sorted(script.absolute().parent.parent.glob("share/microvm/virtiofs/*")):
        try:
            source, socket = (files.read_text(folder / name).strip() for name in ("source", "socket"))
        except (OSError, UnicodeDecodeError):
            continue
        if source and not is_unknown(source):
            yield Served(socket, FoundShare(absolute(source)), ["options, as its command line is not given,"])


def _shown(name: str, value: str) -> str:
    if not name:
        return value
    return f"--{name}={value}" if value else f"--{name}"


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values; the old `-o name=value,…` are taken apart."""
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            yield "", word
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and name in _TAKES_VALUE:
            value = next(rest, "")
        if name == "o":
            for part in value.split(","):
                inner, _, content = part.partition("=")
                yield inner, content
        else:
            yield name, value


def _set(share: FoundShare, option: str, value: str) -> str:
    """Set an option from its text; why that can't be, or ""."""
    if (option, value) == ("Cache", "none"):
        value = "never"  # as virtiofsd called it before
    try:
        typed = parse_value(SHARE_OPTIONS[option], value)
        if typed.signature == "as" and option in share.options:
            typed = typed._replace(value=[*share.options[option].value, *typed.value])
        ShareSpec(name="x", source="/").with_option(option, *typed)
    except (CliError, VfsdError) as error:
        return str(error)
    share.options[option] = typed
    return ""
