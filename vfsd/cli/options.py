"""Options of shares and machines as click options: one table each, and `--option` for all the rest."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import click

from vfsd.cli.values import Options, Typed, absolute, parse_assignments, parse_credential_file, parse_value
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS
from vfsd.options import Option

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Flag(NamedTuple):
    """An option on the command line that sets a property."""

    flag: str
    sets: str
    help: str
    metavar: str = "TEXT"
    is_path: bool = False

    @property
    def parameter(self) -> str:
        """The name of the Python parameter that click makes of it."""
        return self.flag.lstrip("-").replace("-", "_")


_LIMIT_FLAGS = (
    Flag("--memory-max", "MemoryMax", "Memory that it may use on the host, such as 3G.", "SIZE"),
    Flag(
        "--cpu-quota",
        "CPUQuotaPerSecUSec",
        "Processor time that it may use: 150% is one and a half.",
        "PERCENT",
    ),
    Flag("--io-weight", "IOWeight", "Its share in input and output, 1 to 10000. Default: 100.", "WEIGHT"),
    Flag("--tasks-max", "TasksMax", "Processes and threads that it may have.", "N"),
)
"""Of the host, and what it may use of it; 0 is no limit."""

SHARE_FLAGS = (
    Flag("--read-only", "ReadOnly", "Refuse all writes."),
    Flag("--tag", "Tag", "Tag by which the guest mounts it. Default: the name.", "TAG"),
    Flag("--mount-point", "MountPoint", "Where the guest mounts it.", "DIR"),
    Flag("--cache", "Cache", "How long the guest caches."),
    Flag("--writeback", "Writeback", "Let the guest cache writes."),
    Flag("--xattr", "XAttr", "Extended attributes."),
    Flag("--posix-acl", "PosixACL", "POSIX access control lists."),
    Flag("--sandbox", "Sandbox", "How virtiofsd confines itself."),
    Flag("--thread-pool-size", "ThreadPoolSize", "Threads that serve requests.", "N"),
    Flag("--socket-group", "SocketGroup", "Group on the host that may connect too.", "GROUP"),
    Flag("--limit-nofile", "LimitNOFILE", "Files that virtiofsd may hold open.", "N"),
    *_LIMIT_FLAGS,
)

BOOT_FLAGS = (
    Flag("--builtin", "Builtin", "Boot the built-in small guest: a shell, all shares mounted."),
    Flag("--kernel", "Kernel", "Kernel to boot directly.", "FILE", is_path=True),
    Flag("--initrd", "Initrd", "Initial RAM file system for the kernel.", "FILE", is_path=True),
    Flag("--append", "Append", "Arguments for the kernel.", "ARGUMENTS"),
    Flag("--root-overlay", "RootOverlay", "Leave the root share as it is; writes go to the guest's memory."),
    Flag("--image", "Image", "Disk image, qcow2 or raw.", "FILE", is_path=True),
    Flag("--firmware", "Firmware", "Firmware that boots the image."),
    Flag("--memory", "Memory", "Memory of the guest, such as 2G. Default: 1G.", "SIZE"),
    Flag("--cpus", "CPUs", "Processors of the guest. Default: 1.", "N"),
    Flag("--accelerator", "Accelerator", "Default: auto, which is kvm where it works."),
    Flag("--network", "Network", "user (default), none, bridge:NAME or tap:NAME.", "NETWORK"),
    Flag(
        "--forward",
        "Forward",
        "Port of the host that leads into the guest (repeatable).",
        "tcp:HOST:PORT:PORT",
    ),
    Flag("--ssh", "SSH", 'Let "vfsctl ssh" in: hand its key to the guest, and forward a port.'),
    Flag(
        "--credential",
        "CredentialFiles",
        "File that is handed to the guest's systemd (repeatable).",
        "NAME:FILE",
    ),
)

MACHINE_FLAGS = (
    *BOOT_FLAGS,
    Flag("--root-share", "RootShare", "Boot from the share of this tag or name.", "SHARE"),
    Flag("--display", "Display", "Display of the guest."),
    Flag("--autostart", "Autostart", "Start it when vfsd starts at boot."),
    *_LIMIT_FLAGS,
)


def property_options(
    flags: tuple[Flag, ...], table: Mapping[str, Option]
) -> Callable[[Decorated], Decorated]:
    """Decorate a command with `flags` and `--option NAME=VALUE`."""

    def decorate(command: Decorated) -> Decorated:
        command = click.option(
            "--option", "-o", "assignments", multiple=True, metavar="NAME=VALUE",
            help="Set any other property (repeatable).",
        )(command)  # fmt: skip
        for flag in reversed(flags):
            command = _click_option(flag, table[flag.sets])(command)
        return command

    return decorate


def _click_option(flag: Flag, option: Option) -> Callable[[Decorated], Decorated]:
    if option.signature == "b":
        return click.option(flag.flag, is_flag=True, help=flag.help)
    choices = choices_of(option)
    if choices:
        return click.option(flag.flag, type=click.Choice(choices), help=flag.help)
    multiple = option.signature in ("as", "a{ss}")
    return click.option(flag.flag, multiple=multiple, metavar=flag.metavar, help=flag.help)


def choices_of(option: Option) -> list[str]:
    """The values that an option may have, if it is a choice."""
    return [str(value) for value in getattr(option.parse, "__members__", {}).values()]


def collect(flags: tuple[Flag, ...], table: Mapping[str, Option], given: Mapping[str, Any]) -> Options:
    """The properties that a command's parameters set; an option's own flag overrules `--option`."""
    options = parse_assignments(table, given["assignments"])
    for flag in flags:
        value, option = given[flag.parameter], table[flag.sets]
        if value is None or value is False or value == ():
            continue
        if option.signature == "as":
            options[flag.sets] = Typed("as", list(value))
        elif option.signature == "a{ss}":
            options[flag.sets] = Typed("a{ss}", dict(map(parse_credential_file, value)))
        elif value is True:
            options[flag.sets] = Typed("b", True)
        else:
            options[flag.sets] = parse_value(option, absolute(value) if flag.is_path else value)
    return options


def rest_help(flags: tuple[Flag, ...], table: Mapping[str, Option]) -> str:
    """What `--option` is for: the properties that have no flag of their own."""
    have = {flag.sets for flag in flags}
    rest = ", ".join(name for name in table if name not in have)
    lines = textwrap.wrap(f"Other properties for --option: {rest}.", 76)
    return "\b\n" + "\n".join(lines)


SHARE_REST = rest_help(SHARE_FLAGS, SHARE_OPTIONS)
MACHINE_REST = rest_help(MACHINE_FLAGS, MACHINE_OPTIONS)
