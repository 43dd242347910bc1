"""The prerequisite checks: on the real host, and on hosts made up in a folder."""

from __future__ import annotations

import datetime
import json
import logging
import os
import resource
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from vfsd import prerequisites
from vfsd.binaries import QemuBinary, VirtiofsdBinary, host_architecture
from vfsd.discovery import BinaryNotFound
from vfsd.prerequisites import (
    CHECK_IDS,
    Environment,
    Result,
    Status,
    programs,
    run_checks,
    to_json,
    to_markdown,
)
from vfsd.prerequisites import host as host_checks
from vfsd.prerequisites.distribution import install
from vfsd.prerequisites.model import Context, Finding, Scope

IDS = (
    *("qemu", "qemu-vhost-user-fs", "virtiofsd", "virtiofsd-fd", "kernel", "guest-kernel", "kvm", "memfd"),
    *("user-namespaces", "subuid", "file-descriptors", "systemd", "polkit", "vsock", "nix"),
)
DEBIAN = 'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="13"\n'


def make_host(
    root: Path, files: Mapping[str, str] | None = None, tools: Mapping[str, str] | None = None
) -> Environment:
    """A host of the given files and shell scripts, with a user named tester."""
    for name, text in {"etc/os-release": DEBIAN, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    tool_folder = root / "bin"
    tool_folder.mkdir(exist_ok=True)
    for name, text in (tools or {}).items():
        (tool_folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (tool_folder / name).chmod(0o755)
    environ = {"PATH": str(tool_folder), "XDG_RUNTIME_DIR": "/run/user/1000"}
    return Environment(root, environ, uid=1000, user="tester")


def make_context(
    host: Environment,
    scope: Scope = "user",
    *,
    qemu: QemuBinary | None = None,
    virtiofsd: VirtiofsdBinary | None = None,
    kernel: Path | None = None,
) -> Context:
    qemu_future: Future[QemuBinary] = Future()
    virtiofsd_future: Future[VirtiofsdBinary] = Future()
    if qemu:
        qemu_future.set_result(qemu)
    else:
        qemu_future.set_exception(BinaryNotFound("qemu", "QEMU is not installed.", "Install it."))
    if virtiofsd:
        virtiofsd_future.set_result(virtiofsd)
    else:
        virtiofsd_future.set_exception(
            BinaryNotFound("virtiofsd", "virtiofsd is not installed.", "Install it.")
        )
    return Context(scope, kernel, host, qemu_future, virtiofsd_future)


def make_qemu(
    version: tuple[int, ...] = (10, 0), devices: tuple[str, ...] = ("vhost-user-fs-pci",)
) -> QemuBinary:
    text = "QEMU emulator version " + ".".join(map(str, version))
    objects = frozenset({"memory-backend-memfd"})
    return QemuBinary(
        Path("/q"), version, text, "x86_64", frozenset(devices), frozenset(), objects, frozenset({"kvm"})
    )


def make_virtiofsd(
    version: tuple[int, ...] = (1, 13, 2), options: tuple[str, ...] = ("fd",)
) -> VirtiofsdBinary:
    text = "virtiofsd " + ".".join(map(str, version))
    return VirtiofsdBinary(Path("/v"), version, text, True, frozenset(), frozenset(options))


@pytest.mark.parametrize("scope", ["user", "system"])
def test_real_host(scope: Scope) -> None:
    started = time.monotonic()
    results = run_checks(scope)
    assert time.monotonic() - started < 5
    assert tuple(result.id for result in results) == CHECK_IDS == IDS
    for result in results:
        assert result.found
        assert result.required
        assert "\n" not in result.found + result.remedy
        assert "check itself failed" not in result.found
        # Whoever is told of a problem is told what to do
        assert bool(result.remedy) or result.status in {Status.PASS, Status.SKIP}
    by_id = {result.id: result.status for result in results}
    assert by_id["memfd"] is Status.PASS
    assert by_id["guest-kernel"] is Status.SKIP
    if Path("/run/systemd/system").exists() and scope == "system":
        assert by_id["systemd"] is Status.PASS


def test_it_runs_in_several_threads_at_once() -> None:
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(run_checks, "system") for _ in range(3)]
    assert all(len(run.result()) == len(IDS) for run in runs)


def test_hanging_binaries_do_not_hold_up_the_run(tmp_path: Path) -> None:
    hang = "sleep 60 & wait"
    tools = (f"qemu-system-{host_architecture()}", "virtiofsd", "unshare", "systemctl", "nix")
    host = make_host(
        tmp_path,
        {"run/systemd/system/x": "", "run/user/1000/systemd/x": ""},
        {**dict.fromkeys(tools, hang), "sleep": "exec /bin/sleep 60"},
    )
    started = time.monotonic()
    results = {result.id: result for result in run_checks("user", environment=host)}
    assert time.monotonic() - started < 5
    assert results["systemd"].status is Status.WARN
    assert results["user-namespaces"].status is Status.WARN
    assert results["nix"].status is Status.WARN
    assert results["memfd"].status is Status.PASS


def test_a_check_that_exceeds_the_run_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def stuck(_: Context) -> Finding:
        release.wait(20)
        return Finding(Status.PASS, "late")

    check = prerequisites._Check("stuck", "an end", stuck)
    monkeypatch.setattr(prerequisites, "_CHECKS", (check,))
    started = time.monotonic()
    (result,) = run_checks("user", timeout=0.2)
    release.set()
    assert time.monotonic() - started < 2
    assert (result.status, result.found) == (Status.WARN, "the check did not end in time")


def test_a_bug_in_a_check_is_a_warning_without_its_details(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Context) -> Finding:
        raise KeyError("/secret/path")

    monkeypatch.setattr(prerequisites, "_CHECKS", (prerequisites._Check("broken", "r", broken),))
    with caplog.at_level(logging.ERROR):
        (result,) = run_checks("user")
    assert result.status is Status.WARN
    assert "KeyError" in result.found
    assert "secret" not in "".join((result.found, result.remedy))
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("qemu", "status", "device"),
    [
        (None, Status.FAIL, Status.SKIP),
        (make_qemu((4, 1, 9)), Status.FAIL, Status.PASS),
        (make_qemu((4, 2, 0)), Status.PASS, Status.PASS),
        (make_qemu(devices=()), Status.PASS, Status.FAIL),
    ],
)
def test_qemu(tmp_path: Path, qemu: QemuBinary | None, status: Status, device: Status) -> None:
    context = make_context(make_host(tmp_path), qemu=qemu)
    assert programs.check_qemu(context).status is status
    assert programs.check_qemu_device(context).status is device


