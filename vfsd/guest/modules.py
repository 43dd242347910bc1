"""The kernel modules that a guest of ours needs, with what they depend on, unpacked.

They are looked up as modprobe(8) does: in modules.builtin and modules.dep of the kernel's module tree. A tree
without modules.dep, as in a package that was unpacked and not installed, is walked, and the dependencies are
read from the modules themselves (the `.modinfo` section: NUL-separated `depends=a,b`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from vfsd.kernel_image import decompress

_DEPENDS = re.compile(rb"(?:^|\0)depends=([\w,-]*)\0")
_SUFFIX = re.compile(r"\.ko(\.(gz|xz|zst))?$")


class ModuleUnreadable(Exception):
    """A module can't be read or unpacked; the message names it."""


@dataclass(slots=True)
class ModuleTree:
    """The folder lib/modules/VERSION of one kernel; read lazily by name."""

    folder: Path
    builtin: set[str] = field(default_factory=set)
    files: dict[str, Path] = field(default_factory=dict)
    dependencies: dict[str, list[str]] | None = None
    """None: there is no modules.dep."""
    read_file: Callable[[Path], bytes] = Path.read_bytes
    """How its files are read: those of a tree that a guest can write to must not be trusted."""

    @classmethod
    def read(cls, folder: Path, read_file: Callable[[Path], bytes] = Path.read_bytes) -> ModuleTree:
        """Read the lists of a module tree.

        :raises OSError: the folder or its modules.builtin can't be read.
        """
        builtin = read_file(folder / "modules.builtin").decode().split()
        tree = cls(folder, builtin={module_name(path) for path in builtin}, read_file=read_file)
        try:
            lines = read_file(folder / "modules.dep").decode().splitlines()
        except FileNotFoundError:
            tree.files = {module_name(path.name): path for path in folder.glob("kernel/**/*.ko*")}
            return tree
        tree.dependencies = {}
        for line in lines:
            path, _, needed = line.partition(":")
            name = module_name(path)
            tree.files[name] = folder / path
            tree.dependencies[name] = [module_name(other) for other in needed.split()]
        return tree

    def has(self, name: str) -> bool:
        """Whether the kernel has this driver, built in or as a module."""
        return name in self.builtin or name in self.files

    def load_order(self, name: str) -> list[str]:
        """The modules to load for *name*, in order, itself at the end; empty if it is built in or missing.

        :raises ModuleUnreadable: a module has to be unpacked to learn what it needs, and can't be.
        """
        order: list[str] = []
        self._visit(name, order, set())
        return order

    def content(self, name: str) -> bytes:
        """A module as the kernel loads it.

        busybox's insmod passes a file on as it is, and not every kernel unpacks (CONFIG_MODULE_DECOMPRESS).

        :raises ModuleUnreadable: it can't be read, or there is nothing here to unpack it with.
        """
        file = self.files[name]
        try:
            content = decompress(self.read_file(file))
        except OSError as error:
            raise ModuleUnreadable(f"The kernel module {file} can't be read: {error.strerror}.") from error
        if not content.startswith(b"\x7fELF"):
            raise ModuleUnreadable(f"The kernel module {file} can't be unpacked.")
        return content

    def _visit(self, name: str, order: list[str], seen: set[str]) -> None:
        if name in seen or name in self.builtin or name not in self.files:
            return
        seen.add(name)
        for other in self._needs(name):
            self._visit(other, order, seen)
        order.append(name)

    def _needs(self, name: str) -> list[str]:
        if self.dependencies is not None:
            # modules.dep names the whole chain, the deepest last
            return self.dependencies[name][::-1]
        found = _DEPENDS.search(self.content(name))
        names = found[1].decode("ascii") if found else ""
        return [module_name(other) for other in names.split(",") if other]


def module_name(path: str) -> str:
    """The name that the kernel gives a module file: without folder and suffix, with `_` for `-`."""
    return _SUFFIX.sub("", PurePath(path).name).replace("-", "_")
