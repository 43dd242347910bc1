"""Which share's device stands in which PCI slot of a machine.

The root bus of a PCIe machine takes no device while it runs. So shares stand behind it: where ACPI does the
plugging (x86), in the slots of a conventional bridge, 31 of them for the price of one device; elsewhere each in a PCIe
root port of its own. Places are fixed by number: a QEMU that takes over from another one must have the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SLOTS_OF_BRIDGE = 31
"""Devices behind one bridge: PCI has 32 numbers, the first is left to the bridge's own hot-plug controller."""
_KICKED = {"event_idx": False}
"""The guest tells virtiofsd of each request, not only of the next one that virtiofsd asked to be told of. When a guest
is moved to another QEMU, such a notice can be lost (QEMU 10.0, virtiofsd 1.13; see HACKING.md, "How a guest is moved"),
and with event indices it is not given again."""
_FUNCTIONS = 8
"""Functions of one PCI device."""
_FIRST_PORT_SLOT = 0x10
"""Where root ports begin on the root bus; what QEMU places by itself comes before."""


def places(slots: int, *, bridged: bool) -> Iterator[str]:
    """The devices, in QEMU's words, that offer so many slots."""
    if bridged:
        for number in range(-(-slots // SLOTS_OF_BRIDGE)):
            yield f"pcie-pci-bridge,id=bridge{number},bus=pcie.0"
        return
    for slot in range(slots):
        device, function = divmod(slot, _FUNCTIONS)
        several = ",multifunction=on" if function == 0 else ""
        address = f"{_FIRST_PORT_SLOT + device:#x}.{function}"
        yield f"pcie-root-port,id=port{slot},chassis={slot + 1},bus=pcie.0,addr={address}{several}"


def place(slot: int, *, bridged: bool) -> dict[str, str]:
    """Bus and address of a slot, as properties of the device in it."""
    if not bridged:
        return {"bus": f"port{slot}"}
    bridge, number = divmod(slot, SLOTS_OF_BRIDGE)
    return {"bus": f"bridge{bridge}", "addr": f"{number + 1:#x}"}


def device_id(slot: int) -> str:
    """QEMU's id of the device in a slot."""
    return f"fs{slot}"


def properties(slot: int, tag: str, *, bridged: bool) -> dict[str, str | bool]:
    """What QEMU must be told of the device in a slot."""
    return {
        "id": device_id(slot),
        "chardev": chardev_id(slot),
        "tag": tag,
        **_KICKED,
        **place(slot, bridged=bridged),
    }


def chardev_id(slot: int) -> str:
    """QEMU's id of that device's connection to virtiofsd."""
    return f"share{slot}"


def slot_of(chardev: str) -> int | None:
    """The inverse of chardev_id(), None if it is that of something else."""
    number = chardev.removeprefix("share")
    return int(number) if number.isdecimal() and chardev == chardev_id(int(number)) else None


@dataclass(frozen=True, slots=True)
class Plug:
    """A share's device in a running QEMU."""

    share: str
    """"" if nobody knows."""
    slot: int
    tag: str
    """As the guest sees it: that of the share, but for a share that was healed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All shares' devices of one running QEMU; a value."""

    slots: int = 0
    plugs: tuple[Plug, ...] = ()

    @classmethod
    def cold(cls, shares: Iterable[tuple[str, str]], spare: int) -> Layout:
        """That of a machine which starts with such shares, names and tags, and so many free slots."""
        plugs = tuple(Plug(name, slot, tag) for slot, (name, tag) in enumerate(shares))
        return cls(len(plugs) + spare, plugs)

    @classmethod
    def read(cls, text: str) -> Layout:
        """From what write() made; an empty one if it is damaged."""
        try:
            slots, plugs = json.loads(text)
            found = tuple(Plug(str(share), int(slot), str(tag)) for share, slot, tag in plugs)
            return cls(int(slots), found)
        except (ValueError, TypeError):
            return cls()

    def write(self) -> str:
        """As text, to be remembered."""
        return json.dumps([self.slots, [[plug.share, plug.slot, plug.tag] for plug in self.plugs]])

    def of(self, share: str) -> Plug | None:
        """The device that serves a share: the last one that was plugged."""
        return next((plug for plug in reversed(self.plugs) if plug.share == share), None)

    def at(self, device: str) -> Plug | None:
        """The plug with QEMU's id of a device."""
        return next((plug for plug in self.plugs if device_id(plug.slot) == device), None)

    @property
    def free(self) -> int | None:
        """A slot that nothing stands in, None if there is none."""
        taken = {plug.slot for plug in self.plugs}
        return next((slot for slot in range(self.slots) if slot not in taken), None)

    def has_tag(self, tag: str) -> bool:
        """Whether the guest sees a device with that tag."""
        return any(plug.tag == tag for plug in self.plugs)

    def plugged(self, plug: Plug) -> Layout:
        """With one more."""
        return Layout(self.slots, (*self.plugs, plug))

    def unplugged(self, slot: int) -> Layout:
        """Without the one in that slot."""
        return Layout(self.slots, tuple(plug for plug in self.plugs if plug.slot != slot))
