"""Definitions on disk: one JSON file for each share and machine, replaced atomically.

Persistent ones live in the state folder, the others in the runtime folder until the next reboot. Beside them, in
the runtime folder, stands what is remembered of an object until the reboot: whether it was stopped on request,
whether it is being removed, and how it failed. systemd knows the rest. Only where a share's source lay is remembered
for longer: in the state folder, whoever defines the share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vfsd import files
from vfsd.errors import InvalidArgs, NotSupported, VfsdError
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec, ShareSpec
from vfsd.names import Scope
from vfsd.options import Option
from vfsd.paths import Paths

_FORMAT = 1
_SUFFIX = ".json"
_MEMORY = ".memory"
_ORIGIN = ".origin"
_ROOT = "/"
_MEMORY_LIMITS = {
    "restarts": 1 << 32,
    "since_usec": 1 << 64,
    "downtime_usec": 1 << 64,
    "cid": 1 << 32,
    "notify_port": 1 << 32,
}
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a file with anything in it can lead to."""


class Kind(StrEnum):
    """What a definition defines."""

    SHARE = "share"
    MACHINE = "machine"


class NotWritten(VfsdError):
    """The disk is full, or may not be written to; everything is as it was."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A share or a machine, and who made it."""

    spec: ShareSpec | MachineSpec
    owner: int

    @property
    def kind(self) -> Kind:
        return Kind.SHARE if isinstance(self.spec, ShareSpec) else Kind.MACHINE


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of an object until the next reboot."""

    stopped: bool = False
    """A share that was stopped on request, and is not to listen again by itself."""
    removing: bool = False
    limits_wait: str = ""
    """Limits of a share that changed and that its service is to be told when it runs: names, with blanks between."""
    virtiofsd: str = ""
    """Which one a share's next client gets, as long as the share listens."""
    failure: str = ""
    restarts: int = 0
    state: str = ""
    """A machine's last state, to which since_usec belongs."""
    since_usec: int = 0
    accelerator: str = ""
    invocation: str = ""
    """That of a machine's unit while it runs, as the journal has it."""
    end: str = ""
    """Why a machine that runs will have ended: vfsd is about to end it."""
    console: bool = False
    restart: bool = False
    """Whether a machine was shut down to be started again."""
    healing: str = ""
    """Shares that are being healed: names, with blanks between."""
    layout: str = ""
    """Where the shares' devices stand in a running QEMU (vfsd.devices.Layout)."""
    saving: bool = False
    """Whether the guest stands still because vfsd writes it to disk."""
    suffix: str = ""
    """Which set of unit names a machine that runs has, or had."""
    downtime_usec: int = 0
    """Of a machine's last Refresh."""
    ssh: str = ""
    """HOST:PORT that leads to the guest's SSH server, or did when the machine ran last."""
    cid: int = 0
    """The guest's address in vsock, now or when the machine ran last; 0 if it had none."""
    notify_port: int = 0
    """Where the guest was told to say READY=1."""
    said_ready: bool = False
    said_ssh: bool = False
    """What it has said (vfsd.readiness.Readiness)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a share's source lay when it was served last."""

    place: str = _ROOT
    """Where its file system was mounted."""
    uuid: str = ""
    """That of the file system, if it lies on a block device."""
    device: str = ""
    """The kernel's name of that device then."""
    identity: str = ""
    """What tells the directory from every other as long as somebody has it open."""


BadFile = Callable[[Path, str], None]
"""Told of a file that can't be used, and why."""


