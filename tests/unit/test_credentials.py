"""Credentials: names, limits, and the files by which QEMU gets them."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from vfsd import credentials, told
from vfsd.commands import MachineArchitecture
from vfsd.credentials import FW_CFG_FILES_MAX, SMBIOS_MAX, SMBIOS_STRINGS_MAX, TOTAL_MAX, Passed
from vfsd.errors import InvalidArgs, without_path
from vfsd.model import MachineSpec, ShareSpec
from vfsd.names import Scope
from vfsd.told import Told
from vfsd.vsock import Address

X86 = MachineArchitecture.of("x86_64")


def machine(**options: object) -> MachineSpec:
    signatures = {
        "Credentials": "a{ss}",
        "CredentialFiles": "a{ss}",
        "Kernel": "s",
        "Append": "s",
        "RootShare": "s",
    }
    given = {name: (signatures[name], value) for name, value in options.items()}
    return MachineSpec.from_options("dev", Scope.USER, given)


def share(tag: str, mount_point: str) -> ShareSpec:
    options = {"Tag": ("s", tag), "MountPoint": ("s", mount_point)}
    return ShareSpec.from_options("src", "/srv", Scope.USER, options)


@pytest.mark.parametrize("name", ["a", "ssh.authorized_keys.root", "a b", "x" * 255, "...", "=,"])
def test_names_that_systemd_takes(name: str) -> None:
    assert credentials.is_credential_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a\nb", "ü", "x" * 256, "\x7f"])
def test_names_that_it_does_not(name: str) -> None:
    assert not credentials.is_credential_name(name)
    for option in ("Credentials", "CredentialFiles"):
        with pytest.raises(InvalidArgs, match="can't be named") as caught:
            machine(**{option: {name: "/secret-value"}})
        assert "secret" not in str(caught.value)


def test_no_name_stands_in_both_tables() -> None:
    with pytest.raises(InvalidArgs, match="in Credentials and in CredentialFiles"):
        machine(Credentials={"a": "x"}, CredentialFiles={"a": "/etc/hostname"})


def test_a_file_is_named_by_an_absolute_path() -> None:
    with pytest.raises(
        InvalidArgs, match=r'file of credential "a" of machine "dev" is "b", which is not an absolute'
    ):
        machine(CredentialFiles={"a": "b"})


def test_values_beyond_the_limit_of_systemd_are_refused_at_once() -> None:
    with pytest.raises(InvalidArgs, match=str(TOTAL_MAX)):
        machine(Credentials={"a": "x" * TOTAL_MAX})


def test_an_empty_value_keeps_the_secret_and_a_missing_name_forgets_it() -> None:
    spec = machine(Credentials={"a": "1", "b": "2"})
    spec = spec.with_option("Credentials", "a{ss}", {"a": "", "c": "", "d": "4"})
    assert dict(spec.credentials) == {"a": "1", "c": "", "d": "4"}


def test_strings_of_smbios_are_in_files_that_nobody_else_reads(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    values = {"b": b"\0\xff\n", "a": b""}
    passed = credentials.write("it", values, folder, smbios=True)
    assert passed.fw_cfg == ()
    contents = [Path(path).read_bytes() for path in passed.smbios]
    assert contents == [
        b"io.systemd.credential.binary:a=",
        b"io.systemd.credential.binary:b=" + base64.b64encode(b"\0\xff\n"),
    ]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_those_of_an_earlier_start_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    credentials.write("it", {"a": b"1", "b": b"2"}, folder, smbios=True)
    credentials.write("it", {"a": b"3"}, folder, smbios=True)
    assert [path.read_bytes()[-4:] for path in folder.iterdir()] == [base64.b64encode(b"3")]
    assert credentials.write("it", {}, folder, smbios=True) == credentials.NOTHING
    assert not folder.exists()
    credentials.remove(folder)


def test_what_is_too_large_for_smbios_goes_through_fw_cfg(tmp_path: Path) -> None:
    values = {"small": b"s", "large": b"x" * SMBIOS_MAX}
    passed = credentials.write("it", values, tmp_path / "c", smbios=True)
    assert len(passed.smbios) == 1
    [(name, path)] = passed.fw_cfg
    assert (name, Path(path).read_bytes()) == ("large", values["large"])


def test_strings_together_stay_below_what_the_firmware_bears(tmp_path: Path) -> None:
    values = {f"c{number}": b"x" * 4000 for number in range(8)}
    passed = credentials.write("it", values, tmp_path / "c", smbios=True)
    assert sum(Path(path).stat().st_size + 1 for path in passed.smbios) <= SMBIOS_MAX
    assert len(passed.smbios) + len(passed.fw_cfg) == len(values)


def test_without_smbios_all_go_through_fw_cfg(tmp_path: Path) -> None:
    passed = credentials.write("it", {"a": b"1"}, tmp_path / "c", smbios=False)
    assert (passed.smbios, [name for name, _ in passed.fw_cfg]) == ((), ["a"])


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"long.name.that.fw_cfg.does.not.take": b"x" * SMBIOS_MAX}, "at most 28 bytes"),
        ({f"c{n}": b"x" * SMBIOS_MAX for n in range(FW_CFG_FILES_MAX + 1)}, "use fewer"),
        ({f"c{n:03}": b"x" for n in range(SMBIOS_STRINGS_MAX + FW_CFG_FILES_MAX + 1)}, "use fewer"),
        ({"a": b"x" * TOTAL_MAX, "b": b"x"}, "in all"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    values: dict[str, bytes], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgs, match=complaint):
        credentials.write("it", values, tmp_path / "c", smbios=True)
    assert not (tmp_path / "c").exists()


def test_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\0\xff")
    assert credentials.read_files("it", (("a", str(tmp_path / "f")),)) == {"a": b"\0\xff"}


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("fifo", "no regular file"),
        ("huge", "more than"),
    ],
)
def test_files_that_can_not_be_used_are_named(kind: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(TOTAL_MAX + 1)
    with pytest.raises(InvalidArgs, match=complaint) as caught:
        credentials.read_files("it", (("token", str(path)),))
    assert f'"{path}", the file of credential "token" of it' in str(caught.value)
    public = without_path(str(caught.value), str(path))
    assert public.startswith('the file of credential "token" of it ')
    assert str(path) not in public


def test_a_kernel_is_told_on_its_command_line() -> None:
    spec = machine(Kernel="/k", Append="quiet")
    what = told.tell(spec, [share("src", "/mnt/a b")], None, X86)
    words = what.arguments.split()
    assert words[0] == "console=ttyS0"
    assert words[1].startswith("systemd.mount-extra=src:/mnt/a\\x20b:virtiofs:rw,")
    assert words[2:] == ["quiet"]
    assert what.fstab == ()


def test_what_finds_no_room_there_goes_into_the_credential() -> None:
    spec = machine(Kernel="/k")
    shares = [share(f"tag{number}", f"/mnt/{'x' * 90}{number:02}") for number in range(20)]
    what = told.tell(spec, [*shares, share("#odd", "/mnt/odd")], None, X86)
    assert what.arguments.split()[1:] == [
        "systemd.mount-extra=\\x23odd:/mnt/odd:virtiofs:rw,nofail,x-systemd.before=local-fs.target"
    ]
    assert len(what.fstab) == 20
    few = told.tell(spec, shares[:8], None, X86)
    assert len(few.arguments) < 2048
    assert few.fstab == ()


def test_what_finds_no_room_at_all_is_refused() -> None:
    kept = len("console=ttyS0 ")
    fits = machine(Kernel="/k", Append="x" * (2047 - kept))
    assert len(told.tell(fits, [share("src", "/mnt")], None, X86).arguments) == 2047
    with pytest.raises(InvalidArgs, match="2048 bytes of arguments, and takes 2047; shorten Append"):
        told.tell(machine(Kernel="/k", Append="x" * (2048 - kept)), [share("src", "/mnt")], None, X86)


def test_without_a_kernel_it_is_the_credential() -> None:
    what = told.tell(machine(), [share("src", "/mnt")], None, X86)
    assert (what.arguments, len(what.fstab)) == ("", 1)
    with pytest.raises(InvalidArgs, match="it would be a comment"):
        told.tell(machine(), [share("#src", "/mnt")], None, X86)


def test_the_root_is_not_mounted_again() -> None:
    root = share("root", "/somewhere")
    what = told.tell(machine(Kernel="/k", RootShare="root"), [root], root, X86)
    assert what.arguments == "console=ttyS0 root=root rootfstype=virtiofs rw"


def decoded(passed: Passed) -> dict[str, str]:
    values = {}
    for path in passed.smbios:
        name, _, value = Path(path).read_text().removeprefix("io.systemd.credential.binary:").partition("=")
        values[name] = base64.b64decode(value).decode()
    return values


async def test_the_user_keeps_lines_of_his_own(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"ssh-ed25519 mine")
    spec = machine(
        Credentials={"fstab.extra": "a /a ext4 rw 0 0"},
        CredentialFiles={"ssh.authorized_keys.root": str(tmp_path / "keys")},
    )
    what = Told("", ("b /b virtiofs rw 0 0",))
    passed = await told.pass_credentials(spec, what, ["ssh-ed25519 ours"], None, X86, tmp_path / "c")
    assert decoded(passed) == {
        "fstab.extra": "a /a ext4 rw 0 0\nb /b virtiofs rw 0 0\n",
        "ssh.authorized_keys.root": "ssh-ed25519 mine\nssh-ed25519 ours\n",
    }


@pytest.mark.parametrize(("own", "told_to"), [({}, "vsock-stream:2:777"), ({"vmm.notify_socket": "x"}, "x")])
async def test_where_the_guest_says_that_it_is_ready(
    own: dict[str, str], told_to: str, tmp_path: Path
) -> None:
    passed = await told.pass_credentials(
        machine(Credentials=own), Told(), (), Address(5, 777), X86, tmp_path / "c"
    )
    assert decoded(passed) == {"vmm.notify_socket": told_to}
