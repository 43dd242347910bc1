"""Whether the sources of shares are there: the directory, and the file system on which it was served last.

The truth is the service manager's mount table together with the directory itself, looked at anew at each event;
events only say when. A mount point whose disk is away is a directory like any other, and empty. So what a share was
served from is remembered, over a reboot too, unless that is the root file system.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from vfsd.errors import InvalidArgs, SourceNotFound
from vfsd.model import ShareSpec
from vfsd.mounts import AUTOMOUNT, Mount, MountMonitor, MountTable
from vfsd.names import Scope
from vfsd.store import Origin, Store
from vfsd.watch import FolderWatch

BLOCK_DEVICES = Path("/sys/dev/block")
"""One link for each block device that there is, by its number."""
_AGAIN = "or stop the share, and start it to serve what is there now"


class Follower(Protocol):
    """What is told of a source: a share."""

    spec: ShareSpec

    def source_looked_at(self, problem: str, origin: Origin | None, *, same: bool) -> None:
        """Take note of how the source is.

        :param problem: why it is not there; "" if it is.
        :param origin: where it lies, if it is there.
        :param same: whether it is the very directory that it was when it was served last.
        """


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is asked of the host when a source is looked at."""

    table: MountTable
    removed: frozenset[str] = frozenset()
    """Nodes of the devices that udev saw vanish."""
    block_devices: Path = BLOCK_DEVICES

    def is_gone(self, mount: Mount) -> bool:
        """Whether the device below a mount is gone. The mount stays until somebody takes it away."""
        if mount.has_device and self.block_devices.is_dir():
            return not (self.block_devices / mount.device).exists()
        return mount.source in self.removed

    def device_name(self, mount: Mount) -> str:
        """The kernel's name of the device below a mount, such as sdb1; "" if there is none."""
        if mount.has_device and (self.block_devices / mount.device).exists():
            return (self.block_devices / mount.device).resolve().name
        return Path(mount.source).name if mount.source.startswith("/dev/") else ""


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of a source."""

    path: str
    """The source without symbolic links."""
    mounts: list[Mount]
    """Those on the way to it, that which holds it last."""
    origin: Origin | None
    """Where it lies."""
    problem: str = ""
    """Why it is not there."""


def look(spec: ShareSpec, known: Origin, around: Surroundings) -> Origin:
    """Where the source lies now.

    :param known: where it lay when it was served last.
    :raise SourceNotFound: it is not there, or not on its file system. InvalidArgs: it is no directory.
    """
    return _judge(spec, known, around, around.table.above(os.path.realpath(spec.source)), touch=True)


def glance(spec: ShareSpec, known: Origin, around: Surroundings) -> Sight:
    """The same without an error; what may take for ever is not touched."""
    path, mounts = spec.source, around.table.above(spec.source)
    touch = not mounts[-1].may_hang
    if touch:
        path = os.path.realpath(spec.source)
        mounts = around.table.above(path)
        touch = not mounts[-1].may_hang
    try:
        return Sight(path, mounts, _judge(spec, known, around, mounts, touch=touch))
    except (SourceNotFound, InvalidArgs) as error:
        return Sight(path, mounts, None, str(error))


def _judge(
    spec: ShareSpec, known: Origin, around: Surroundings, mounts: Sequence[Mount], *, touch: bool
) -> Origin:
    begin = f'"{spec.source}", the source of share "{spec.name}",'
    mount = mounts[-1]
    expected = next((each for each in mounts if each.place == known.place), None)
    if expected is None:
        on = f" (device {known.device})" if known.device else ""
        raise SourceNotFound(f"{begin} is not there: its file system{on} is not mounted; mount it, {_AGAIN}")
    lies_on = Origin(mount.place)
    if mount.place != "/" and mount.kind != AUTOMOUNT:
        if around.is_gone(mount):
            device = Path(mount.source).name if mount.source.startswith("/dev/") else known.device
            raise SourceNotFound(
                f"{begin} is not there: device {device} is gone; plug it in again and mount it, {_AGAIN}"
            )
        lies_on = Origin(mount.place, _file_system_id(mount), around.device_name(mount))
        if mount is expected and known.uuid and lies_on.uuid and known.uuid != lies_on.uuid:
            raise SourceNotFound(
                f"{begin} is not there: another file system is mounted in place of its own "
                f"({known.uuid}); mount that one, {_AGAIN}"
            )
    return replace(lies_on, identity=_identity(spec, begin)) if touch else lies_on


def _identity(spec: ShareSpec, begin: str) -> str:
    """What tells a directory from every other as long as somebody has it open."""
    source = Path(spec.source)
    try:
        if source.is_dir():
            found = source.stat()
            return f"{found.st_dev}:{found.st_ino}"
        exists = source.exists()
    except OSError:
        exists = False
    if exists:
        raise InvalidArgs(f"{begin} is no directory; share one")
    raise SourceNotFound(f"{begin} does not exist; create it, or name another")


def _file_system_id(mount: Mount) -> str:
    from vfsd.udev import file_system_id  # noqa: PLC0415  # most sources lie on the root file system

    if mount.has_device:
        major, _, minor = mount.device.partition(":")
        return file_system_id(os.makedev(int(major), int(minor)))
    try:
        return file_system_id(Path(mount.source).stat().st_rdev) if mount.source.startswith("/dev/") else ""
    except OSError:
        return ""


class Sources:
    """The sources of all shares of one vfsd."""

    def __init__(
        self, scope: Scope, store: Store, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> None:
        self._store = store
        self._spawn = spawn
        self._mounts = MountMonitor(scope)
        self._followers: dict[str, Follower] = {}
        self._origins: dict[str, Origin] = {}
        self._seen: dict[str, Sight] = {}
        self._removed: set[str] = set()
        self._due: set[str] = set()
        """Names of shares whose sources are to be looked at."""
        self._folders: FolderWatch | None = None
        self._looking: asyncio.Task[None] | None = None

    # for shares

    def check(self, spec: ShareSpec) -> Origin:
        """Where the source lies. :raise SourceNotFound, InvalidArgs: it can't be served."""
        return look(spec, self.origin(spec.name), self._surroundings())

    def glance(self, spec: ShareSpec) -> Sight:
        """How the source is at this moment; what may take for ever is not touched."""
        return glance(spec, self.origin(spec.name), self._surroundings())

    def origin(self, name: str) -> Origin:
        """Where the source lay when it was served last."""
        if name not in self._origins:
            self._origins[name] = self._store.recall_origin(name)
        return self._origins[name]

    def remember(self, name: str, origin: Origin) -> None:
        """It is served from there. :raise OSError: that can't be written."""
        before, self._origins[name] = self.origin(name), origin
        if origin != before and {before.place, origin.place} != {"/"}:
            self._store.remember_origin(name, origin)

    def forget(self, name: str) -> None:
        """It may be served from anywhere."""
        self._store.remember_origin(name, Origin())
        self._origins.pop(name, None)

    def follow(self, share: Follower) -> None:
        """Tell a share of its source from now on."""
        self._followers[share.spec.name] = share
        self._look_at([share.spec.name])

    def leave(self, share: Follower) -> None:
        """Tell it no more."""
        name = share.spec.name
        seen = self._seen.pop(name, None)
        for kept in (self._followers, self._origins):
            kept.pop(name, None)
        if self._folders is not None:
            for path in {share.spec.source, seen.path} if seen else {share.spec.source}:
                self._unwatch(self._folders, path)

    # events

    async def begin(self) -> None:
        """Watch from now on, in the running event loop, once everything was looked at."""
        self._folders = FolderWatch(self._folders_changed)
        self._mounts.start(self._mounts_changed)
        self._look_at(self._followers)
        if self._looking is not None:
            await self._looking

    def device_changed(self, node: str, action: str) -> None:
        """A block device came, went or has something else in it now."""
        (self._removed.add if action == "remove" else self._removed.discard)(node)
        self._look_at(name for name, seen in self._seen.items() if seen.mounts[-1].place != "/")

    def _mounts_changed(self) -> None:
        table = self._mounts.table
        self._look_at(name for name, seen in self._seen.items() if table.above(seen.path) != seen.mounts)

    def _folders_changed(self, paths: set[str]) -> None:
        self._look_at(
            name
            for name, share in self._followers.items()
            if share.spec.source in paths or (name in self._seen and self._seen[name].path in paths)
        )

    def _look_at(self, names: Iterable[str]) -> None:
        self._due.update(names)
        if self._folders is not None and self._due and (self._looking is None or self._looking.done()):
            self._looking = self._spawn(self._look(self._folders))

    async def _look(self, folders: FolderWatch) -> None:
        while self._due:
            names, self._due = self._due, set()
            shares = {name: self._followers[name] for name in names if name in self._followers}
            for name, share in shares.items():
                self._watch(folders, name, share.spec.source)  # first: what happens from here on is told
            asked = {name: (share.spec, self.origin(name)) for name, share in shares.items()}
            around = self._surroundings()
            found = await asyncio.to_thread(
                lambda: {name: glance(*each, around) for name, each in asked.items()}  # noqa: B023
            )
            for name, sight in found.items():
                if self._followers.get(name) is not shares[name]:
                    continue
                self._see(folders, name, sight)
                if self.origin(name) == asked[name][1]:
                    self._tell(shares[name], asked[name][1], sight)
                else:
                    self._due.add(name)  # it was served anew meanwhile

    def _watch(self, folders: FolderWatch, name: str, source: str) -> None:
        """Watch the folders that lead to a source, unless to look at them may take for ever."""
        seen = self._seen.get(name)
        for path in {source, seen.path} if seen else {source}:
            if not self._mounts.table.above(path)[-1].may_hang:
                folders.watch(path)

    def _see(self, folders: FolderWatch, name: str, sight: Sight) -> None:
        before = self._seen.get(name)
        self._seen[name] = sight
        if sight.path != (before.path if before else self._followers[name].spec.source):
            if before:
                self._unwatch(folders, before.path)
            self._due.add(name)

    def _unwatch(self, folders: FolderWatch, path: str) -> None:
        others = (share.spec.source for share in self._followers.values())
        if path not in others and all(seen.path != path for seen in self._seen.values()):
            folders.unwatch(path)

    def _tell(self, share: Follower, before: Origin, sight: Sight) -> None:
        now = sight.origin
        if now is None:
            share.source_looked_at(sight.problem, None, same=False)
            return
        comparable = before.identity and now.identity and before.place == now.place
        share.source_looked_at("", now, same=not comparable or before.identity == now.identity)

    def _surroundings(self) -> Surroundings:
        return Surroundings(self._mounts.table, frozenset(self._removed))
