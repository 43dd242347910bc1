"""What a share is about to be served with: everything checked, its link in place, its units described and started."""

from __future__ import annotations

import asyncio
import dataclasses
import grp
import os
from pathlib import Path

from vfsd import commands, hardening
from vfsd import units as unit_properties
from vfsd.context import Context
from vfsd.errors import InvalidArgs, NotSupported, SourceNotFound, UnitFailed, VfsdError
from vfsd.model import ShareSpec
from vfsd.supervisor import SupervisorError, start_units
from vfsd.units import ALONE, Place, Unit

SPACE_TIMEOUT = 5.0
"""Seconds in which a file system must tell its size: one on the network may never do so."""


async def program(context: Context) -> str:
    """The path of the virtiofsd that would be run now. :raise PrerequisiteMissing: there is none."""
    return str((await context.host.virtiofsd()).path)


async def arguments(context: Context, spec: ShareSpec, place: Place = ALONE) -> list[str]:
    """virtiofsd's command line, everything that it needs checked.

    A QEMU that vfsd starts is given the tag, and versions 7.1 to 8.0 crash with a virtiofsd that announces one.

    :raise SourceNotFound, InvalidArgs, PrerequisiteMissing, NotSupported: something is missing.
    """
    context.sources.check(spec)
    _check_group(spec)
    binary = await context.host.virtiofsd()
    paths = context.paths
    hidden = hardening.hides_all_else(spec, context.scope)
    shared_dir = paths.mount if hidden else paths.source_link(spec.name)
    if place.machine:
        spec = dataclasses.replace(spec, announce_tag=False)
    wanted = commands.virtiofsd_arguments(str(binary.path), spec, shared_dir)
    missing = binary.missing(wanted[1:])
    if missing:
        raise NotSupported(
            f'share "{spec.name}" needs virtiofsd with {", ".join(missing)}; version {binary.version_text} '
            "lacks it: install a newer one, or leave the option out"
        )
    return wanted


async def units(context: Context, spec: ShareSpec, place: Place = ALONE) -> tuple[Unit, Unit]:
    """Socket and service of a share, with the links that they name made.

    :raise SourceNotFound, InvalidArgs, PrerequisiteMissing, NotSupported: something is missing.
        UnitFailed: the link can't be made.
    """
    wanted = await arguments(context, spec, place)
    locate(context, spec)
    root = context.sources.origin(spec.name).place
    mount_point = "" if root == "/" else root
    return unit_properties.share_units(spec, wanted, context.scope, context.paths, place, mount_point)


def locate(context: Context, spec: ShareSpec) -> None:
    """Let the next virtiofsd serve the source from where it lies now, and remember that.

    :raise SourceNotFound, InvalidArgs: it can't be served. UnitFailed: the links can't be made.
    """
    try:
        context.sources.remember(spec.name, context.sources.check(spec))
    except OSError as error:  # it is known until vfsd ends
        context.not_written(f"where share {spec.name} lies can't be remembered: {error.strerror}")
    make_links(context, spec)


def make_links(context: Context, spec: ShareSpec) -> None:
    """Let virtiofsd find the source, and systemd the place where its file system has to be mounted."""
    _link(context.paths.source_link(spec.name), spec.source)
    _link(context.paths.mount_point_link(spec.name), context.sources.origin(spec.name).place)


def remove_links(context: Context, name: str) -> None:
    """Let no virtiofsd start any more."""
    context.paths.source_link(name).unlink(missing_ok=True)
    context.paths.mount_point_link(name).unlink(missing_ok=True)


def _link(link: Path, target: str) -> None:
    new = link.with_name(f".{link.name}.new")
    try:
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(link)
    except OSError as error:
        raise UnitFailed(
            f"share \"{link.name}\" can't be served: vfsd's runtime folder takes nothing: {error.strerror}"
        ) from None


async def listen(context: Context, spec: ShareSpec, socket: Unit, service: Unit) -> None:
    """Start the units and wait until the socket listens. :raise UnitFailed."""
    try:
        await start_units(context.supervisor, socket, [service], [socket.name, service.name])
    except SupervisorError as error:
        status = context.scope.hint("systemctl", f"status {socket.name}")
        raise UnitFailed(f'share "{spec.name}" could not start listening: {error}; see {status}') from None


async def space(spec: ShareSpec) -> tuple[int, int]:
    """Size and free space of the source's file system, in bytes.

    :raise SourceNotFound: the source is not there. VfsdError: its file system does not answer.
    """
    try:
        async with asyncio.timeout(SPACE_TIMEOUT):
            found = await asyncio.to_thread(os.statvfs, spec.source)
    except TimeoutError:
        raise VfsdError(f'the file system of "{spec.source}" does not answer; see to its server') from None
    except OSError as error:
        raise SourceNotFound(
            f'"{spec.source}", the source of share "{spec.name}", can\'t be looked at: {error.strerror}'
        ) from None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _check_group(spec: ShareSpec) -> None:
    if not spec.socket_group:
        return
    try:
        grp.getgrnam(spec.socket_group)
    except KeyError:
        raise InvalidArgs(
            f'group "{spec.socket_group}" of share "{spec.name}" does not exist; name one that does'
        ) from None
