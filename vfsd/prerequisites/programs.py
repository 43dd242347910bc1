"""The checks of the seed: QEMU, virtiofsd and the kernels; and KVM, on which QEMU should run."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

from vfsd.binaries import OPTION_SINCE, ProbeError, version_tuple
from vfsd.discovery import BinaryNotFound
from vfsd.kernel import KernelReport, Presence, config_of_running_kernel, inspect_kernel
from vfsd.kvm import KVM_DEVICE, kvm_device, kvm_works
from vfsd.prerequisites.distribution import family, install, release_of
from vfsd.prerequisites.model import Context, Finding, Status, failed, passed, skipped, warned

QEMU_MINIMUM = (4, 2, 0)
"""QEMU 4.2.0 brought vhost-user-fs-pci."""
VIRTIOFSD_MINIMUM = (1, 10)
"""The oldest virtiofsd that understands every argument which vfsd always gives."""
KERNEL_MINIMUM = (5, 4)
"""Linux 5.4 brought virtio-fs."""
# Together with the search for QEMU still well within the limit of the whole run
_KVM_TIMEOUT = 2.0
_NIX_TIMEOUT = 4.0


def check_qemu(context: Context) -> Finding:
    """The version, from the binary itself."""
    try:
        qemu = context.qemu()
    except BinaryNotFound as error:
        return failed(error.message, install(context.host, "qemu"))
    found = f"{qemu.version_text}, {qemu.path}"
    if qemu.version < QEMU_MINIMUM:
        return failed(found, f"Upgrade QEMU. {install(context.host, 'qemu')}")
    return passed(found)


def check_qemu_device(context: Context) -> Finding:
    """A new enough QEMU may still have been built without the device."""
    try:
        qemu = context.qemu()
    except BinaryNotFound:
        return skipped("no QEMU to ask")
    if not qemu.vhost_user_fs:
        return failed(
            f"{qemu.path} was built without the vhost-user-fs device",
            f"Use the distribution's full QEMU. {install(context.host, 'qemu')}",
        )
    if not qemu.memory_backend_memfd:
        return failed(
            f"{qemu.path} was built without memory-backend-memfd, which virtio-fs needs to share memory",
            f"Use the distribution's full QEMU. {install(context.host, 'qemu')}",
        )
    return passed("this QEMU has vhost-user-fs and memory-backend-memfd")


def check_virtiofsd(context: Context) -> Finding:
    """The Rust implementation, and which options an older one lacks."""
    try:
        virtiofsd = context.virtiofsd()
    except BinaryNotFound as error:
        return failed(error.message, install(context.host, "virtiofsd"))
    found = f"{virtiofsd.version_text} (Rust), {virtiofsd.path}"
    lacking = sorted(name for name in OPTION_SINCE if not virtiofsd.has(name))
    if virtiofsd.version < VIRTIOFSD_MINIMUM:
        options = ", ".join(f"--{name}" for name in lacking)
        return warned(f"{found}; it lacks {options}", f"Upgrade. {install(context.host, 'virtiofsd')}")
    if lacking:
        return passed(f"{found}; it lacks {', '.join(f'--{name}' for name in lacking)}")
    return passed(found)


def check_virtiofsd_fd(context: Context) -> Finding:
    """Socket activation hands virtiofsd its listening socket as a descriptor."""
    try:
        virtiofsd = context.virtiofsd()
    except BinaryNotFound:
        return skipped("no virtiofsd to ask")
    if virtiofsd.has("fd"):
        return passed("this virtiofsd has --fd")
    return failed("this virtiofsd has no --fd", f"Upgrade. {install(context.host, 'virtiofsd')}")


def check_running_kernel(context: Context) -> Finding:
    """Only guests mount virtio-fs, but a host's kernel is often the guests' as well."""
    report = config_of_running_kernel(context.host.root)
    found = _kernel_text(report)
    match report.virtio_fs:
        case Presence.BUILTIN | Presence.MODULE:
            return passed(found)
        case Presence.MISSING:
            return warned(
                found,
                "The host itself does not need it; give machines another kernel"
                " (Kernel=, or a disk with its own).",
            )
        case _:
            return warned(found, 'Check a guest\'s kernel with "vfsctl check --kernel FILE".')


def check_guest_kernel(context: Context) -> Finding:
    """The kernel file that a machine is to boot."""
    if context.kernel is None:
        return skipped("no kernel given (vfsctl check --kernel FILE)")
    try:
        report = inspect_kernel(context.kernel, context.host.root)
    except OSError as error:
        return failed(f"{context.kernel} can't be read ({error.strerror})", "Give a readable kernel file.")
    if not report.is_kernel:
        return failed(f"{context.kernel} is no Linux kernel", "Give a bzImage, Image or vmlinux.")
    return _judge_guest_kernel(report)


def _judge_guest_kernel(report: KernelReport) -> Finding:
    found = _kernel_text(report)
    version = version_tuple(report.version)
    if version and version < KERNEL_MINIMUM:
        return failed(f"{found}; it is older than virtio-fs", "Use Linux 5.4 or later.")
    for option, presence in (("VIRTIO_FS", report.virtio_fs), ("VIRTIO_PCI", report.virtio_pci)):
        if presence is Presence.MISSING:
            return failed(
                f"{found}; CONFIG_{option} is not set", f"Use a kernel with CONFIG_{option}=y or =m."
            )
    if report.virtio_fs is Presence.UNKNOWN:
        return warned(
            found,
            "Put its configuration beside it as config-VERSION, or keep its modules in lib/modules/VERSION.",
        )
    modules = Presence.MODULE in (report.virtio_fs, report.virtio_pci)
    if modules and report.modules_dir is None:
        return warned(
            f"{found}; the driver is a module, and its modules were not found",
            "Give an initrd that contains the virtiofs and virtio_pci modules,"
            " or install the kernel's modules in /lib/modules.",
        )
    return passed(found)


def _kernel_text(report: KernelReport) -> str:
    value = {Presence.MISSING: "is not set", Presence.UNKNOWN: "unknown"}.get(report.virtio_fs)
    fact = f"CONFIG_VIRTIO_FS={report.virtio_fs}" if value is None else f"CONFIG_VIRTIO_FS {value}"
    source = f" (from {report.source_used})" if report.source_used else ""
    return f"Linux {report.version or 'of unknown version'}: {fact}{source}"


def check_kvm(context: Context) -> Finding:
    """Whether a guest runs on KVM; without it machines run in TCG, some ten times slower."""
    device = context.host.root / KVM_DEVICE.relative_to("/")
    verdict = kvm_device(device)
    if not verdict.usable:
        return warned(
            f"{verdict.reason}; machines run without it, slowly", _kvm_remedy(context, verdict.reason)
        )
    try:
        verdict = kvm_works(context.qemu(), _KVM_TIMEOUT, device=device)
    except BinaryNotFound:
        return Finding(Status.SKIP, f"{verdict.reason}; without QEMU it can't be tried")
    if verdict.usable:
        return passed(verdict.reason)
    return warned(
        f"{verdict.reason}; machines run without KVM, slowly",
        "In a virtual machine: let its host enable nested virtualisation. Else look into the kernel's log.",
    )


def _kvm_remedy(context: Context, reason: str) -> str:
    if "permission" in reason:
        return f'Run "usermod -aG kvm {context.host.user}" as root, and log in again.'
    return (
        "Enable virtualisation (VT-x, AMD-V) in the firmware's setup and load kvm_intel or kvm_amd;"
        " in a virtual machine, let its host enable nested virtualisation."
    )


def check_nix(context: Context) -> Finding:
    """What nixpkgs would give, where Nix is used: the commands of the document that started vfsd."""
    nixos = family(release_of(context.host)) == "nixos"
    if not nixos and not shutil.which("nix", path=context.host.environ.get("PATH")):
        return skipped("this host has no Nix")
    packages = ("qemu", "virtiofsd")
    with ThreadPoolExecutor(len(packages)) as pool:
        versions = dict(
            zip(packages, pool.map(lambda name: _nix_version(context, name), packages), strict=True)
        )
    found = ", ".join(f"nixpkgs#{name}.version = {text}" for name, text in versions.items())
    if "" in versions.values():
        return warned(
            "nix eval gave no answer in time",
            'Run "nix eval --raw nixpkgs#virtiofsd.version" once by hand: the first run downloads nixpkgs.',
        )
    if (
        version_tuple(versions["qemu"]) < QEMU_MINIMUM
        or version_tuple(versions["virtiofsd"]) < VIRTIOFSD_MINIMUM
    ):
        return warned(found, "Update the nixpkgs channel or flake registry.")
    return passed(found)


def _nix_version(context: Context, package: str) -> str:
    command = ["nix", "--extra-experimental-features", "nix-command flakes", "eval", "--raw"]
    try:
        answer = context.host.run(*command, f"nixpkgs#{package}.version", timeout=_NIX_TIMEOUT)
    except ProbeError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