class Store:
    """The definitions of one vfsd."""

    def __init__(self, paths: Paths, scope: Scope) -> None:
        self._paths = paths
        self._scope = scope

    def save(self, definition: Definition) -> None:
        """Write a definition; the old one stays until the new one is whole. :raise NotWritten."""
        spec = definition.spec
        document = {"format": _FORMAT, "owner": definition.owner, **_document(spec)}
        try:
            replace(self._file(definition.kind, spec.name, spec.persistent), document, sync=spec.persistent)
        except OSError as error:
            raise NotWritten(
                f'the definition of {definition.kind} "{spec.name}" can\'t be written: {error.strerror}; see to '
                f"vfsd's {'state' if spec.persistent else 'runtime'} folder"
            ) from None

    def has(self, spec: ShareSpec | MachineSpec) -> bool:
        """Whether the definition is where it belongs."""
        kind = Kind.SHARE if isinstance(spec, ShareSpec) else Kind.MACHINE
        return self._file(kind, spec.name, spec.persistent).exists()

    def check_removable(self, kind: Kind, name: str) -> None:
        """Look before anything is taken apart. :raise NotWritten: the definition could not be removed."""
        for persistent in (True, False):
            path = self._file(kind, name, persistent)
            if path.exists() and not os.access(path.parent, os.W_OK, effective_ids=True):
                why = os.strerror(errno.EROFS)
                raise NotWritten(
                    f"the definition of {kind} \"{name}\" can't be removed: {why}; see to vfsd's state folder"
                )

    def remove(self, kind: Kind, name: str) -> None:
        """Forget an object: its definition, wherever it is, and what is remembered of it."""
        for persistent in (True, False):
            _unlink(self._file(kind, name, persistent))
        self._memory_file(kind, name).unlink(missing_ok=True)
        if kind is Kind.SHARE:
            self.remember_origin(name, Origin())

    def load(self, bad: BadFile) -> Iterator[Definition]:
        """All definitions, shares first. What a vfsd that was killed while it wrote has left is taken away."""
        for folder in (self._paths.definitions, self._paths.runtime_definitions, self._paths.sources):
            for path in folder.glob(".*.new"):
                with contextlib.suppress(OSError):
                    path.unlink()
        for kind in Kind:
            for folder, persistent in (
                (self._paths.definitions, True),
                (self._paths.runtime_definitions, False),
            ):
                for path in sorted(folder.glob(f"{kind}-*{_SUFFIX}")):
                    name = path.name[len(kind) + 1 : -len(_SUFFIX)]
                    try:
                        document = _read(path)
                        yield Definition(
                            self._spec(kind, name, persistent, document), _uid(document.get("owner", 0))
                        )
                    except _DAMAGE as error:
                        bad(path, f"it is damaged ({type(error).__name__}: {error})")
                    except (InvalidArgs, NotSupported) as error:
                        bad(path, str(error))

    def remember(self, kind: Kind, name: str, memory: Memory) -> None:
        """Write what is to be remembered until the reboot."""
        path = self._memory_file(kind, name)
        if memory == Memory():
            path.unlink(missing_ok=True)
        else:
            replace(path, dataclasses.asdict(memory), sync=False)

    def forget_all_but(self, known: Mapping[Kind, Container[str]]) -> None:
        """Forget what is remembered of objects that do not exist."""
        for kind, names in known.items():
            for path in self._paths.runtime_definitions.glob(f"{kind}-*{_MEMORY}"):
                if path.name[len(kind) + 1 : -len(_MEMORY)] not in names:
                    with contextlib.suppress(OSError):
                        path.unlink()
        for path in self._paths.definitions.glob(f"{Kind.SHARE}-*{_ORIGIN}"):
            if path.name[len(Kind.SHARE) + 1 : -len(_ORIGIN)] not in known[Kind.SHARE]:
                with contextlib.suppress(OSError):
                    path.unlink()

    def recall(self, kind: Kind, name: str) -> Memory:
        """What is remembered; the defaults if nothing is, or it can't be read."""
        try:
            memory = Memory(**_read(self._memory_file(kind, name)))
        except _DAMAGE:
            return Memory()
        sound = all(
            type(value) is type(item.default)
            and (type(value) is not int or 0 <= value < _MEMORY_LIMITS[item.name])
            for item, value in zip(dataclasses.fields(Memory), dataclasses.astuple(memory), strict=True)
        )
        return memory if sound else Memory()

    def remember_origin(self, name: str, origin: Origin) -> None:
        """Write where a share's source lies; on the root file system there is nothing to remember. :raise OSError."""
        path = self._origin_file(name)
        if origin.place == _ROOT:
            _unlink(path)
        else:
            replace(path, dataclasses.asdict(origin), sync=True)

    def recall_origin(self, name: str) -> Origin:
        """Where it lay when it was served last; the default if that is not known."""
        try:
            origin = Origin(**json.loads(files.read_text(self._origin_file(name))))
        except _DAMAGE:
            return Origin()
        return origin if all(isinstance(item, str) for item in dataclasses.astuple(origin)) else Origin()

    def _origin_file(self, name: str) -> Path:
        return self._paths.definitions / f"{Kind.SHARE}-{name}{_ORIGIN}"

    def _file(self, kind: Kind, name: str, persistent: bool) -> Path:
        folder = self._paths.definitions if persistent else self._paths.runtime_definitions
        return folder / f"{kind}-{name}{_SUFFIX}"

    def _memory_file(self, kind: Kind, name: str) -> Path:
        return self._paths.runtime_definitions / f"{kind}-{name}{_MEMORY}"

    def _spec(
        self,
        kind: Kind,
        name: str,
        persistent: bool,
        document: Mapping[str, Any],
    ) -> ShareSpec | MachineSpec:
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']} is unknown")
        if kind is Kind.SHARE:
            return _share(name, document, self._scope, persistent=persistent)
        options = _typed(MACHINE_OPTIONS, document["options"])
        spec = MachineSpec.from_options(name, self._scope, options)
        shares = tuple(
            _share(share["name"], share, self._scope, persistent=False) for share in document["shares"]
        )
        attached = document["attached"]
        if not (isinstance(attached, list) and all(isinstance(share, str) for share in attached)):
            raise ValueError("attached is no list of names")
        return dataclasses.replace(spec, persistent=persistent, shares=shares, attached=tuple(attached))