@pytest.mark.parametrize(
    ("virtiofsd", "status", "descriptor"),
    [
        (None, Status.FAIL, Status.SKIP),
        (make_virtiofsd(), Status.PASS, Status.PASS),
        (make_virtiofsd((1, 9, 0)), Status.WARN, Status.PASS),
        (make_virtiofsd(options=()), Status.PASS, Status.FAIL),
    ],
)
def test_virtiofsd(
    tmp_path: Path, virtiofsd: VirtiofsdBinary | None, status: Status, descriptor: Status
) -> None:
    context = make_context(make_host(tmp_path), virtiofsd=virtiofsd)
    assert programs.check_virtiofsd(context).status is status
    assert programs.check_virtiofsd_fd(context).status is descriptor


def test_what_an_older_virtiofsd_lacks_is_named(tmp_path: Path) -> None:
    finding = programs.check_virtiofsd(make_context(make_host(tmp_path), virtiofsd=make_virtiofsd((1, 12))))
    assert "--translate-uid" in finding.found


@pytest.mark.parametrize(
    ("config", "status"),
    [
        ("CONFIG_MODULES=y\nCONFIG_VIRTIO_FS=y\n", Status.PASS),
        ("CONFIG_MODULES=y\nCONFIG_VIRTIO_FS=m\n", Status.PASS),
        ("CONFIG_MODULES=y\n# CONFIG_VIRTIO_FS is not set\n", Status.WARN),
        (None, Status.WARN),
    ],
)
def test_running_kernel(tmp_path: Path, config: str | None, status: Status) -> None:
    name = f"boot/config-{os.uname().release}"
    host = make_host(tmp_path, {name: config} if config else {})
    assert programs.check_running_kernel(make_context(host)).status is status


def guest_kernel(folder: Path, config: str | None, version: str = "6.12.1") -> Path:
    kernel = folder / "vmlinux"
    kernel.write_bytes(b"\x7fELF" + bytes(60) + f"Linux version {version} (x)".encode())
    if config is not None:
        (folder / f"config-{version}").write_text(f"CONFIG_MODULES=y\n{config}")
    return kernel


