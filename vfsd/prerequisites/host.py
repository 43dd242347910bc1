"""The checks of the host itself: what virtiofsd, systemd and the sandbox ask of the kernel and the system."""

from __future__ import annotations

import mmap
import os
import resource
import shutil

from vfsd.binaries import ProbeError
from vfsd.prerequisites.distribution import install
from vfsd.prerequisites.model import Context, Environment, Finding, Scope, failed, passed, skipped, warned

SYSTEMD_MINIMUM = 252
SYSTEMD_OPEN_FILE = 253
"""The first systemd with OpenFile= (systemd.service(5)), by which QEMU gets a share's socket connected."""

FILES_WANTED = 1_000_000
"""What virtiofsd sets for itself, if it may (src/limits.rs)."""
FILES_NEEDED = 1024
"""virtiofsd ends below 609 + its threads; under this nothing useful is left for the guest."""

_SUBORDINATE_IDS = 65536
_CAP_SYS_RESOURCE = 24


def check_memfd(context: Context) -> Finding:  # noqa: ARG001  # every probe is called alike
    """Guest memory is a memfd that QEMU and virtiofsd both map: write through one mapping, read the other."""
    remedy = "Use Linux 3.17 or later with CONFIG_MEMFD_CREATE, and let no system call filter forbid it."
    try:
        fd = os.memfd_create("vfsd-check", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            with mmap.mmap(fd, mmap.PAGESIZE) as ours, mmap.mmap(fd, mmap.PAGESIZE) as theirs:
                ours[:4] = b"vfsd"
                shared = theirs[:4] == b"vfsd"
        finally:
            os.close(fd)
    except OSError as error:
        return failed(f"memfd_create does not work ({error.strerror})", remedy)
    return passed("memfd_create works, and its memory is shared") if shared else failed("not shared", remedy)


def check_user_namespaces(context: Context) -> Finding:
    """An unprivileged virtiofsd, and a user manager's sandboxing, live in user namespaces."""
    if context.scope == "system":
        return skipped("the system's virtiofsd needs none")
    blocked, remedy = _namespace_settings(context.host)
    try:
        # Two more than -U: a namespace without the right to map ids or to mount is of no use to virtiofsd
        tried = context.host.run("unshare", "--user", "--map-root-user", "--mount", "true")
        error = tried.stderr.strip().removeprefix("unshare: ") if tried.returncode else ""
    except ProbeError as failure:
        if blocked:
            return failed(blocked, remedy)
        return warned(f"unshare could not be tried: {failure}", install(context.host, "util-linux"))
    if not error:
        return passed("an unprivileged user namespace can be made and mounted in")
    if blocked:
        return failed(f"{blocked} ({error})", remedy)
    if _is_confined(context.host):
        return warned(
            f"can't be told: vfsd itself is confined ({error})",
            'Try "unshare --user --map-root-user --mount true" in a terminal.',
        )
    return failed(
        f"an unprivileged user namespace can't be made ({error})",
        "Allow unprivileged user namespaces, or create shares with Sandbox=none.",
    )


def _namespace_settings(host: Environment) -> tuple[str, str]:
    """The kernel setting that forbids unprivileged user namespaces, and how to change it."""
    # Name, whether zero forbids them or allows them, and the value to set
    settings = (
        ("kernel.unprivileged_userns_clone", True, "1"),
        ("user.max_user_namespaces", True, "15000"),
        ("kernel.apparmor_restrict_unprivileged_userns", False, "0"),
    )
    for name, zero_forbids, wanted in settings:
        value = host.number("proc/sys/" + name.replace(".", "/"))
        if value is not None and (value == 0) is zero_forbids:
            change = f'Run "sysctl -w {name}={wanted}" as root, and keep it in /etc/sysctl.d.'
            if name.startswith("kernel.apparmor"):
                change += " Or load an AppArmor profile that gives virtiofsd userns."
            return f"{name} is {value}", change
    return "", ""


def _is_confined(host: Environment) -> bool:
    # proc(5): 2 means that a seccomp filter is on this process
    return any(line.split() == ["Seccomp:", "2"] for line in host.read("proc/self/status").splitlines())


def check_subordinate_ids(context: Context) -> Finding:
    """Only the options UIDMap and GIDMap of an unprivileged share need them."""
    if context.scope == "system":
        return skipped("the system's virtiofsd needs none")
    host = context.host
    lacking = [
        name for name in ("etc/subuid", "etc/subgid") if _subordinate_count(host, name) < _SUBORDINATE_IDS
    ]
    if lacking:
        files = " and ".join("/" + name for name in lacking)
        return warned(
            f"{host.user} has no {_SUBORDINATE_IDS} ids in {files}; UIDMap and GIDMap will not work",
            f'Run "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {host.user}" as root.',
        )
    helpers = ("newuidmap", "newgidmap")
    path = host.environ.get("PATH", "") + os.pathsep + "/run/wrappers/bin"
    if missing := [name for name in helpers if not shutil.which(name, path=path)]:
        return warned(f"{' and '.join(missing)} not installed", install(host, "uidmap"))
    return passed(
        f"{_subordinate_count(host, 'etc/subuid')} subordinate ids for {host.user}, newuidmap installed"
    )


def _subordinate_count(host: Environment, file: str) -> int:
    """How many ids subuid(5) gives the user."""
    fields = (line.split(":") for line in host.read(file).splitlines())
    owners = (host.user, str(host.uid))
    return sum(int(f[2]) for f in fields if len(f) == 3 and f[0] in owners and f[2].isdigit())


def check_file_descriptors(context: Context) -> Finding:
    """How many files a virtiofsd may hold open: each file that the guest knows is one."""
    host = context.host
    maximum = host.number("proc/sys/fs/nr_open") or 1 << 20
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = maximum if hard == resource.RLIM_INFINITY else hard
    # Only a manager with CAP_SYS_RESOURCE can raise a service above its own hard limit
    raisable = context.scope == "system" and _manager_may_raise(host)
    limit = maximum if raisable else min(hard, maximum)
    found = f"up to {limit:,} open files for a share (hard limit {hard:,}, fs.nr_open {maximum:,})"
    if limit >= FILES_WANTED:
        return passed(found)
    remedy = _files_remedy(context.scope, maximum)
    return warned(found, remedy) if limit >= FILES_NEEDED else failed(found, remedy)


def _files_remedy(scope: Scope, maximum: int) -> str:
    if maximum < FILES_WANTED:
        return 'Run "sysctl -w fs.nr_open=1048576" as root, and keep it in /etc/sysctl.d.'
    if scope == "user":
        return "Set LimitNOFILE=1048576 for user@.service (systemctl edit user@.service), and log in again."
    # File handles need CAP_DAC_READ_SEARCH, which only the system's virtiofsd can have
    return (
        "Give vfsd's systemd CAP_SYS_RESOURCE or a higher hard limit,"
        " or create shares with InodeFileHandles=prefer."
    )


def _manager_may_raise(host: Environment) -> bool:
    for line in host.read("proc/1/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def check_systemd(context: Context) -> Finding:
    """Everything that vfsd starts is a unit of systemd."""
    host = context.host
    if not host.exists("run/systemd/system"):
        return failed("systemd is not this system's service manager", "Boot the system with systemd.")
    if context.scope == "user":
        runtime = host.environ.get("XDG_RUNTIME_DIR", f"/run/user/{host.uid}").lstrip("/")
        if not host.exists(f"{runtime}/systemd"):
            return failed(
                f"no systemd user manager runs for {host.user}",
                f'Log in through PAM, or run "loginctl enable-linger {host.user}" as root.',
            )
    try:
        text = host.run("systemctl", "--version").stdout.splitlines()[0]
        version = int(text.split()[1])
    except (ProbeError, IndexError, ValueError):
        return warned("systemd runs, but systemctl does not tell its version", install(host, "systemd"))
    if version < SYSTEMD_MINIMUM:
        return failed(text, f"Upgrade to systemd {SYSTEMD_MINIMUM} or later.")
    if version < SYSTEMD_OPEN_FILE:
        return warned(
            f"{text}; it lacks OpenFile= (253), so QEMU opens the sockets of its shares by path",
            f"Upgrade to systemd {SYSTEMD_OPEN_FILE} or later.",
        )
    return passed(text)


def check_polkit(context: Context) -> Finding:
    """polkit decides what users other than root may do with the system's shares and machines."""
    if context.scope == "user":
        return skipped("a user needs nobody's permission for their own shares")
    service = "share/dbus-1/system-services/org.freedesktop.PolicyKit1.service"
    if context.host.exists(
        *(f"{prefix}/{service}" for prefix in ("usr", "usr/local", "run/current-system/sw"))
    ):
        return passed("polkit is installed")
    return warned(
        "polkit is not installed; only root may use the system's vfsd", install(context.host, "polkit")
    )


def check_vsock(context: Context) -> Finding:
    """Over vsock a guest's systemd (254 or later) can say that it is ready; nothing else needs it."""
    device = context.host.root / "dev/vhost-vsock"
    if not device.exists():
        return warned(
            "there is no /dev/vhost-vsock; guests can't report over vsock",
            'Run "modprobe vhost_vsock" as root.',
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return warned(
            "no permission to open /dev/vhost-vsock",
            f'Run "usermod -aG kvm {context.host.user}" as root, and log in again.',
        )
    return passed("/dev/vhost-vsock can be opened")
