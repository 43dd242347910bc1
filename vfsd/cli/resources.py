"""What a machine or a share may use of the host, and what it uses, as systemd counts it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vfsd.cli.errors import CallFailed
from vfsd.cli.output import size
from vfsd.names import unit_object_path

if TYPE_CHECKING:
    from vfsd.cli.proxy import Client

_SYSTEMD = "org.freedesktop.systemd1"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_COUNTERS = ("MemoryCurrent", "CPUUsageNSec", "TasksCurrent")
_UNKNOWN = (1 << 64) - 1
"""What systemd says of a counter that the control group does not have."""
TIMEOUT = 5.0
"""Seconds that a person waits for systemd."""


async def used(client: Client, unit: str) -> dict[str, int]:
    """What systemd has counted of a unit, by its property; what it can't count is left out."""
    kind = {"slice": "Slice", "service": "Service"}[unit.rpartition(".")[2]]
    found: dict[str, int] = {}

    async def ask(counter: str) -> None:
        with suppress(CallFailed):
            (value,) = await client.call(
                unit_object_path(unit), _PROPERTIES, "Get", "ss", f"{_SYSTEMD}.{kind}", counter,
                destination=_SYSTEMD, within=TIMEOUT,
            )  # fmt: skip
            if value != _UNKNOWN:
                found[counter] = value

    await asyncio.gather(*(ask(counter) for counter in _COUNTERS))
    return found


def limits_text(item: Mapping[str, Any]) -> str:
    """The limits that a machine or a share has; "" if none."""
    words = []
    if item["MemoryMax"]:
        words.append(f"memory {size(item['MemoryMax'])}")
    if item["CPUQuotaPerSecUSec"]:
        words.append(f"{item['CPUQuotaPerSecUSec'] / 10_000:g}% of a processor")
    if item["IOWeight"]:
        words.append(f"IO weight {item['IOWeight']}")
    if item["TasksMax"]:
        words.append(f"{item['TasksMax']} tasks")
    return ", ".join(words)


def used_text(counted: Mapping[str, int]) -> str:
    """What is used, as used() found it; "" if nothing is counted."""
    words = []
    if "MemoryCurrent" in counted:
        words.append(f"memory {size(counted['MemoryCurrent'])}")
    if "CPUUsageNSec" in counted:
        words.append(f"{counted['CPUUsageNSec'] / 1e9:.1f} s of processor time")
    if "TasksCurrent" in counted:
        words.append(f"{counted['TasksCurrent']} tasks")
    return ", ".join(words)