@pytest.mark.parametrize(
    ("config", "version", "status", "words"),
    [
        ("CONFIG_VIRTIO_FS=y\nCONFIG_VIRTIO_PCI=y\n", "6.12.1", Status.PASS, "CONFIG_VIRTIO_FS=y"),
        ("CONFIG_VIRTIO_FS=m\nCONFIG_VIRTIO_PCI=y\n", "6.12.1", Status.WARN, "modules were not found"),
        ("CONFIG_VIRTIO_FS=y\nCONFIG_VIRTIO_PCI=m\n", "6.12.1", Status.WARN, "modules were not found"),
        ("CONFIG_VIRTIO_FS=y\n", "6.12.1", Status.FAIL, "CONFIG_VIRTIO_PCI is not set"),
        ("CONFIG_VIRTIO_PCI=y\n", "6.12.1", Status.FAIL, "CONFIG_VIRTIO_FS is not set"),
        ("CONFIG_VIRTIO_PCI=y\n", "5.3.18", Status.FAIL, "older"),
        (None, "6.12.1", Status.WARN, "unknown"),
    ],
)
def test_guest_kernel(tmp_path: Path, config: str | None, version: str, status: Status, words: str) -> None:
    context = make_context(make_host(tmp_path), kernel=guest_kernel(tmp_path, config, version))
    finding = programs.check_guest_kernel(context)
    assert finding.status is status
    assert words in finding.found


def test_guest_kernel_with_its_modules_passes(tmp_path: Path) -> None:
    kernel = guest_kernel(tmp_path, "CONFIG_VIRTIO_FS=m\nCONFIG_VIRTIO_PCI=m\n")
    host = make_host(tmp_path, {"lib/modules/6.12.1/modules.builtin": ""})
    assert programs.check_guest_kernel(make_context(host, kernel=kernel)).status is Status.PASS


@pytest.mark.parametrize(("content", "words"), [(None, "can't be read"), ("text", "is no Linux kernel")])
def test_guest_kernel_that_is_none(tmp_path: Path, content: str | None, words: str) -> None:
    kernel = tmp_path / "kernel"
    if content:
        kernel.write_text(content)
    finding = programs.check_guest_kernel(make_context(make_host(tmp_path), kernel=kernel))
    assert (finding.status, words in finding.found) == (Status.FAIL, True)


def test_kvm_missing_is_no_blocker(tmp_path: Path) -> None:
    finding = programs.check_kvm(make_context(make_host(tmp_path), qemu=make_qemu()))
    assert finding.status is Status.WARN
    assert "there is no /dev/kvm" in finding.found


UNSHARE_REFUSED = "echo 'unshare: unshare failed: Operation not permitted' >&2; exit 1"


