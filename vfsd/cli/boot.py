"""What a guest boots and sees, from the command line: what `machine add` and `run` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from vfsd.cli.errors import CliError, Exit
from vfsd.cli.options import Flag, collect, property_options
from vfsd.cli.values import Options, Typed, parse_share
from vfsd.model import MACHINE_OPTIONS

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

ROOT_TAG = "root"

SHARE_HELP = """\
\b
DIR[:MOUNTPOINT][:ro] is a directory of this host, where the guest mounts
it, and ro to refuse all writes. Without MOUNTPOINT the guest's own
configuration says where; the built-in guest mounts it below /mnt. A colon
in a path is written \\:, and a backslash that stands before a colon or a
backslash \\\\.
"""


def boot_options(flags: tuple[Flag, ...]) -> Callable[[Decorated], Decorated]:
    """Decorate a command with `flags`, --root, --share and --option."""

    def decorate(command: Decorated) -> Decorated:
        command = click.option(
            "--share", "-s", "shares", multiple=True, metavar="DIR[:MOUNTPOINT][:ro]",
            help="Share a directory with the guest (repeatable).",
        )(command)  # fmt: skip
        command = click.option(
            "--root", metavar="DIR[:ro]", help="Boot from this directory; needs --kernel."
        )(command)
        return property_options(flags, MACHINE_OPTIONS)(command)

    return decorate


def machine_options(flags: tuple[Flag, ...], given: Mapping[str, Any]) -> Options:
    """The options of CreateMachine from the parameters that `boot_options` made."""
    options = collect(flags, MACHINE_OPTIONS, given)
    shares = [_own_share(text) for text in given["shares"]]
    if given["root"]:
        if "RootShare" in options:
            raise CliError("--root and --root-share exclude each other", code=Exit.USAGE)
        # The first, so that no other share's tag, made from its directory, can be "root" already.
        shares.insert(0, _root_share(given["root"]))
        options["RootShare"] = Typed("s", ROOT_TAG)
    if shares:
        options["Shares"] = Typed("a(ssa{sv})", shares)
    return options


def _own_share(text: str) -> list[Any]:
    share = parse_share(text)
    return [share.source, share.mount_point, {"ReadOnly": Typed("b", True)} if share.read_only else {}]


def _root_share(text: str) -> list[Any]:
    source, mount_point, options = _own_share(text)
    if mount_point:
        raise CliError("--root has no mount point: it is the guest's /", "write DIR or DIR:ro.", Exit.USAGE)
    return [source, "", {**options, "Tag": Typed("s", ROOT_TAG)}]
