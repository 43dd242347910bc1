"""The built-in guest: its image, what it is told, and a real boot."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfsd.discovery import find_qemu, find_virtiofsd
from vfsd.guest import (
    GuestUnavailable,
    Mount,
    build,
    cpio,
    find_busybox,
    find_kernel,
    kernel_arguments,
    script,
)
from vfsd.guest.cache import cached
from vfsd.guest.command_line import COMMAND_LINE_SIZE, escape
from vfsd.guest.modules import ModuleTree, ModuleUnreadable, module_name

TIME_LIMIT = 60.0
ODD = "/srv/a b\"'\\:,%41$(x)\n é日/`c`*?"

needs_host = pytest.mark.skipif(
    not Path("/boot").is_dir() or shutil.which("busybox") is None, reason="no kernel or no busybox here"
)


@dataclass
class Parsed:
    """One entry, as a reader of cpio archives sees it."""

    mode: int
    data: bytes
    device: tuple[int, int]


def parse(archive: bytes) -> dict[str, Parsed]:
    """A reader that shares nothing with the writer."""
    entries: dict[str, Parsed] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        field = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_end = at + 110 + field[11]
        assert archive[name_end - 1] == 0
        name = archive[at + 110 : name_end - 1].decode()
        data_start = (name_end + 3) & ~3
        data = archive[data_start : data_start + field[6]]
        at = (data_start + field[6] + 3) & ~3
        if name == "TRAILER!!!":
            assert at == len(archive)
            return entries
        # Owner and time are fixed
        assert field[2:4] == [0, 0]
        assert field[5] == 0
        assert name not in entries
        entries[name] = Parsed(field[1], data, (field[9], field[10]))


def write_kernel(root: Path, name: str, version: str, config: str | None) -> Path:
    """Something with the header of a bzImage (Documentation/arch/x86/boot.rst)."""
    content = bytearray(0x1000)
    content[0x202:0x206] = b"HdrS"
    content[0x206:0x208] = (0x20F).to_bytes(2, "little")
    content[0x20E:0x210] = (0x400).to_bytes(2, "little")
    text = f"{version} (someone@somewhere) #1\0".encode()
    content[0x600 : 0x600 + len(text)] = text
    path = root / "boot" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if config is not None:
        (path.parent / f"config-{version}").write_text(config)
    return path


BUILTIN = "CONFIG_MODULES=y\nCONFIG_VIRTIO_FS=y\nCONFIG_VIRTIO_PCI=y\n"
MODULAR = "CONFIG_MODULES=y\nCONFIG_VIRTIO_FS=m\nCONFIG_VIRTIO_PCI=y\n"
WITHOUT = "CONFIG_MODULES=y\n# CONFIG_VIRTIO_FS is not set\nCONFIG_VIRTIO_PCI=y\n"


class TestArchive:
    def test_holds_what_was_put_in(self) -> None:
        archive = cpio.archive(
            [
                cpio.directory("d", 0o1777),
                cpio.file("d/é", b"12345", 0o755),
                cpio.file("empty", b""),
                cpio.symlink("link", "d/é"),
                cpio.character_device("d/console", 5, 1),
            ]
        )
        assert parse(archive) == {
            "d": Parsed(stat.S_IFDIR | 0o1777, b"", (0, 0)),
            "d/é": Parsed(stat.S_IFREG | 0o755, b"12345", (0, 0)),
            "empty": Parsed(stat.S_IFREG | 0o644, b"", (0, 0)),
            "link": Parsed(stat.S_IFLNK | 0o777, "d/é".encode(), (0, 0)),
            "d/console": Parsed(stat.S_IFCHR | 0o600, b"", (5, 1)),
        }

    @given(st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.binary(max_size=70)))
    def test_any_files(self, files: dict[str, bytes]) -> None:
        archive = cpio.archive(cpio.file(name, data) for name, data in files.items())
        assert {name: entry.data for name, entry in parse(archive).items()} == files

    @needs_host
    def test_busybox_reads_it(self, tmp_path: Path) -> None:
        archive = cpio.archive([cpio.directory("d"), cpio.file("d/f", b"content"), cpio.symlink("l", "d/f")])
        subprocess.run([find_busybox(), "cpio", "-i"], input=archive, cwd=tmp_path, check=True, timeout=10)
        assert (tmp_path / "l").read_bytes() == b"content"


class TestCommandLine:
    def test_compact_for_the_ordinary_case(self) -> None:
        words = kernel_arguments(
            [Mount("src"), Mount("docs", "/home/me/docs", read_only=True)], machine="x86_64"
        )
        assert words[0] == "console=ttyS0"
        assert words[-2:] == ["vfsd.mount=docs:/home/me/docs:ro", "vfsd.mount=src"]

    def test_console_of_the_architecture(self) -> None:
        assert kernel_arguments([], machine="aarch64")[0] == "console=ttyAMA0"

    def test_no_panic_where_the_emulated_timer_is_late(self) -> None:
        assert "no_timer_check" in kernel_arguments([], machine="x86_64")
        assert "no_timer_check" not in kernel_arguments([], machine="aarch64")

    def test_outer_mounts_come_first(self) -> None:
        words = kernel_arguments([Mount("b", "/x/y/"), Mount("a", "//x")])
        assert [word for word in words if "mount" in word] == ["vfsd.mount=a:/x", "vfsd.mount=b:/x/y"]

    def test_options_and_read_only(self) -> None:
        words = kernel_arguments([Mount("a", "", read_only=True, options="noatime,nosuid")])
        assert words[-1] == "vfsd.mount=a::ro,noatime,nosuid"

    def test_command_then_what_the_user_appends(self) -> None:
        assert kernel_arguments([], command="echo 'a b'", append="x=1 y")[-2:] == [
            "vfsd.exec=echo%20%27a%20b%27",
            "x=1 y",
        ]

    @pytest.mark.parametrize("point", ["/", "//", "/proc", "/dev/x", "/sys/", "/mnt/../proc", "/.vfsd"])
    def test_refuses_to_hide_what_it_lives_on(self, point: str) -> None:
        with pytest.raises(ValueError, match="another mount point"):
            kernel_arguments([Mount("a", point)])

    def test_refuses_a_relative_mount_point(self) -> None:
        with pytest.raises(ValueError, match="not an absolute path"):
            kernel_arguments([Mount("a", "x")])

    def test_refuses_nul(self) -> None:
        with pytest.raises(ValueError, match="NUL"):
            kernel_arguments([Mount("a", "/a\0b")])

    def test_limit_of_the_kernel(self) -> None:
        base = len(" ".join(kernel_arguments([], append="x", machine="x86_64")))
        room = COMMAND_LINE_SIZE - base
        assert kernel_arguments([], append="x" * room, machine="x86_64")
        with pytest.raises(ValueError, match="takes 2047; use fewer shares"):
            kernel_arguments([], append="x" * (room + 1), machine="x86_64")

    @given(st.text(st.characters(exclude_characters="\0", exclude_categories=())))
    def test_escape_leaves_only_harmless_characters(self, text: str) -> None:
        try:
            text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return
        escaped = escape(text)
        assert escaped.isascii()
        assert not set(escaped) & set(" \t\n\"'\\:$`*?[]#&;|<>(){}!^")

    @needs_host
    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"")), min_size=1, max_size=20))
    def test_the_guest_decodes_every_byte(self, values: list[bytes]) -> None:
        escaped = [escape(os.fsdecode(value)) for value in values]
        program = script.DECODE + 'for item; do decode "$item"; printf "%s\\0" "$decoded"; done'
        done = subprocess.run(
            [find_busybox(), "sh", "-c", program, "sh", *escaped], capture_output=True, check=True, timeout=10
        )
        assert done.stdout == b"".join(value + b"\0" for value in values)


class TestFindKernel:
    @pytest.fixture(autouse=True)
    def _no_override(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VFSD_GUEST_KERNEL", raising=False)

    def test_built_in_before_newer_module(self, tmp_path: Path) -> None:
        write_kernel(tmp_path, "vmlinuz-6.13", "6.13.0-generic", MODULAR)
        cloud = write_kernel(tmp_path, "vmlinuz-6.12", "6.12.0-cloud", BUILTIN)
        (tmp_path / "lib/modules/6.13.0-generic").mkdir(parents=True)
        (tmp_path / "lib/modules/6.13.0-generic/modules.builtin").touch()
        assert find_kernel(tmp_path) == cloud

    def test_newest_by_number(self, tmp_path: Path) -> None:
        newest = write_kernel(tmp_path, "vmlinuz-6.10", "6.10.0-cloud", BUILTIN)
        write_kernel(tmp_path, "vmlinuz-6.9", "6.9.12-cloud", BUILTIN)
        assert find_kernel(tmp_path) == newest

    def test_none_has_virtio_fs(self, tmp_path: Path) -> None:
        write_kernel(tmp_path, "vmlinuz-6.12", "6.12.0", WITHOUT)
        # A module that is not installed is of no use
        write_kernel(tmp_path, "vmlinuz-6.13", "6.13.0", MODULAR)
        with pytest.raises(GuestUnavailable) as raised:
            find_kernel(tmp_path)
        assert "no kernel with virtio-fs" in raised.value.message
        assert "linux-image-cloud" in raised.value.remedy
        assert str(raised.value) == f"{raised.value.message} {raised.value.remedy}"

    def test_override(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        kernel = tmp_path / "bzImage"
        monkeypatch.setenv("VFSD_GUEST_KERNEL", str(kernel))
        with pytest.raises(GuestUnavailable, match="can't be read"):
            find_kernel()
        kernel.touch()
        assert find_kernel() == kernel


class TestModules:
    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("kernel/fs/fuse/virtiofs.ko", "virtiofs"),
            ("a/gpio-pl061.ko.zst", "gpio_pl061"),
            ("x.ko.xz", "x"),
            ("x.ko.gz", "x"),
        ],
    )
    def test_name(self, path: str, name: str) -> None:
        assert module_name(path) == name

    def test_order_by_modules_dep(self, tmp_path: Path) -> None:
        (tmp_path / "modules.builtin").write_text("kernel/core.ko\n")
        (tmp_path / "modules.dep").write_text(
            "k/top.ko: k/mid.ko.xz k/low.ko\nk/mid.ko.xz: k/low.ko\nk/low.ko:\n"
        )
        tree = ModuleTree.read(tmp_path)
        assert tree.load_order("top") == ["low", "mid", "top"]
        assert tree.load_order("core") == []
        assert tree.has("core")
        assert tree.load_order("absent") == []
        assert not tree.has("absent")

    def test_order_without_modules_dep(self, tmp_path: Path) -> None:
        (tmp_path / "modules.builtin").write_text("kernel/core.ko\n")
        (tmp_path / "kernel").mkdir()
        for name, depends in (("top", "mid,core"), ("mid", "low"), ("low", "")):
            content = b"\x7fELF\0license=GPL\0depends=%b\0name=x\0" % depends.encode()
            (tmp_path / f"kernel/{name}.ko").write_bytes(content)
        assert ModuleTree.read(tmp_path).load_order("top") == ["low", "mid", "top"]

    def test_one_that_cannot_be_unpacked_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "modules.builtin").touch()
        (tmp_path / "modules.dep").write_text("bad.ko.xz:\ngone.ko:\n")
        (tmp_path / "bad.ko.xz").write_bytes(b"\xfd7zXZ\0 and then nothing good")
        tree = ModuleTree.read(tmp_path)
        for name in ("bad", "gone"):
            with pytest.raises(ModuleUnreadable, match=f"{name}.ko"):
                tree.content(name)


class TestBusybox:
    def test_refuses_a_dynamic_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VFSD_GUEST_BUSYBOX", "/bin/ls")
        with pytest.raises(GuestUnavailable, match="not a statically linked program") as raised:
            find_busybox()
        assert "busybox-static" in raised.value.remedy

    def test_refuses_what_is_no_program(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VFSD_GUEST_BUSYBOX", "/etc/passwd")
        with pytest.raises(GuestUnavailable):
            find_busybox()

    def test_one_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VFSD_GUEST_BUSYBOX", "/nonexistent")
        with pytest.raises(GuestUnavailable, match="VFSD_GUEST_BUSYBOX names /nonexistent"):
            find_busybox()


@needs_host
class TestBuild:
    def test_same_ingredients_same_bytes(self, tmp_path: Path) -> None:
        kernel = find_kernel()
        first = build(kernel, tmp_path / "a/deep", direct=False)
        second = build(kernel, tmp_path / "b", direct=False)
        assert first.kernel == kernel
        assert first.initrd.name == second.initrd.name
        assert first.initrd.read_bytes() == second.initrd.read_bytes()
        assert first.initrd.stat().st_size < 8 << 20

    def test_what_lies_in_it(self, tmp_path: Path) -> None:
        entries = parse(build(find_kernel(), tmp_path, direct=False).initrd.read_bytes())
        assert entries["init"].data.decode() == script.INIT
        assert entries["init"].mode == stat.S_IFREG | 0o755
        assert entries["dev/console"].device == (5, 1)
        assert entries[".vfsd/bin/busybox"].data == find_busybox().read_bytes()
        assert entries[".vfsd/bin/mount"].data == b"busybox"
        modules = [entry.data for name, entry in entries.items() if name.endswith(".ko")]
        assert all(data.startswith(b"\x7fELF") for data in modules)
        # The kernel makes no parents, and takes entries in order
        seen = {""}
        for name in entries:
            assert name.rpartition("/")[0] in seen
            seen.add(name)

    def test_cache_is_used_checked_and_cleared(self, tmp_path: Path) -> None:
        kernel = find_kernel()
        guest = build(kernel, tmp_path)
        whole = {path: path.read_bytes() for path in {guest.initrd, guest.kernel}}
        before = {path: path.stat().st_ino for path in whole}
        old = tmp_path / "builtin-0123.img"
        old.touch()
        os.utime(old, (0, 0))

        assert build(kernel, tmp_path) == guest
        assert {path: path.stat().st_ino for path in whole} == before
        assert not old.exists()

        initrd = whole[guest.initrd]
        damages = [initrd[:-1], initrd[:5000] + b"!" + initrd[5001:], b""]
        for damage in damages:
            guest.initrd.write_bytes(damage)
            assert build(kernel, tmp_path) == guest
            assert guest.initrd.read_bytes() == initrd
        guest.initrd.unlink()
        guest.initrd.with_name(f"{guest.initrd.name}.sum").write_text("garbage")
        assert build(kernel, tmp_path) == guest
        assert {path: path.read_bytes() for path in whole} == whole
        assert not list(tmp_path.glob(".new-*"))

    def test_unpacked_kernel(self, tmp_path: Path) -> None:
        kernel = find_kernel()
        guest = build(kernel, tmp_path)
        if guest.kernel == kernel:
            pytest.skip("this kernel has no PVH entry")
        assert guest.kernel.read_bytes()[:4] == b"\x7fELF"
        assert guest.kernel.stat().st_blocks * 512 < guest.kernel.stat().st_size

    def test_kernel_that_cannot_be_unpacked_is_used_as_it_is(self, tmp_path: Path) -> None:
        kernel = write_kernel(tmp_path, "vmlinuz-6.12", "6.12.0-none", BUILTIN)
        for _ in range(2):
            assert build(kernel, tmp_path / "cache").kernel == kernel

    def test_errors_are_sentences(self, tmp_path: Path) -> None:
        with pytest.raises(GuestUnavailable, match="can't be read: No such file"):
            build(tmp_path / "none", tmp_path)
        without = write_kernel(tmp_path, "vmlinuz-6.12", "6.12.0-none", WITHOUT)
        with pytest.raises(GuestUnavailable, match="no driver virtiofs"):
            build(without, tmp_path / "cache")
        (tmp_path / "file").touch()
        with pytest.raises(GuestUnavailable, match="can't be made"):
            build(find_kernel(), tmp_path / "file/cache")


class Guest:
    """A running guest: its console as text, and its monitor."""

    def __init__(self, process: subprocess.Popen[bytes], monitor: Path) -> None:
        self.process = process
        self.console = b""
        self._monitor = monitor
        self._news = threading.Condition()
        assert process.stdout is not None
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()

    def _read(self, output: IO[bytes]) -> None:
        while chunk := os.read(output.fileno(), 4096):
            with self._news:
                self.console += chunk
                self._news.notify_all()

    def wait_for(self, text: str) -> None:
        """Until the console has said something."""
        with self._news:
            said = self._news.wait_for(lambda: text.encode() in self.console, TIME_LIMIT)
        assert said, self.console.decode(errors="replace")

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._monitor))
            with connection.makefile("rw") as stream:
                stream.readline()
                for command in ("qmp_capabilities", "system_powerdown"):
                    stream.write(json.dumps({"execute": command}) + "\n")
                    stream.flush()
                    while "return" not in (answer := json.loads(stream.readline())):
                        assert "event" in answer, answer

    def wait_for_end(self) -> None:
        assert self.process.wait(TIME_LIMIT) == 0, self.console.decode(errors="replace")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builtin")


@contextmanager
def boot(folder: Path, cache: Path, shares: dict[Path, Mount], **arguments: Any) -> Iterator[Guest]:
    """Boot the built-in guest on TCG; whatever happens, nothing is left running."""
    guest = build(find_kernel(), cache)
    virtiofsd = find_virtiofsd()
    processes: list[subprocess.Popen[bytes]] = []
    devices: list[str] = []
    try:
        for number, (source, mount) in enumerate(shares.items()):
            path = folder / f"{number}.sock"
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen()
                fd = listener.fileno()
                command = [str(virtiofsd.path), f"--fd={fd}", f"--shared-dir={source}", "--sandbox=none"]
                processes.append(subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.DEVNULL))
            devices += ["-chardev", f"socket,id=c{number},path={path}"]
            tag = mount.tag.replace(",", ",,")
            devices += ["-device", f"vhost-user-fs-pci,chardev=c{number},tag={tag}"]
        command = [
            str(find_qemu().path),
            *("-machine", "q35,accel=tcg,memory-backend=mem", "-cpu", "max", "-m", "256M"),
            *("-object", "memory-backend-memfd,id=mem,size=256M,share=on"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
            *("-kernel", str(guest.kernel), "-initrd", str(guest.initrd)),
            *("-append", " ".join(kernel_arguments(list(shares.values()), **arguments))),
            *devices,
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        processes.append(process)
        yield Guest(process, folder / "qmp")
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


needs_machine = pytest.mark.skipif(
    os.uname().machine != "x86_64" or os.geteuid() != 0 or not shutil.which("qemu-system-x86_64"),
    reason="needs root, QEMU and virtiofsd on x86-64",
)


@needs_host
@needs_machine
class TestBoot:
    def test_shell_with_job_control_and_power_button(self, tmp_path: Path, cache: Path) -> None:
        writable, read_only = tmp_path / "writable", tmp_path / "read-only"
        for folder in (writable, read_only):
            folder.mkdir()
        (writable / "old").write_text("old\n")
        shares = {writable: Mount("a,b: c", ODD), read_only: Mount("docs", "/usr", read_only=True)}
        started = time.monotonic()
        with boot(tmp_path, cache, shares) as guest:
            guest.wait_for("guest:~# ")
            took = time.monotonic() - started
            greeting = guest.console.decode(errors="replace")
            assert "vfsd built-in guest, Linux" in greeting
            assert "docs on /usr (read-only)" in greeting
            guest.type("cd /srv/a*/*; cat old; stty -echo; PS1='> '\n")
            guest.wait_for("old\r\n")
            guest.type("touch /usr/new || echo refused\n")
            guest.wait_for("refused\r\n")
            # Ctrl-C ends the command and not the shell
            guest.type("echo sleep''ing; sleep 1000\n")
            guest.wait_for("sleeping\r\n")
            time.sleep(0.3)
            guest.type("\x03")
            # A process that holds a file open, and the shell's own folder, don't keep the shares mounted
            guest.type("echo from the guest >new; sleep 1000 >>new &\necho rea''dy\n")
            guest.wait_for("ready\r\n")
            guest.press_power_button()
            guest.wait_for("vfsd: power button")
            guest.wait_for_end()
        assert (writable / "new").read_text() == "from the guest\n"
        assert sorted(path.name for path in writable.iterdir()) == ["new", "old"]
        assert not list(read_only.iterdir())
        # Generous: it is 3 s on an idle machine
        assert took < 20

    def test_power_button_while_idle_is_quick(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "share").mkdir()
        with boot(tmp_path, cache, {tmp_path / "share": Mount("src")}) as guest:
            guest.wait_for("shares: src on /mnt/src\r\n")
            time.sleep(1)
            guest.press_power_button()
            guest.wait_for_end()
        assert "vfsd: power button" in guest.console.decode(errors="replace")
        assert "Killed" not in guest.console.decode(errors="replace")

    def test_command_and_exit_code(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "share").mkdir()
        command = 'echo "it\'s $0 in $PWD" >/mnt/src/out; cat /mnt/src/out; exit 7'
        # The share that is not there must not keep the guest from the rest
        absent = tmp_path / "share2"
        shares = {tmp_path / "share": Mount("src")}
        words = " ".join(word for word in kernel_arguments([Mount("absent", str(absent))]) if "mount" in word)
        with boot(tmp_path, cache, shares, command=command, append=words) as guest:
            guest.wait_for_end()
        console = guest.console.decode(errors="replace")
        assert "vfsd: share not mounted: absent on" in console
        assert "shares: src on /mnt/src\r\n" in console
        assert "it's sh in /root\r\nvfsd: command exited 7\r\n" in console
        assert (tmp_path / "share/out").read_text() == "it's sh in /root\n"

    @pytest.mark.parametrize("typed", ["exit\n", "\x04", "poweroff\n", "reboot\n"])
    def test_ends_of_the_shell(self, tmp_path: Path, cache: Path, typed: str) -> None:
        (tmp_path / "share").mkdir()
        with boot(tmp_path, cache, {tmp_path / "share": Mount("src")}) as guest:
            guest.wait_for("guest:~# ")
            guest.type(f"echo data >/mnt/src/f\n{typed}")
            guest.wait_for_end()
        assert (tmp_path / "share/f").read_text() == "data\n"


def test_what_is_there_is_not_read_whole(tmp_path: Path) -> None:
    """Each thread keeps the room that it needed once, and a daemon has several."""
    path, size = tmp_path / "builtin-x", 32 << 20
    cached(path, lambda: bytes(size))
    tracemalloc.start()
    try:
        assert cached(path, lambda: b"").stat().st_size == size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 8
