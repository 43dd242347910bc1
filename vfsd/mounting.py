"""How a guest is told to mount a share."""

from __future__ import annotations

from vfsd.model import ShareSpec

_FOR_SYSTEMD = ("nofail", "noauto", "auto", "_netdev", "defaults")
"""Words of fstab(5) that a service manager reads; mount(8) leaves them out or refuses them."""


def guest_options(spec: ShareSpec) -> str:
    """The options with which mount(8), or busybox, mounts it."""
    words = [word for word in spec.mount_options.split(",") if word]
    kept = [word for word in words if word not in _FOR_SYSTEMD and not word.startswith(("x-", "comment="))]
    return ",".join(["ro" if spec.read_only else "rw", *(word for word in kept if word not in ("ro", "rw"))])
