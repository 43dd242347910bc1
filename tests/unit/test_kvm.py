"""The probe guest: it must come through wherever a processor works, and every failure must be told apart."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vfsd.binaries import QemuBinary, host_architecture
from vfsd.discovery import BinaryNotFound, find_qemu
from vfsd.kvm import kvm_device, kvm_works


@pytest.fixture
def qemu() -> QemuBinary:
    try:
        return find_qemu()
    except BinaryNotFound as error:
        pytest.skip(error.message)


def fake_qemu(folder: Path, text: str) -> QemuBinary:
    path = folder / "qemu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    nothing: frozenset[str] = frozenset()
    return QemuBinary(path, (10, 0), "fake", "x86_64", nothing, nothing, nothing, frozenset({"kvm"}))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # the folder itself is among them in both cases


@pytest.mark.skipif(host_architecture() not in {"x86_64", "aarch64"}, reason="no probe guest for it")
def test_the_guest_comes_through_on_a_sound_processor(qemu: QemuBinary) -> None:
    before = open_files()
    verdict = kvm_works(qemu, 20, accelerator="tcg", cpu="max")
    assert verdict.usable
    assert verdict.conclusive
    assert open_files() == before


def test_real_kvm_gives_a_verdict_in_time(qemu: QemuBinary) -> None:
    started = time.monotonic()
    verdict = kvm_works(qemu)
    assert time.monotonic() - started < 5
    assert verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize(
    ("text", "reason", "conclusive"),
    [
        (
            "echo 'KVM internal error. Suberror: 1' >&2; echo 'emulation failure' >&2; sleep 9",
            "emulation",
            True,
        ),
        ("echo 'KVM internal error. Suberror: 3' >&2; sleep 9", "KVM internal error", True),
        ("sleep 9", "did not answer within 0.5 s", False),
        (
            "echo 'qemu-system-x86_64: ../../target/i386/kvm/kvm.c:31: failed to set MSR 0x10a' >&2; exit 1",
            "QEMU ends at once with it: failed to set MSR 0x10a",
            True,
        ),
        ("exit 1", "no message", True),
        ("kill -SYS $$", "system call filter", False),
    ],
)
def test_failures_are_told_apart(tmp_path: Path, text: str, reason: str, conclusive: bool) -> None:
    fake = fake_qemu(tmp_path, text)
    started = time.monotonic()
    # Any accelerator but kvm leaves out the look at this host's device
    verdict = kvm_works(fake, 0.5, accelerator="fake")
    assert not verdict.usable
    assert reason in verdict.reason
    assert verdict.conclusive is conclusive
    assert time.monotonic() - started < 3


def test_success_ends_the_probe_at_once(tmp_path: Path) -> None:
    fake = fake_qemu(tmp_path, "printf B; sleep 9")
    started = time.monotonic()
    assert kvm_works(fake, 8, accelerator="fake").usable
    assert time.monotonic() - started < 3


def test_a_binary_that_vanished(tmp_path: Path) -> None:
    fake = replace(fake_qemu(tmp_path, ""), path=tmp_path / "gone")
    verdict = kvm_works(fake, accelerator="fake")
    assert not verdict.usable
    assert not verdict.conclusive


def test_qemu_without_kvm(tmp_path: Path) -> None:
    fake = replace(fake_qemu(tmp_path, ""), accelerators=frozenset({"tcg"}))
    assert kvm_works(fake).reason == "this QEMU was built without KVM"


def test_device_that_is_missing_or_something_else(tmp_path: Path) -> None:
    missing = kvm_device(tmp_path / "kvm")
    assert (missing.usable, missing.reason) == (False, "there is no /dev/kvm")
    other = kvm_device(Path("/dev/null"))
    assert not other.usable
    assert "makes no virtual machine" in other.reason