@pytest.mark.parametrize(
    ("files", "unshare", "status", "words"),
    [
        ({}, "exit 0", Status.PASS, ""),
        (
            {"proc/sys/kernel/unprivileged_userns_clone": "0\n"},
            UNSHARE_REFUSED,
            Status.FAIL,
            "userns_clone is 0",
        ),
        ({"proc/sys/user/max_user_namespaces": "0\n"}, UNSHARE_REFUSED, Status.FAIL, "namespaces is 0"),
        (
            {"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"},
            UNSHARE_REFUSED,
            Status.FAIL,
            "apparmor_restrict_unprivileged_userns is 1",
        ),
        # What works counts, whatever the setting says: a profile may allow it
        ({"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "exit 0", Status.PASS, ""),
        ({"proc/self/status": "Name:\tx\nSeccomp:\t2\n"}, UNSHARE_REFUSED, Status.WARN, "confined"),
        ({}, UNSHARE_REFUSED, Status.FAIL, "Operation not permitted"),
    ],
)
def test_user_namespaces(
    tmp_path: Path, files: Mapping[str, str], unshare: str, status: Status, words: str
) -> None:
    finding = host_checks.check_user_namespaces(
        make_context(make_host(tmp_path, files, {"unshare": unshare}))
    )
    assert finding.status is status
    assert words in finding.found


def test_user_namespaces_without_unshare(tmp_path: Path) -> None:
    finding = host_checks.check_user_namespaces(make_context(make_host(tmp_path)))
    assert (finding.status, finding.remedy) == (Status.WARN, 'Run "apt install util-linux".')


@pytest.mark.parametrize(
    ("subuid", "tools", "status"),
    [
        ("tester:100000:65536\n", True, Status.PASS),
        ("1000:100000:65536\n", True, Status.PASS),
        ("tester:100000:30000\ntester:200000:40000\n", True, Status.PASS),
        ("other:100000:65536\nbroken\ntester:x:y\n", True, Status.WARN),
        ("", True, Status.WARN),
        ("tester:100000:65536\n", False, Status.WARN),
    ],
)
def test_subordinate_ids(tmp_path: Path, subuid: str, tools: bool, status: Status) -> None:
    host = make_host(
        tmp_path,
        {"etc/subuid": subuid, "etc/subgid": subuid},
        dict.fromkeys(("newuidmap", "newgidmap"), "") if tools else {},
    )
    assert host_checks.check_subordinate_ids(make_context(host)).status is status


ALL_CAPABILITIES = "000001ffffffffff"


@pytest.mark.parametrize(
    ("limits", "manager", "status"),
    [
        ((524288, 1 << 20), ("user", "0"), Status.WARN),
        ((1 << 20, 1 << 20), ("user", "0"), Status.PASS),
        ((resource.RLIM_INFINITY, 1 << 20), ("user", "0"), Status.PASS),
        ((1000, 1 << 20), ("user", ALL_CAPABILITIES), Status.FAIL),
        # The system's manager can raise a service above its own limit, if it has CAP_SYS_RESOURCE
        ((1000, 1 << 20), ("system", ALL_CAPABILITIES), Status.PASS),
        ((1000, 1 << 20), ("system", "0"), Status.FAIL),
        ((1 << 20, 65536), ("system", ALL_CAPABILITIES), Status.WARN),
    ],
)
def test_file_descriptors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    manager: tuple[Scope, str],
    status: Status,
) -> None:
    hard, nr_open = limits
    scope, capabilities = manager
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, hard))
    host = make_host(
        tmp_path, {"proc/sys/fs/nr_open": f"{nr_open}\n", "proc/1/status": f"CapEff:\t{capabilities}\n"}
    )
    assert host_checks.check_file_descriptors(make_context(host, scope)).status is status


SYSTEMD_FILES = {"run/systemd/system/x": "", "run/user/1000/systemd/x": ""}


@pytest.mark.parametrize(
    ("files", "version", "status", "words"),
    [
        (SYSTEMD_FILES, "systemd 257 (257.9-1~deb13u1)", Status.PASS, "257"),
        (SYSTEMD_FILES, "systemd 252 (252.39-1)", Status.WARN, "OpenFile="),
        (SYSTEMD_FILES, "systemd 249 (249.11)", Status.FAIL, "249"),
        (SYSTEMD_FILES, "nonsense", Status.WARN, "does not tell"),
        ({"run/systemd/system/x": ""}, "systemd 257 (257)", Status.FAIL, "no systemd user manager"),
        ({}, "systemd 257 (257)", Status.FAIL, "not this system's service manager"),
    ],
)
def test_systemd(tmp_path: Path, files: Mapping[str, str], version: str, status: Status, words: str) -> None:
    host = make_host(tmp_path, files, {"systemctl": f"echo '{version}'; echo +PAM"})
    finding = host_checks.check_systemd(make_context(host))
    assert finding.status is status
    assert words in finding.found


def test_polkit(tmp_path: Path) -> None:
    host = make_host(tmp_path)
    assert host_checks.check_polkit(make_context(host)).status is Status.SKIP
    assert host_checks.check_polkit(make_context(host, "system")).remedy == 'Run "apt install polkitd".'
    service = "run/current-system/sw/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service"
    host = make_host(tmp_path, {service: ""})
    assert host_checks.check_polkit(make_context(host, "system")).status is Status.PASS


def test_vsock(tmp_path: Path) -> None:
    assert host_checks.check_vsock(make_context(make_host(tmp_path))).status is Status.WARN
    host = make_host(tmp_path, {"dev/vhost-vsock": ""})
    assert host_checks.check_vsock(make_context(host)).status is Status.PASS


