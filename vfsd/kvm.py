"""Does KVM work here: not whether /dev/kvm opens, but whether a guest runs on it.

On some hosts, virtual machines whose hypervisor offers no real nested virtualisation above all, /dev/kvm
opens, KVM_CREATE_VM works, even firmware runs (each instruction interpreted by the host's kernel), and yet
an ordinary guest kernel never comes up: QEMU prints "KVM internal error … emulation failure" and stops
there. So `kvm_works` runs a guest. It is the smallest one that tells: 180 bytes of firmware, no BIOS, no
kernel, 16 MiB of memory. It

1. goes from real mode through protected mode into 64-bit mode, as every kernel does,
2. adds with SSE, which every 64-bit kernel relies on and the kernel's interpreter does not know,
3. counts to 16 million, which takes a processor some 10 ms and an interpreter many seconds,
4. writes the sum to the serial port: the letter B.

QEMU is run with the machine and processor model that vfsd's machines get, so that a processor model which
this KVM cannot provide is found as well. The answer comes after about 0.1 s where KVM works, sooner where
it is broken; only a guest that silently hangs costs the whole time limit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import selectors
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vfsd.binaries import QemuBinary

KVM_DEVICE = Path("/dev/kvm")
KVM_TIMEOUT = 3.0
"""Seconds for the whole probe. Generous, for a busy host must not lose KVM over it."""

# include/uapi/linux/kvm.h
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_KVM_API_VERSION = 12

_SUCCESS = b"B"

_X86_CODE = bytes.fromhex(
    # .code16, entered at 0xffff0000 with CS based there
    "fa"  # cli
    "2e660f0116b000"  # lgdtl %cs:0xb0
    "0f20c0 0c01 0f22c0"  # %cr0 |= PE
    "66ea18000f000800"  # ljmpl $0x08, $0xf0018: the copy of this ROM below 1 MiB
    # .code32, 0x18
    "66b81000 8ed8"  # %ds = 0x10
    "c7050010000003200000"  # page tables for the first 2 MiB: level 4 at 0x1000
    "c7050020000003300000"  # level 3 at 0x2000
    "c7050030000083000000"  # level 2 at 0x3000, one large page
    "b800100000 0f22d8"  # %cr3 = 0x1000
    "b820060000 0f22e0"  # %cr4 = PAE | OSFXSR | OSXMMEXCPT
    "b9800000c0 0f32 0d00010000 0f30"  # EFER |= LME
    "b813000080 0f22c0"  # %cr0 = PG | ET | MP | PE
    "ea69000f001800"  # ljmp $0x18, $0xf0069
    # .code64, 0x69
    "b821000000 660f6ec0"  # %xmm0 = 0x21
    "660ffec0 660f7ec3"  # paddd %xmm0, %xmm0; %ebx = %xmm0
    "b900000001 ffc9 75fc"  # %ecx = 1 << 24; 1: decl %ecx; jnz 1b
    "66baf803 88d8 ee"  # outb %bl, 0x3f8: the first serial port
    "f4 ebfd"  # 1: hlt; jmp 1b
    "0f1f00"
    # 0x90: descriptors: none, 32-bit code, data, 64-bit code; 0xb0: the table's limit and address
    "0000000000000000 ffff0000009bcf00 ffff00000093cf00 ffff0000009baf00 1f00 90000f00"
)

# AArch64, entered at 0 in EL1 with the MMU off; no floating point: there KVM never interprets code
_ARM_CODE = struct.pack(
    "<8I",
    0xD2A12000,  # mov x0, #0x09000000: the PL011 of the machine "virt"
    0x52A02001,  # mov w1, #1 << 24
    0x71000421,  # 1: subs w1, w1, #1
    0x54FFFFE1,  # b.ne 1b
    0x52800842,  # mov w2, #'B'
    0xB9000002,  # str w2, [x0]
    0xD503207F,  # 2: wfi
    0x17FFFFFF,  # b 2b
)


@dataclass(frozen=True, slots=True)
class KvmVerdict:
    """Whether guests run on KVM."""

    usable: bool
    reason: str
    """A clause that says what was found, fit to be shown."""
    conclusive: bool = True
    """False if the probe ran out of time, which a busy host can cause as well: worth asking again later."""


def kvm_device(device: Path = KVM_DEVICE) -> KvmVerdict:
    """What the device node itself says: it exists, this process may use it, and it makes a virtual machine.

    Takes well under a millisecond. `usable` here is necessary, not sufficient.
    """
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        reasons = {
            errno.ENOENT: "there is no /dev/kvm",
            errno.EACCES: "no permission to open /dev/kvm",
            errno.EPERM: "no permission to open /dev/kvm",
            errno.ENODEV: "/dev/kvm has no driver behind it",
        }
        return KvmVerdict(False, reasons.get(error.errno or 0, f"/dev/kvm does not open ({error.strerror})"))
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
        if version != _KVM_API_VERSION:
            return KvmVerdict(False, f"KVM has API version {version}, not {_KVM_API_VERSION}")
        os.close(fcntl.ioctl(fd, _KVM_CREATE_VM, 0))
    except OSError as error:
        return KvmVerdict(False, f"/dev/kvm makes no virtual machine ({error.strerror})")
    finally:
        os.close(fd)
    return KvmVerdict(True, "/dev/kvm opens and makes a virtual machine")


def kvm_works(
    qemu: QemuBinary,
    timeout: float = KVM_TIMEOUT,
    *,
    device: Path = KVM_DEVICE,
    accelerator: str = "kvm",
    cpu: str = "host",
) -> KvmVerdict:
    """Run the probe guest (see the module's text) and say whether it came through.

    Never raises, needs no privilege beyond access to the device, leaves no process and no file behind. On
    an architecture for which there is no probe guest the device alone decides.

    :param timeout: seconds.
    :param accelerator: another one than `kvm` serves to test the probe itself.
    :param cpu: QEMU's processor model; vfsd's machines use `host` under KVM.
    """
    if accelerator == "kvm":
        if not qemu.kvm:
            return KvmVerdict(False, "this QEMU was built without KVM")
        verdict = kvm_device(device)
        if not verdict.usable:
            return verdict
    firmware = _firmware(qemu.arch)
    if firmware is None:
        return KvmVerdict(True, f"/dev/kvm opens; vfsd has no guest to try it with on {qemu.arch}")
    try:
        with _memory_file(firmware[1]) as fd:
            return _run(_command(qemu, firmware[0], f"accel={accelerator}", cpu, fd), fd, timeout)
    except OSError as error:
        return KvmVerdict(False, f"the probe guest could not be run ({error.strerror})", conclusive=False)


def _firmware(arch: str) -> tuple[str, bytes] | None:
    """The machine type and the ROM image of the probe guest."""
    if arch == "x86_64":
        size = 0x10000
        reset_vector = 0xFFF0
        jump = b"\xe9" + struct.pack("<H", -(reset_vector + 3) & 0xFFFF)
        return "q35", (_X86_CODE.ljust(reset_vector, b"\0") + jump).ljust(size, b"\0")
    if arch == "aarch64":
        return "virt", _ARM_CODE
    return None


def _command(qemu: QemuBinary, machine: str, accelerator: str, cpu: str, firmware_fd: int) -> list[str]:
    return [
        str(qemu.path),
        *("-machine", f"{machine},{accelerator}"),
        *("-cpu", cpu),
        *("-m", "16"),
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-display", "none"),
        *("-monitor", "none"),
        *("-bios", f"/proc/self/fd/{firmware_fd}"),
        *("-serial", "stdio"),
    ]


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """A file that QEMU can open by number, whoever it runs as and wherever it may write."""
    fd = os.memfd_create("vfsd-kvm-probe")
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def _run(command: list[str], firmware_fd: int, timeout: float) -> KvmVerdict:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[firmware_fd],
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C"},
    ) as process:
        # A QEMU that aborts over a processor model is an answer, not a crash to be kept
        with contextlib.suppress(OSError):
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        try:
            output, errors, ended = _read(process, time.monotonic() + timeout)
            if ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    if ended and process.returncode == -signal.SIGSYS:
        return KvmVerdict(False, "a system call filter stopped QEMU when it was to try KVM", conclusive=False)
    return _verdict(output, errors, ended, timeout)


def _read(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, str, bool]:
    """Standard output, standard error and whether QEMU ended; returns as soon as the outcome is known."""
    texts: dict[IO[bytes] | None, bytes] = {process.stdout: b"", process.stderr: b""}
    with selectors.DefaultSelector() as selector:
        for stream in texts:
            if stream:
                selector.register(stream, selectors.EVENT_READ, stream)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                stream = key.data
                chunk = os.read(key.fd, 65536)
                texts[stream] += chunk
                if not chunk:
                    selector.unregister(stream)
            if _SUCCESS in texts[process.stdout] or b"emulation failure" in texts[process.stderr]:
                break
        ended = not selector.get_map()
    return texts[process.stdout], texts[process.stderr].decode(errors="replace"), ended


def _verdict(output: bytes, errors: str, ended: bool, timeout: float) -> KvmVerdict:
    if _SUCCESS in output:
        return KvmVerdict(True, "a guest runs on KVM")
    if "emulation failure" in errors:
        return KvmVerdict(
            False,
            "/dev/kvm opens, but no guest runs on it (KVM internal error: emulation failure);"
            " this host probably is a virtual machine without nested virtualisation",
        )
    if "KVM internal error" in errors:
        return KvmVerdict(False, "/dev/kvm opens, but no guest runs on it (KVM internal error)")
    if ended:
        return KvmVerdict(False, f"/dev/kvm opens, but QEMU ends at once with it: {_cause(errors)}")
    return KvmVerdict(
        False, f"/dev/kvm opens, but a guest on it did not answer within {timeout:.1f} s", conclusive=False
    )


def _cause(errors: str) -> str:
    """The line of QEMU's output that names the cause, without the names of programs and source files."""
    lines = [line.strip() for line in errors.splitlines() if line.strip() and "warning:" not in line]
    telling = [line for line in lines if re.search(r"error|fail|could not|denied|not supported", line, re.I)]
    line = (telling or lines or ["no message"])[0]
    return re.sub(r"^\S*qemu\S*: (?:error: )?|\S+\.c:\d+: ", "", line).rstrip(".")[:200]
