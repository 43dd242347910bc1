"""Tests against the real thing: systemd, dbus-daemon, virtiofsd, QEMU and a guest, in the lab."""
