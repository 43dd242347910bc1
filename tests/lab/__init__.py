"""A real systemd to test against: a Debian container which boots in seconds and leaves nothing behind.

vfsd is made of systemd units, two buses and two service managers, so a test that fakes those
shows little. The lab is a small Debian tree (`base`), booted by systemd-nspawn over a throw-away
overlay (`warden`, `keeper.sh`), entered with nsenter (`machine`) and driven by `python3 -m tests.lab`
(`cli`). It uses nothing beyond the standard library, since it has to run on a bare host.
"""


class LabError(Exception):
    """Something the user can act on: the message is shown as it is, without a traceback."""