def _share(name: str, document: Mapping[str, Any], scope: Scope, *, persistent: bool) -> ShareSpec:
    options = _typed(SHARE_OPTIONS, document["options"])
    if not isinstance(document["source"], str):
        raise ValueError("source is no text")
    spec = ShareSpec.from_options(name, document["source"], scope, options)
    return dataclasses.replace(spec, persistent=persistent)


def _typed(table: Mapping[str, Option], options: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    for key, value in options.items():
        if not table[key].fits(value):
            raise ValueError(f"{key} must be {table[key].wanted}")
    return {key: (table[key].signature, value) for key, value in options.items()}


def _uid(value: Any) -> int:
    if type(value) is int and 0 <= value < 1 << 32:
        return value
    raise ValueError("owner is no user id")


def _read(path: Path) -> Any:
    document = json.loads(files.read_text(path))
    json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair could never go over the bus
    return document


def _document(spec: ShareSpec | MachineSpec) -> dict[str, Any]:
    if isinstance(spec, ShareSpec):
        options = {name: option.to_dbus(spec) for name, option in SHARE_OPTIONS.items()}
        return {"source": spec.source, "options": options}
    return {
        "options": {name: option.to_dbus(spec) for name, option in MACHINE_OPTIONS.items()},
        "shares": [{"name": share.name, **_document(share)} for share in spec.shares],
        "attached": list(spec.attached),
    }


def _unlink(path: Path) -> None:
    if path.exists():  # a file system that is read-only refuses to remove what isn't there, too
        path.unlink(missing_ok=True)


def replace(path: Path, document: Mapping[str, Any], *, sync: bool) -> None:
    """Write a document; the old one stays until the new one is whole. :raise OSError: it can't be written."""
    files.replace(path, json.dumps(document), sync=sync)