@pytest.mark.parametrize(
    ("nix", "os_release", "status"),
    [
        (None, DEBIAN, Status.SKIP),
        (None, "ID=nixos\n", Status.WARN),
        ('case "$*" in *qemu*) printf 10.1.2;; *) printf 1.13.2;; esac', DEBIAN, Status.PASS),
        ('case "$*" in *qemu*) printf 10.1.2;; *) printf 1.8.0;; esac', DEBIAN, Status.WARN),
        ("echo offline >&2; exit 1", DEBIAN, Status.WARN),
    ],
)
def test_nix(tmp_path: Path, nix: str | None, os_release: str, status: Status) -> None:
    host = make_host(tmp_path, {"etc/os-release": os_release}, {"nix": nix} if nix else {})
    finding = programs.check_nix(make_context(host))
    assert finding.status is status
    if status is Status.PASS:
        assert finding.found == "nixpkgs#qemu.version = 10.1.2, nixpkgs#virtiofsd.version = 1.13.2"


@pytest.mark.parametrize(
    ("os_release", "what", "words"),
    [
        (DEBIAN, "virtiofsd", 'Run "apt install virtiofsd".'),
        ('NAME=Debian\nID=debian\nVERSION_ID="12"\n', "virtiofsd", "cargo install virtiofsd"),
        ("NAME=Ubuntu\nID=ubuntu\nID_LIKE=debian\nVERSION_ID=22.04\n", "virtiofsd", "it came with 23.10"),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=24.04\n", "virtiofsd", 'Run "apt install virtiofsd".'),
        ("ID=debian\n", "virtiofsd", 'Run "apt install virtiofsd".'),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "qemu", 'Run "dnf install qemu-kvm".'),
        ("ID=arch\n", "qemu", 'Run "pacman -S qemu-base".'),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "uidmap", 'Run "zypper install shadow".'),
        ("ID=nixos\n", "virtiofsd", "pkgs.virtiofsd"),
        ("ID=nixos\n", "polkit", "security.polkit.enable"),
        ("ID=gobo\n", "qemu", "package manager"),
        ("", "virtiofsd", "package manager"),
        ("ID='broken\n", "virtiofsd", "package manager"),
    ],
)
def test_remedies_know_the_distribution(tmp_path: Path, os_release: str, what: str, words: str) -> None:
    assert words in install(make_host(tmp_path, {"etc/os-release": os_release}), what)


RESULTS = [
    Result("qemu", Status.PASS, "QEMU 10.1.2", "QEMU 4.2.0 or later", ""),
    Result("virtiofsd", Status.FAIL, "it is *bold*\n# head", "Rust", 'Run "apt install virtiofsd".'),
    Result("kvm", Status.WARN, "no /dev/kvm_x", "KVM", "Load it."),
    Result("nix", Status.SKIP, "this host has no Nix", "Nix", ""),
]


def test_json_is_what_the_bus_says() -> None:
    parsed = json.loads(to_json(RESULTS))
    assert parsed[0] == {
        "id": "qemu",
        "status": "pass",
        "found": "QEMU 10.1.2",
        "required": "QEMU 4.2.0 or later",
        "remedy": "",
    }


def test_markdown() -> None:
    text = to_markdown(RESULTS, date=datetime.date(2026, 1, 26), subject="host *a*")
    lines = text.splitlines()
    assert lines[0] == "# virtio-fs Prerequisites Verification"
    assert "## Date: 2026-01-26" in lines
    assert "### 1. QEMU Version" in lines
    assert "**Status:** ✅ **PASS**" in lines
    assert "**Status:** ❌ **FAIL**" in lines
    assert "**Status:** ⚠️ **WARN**" in lines
    assert "**Status:** ⏭️ **SKIP**" in lines
    assert '**What to do:** Run "apt install virtiofsd".' in lines
    assert "**❌ 1 PREREQUISITE MISSING**" in lines
    assert "**Found:** it is \\*bold\\* \\# head" in lines
    assert "**Found:** no /dev/kvm_x" in lines
    assert "host \\*a\\*" in text


@pytest.mark.parametrize(
    ("kept", "verdict"),
    [
        ((Status.PASS, Status.SKIP), "**✅ ALL PREREQUISITES AVAILABLE**"),
        ((Status.PASS, Status.WARN), "**✅ ALL REQUIRED PREREQUISITES AVAILABLE**, with limitations"),
    ],
)
def test_markdown_conclusion(kept: tuple[Status, ...], verdict: str) -> None:
    lines = to_markdown([result for result in RESULTS if result.status in kept]).splitlines()
    assert verdict in lines
    assert "**No blockers identified.**" in lines
