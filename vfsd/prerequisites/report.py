"""The results as a document for people and as JSON for programs."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from vfsd.prerequisites.model import Result, Status

# An underscore inside a word is none
_MARKUP = re.compile(r"[\\`*<>\[\]#|]|(?<![^\W_])_|_(?![^\W_])")

_TITLES = {
    "qemu": "QEMU Version",
    "qemu-vhost-user-fs": "QEMU vhost-user-fs Device",
    "virtiofsd": "virtiofsd Daemon",
    "virtiofsd-fd": "virtiofsd Socket Activation",
    "kernel": "Kernel CONFIG_VIRTIO_FS Support",
    "guest-kernel": "Guest Kernel",
    "kvm": "KVM",
    "memfd": "Shared Memory",
    "user-namespaces": "User Namespaces",
    "subuid": "Subordinate Ids",
    "file-descriptors": "Open Files",
    "systemd": "systemd",
    "polkit": "polkit",
    "vsock": "vsock",
    "nix": "nixpkgs",
}
_MARKS = {Status.PASS: "✅", Status.WARN: "⚠️", Status.FAIL: "❌", Status.SKIP: "⏭️"}

_SUMMARY = """\
## Requirements Summary

virtio-fs requires:
1. **QEMU 4.2.0+** - the vhost-user-fs device
2. **virtiofsd** - the Rust daemon that serves a directory
3. **Guest kernel CONFIG_VIRTIO_FS** - Linux 5.4+ with the virtio-fs driver
4. **systemd 252+** - which runs the daemons and the machines
"""


def to_json(results: Iterable[Result]) -> str:
    """A JSON array of objects with the fields of `Result`, indented, with a final newline."""
    return json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False) + "\n"


def to_markdown(results: Sequence[Result], *, date: datetime.date | None = None, subject: str = "") -> str:
    """A report of the kind that began this project, with a final newline.

    :param date: today by default.
    :param subject: what was looked at, such as the host's name and scope; left out if empty.
    """
    date = date or datetime.datetime.now().astimezone().date()
    introduction = "This document verifies that this host has what virtio-fs needs"
    parts = [
        "# virtio-fs Prerequisites Verification\n",
        f"## Date: {date.isoformat()}\n",
        f"{introduction}{f': {_escape(subject)}' if subject else ''}.\n",
        _SUMMARY,
        "---\n",
        "## Verification Results\n",
        *(_section(number, result) for number, result in enumerate(results, 1)),
        "---\n",
        _conclusion(results),
    ]
    return "\n".join(parts)


def _section(number: int, result: Result) -> str:
    lines = [
        f"### {number}. {_TITLES.get(result.id, result.id)}",
        f"**Required:** {_escape(result.required)}",
        f"**Found:** {_escape(result.found)}",
        f"**Status:** {_MARKS[result.status]} **{result.status.upper()}**",
    ]
    if result.remedy:
        lines.append(f"**What to do:** {_escape(result.remedy)}")
    return "\n\n".join(lines) + "\n"


def _conclusion(results: Sequence[Result]) -> str:
    blockers = [result for result in results if result.status is Status.FAIL]
    warnings = [result for result in results if result.status is Status.WARN]
    if blockers:
        verdict = f"**❌ {len(blockers)} PREREQUISITE{'S' if len(blockers) > 1 else ''} MISSING**"
    elif warnings:
        verdict = "**✅ ALL REQUIRED PREREQUISITES AVAILABLE**, with limitations"
    else:
        verdict = "**✅ ALL PREREQUISITES AVAILABLE**"
    shown = [result for result in results if result.status is not Status.SKIP]
    facts = "\n".join(
        f"- {_MARKS[result.status]} {_TITLES.get(result.id, result.id)}: {_escape(result.found)}"
        for result in shown
    )
    last = "Resolve what is marked ❌ first." if blockers else "**No blockers identified.**"
    return f"## Conclusion\n\n{verdict}\n\n{facts}\n\n{last}\n"


def _escape(text: str) -> str:
    """Text from programs must not become markup, nor break a line."""
    flat = " ".join(text.split())
    return _MARKUP.sub(r"\\\g<0>", flat)
