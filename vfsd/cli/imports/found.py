"""What another program's description says of a machine, and what of it vfsd has no word for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from vfsd.cli.errors import CliError
from vfsd.cli.values import Options, Typed, absolute
from vfsd.errors import InvalidArgs, VfsdError
from vfsd.forward import Forward
from vfsd.model import MACHINE_OPTIONS, SHARE_OPTIONS, MachineSpec
from vfsd.names import Scope
from vfsd.options import Option

NINE_P = "it was a 9p share: let the guest mount the tag with type virtiofs"
ONE_NETWORK = "vfsd gives a machine one network card"
OWN_ADDRESS = "vfsd gives each machine an address of its own"
ONE_DISK = "vfsd gives a machine one image that it writes to"
_UEFI = re.compile(r"ovmf|aavmf|edk2|uefi|efi", re.IGNORECASE)


@dataclass
class FoundShare:
    """A directory that the guest sees."""

    source: str
    options: Options = field(default_factory=dict)

    def set(self, name: str, value: Any) -> None:
        """Set an option by its D-Bus name."""
        self.options[name] = _typed(SHARE_OPTIONS[name], value)


@dataclass
class Found:
    """A machine, as far as it could be taken over."""

    name: str = ""
    options: Options = field(default_factory=dict)
    shares: list[FoundShare] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What could not be taken over, and why."""

    def set(self, name: str, value: Any) -> None:
        """Set an option by its D-Bus name."""
        self.options[name] = _typed(MACHINE_OPTIONS[name], value)

    def leave(self, what: str, why: str = "") -> None:
        """Note what is not taken over."""
        self.left.append(f"{what} ({why})" if why else what)

    def set_path(self, name: str, path: str) -> None:
        """Set an option that is a file, or leave it out if a shell would have made the path."""
        if "$" in path:
            self.leave(f"{name} {path}", "a shell would put something in place of $")
        elif path:
            self.set(name, absolute(path))

    def set_firmware(self, path: str) -> None:
        """Have UEFI if a file's name tells that this is what it is."""
        if _UEFI.search(path):
            self.set("Firmware", "uefi")
        self.leave(f"firmware {path}", "vfsd takes this host's")

    def set_disk(self, path: str, *, read_only: bool, cdrom: bool = False) -> None:
        """Have the first disk that is written to as the image."""
        if cdrom:
            self.leave(f"CD {path}", "vfsd has none")
        elif read_only:
            self.leave(f"read-only disk {path}", ONE_DISK)
        elif "Image" in self.options:
            self.leave(f"disk {path}", ONE_DISK)
        else:
            self.set_path("Image", path)

    def set_network(self, network: str, what: str) -> None:
        """Have the first network."""
        if "Network" in self.options:
            self.leave(what, ONE_NETWORK)
        else:
            self.set("Network", network)

    def add_forward(self, forward: str, what: str) -> None:
        """Forward a port, if vfsd can."""
        try:
            Forward.parse(forward)
        except InvalidArgs:
            self.leave(what, "vfsd forwards one port of tcp or udp to one")
            return
        before = self.options["Forward"].value if "Forward" in self.options else []
        self.set("Forward", [*before, forward])

    def add_credential(self, name: str, value: str, *, file: bool = False) -> None:
        """Hand a credential to the guest's systemd."""
        option = "CredentialFiles" if file else "Credentials"
        before = self.options[option].value if option in self.options else {}
        self.set(option, {**before, name: value})

    def spec(self, name: str, scope: Scope) -> MachineSpec:
        """The machine that vfsd would make. :raise CliError: it can't be one."""
        shares = [(share.source, "", dict(share.options)) for share in self.shares]
        options: dict[str, tuple[str, Any]] = {**self.options, "Shares": ("a(ssa{sv})", shares)}
        try:
            return MachineSpec.from_options(name, scope, options)
        except VfsdError as error:
            raise CliError(f"no machine can be made of it: {error}", "correct that there.") from None


def _typed(option: Option, value: Any) -> Typed:
    """:raise CliError: the bus has no room for it."""
    if not option.fits(value):
        raise CliError(f"{option.dbus_name} can't be {value}", "correct that there.")
    return Typed(option.signature, value)
