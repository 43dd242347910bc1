"""Credentials for the guest's systemd: what is accepted, and the files by which QEMU gets them.

A value is never an argument of QEMU's, which everybody can see and systemd logs. QEMU reads it from a file of mode
0600 that exists only while it starts, and shows it to the guest as a string in its SMBIOS tables
(`io.systemd.credential.binary:NAME=BASE64`) or, what is too large for that, through its fw_cfg device. Either way
only the guest's root can read it. systemd imports both (systemd.system-credentials(7)).
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vfsd.errors import InvalidArgs
from vfsd.opened import Openings
from vfsd.options import check_path, require

NAME_MAX = 255
"""Bytes in a name: it is that of a file."""
TOTAL_MAX = 1 << 20
"""Bytes of all values: what systemd takes in (CREDENTIALS_TOTAL_SIZE_MAX of creds-util.h)."""
SMBIOS_MAX = 24 << 10
"""Bytes of all strings in the SMBIOS tables. QEMU 10 would take 64 KiB, but with 40,000 SeaBIOS has no room left for
ACPI's tables, and the guest has no power button; 30,000 were well (QEMU 10.0.13, SeaBIOS 1.16.3)."""
SMBIOS_STRINGS_MAX = 128
"""SMBIOS counts them in a byte (DMTF DSP0134, type 11); ExtraArguments may have some too."""
FW_CFG_FOLDER = "opt/io.systemd.credentials/"
FW_CFG_NAME_MAX = 55
"""Bytes in the name of a file of fw_cfg (QEMU's FW_CFG_MAX_FILE_PATH is 56 with the terminating NUL)."""
FW_CFG_FILES_MAX = 8
"""QEMU's fw_cfg has 32 files, of which a machine with everything uses some 20."""

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Passed:
    """The files by which QEMU gets the credentials."""

    smbios: tuple[str, ...] = ()
    fw_cfg: tuple[tuple[str, str], ...] = ()
    """Name of the credential, file."""

    def through(self, openings: Openings) -> Passed:
        """The same files, opened for a QEMU that can't reach them."""

        def name(path: str) -> str:
            return openings.add(Path(path)).readable

        return Passed(
            tuple(map(name, self.smbios)), tuple((credential, name(path)) for credential, path in self.fw_cfg)
        )


NOTHING = Passed()


def is_credential_name(name: str) -> bool:
    """What systemd accepts (credential_name_valid()): a file name of printable ASCII without a colon."""
    printable = all(" " <= letter <= "~" and letter not in "/:" for letter in name)
    return 0 < len(name) <= NAME_MAX and name not in (".", "..") and printable


def check(who: str, values: Pairs, files: Pairs) -> None:
    """:raise InvalidArgs: a name or path can't be used. No message has a value."""
    for name, _ in (*values, *files):
        require(
            is_credential_name(name),
            f"a credential of {who} can't be named {name[:NAME_MAX]!r}; use 1 to {NAME_MAX} printable letters "
            "without / and :",
        )
    for name, path in files:
        check_path(f'the file of credential "{name}" of {who}', path)
    both = sorted({name for name, _ in values} & {name for name, _ in files})
    require(not both, f"{who} has credential {both} in Credentials and in CredentialFiles; take one out")
    total = sum(len(name) + len(value.encode()) for name, value in values)
    require(total <= TOTAL_MAX, f"the credentials of {who} have {total} bytes; systemd takes {TOTAL_MAX}")


def kept(old: Pairs, new: Pairs) -> Pairs:
    """The new values, where an empty one stands for that which is known: so it reads back, and may be written back."""
    known = dict(old)
    return tuple((name, value or known.get(name, "")) for name, value in new)


def read_files(who: str, files: Pairs) -> dict[str, bytes]:
    """What lies in the files; blocks. :raise InvalidArgs: one can't be used; the message names it."""
    return {name: _read(who, name, path) for name, path in files}


def _read(who: str, name: str, path: str) -> bytes:
    what = f'"{path}", the file of credential "{name}" of {who},'
    try:
        with open(path, "rb", opener=_without_waiting) as file:  # Path.open has no opener
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidArgs(f"{what} is no regular file; name another")
            content = file.read(TOTAL_MAX + 1)
    except OSError as error:
        raise InvalidArgs(f"{what} can't be read: {error.strerror}; correct it, or name another") from None
    require(len(content) <= TOTAL_MAX, f"{what} has more than {TOTAL_MAX} bytes; systemd takes no larger one")
    return content


def _without_waiting(path: str, flags: int) -> int:
    """A FIFO would wait for somebody who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def write(who: str, values: Mapping[str, bytes], folder: Path, *, smbios: bool) -> Passed:
    """Write the files by which QEMU gets these values, in place of those of an earlier start; blocks.

    :param smbios: whether the guest sees SMBIOS tables.
    :raise InvalidArgs: they don't fit; nothing was written.
    """
    strings, large = _divided(values) if smbios else ({}, dict(values))
    _check_sizes(who, values, large)
    remove(folder)
    if not values:
        return NOTHING
    folder.mkdir(mode=0o700, parents=True)
    numbered = {name: folder / str(number) for number, name in enumerate(sorted(values))}
    for name, path in numbered.items():
        content = strings.get(name, values[name])
        path.write_bytes(content)
        path.chmod(0o444)  # QEMU opens its descriptor once more; nobody else gets into the folder
    return Passed(
        tuple(str(path) for name, path in numbered.items() if name in strings),
        tuple((name, str(path)) for name, path in numbered.items() if name in large),
    )


def remove(folder: Path) -> None:
    """Take the files away: QEMU has read them, or never will."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _divided(values: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """SMBIOS strings as far as there is room, the smallest first; and the values that have none."""
    strings: dict[str, bytes] = {}
    large: dict[str, bytes] = {}
    room = SMBIOS_MAX
    for name, value in sorted(values.items(), key=lambda item: (len(item[1]), item[0])):
        string = f"io.systemd.credential.binary:{name}=".encode() + base64.b64encode(value)
        if len(string) > room or len(strings) == SMBIOS_STRINGS_MAX:
            large[name] = value
        else:
            strings[name] = string
            room -= len(string) + 1
    return strings, large


def _check_sizes(who: str, values: Mapping[str, bytes], large: Mapping[str, bytes]) -> None:
    total = sum(map(len, values.values()))
    require(
        total <= TOTAL_MAX, f"the credentials of {who} have {total} bytes; systemd takes {TOTAL_MAX} in all"
    )
    longest = FW_CFG_NAME_MAX - len(FW_CFG_FOLDER)
    for name in large:
        require(
            len(name) <= longest,
            f'credential "{name}" of {who} is passed through fw_cfg, where a name has at most {longest} bytes; '
            "make it smaller, or its name shorter",
        )
    require(
        len(large) <= FW_CFG_FILES_MAX,
        f"{len(large)} credentials of {who} don't fit into SMBIOS tables, and fw_cfg takes {FW_CFG_FILES_MAX}; "
        "use fewer, or smaller ones",
    )
