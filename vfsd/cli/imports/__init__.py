"""Machines that other programs describe: libvirt's XML, QEMU's command line, scripts that hold one."""
