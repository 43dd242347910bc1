"""What another program's description says of a machine, and what of it vfsd has no word for."""

from __future__ import annotations

import base64
import binascii
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
MAPPED = "who owns a file, and how, is in the host's extended attributes, which virtio-fs does not read"
ONE_NETWORK = "vfsd gives a machine one network card"
OWN_ADDRESS = "vfsd gives each machine an address of its own"
ONE_DISK = "vfsd gives a machine one image that it writes to"
OWN_DISPLAY = "vfsd's display is at a socket of its own, which vfsctl view opens"
AGENT_PORTS = ("org.qemu.guest_agent.0", "com.redhat.spice.0")
"""Ports of the guest's agents: vfsd has the one, and the other belongs to the display."""
_UEFI = re.compile(r"ovmf|aavmf|edk2|uefi|efi", re.IGNORECASE)
_PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)
"""What begins the name of an image that is no file (qemu-block-drivers(7)): nbd:, https:, fat:, json:."""
_OWN_MACHINES = re.compile(r"(pc-)?q35.*|virt.*|none")
_CREDENTIAL = re.compile(r"io\.systemd\.credential(\.binary)?:([^=]+)=(.*)", re.DOTALL)
_FW_CFG_CREDENTIAL = "opt/io.systemd.credentials/"
_OWN_SOCKET = re.compile(r"/vfsd/share/([^/]+)\.sock")


@dataclass(frozen=True)
class Disk:
    """A disk, as another program's description has it."""

    path: str
    read_only: bool = False
    cdrom: bool = False
    format: str = ""
    """Empty if it is not told."""
    bus: str = "virtio"
    lost: tuple[str, ...] = ()
    """What is said of it besides, and vfsd has no word for."""


def attaches(socket: str) -> str:
    """How a machine gets the share of vfsd's that is at a socket; "" if none of them is."""
    match = _OWN_SOCKET.search(socket)
    return f'it is vfsd\'s share {match[1]}, which "vfsctl machine attach" gives a machine' if match else ""


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
        """Set an option that is a file, if one is named."""
        if path:
            self.set(name, absolute(path))

    def set_machine_type(self, kind: str) -> None:
        """Say that a guest finds another board, if it does."""
        if kind and not _OWN_MACHINES.fullmatch(kind):
            self.leave(f"machine type {kind}", "vfsd makes a q35, or a virt")

    def set_firmware(self, path: str) -> None:
        """Have UEFI if a file's name tells that this is what it is."""
        if _UEFI.search(path):
            self.set("Firmware", "uefi")
        self.leave(f"firmware {path}", "vfsd takes this host's")

    def set_disk(self, disk: Disk) -> None:
        """Have the first disk that is written to as the image."""
        path = disk.path
        if disk.cdrom:
            self.leave(f"CD {path}", "vfsd has none")
        elif disk.read_only:
            self.leave(f"read-only disk {path}", ONE_DISK)
        elif "Image" in self.options:
            self.leave(f"disk {path}", ONE_DISK)
        elif _PROTOCOL.match(path):
            self.leave(f"disk {path}", "vfsd's image is a file or a block device")
        elif disk.format not in ("", "raw", "qcow2"):
            self.leave(f"disk {path} of format {disk.format}", "convert it with qemu-img to qcow2 or raw")
        else:
            self.set_path("Image", path)
            if disk.bus != "virtio":
                self.leave(f"bus {disk.bus} of disk {path}", "the guest finds vfsd's on virtio")
            for item in disk.lost:
                self.leave(f"disk {path}: {item}")

    def set_network(self, network: str, what: str) -> bool:
        """Have the first network; whether this is it."""
        if "Network" in self.options:
            self.leave(what, ONE_NETWORK)
            return False
        self.set("Network", network)
        return True

    def set_card(self, model: str, address: str) -> None:
        """Say that a guest finds another network card, or another address of it, if it does."""
        if model and not model.startswith("virtio"):
            self.leave(f"network card {model}", "vfsd's is on virtio")
        if address:
            self.leave(f"address {address}", OWN_ADDRESS)

    def add_forward(self, forward: str, what: str) -> None:
        """Forward a port, if vfsd can."""
        try:
            Forward.parse(forward)
        except InvalidArgs:
            self.leave(what, "vfsd forwards one port of tcp or udp to one")
            return
        before = self.options["Forward"].value if "Forward" in self.options else []
        self.set("Forward", [*before, forward])

    def add_smbios(self, text: str) -> bool:
        """Have the credential for the guest's systemd that a string of SMBIOS may be; whether it is one."""
        match = _CREDENTIAL.fullmatch(text)
        if match is None:
            return False
        content = match[3]
        if match[1]:
            try:
                content = base64.b64decode(content).decode()
            except (binascii.Error, UnicodeDecodeError):
                return False
        self._add("Credentials", match[2], content)
        return True

    def add_fw_cfg(self, name: str, *, file: str | None, content: str | None) -> bool:
        """The same of a firmware configuration item, which is a file or a text."""
        credential = name.removeprefix(_FW_CFG_CREDENTIAL)
        if credential == name:
            return False
        if file:
            self._add("CredentialFiles", credential, absolute(file))
        elif content is not None:
            self._add("Credentials", credential, content)
        else:
            return False
        return True

    def _add(self, option: str, name: str, value: str) -> None:
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
