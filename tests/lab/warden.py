"""The warden of one lab: starts it, waits, and clears away all of it. A process of its own.

`run` holds the other end of the warden's standard input. When that closes, for whatever reason, the
lab ends; a killed `run` is therefore noticed at once. When the warden itself is killed, the kernel
takes the lab down (see `base.CONFINED`), and the next lab sweeps up the empty control groups.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import LabError, base, cgroup, registry, seal

BOOT_PATIENCE = 30.0


def command(name: str, tree_folder: Path, project: Path, *, leash: bool, systemd: bool) -> list[str]:
    """Return the command line of a warden."""
    # Under systemd, nspawn's --keep-unit needs a unit that is ours alone: run from a terminal it
    # would otherwise take over the session's scope, and delegated, since the lab makes groups in it.
    scope = (
        *("systemd-run", "--scope", "--quiet", "--collect", f"--unit=vfsd-lab-{name}.scope"),
        *("--property=Delegate=yes", "--"),
    )
    return [
        *(scope if systemd else ()),
        *(sys.executable, "-B", "-m", "tests.lab.warden", name, str(tree_folder), str(project)),
        *(("--leash",) if leash else ()),
    ]


def main() -> int:
    """Keep one lab until it is told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("base", type=Path)
    parser.add_argument("project", type=Path)
    parser.add_argument("--leash", action="store_true", help="end the lab at the end of stdin")
    args = parser.parse_args()
    wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        held = registry.claim(args.name), base.hold(args.base)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    keeper: subprocess.Popen[bytes] | None = None
    try:
        keeper = _start(args.name, args.base, args.project)
        ends = [os.pidfd_open(keeper.pid), wake, *([0] if args.leash else [])]
        init = _wait_for_init(keeper.pid, ends)
        if not init:
            return 1
        registry.publish(registry.Record(args.name, os.getpid(), init, str(args.project), str(args.base)))
        # Whoever started us waits for the end of our standard output, then reads the record.
        os.close(1)
        while not select.select(ends, [], [])[0]:
            pass
        return 0
    finally:
        if keeper:
            _stop(keeper)
        registry.release(args.name)
        for fd in held:
            os.close(fd)


def _start(name: str, base_folder: Path, project: Path) -> subprocess.Popen[bytes]:
    folder = registry.folder(name)
    groups: list[Path] = []
    if not Path("/run/systemd/system").is_dir():
        groups = cgroup.create(f"vfsd-lab-{name}")
        (folder / "cgroups").write_text("".join(f"{group}\n" for group in groups))
    enter = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1"; shift; n=$((n-1)); done; exec "$@"'
    with (folder / "console.log").open("wb") as log:
        return subprocess.Popen(
            [
                *("/bin/sh", "-c", enter, "sh", str(len(groups))),
                *(str(group / "cgroup.procs") for group in groups),
                *base.CONFINED,
                *("/bin/sh", str(Path(__file__).with_name("keeper.sh"))),
                *(str(folder), str(base_folder / seal.TREE), str(project), f"vfsd-lab-{name}"),
            ],
            env=base.ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def children(pid: int) -> list[int]:
    """Return the children of a process, none if it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _find_init(keeper: int) -> int:
    """Return the PID of the lab's systemd: unshare → keeper.sh → nspawn → systemd."""
    for shell in children(keeper):
        for nspawn in children(shell):
            for candidate in children(nspawn):
                try:
                    # Before its exec it is still in the middle of setting up the lab's mounts.
                    if Path(f"/proc/{candidate}/comm").read_text() == "systemd\n":
                        return candidate
                except (FileNotFoundError, ProcessLookupError):
                    continue
    return 0


def _wait_for_init(keeper: int, ends: list[int]) -> int:
    deadline = time.monotonic() + BOOT_PATIENCE
    while time.monotonic() < deadline:
        if init := _find_init(keeper):
            return init
        if select.select(ends, [], [], 0.02)[0]:
            return 0
    return 0


def _stop(keeper: subprocess.Popen[bytes]) -> None:
    """End the lab at once: an orderly shutdown takes half a minute and nobody needs its result."""
    inner = children(keeper.pid)
    for pid in inner or [keeper.pid]:
        os.kill(pid, signal.SIGKILL)
    # unshare ends after its child, and a pid namespace's first process ends after all others.
    keeper.wait()


if __name__ == "__main__":
    sys.exit(main())
