"""Every way of writing to a share that is read-only, once as it is mounted and once mounted again, writable."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from pathlib import Path

from tests.integration.hostile.attack import SHARES, outcome, tell

SHARE = SHARES / "ro"
MS_RDONLY, MS_REMOUNT = 1, 32  # linux/mount.h
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int) -> None:
    if LIBC.mount(source.encode(), bytes(target), kind.encode(), flags, None):
        raise OSError(ctypes.get_errno(), "mount")


def every_way() -> dict[str, str]:
    hello = SHARE / "hello"
    found = {
        f"open {name}": outcome(os.open, hello, flags)
        for name, flags in {
            "O_WRONLY": os.O_WRONLY,
            "O_RDWR": os.O_RDWR,
            "O_APPEND": os.O_WRONLY | os.O_APPEND,
            "O_TRUNC": os.O_WRONLY | os.O_TRUNC,
            "O_RDONLY|O_TRUNC": os.O_RDONLY | os.O_TRUNC,
            "O_CREAT": os.O_WRONLY | os.O_CREAT,
        }.items()
    }
    found |= {
        "create": outcome(os.open, SHARE / "new", os.O_CREAT | os.O_WRONLY),
        "tmpfile": outcome(os.open, SHARE, os.O_TMPFILE | os.O_RDWR),
        "truncate": outcome(os.truncate, hello, 0),
        "mkdir": outcome(os.mkdir, SHARE / "new"),
        "rmdir": outcome(os.rmdir, SHARE / "empty"),
        "unlink": outcome(os.unlink, hello),
        "rename": outcome(os.rename, hello, SHARE / "new"),
        "rename in": outcome(os.rename, SHARE / "tree/file", hello),
        "link": outcome(os.link, hello, SHARE / "new"),
        "symlink": outcome(os.symlink, "x", SHARE / "new"),
        "mknod": outcome(os.mknod, SHARE / "new", stat.S_IFREG | 0o600),
        "mkfifo": outcome(os.mkfifo, SHARE / "new"),
        "chmod": outcome(os.chmod, hello, 0o777),
        "chown": outcome(os.chown, hello, 1, 1),
        "utime": outcome(os.utime, hello, (1, 1)),
        "setxattr": outcome(os.setxattr, hello, "user.x", b"y"),
        "removexattr": outcome(os.removexattr, hello, "user.x"),
    }
    descriptor = os.open(hello, os.O_RDONLY)
    found |= {
        "fchmod": outcome(os.fchmod, descriptor, 0o777),
        "write": outcome(os.write, descriptor, b"x"),
        "ftruncate": outcome(os.ftruncate, descriptor, 0),
        "fallocate": outcome(os.posix_fallocate, descriptor, 0, 4096),
        "mmap": outcome(mmap.mmap, descriptor, 4, prot=mmap.PROT_WRITE),
        "reopen": outcome(os.open, f"/proc/self/fd/{descriptor}", os.O_RDWR),
    }
    return found


found = {"as mounted": every_way()}
found["remount"] = {"remount": outcome(mount, "ro", SHARE, "virtiofs", MS_REMOUNT)}
found["writable for the guest"] = every_way()
# in a new superblock too
again = Path("/tmp") if os.access("/tmp", os.W_OK) else Path("/media")
found["remount"]["again"] = outcome(mount, "ro", again, "virtiofs", 0)
LIBC.umount(bytes(again))
print_options = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
found["remount"]["options"] = next(line[5] for line in print_options if line[4].endswith("/mnt/ro"))
tell(found)
