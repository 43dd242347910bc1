"""Limits of what a machine or a share may use of the host, as systemd's control groups have them.

They stand on a machine's slice, for QEMU and its virtiofsds together, and on a share's service. 0 is no limit.
See systemd.resource-control(5).
"""

from __future__ import annotations

from typing import Any, Protocol

from vfsd.options import require

Property = tuple[str, str, Any]
"""Name, D-Bus signature, value."""

LIMITS = ("MemoryMax", "CPUQuotaPerSecUSec", "IOWeight", "TasksMax")
"""The options' names, which are systemd's own. They can be changed while what they limit runs."""
GUEST_MEMORY_MIN = 16 << 20
"""Bytes. Less than 16 MiB boots no kernel that has virtio-fs."""
GUEST_MEMORY_UNIT = 8192
"""Bytes. QEMU rounds a machine's memory up to it (system/vl.c), and then finds less behind it."""
MEMORY_OVERHEAD = 128 << 20
"""Bytes that QEMU and its virtiofsds take besides the guest's memory. Measured with the built-in guest: 110 MiB on TCG,
which takes up to 1 GiB for what it has translated (accel/tcg/tcg-all.c), and 5 MiB for each virtiofsd."""
QEMU_TASKS = 80
"""Threads of QEMU besides one for each processor: it may start 64 for input and output (util/thread-pool.c), and of
the others there are some ten. Without one that it wants it aborts."""
SHARE_TASKS = 8
"""Processes and threads of a virtiofsd, which has two of the one and three of the other, besides its thread pool."""
SHARE_MEMORY_MIN = 16 << 20
"""Bytes. A virtiofsd takes about 5 MiB, and more with each file that it holds open."""
_NONE = (1 << 64) - 1
"""What systemd takes for no limit, and, as a weight, for its own default."""
_CPU_QUOTA_MIN = 1000
"""µs in a second. The kernel gives no less than 1 ms in a period, which is 1 s at most."""
_IO_WEIGHT_MAX = 10000


class Limited(Protocol):
    """What has limits."""

    @property
    def memory_max(self) -> int:
        """Bytes."""

    @property
    def cpu_quota_per_sec_usec(self) -> int:
        """µs of processor time in a second; 1000000 is one processor."""

    @property
    def io_weight(self) -> int:
        """1 to 10000; systemd's default is 100."""

    @property
    def tasks_max(self) -> int:
        """Processes and threads."""


def check_guest_memory(who: str, size: int) -> None:
    """:param size: bytes that a guest is to have.
    :raise InvalidArgs: QEMU starts with no such memory.
    """
    require(
        size >= GUEST_MEMORY_MIN and size % GUEST_MEMORY_UNIT == 0,
        f"{who} has {size} bytes of memory; give at least {GUEST_MEMORY_MIN}, and a multiple of {GUEST_MEMORY_UNIT}",
    )


def check(who: str, limits: Limited, *, memory_min: int, tasks_min: int) -> None:
    """:param memory_min, tasks_min: what is needed at least.
    :raise InvalidArgs: a limit is out of range, or what it limits could not live with it.
    """
    require(
        not limits.memory_max or limits.memory_max >= memory_min,
        f"{who} has MemoryMax {limits.memory_max} and needs {memory_min} bytes; give at least that, or 0 for no limit",
    )
    require(
        not limits.cpu_quota_per_sec_usec or limits.cpu_quota_per_sec_usec >= _CPU_QUOTA_MIN,
        f"{who} has CPUQuotaPerSecUSec {limits.cpu_quota_per_sec_usec}; give at least {_CPU_QUOTA_MIN}, or 0 for no "
        "limit",
    )
    require(
        limits.io_weight <= _IO_WEIGHT_MAX,
        f"{who} has IOWeight {limits.io_weight}; give 1 to {_IO_WEIGHT_MAX}, or 0 for the default",
    )
    require(
        not limits.tasks_max or limits.tasks_max >= tasks_min,
        f"{who} has TasksMax {limits.tasks_max} and needs {tasks_min}; give at least that, or 0 for no limit",
    )


def _values(limits: Limited) -> tuple[int, ...]:
    return (limits.memory_max, limits.cpu_quota_per_sec_usec, limits.io_weight, limits.tasks_max)


def properties(limits: Limited) -> list[Property]:
    """What a unit that is made is told."""
    return [(name, "t", value) for name, value in zip(LIMITS, _values(limits), strict=True) if value]


def changed(name: str, limits: Limited) -> Property:
    """What a unit that is there is told of one of them."""
    return (name, "t", dict(zip(LIMITS, _values(limits), strict=True))[name] or _NONE)
