"""Why a machine could not be started, in the words of whoever is to blame."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from vfsd import names, outcome
from vfsd.context import Context
from vfsd.errors import MonitorFailed, UnitFailed, VfsdError, without_path
from vfsd.journal import last_words, lines_since, said
from vfsd.model import MachineSpec
from vfsd.opened import Openings
from vfsd.share import Share, why_virtiofsd_failed
from vfsd.supervisor import UnitStatus

_QEMU_BEGINS = "qemu-"
"""How QEMU's messages begin: with the name of the program, qemu-system-x86_64 or qemu-kvm."""
_JOURNAL_DELAY = 0.05
"""Seconds that journald gets to take in what was just said."""
_VIRTIOFSD = "virtiofsd"
_MOVE_FAILED, _DELETED = "Migration failed", "Inode deleted"
"""What virtiofsd says when it can't take files over, and when the guest has one open that has no name any more."""
_PATH = re.compile(r"/[^\s,=:'\"]*[^\s,=:'\"/]")
"""A path among QEMU's arguments."""
_FILES = ("kernel", "initrd", "image")
"""What a machine names by paths on the host."""


async def failed_start(
    context: Context,
    spec: MachineSpec,
    shares: Sequence[Share],
    invocation: str,
    problem: str,
    error: BaseException,
    openings: Openings,
    *,
    begun: float,
    thawing: bool,
) -> VfsdError:
    """The error with what QEMU or virtiofsd had to say.

    :param invocation: that of QEMU's unit, as the journal has it.
    :param problem: how QEMU ended by itself; "" if it did not.
    :param openings: what QEMU got opened.
    :param begun: when the start began, in s since the epoch.
    """
    begin = f'machine "{spec.name}"'
    log = context.scope.hint("journalctl", f"-u {names.machine_unit(spec.name)}")
    if isinstance(error, TimeoutError):
        return UnitFailed(f"{begin} did not come up in time; see {log}")
    if not isinstance(error, VfsdError):
        return UnitFailed(f"{begin}: start was interrupted")
    if not isinstance(error, UnitFailed | MonitorFailed):
        return error
    begin += " could not be started"
    for share in shares:
        if share.last_failure:
            why = await why_virtiofsd_failed(share)
            return UnitFailed(f'{begin}: share "{share.name}": {why}')
        words = await last_words(share.invocation, _VIRTIOFSD) if thawing else ""
        if _MOVE_FAILED in words:
            return UnitFailed(
                f'{begin}: share "{share.name}": {_failed_move(words)}; what is shared must be as it was when the '
                "guest was suspended: put it back and thaw again, or kill the machine to forget its guest"
            )
    words = await qemus_words(context, spec, invocation, openings, begun)
    if words:
        return UnitFailed(f"{begin}: QEMU said: {words}")
    return UnitFailed(f"{begin}: {problem}; see {log}") if problem else error


async def failed_move(share: Share, second: UnitStatus, begun: float) -> str:
    """Why a virtiofsd could not take over from that of a share which runs; "" if it has nothing to say.

    :param second: the status of its unit when it was given up.
    :param begun: when the guest began to be moved, in s since the epoch.
    """
    words = await last_words(second.invocation, _VIRTIOFSD)
    problem = outcome.virtiofsd_end(second, had_begun=True)
    if problem:
        return f"{problem}: {words}" if words else problem
    if _MOVE_FAILED not in words:
        return ""
    return await deleted_file(share, begun) or _failed_move(words)


async def deleted_file(share: Share, begun: float) -> str:
    """Which file the guest has open that was deleted, so that no other virtiofsd can find it; "" if none.

    :param begun: when the guest began to be moved, in s since the epoch.
    """
    await asyncio.sleep(_JOURNAL_DELAY)
    lost = [line for line in await lines_since(share.invocation, _VIRTIOFSD, begun) if _DELETED in line]
    if not lost:
        return ""
    file = lost[-1].partition(_DELETED)[2].strip()
    return f"a process in the guest has a deleted file open, {file}; end it, or try again later"


def _failed_move(words: str) -> str:
    return _MOVE_FAILED + words.partition(_MOVE_FAILED)[2]


async def qemus_words(
    context: Context, spec: MachineSpec, invocation: str, openings: Openings, begun: float
) -> str:
    """What a QEMU that was started since `begun` (s since the epoch) said last, without vfsd's own paths, or ""."""
    words = await last_words(invocation, f"vfsd-{spec.name}", unique=True, begun=begun)
    return _as_the_user_named_it(context, spec, openings.named(words))


async def guest_panicked(spec: MachineSpec, invocation: str, status: UnitStatus) -> bool:
    """Whether an end of QEMU that nobody saw was its guest's panic: the exit code, and not a word of QEMU's."""
    if not outcome.may_be_panic(status):
        return False
    return not await said(invocation, f"vfsd-{spec.name}", _QEMU_BEGINS)


def without_paths(spec: MachineSpec, text: str) -> str:
    """A text that everybody may read: without the paths of the user's files."""
    for what in _FILES:
        path = getattr(spec, what)
        if path:
            text = without_path(text, path).replace(path, f"the {what}")
    for name, path in spec.credential_files:
        text = without_path(text, path).replace(path, f"the file of {name}")
    for path in _PATH.findall("\n".join(spec.extra_arguments)):
        text = text.replace(path, "a file")
    return text


def _as_the_user_named_it(context: Context, spec: MachineSpec, words: str) -> str:
    """QEMU's words, with the files as the user named them."""
    paths = context.paths.machine(spec.name)
    for what in _FILES:
        words = words.replace(str(paths.link(what)), getattr(spec, what))
    return (
        words.replace(f"/run/{paths.display_folder}", "")
        .replace(str(paths.folder), "")
        .removeprefix("qemu-system-x86_64: ")
    )
