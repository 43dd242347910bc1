"""Does this host have what virtio-fs needs: the seed's checks, and those that real users trip over.

`run_checks` asks the real thing wherever it can: it runs the binaries, maps the memory, makes the namespace,
boots a guest of 180 bytes on KVM. All of that happens at the same time and each within a limit, so that a
program that hangs costs seconds, not the answer. It installs no signal handler, holds no lock of the
caller's, and may run in any thread, several times at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vfsd.discovery import find_qemu, find_virtiofsd
from vfsd.prerequisites import host, programs
from vfsd.prerequisites.model import Context, Environment, Finding, Result, Scope, Status
from vfsd.prerequisites.report import to_json, to_markdown

__all__ = ["CHECK_IDS", "Environment", "Result", "Scope", "Status", "run_checks", "to_json", "to_markdown"]

RUN_TIMEOUT = 4.5
"""Seconds after which a check that has not ended is reported as such; a D-Bus client waits 25."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Check:
    id: str
    required: str
    probe: Callable[[Context], Finding]


_CHECKS = (
    _Check("qemu", "QEMU 4.2.0 or later", programs.check_qemu),
    _Check("qemu-vhost-user-fs", "QEMU built with vhost-user-fs", programs.check_qemu_device),
    _Check("virtiofsd", "the Rust virtiofsd, 1.10 or later", programs.check_virtiofsd),
    _Check("virtiofsd-fd", "virtiofsd with --fd, for socket activation", programs.check_virtiofsd_fd),
    _Check("kernel", "Linux 5.4 or later with CONFIG_VIRTIO_FS, in guests", programs.check_running_kernel),
    _Check("guest-kernel", "Linux 5.4 or later with CONFIG_VIRTIO_FS", programs.check_guest_kernel),
    _Check("kvm", "a /dev/kvm that runs guests, for speed", programs.check_kvm),
    _Check("memfd", "memory that QEMU and virtiofsd can share", host.check_memfd),
    _Check("user-namespaces", "unprivileged user namespaces", host.check_user_namespaces),
    _Check("subuid", "65536 subordinate ids, for UIDMap and GIDMap", host.check_subordinate_ids),
    _Check("file-descriptors", "1,000,000 open files, 1,024 at least", host.check_file_descriptors),
    _Check("systemd", "systemd 252 or later as service manager, 253 for OpenFile=", host.check_systemd),
    _Check("polkit", "polkit, for users other than root", host.check_polkit),
    _Check("vsock", "/dev/vhost-vsock, for a guest's readiness", host.check_vsock),
    _Check("nix", "QEMU and virtiofsd in nixpkgs, where Nix is used", programs.check_nix),
)

CHECK_IDS = tuple(check.id for check in _CHECKS)
"""The ids of all results, in their order."""


def run_checks(
    scope: Scope,
    kernel: Path | None = None,
    environment: Environment | None = None,
    *,
    timeout: float = RUN_TIMEOUT,
) -> list[Result]:
    """Check everything; always one result for each of `CHECK_IDS`, in that order. Never raises.

    :param scope: whose vfsd: some checks matter for one only.
    :param kernel: a kernel file for a guest, which the check `guest-kernel` looks into.
    :param environment: the host to look at; this process's own by default.
    :param timeout: seconds for the whole run.
    """
    environment = environment or Environment()
    deadline = time.monotonic() + timeout
    # One thread each: none may wait behind one that hangs
    pool = ThreadPoolExecutor(len(_CHECKS) + 2, thread_name_prefix="vfsd-check")
    try:
        search = environment.search(scope)
        context = Context(
            scope=scope,
            kernel=kernel,
            host=environment,
            qemu_search=pool.submit(find_qemu, search, timeout=1.5),
            virtiofsd_search=pool.submit(find_virtiofsd, search, timeout=1.5),
        )
        probes = [pool.submit(check.probe, context) for check in _CHECKS]
        collect = partial(_result, deadline=deadline)
        return [collect(check, probe) for check, probe in zip(_CHECKS, probes, strict=True)]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _result(check: _Check, probe: Future[Finding], deadline: float) -> Result:
    try:
        finding = probe.result(max(deadline - time.monotonic(), 0))
    except TimeoutError:
        finding = Finding(
            Status.WARN, "the check did not end in time", "Try again; a program that it asks may hang."
        )
    except Exception as error:
        _logger.exception("The check %s failed", check.id)
        finding = Finding(
            Status.WARN,
            f"the check itself failed ({type(error).__name__})",
            "This is a bug in vfsd; the journal has the details.",
        )
    return Result(check.id, finding.status, finding.found, check.required, finding.remedy)
