"""Booting a machine from one of its shares: which one, and whether its kernel can do so. Asked before QEMU starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vfsd.context import Context
from vfsd.errors import InvalidArgs, PrerequisiteMissing
from vfsd.journal import NOTICE, MessageId
from vfsd.share import Share

if TYPE_CHECKING:
    from vfsd.kernel import KernelReport
    from vfsd.lifecycle import Lifecycle

_OPTIONS = {"VIRTIO_FS": "virtio-fs", "VIRTIO_PCI": "the bus on which QEMU offers it"}
"""What a kernel must have built in to mount its root from a share, by option."""
_TAG = re.compile(r"[\x21-\x7e]+")
_QUOTES = set("\"'\\")
_DEVICE = re.compile(r"[0-9a-fA-F]+|\d+:\d+.*|(mtd|ubi|/dev/|LABEL=|UUID=|PARTUUID=|PARTLABEL=).*")
"""What the kernel takes for a block device in root= (block/early-lookup.c, init/do_mounts.c)."""


def find(machine: Lifecycle) -> Share | None:
    """The share that the machine boots from; None if it boots otherwise.

    :raise InvalidArgs: it has none of that name, or one whose tag the kernel would not understand.
    """
    wanted = machine.spec.root_share
    if not wanted:
        return None
    by_tag = (share for share in machine.shares if share.spec.tag == wanted)
    by_name = (share for share in machine.shares if share.name == wanted)
    root = next(by_tag, None) or next(by_name, None)
    if root is None:
        raise InvalidArgs(
            f'machine "{machine.name}" has no share "{wanted}" to boot from; attach it, or name another'
        )
    _check_tag(machine, root, sound=_TAG.fullmatch(root.spec.tag) and not _QUOTES & set(root.spec.tag))
    return root


async def initrd(context: Context, machine: Lifecycle, root: Share) -> Path | None:
    """What the kernel needs to boot from the share, checked and made; None if it needs nothing.

    :raise PrerequisiteMissing, InvalidArgs: the kernel can't boot from it.
    """
    spec = machine.spec
    if spec.initrd:
        return None  # whoever made it knows what is in it
    try:
        report = await context.host.kernel(Path(spec.kernel))
    except OSError as error:
        raise InvalidArgs(
            f'"{spec.kernel}", the kernel of machine "{machine.name}", can\'t be read: {error.strerror}; name another'
        ) from None
    if spec.root_overlay:
        return await context.host.overlay(report, Path(root.spec.source))
    _check_tag(machine, root, sound=not _DEVICE.fullmatch(root.spec.tag))
    _check_kernel(context, machine, report)
    return None


def _check_tag(machine: Lifecycle, root: Share, *, sound: object) -> None:
    if not sound:
        raise InvalidArgs(
            f'machine "{machine.name}" can\'t boot from share "{root.name}": its kernel would take the tag '
            f'"{root.spec.tag}" for something else; set another Tag, such as "root"'
        )


def _check_kernel(context: Context, machine: Lifecycle, report: KernelReport) -> None:
    """:raise PrerequisiteMissing: the kernel, alone, can't mount a share."""
    begin = f'"{machine.spec.kernel}", the kernel of machine "{machine.name}"'
    remedy = (
        "use a kernel that has it built in (Debian: linux-image-cloud-amd64 or linux-image-cloud-arm64), give an "
        "Initrd that loads it, or set RootOverlay"
    )
    for option, what in _OPTIONS.items():
        match report.presence(option).value:
            case "m":
                raise PrerequisiteMissing(
                    f"{begin}, can't mount its root share: {what} is a module (CONFIG_{option}=m); {remedy}"
                )
            case "missing":
                raise PrerequisiteMissing(
                    f"{begin}, can't mount its root share: it lacks {what} (CONFIG_{option}); {remedy}"
                )
            case "unknown":
                told = (
                    f'machine "{machine.name}": its kernel does not tell whether it has {what} (CONFIG_{option}), as '
                    f"it must to boot from a share; if it panics, {remedy}"
                )
                context.journal.write(
                    MessageId.GUEST_EVENT, NOTICE, told, unit=machine.unit, machine=machine.name
                )
