"""vfsd: virtio-fs shares and their QEMU machines as transient systemd units, over D-Bus."""

__version__ = "0.1.0"
