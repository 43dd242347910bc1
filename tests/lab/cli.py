"""The verbs of `python3 -m tests.lab`."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.lab import LabError, base, machine, registry

DEFAULT = "dev"


def parser() -> argparse.ArgumentParser:
    """Describe the verbs and their options."""
    top = argparse.ArgumentParser(
        prog="python3 -m tests.lab",
        description="A real systemd to test against. A command to run in a lab follows after --.",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *options: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        if "name" in options:
            sub.add_argument("--name", default=DEFAULT, help=f"which lab (default: {DEFAULT})")
        if "user" in options:
            sub.add_argument("--user", action="store_true", help="as the user tester, not as root")
        if "desktop" in options:
            sub.add_argument("--desktop", action="store_true", help="with GNOME Shell and Plasma")
        if "no-install" in options:
            sub.add_argument("--no-install", action="store_true", help="leave vfsd out")
        return sub

    verb("build", "build the base tree, or check the one in the cache", "desktop")
    verb("up", "boot a lab, install vfsd in it and leave it up", "name", "desktop", "no-install")
    verb("exec", "run a command in a lab that is up", "name", "user")
    verb("install", "install vfsd as it is now in a lab that is up, with make install", "name")
    verb("down", "end a lab that is up", "name")
    verb("list", "show the labs that are up")
    shell = verb(
        "shell", "a shell in a throw-away lab, or in one that is up", "user", "desktop", "no-install"
    )
    shell.add_argument("--name", help="a lab that is up")
    run = verb("run", "run a command in a throw-away lab", "user", "desktop", "no-install")
    run.add_argument(
        "--fetch",
        action="append",
        default=[],
        metavar="LAB_FILE:HOST_FILE",
        help="copy a file, or a folder's files, out of the lab afterwards",
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options, command = parser().parse_args(given[:cut]), given[cut + 1 :]
    if (options.verb in {"exec", "run"}) != bool(command):
        parser().error("a command follows after --, for exec and run and for no other verb")
    if os.geteuid() != 0:
        _become_root(given)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on_signal)
    try:
        return _VERBS[options.verb](options, command)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _exit_on_signal(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _become_root(arguments: list[str]) -> NoReturn:
    """Start again through sudo, keeping the user's cache and what else matters of the environment."""
    cache = base.cache()
    cache.mkdir(parents=True, exist_ok=True)  # The user's own, so that others can use it too.
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in machine.PASSED
        or name == "VFSD_LAB_MIRROR"
        or name.startswith(("VFSD_TEST_", "PIP_"))
        or name.endswith("_proxy")
    }
    kept["VFSD_LAB_CACHE"] = str(cache)
    line = [
        *("sudo", "--", "env", *(f"{name}={value}" for name, value in kept.items())),
        *("setpriv", "--pdeathsig", "TERM"),
        *(sys.executable, "-B", "-m", "tests.lab", *arguments),
    ]
    try:
        os.execvp(line[0], line)  # noqa: S606 - no shell is wanted
    except FileNotFoundError:
        print("lab: the lab needs root: run it as root or install sudo.", file=sys.stderr)
        sys.exit(125)


def _build(options: argparse.Namespace, _command: list[str]) -> int:
    print(base.ensure(desktop=options.desktop))
    return 0


def _up(options: argparse.Namespace, _command: list[str]) -> int:
    lab = machine.Lab(options.name, keep=True, desktop=options.desktop)
    booted = lab.__enter__()
    print(f"The lab {options.name} is up. A shell in it: python3 -m tests.lab shell --name", end=" ")
    print(options.name)
    if not options.no_install:
        booted.install(machine.PROJECT)
    return 0


def _exec(options: argparse.Namespace, command: list[str]) -> int:
    line = machine.entering(registry.find(options.name).init, command, user=options.user)
    os.environ |= base.ENVIRONMENT
    os.execvp(line[0], line)  # noqa: S606 - no shell is wanted


def _install(options: argparse.Namespace, _command: list[str]) -> int:
    machine.Machine(registry.find(options.name)).install_files(machine.PROJECT)
    return 0


def _down(options: argparse.Namespace, _command: list[str]) -> int:
    machine.down(registry.find(options.name))
    return 0


def _list(_options: argparse.Namespace, _command: list[str]) -> int:
    for record in registry.running():
        print(f"{record.name}\t{record.init}\t{record.project}")
    return 0


def _shell(options: argparse.Namespace, _command: list[str]) -> int:
    # `script` makes the terminal inside the lab: the host's own has no name in there.
    command = ["script", "--quiet", "--return", "--command", "bash --login", "/dev/null"]
    if options.name:
        return _exec(options, command)
    return _throw_away(options, command, [])


def _run(options: argparse.Namespace, command: list[str]) -> int:
    fetches = []
    for pair in options.fetch:
        inside, colon, outside = pair.partition(":")
        if not (inside.startswith("/") and colon and outside):
            raise LabError(f"--fetch {pair}: give a file of the lab, a colon and a file of the host")
        fetches.append((inside, Path(outside)))
    return _throw_away(options, command, fetches)


def _throw_away(options: argparse.Namespace, command: list[str], fetches: list[tuple[str, Path]]) -> int:
    with machine.Lab(f"run-{os.getpid()}-{secrets.token_hex(3)}", desktop=options.desktop) as lab:
        if not options.no_install:
            lab.install(machine.PROJECT)
        line = machine.entering(lab.record.init, command, user=options.user)
        code = subprocess.run(line, env={**os.environ, **base.ENVIRONMENT}, check=False).returncode
        code = 128 - code if code < 0 else code
        for inside, outside in fetches:
            code = _fetch(lab, inside, outside) or code
    return code


def _fetch(lab: machine.Machine, inside: str, outside: Path) -> int:
    """Copy a file, or what is in a folder, out of the lab; it belongs to whoever called sudo."""
    source = lab.root / inside.lstrip("/")
    found = sorted(source.rglob("*")) if source.is_dir() else [source]
    copies = {path: outside / path.relative_to(source) for path in found if path.is_file()}
    if not copies:
        print(f"lab: {inside} could not be fetched: there is none", file=sys.stderr)
        return 1
    for path, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if uid := os.environ.get("SUDO_UID"):
            for mine in (copy.parent, copy):
                os.chown(mine, int(uid), int(os.environ.get("SUDO_GID", "-1")))
    return 0


_VERBS = {
    "build": _build,
    "up": _up,
    "exec": _exec,
    "install": _install,
    "down": _down,
    "list": _list,
    "shell": _shell,
    "run": _run,
}
