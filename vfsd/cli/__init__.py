"""vfsctl: the command line client of vfsd.

Every start costs what is imported, so what one command needs is imported when that command runs: the group
loads a command's module when it is named (`lazy`), `dbus_next` comes in with `proxy` when a bus is called,
rich when a table is drawn on a terminal.
"""
