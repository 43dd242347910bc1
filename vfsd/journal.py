"""Structured entries in the journal: one for each state change, refusal and failure.

The ids stand in units/vfsd.catalog too, with what a reader of `journalctl -x` is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from systemd import journal

from vfsd.names import Scope

INFO, NOTICE, WARNING, ERROR = (journal.LOG_INFO, journal.LOG_NOTICE, journal.LOG_WARNING, journal.LOG_ERR)

_PROCESS_EXIT = "98e322203f7a4ed290d09fe03c09fe15"
"""MESSAGE_ID of systemd's entry about the end of a process (SD_MESSAGE_UNIT_PROCESS_EXIT)."""
_JOURNAL_DELAYS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds to wait for a line that a process wrote just before it ended: journald takes it in when it gets to it."""
_JUST_NOW = 5.0
"""Seconds. What was said longer ago is another one's, if nobody knows whose it is."""
_DYNAMIC_USERS = range(61184, 65520)
"""Who may be made by DynamicUser= (systemd's docs/UIDS-GIDS.md)."""


_JOURNALD = "/run/systemd/journal/socket"
FIELD_MAX = 16 << 10
"""Bytes of one field: an entry is one datagram."""
RETRY = 0.1
"""Seconds until a journald that took nothing is tried again."""
QUEUE = 1000
"""Entries that may wait for a journald that takes none."""
FLUSH_TIMEOUT = 0.5
"""Seconds that vfsd's end waits for them."""
_LINES = 6
"""Lines among which the reason is looked for."""


class MessageId(StrEnum):
    """MESSAGE_ID= of vfsd's entries."""

    SHARE_STATE = "fc4b88da673f4b8ba5c1a4dde0c42475"
    MACHINE_STATE = "5d90852e38084fe8ab1ecca184101156"
    REFUSED = "d329fcf562c54c43b5483d4ec8cf9e0f"
    SHARE_FAILED = "bd2c387955214692ac801004c84b903f"
    MACHINE_FAILED = "9cdef8b6044a430bb23cf8803a5bed68"
    BAD_FILE = "beff5b513f22407bb223684b9299d930"
    INTERNAL_ERROR = "d6d078db8bd84ae6ab169cacf744812d"
    ADOPTED = "4973789bdda64e4fbc6167c90bf95baa"
    GUEST_EVENT = "47c5df5b6e884b478d3aaf95e43b1f00"
    HEALING = "8a1b1f0c6c5d4b0d9a5fe3f6a7c1e245"
    REFRESHED = "c0b8f7d27c6e4d5f9a3cf1d2a4a3e6b7"
    NOT_REGISTERED = "585dd5ab1d29446385f10284e297cdac"
    SOURCE_GONE = "28f000fc858c4e7780d56e563ed2e453"
    FILES_RUNNING_OUT = "93eac8ae0d2b4c4f9c8f1bb1c0e1c9a7"
    HOST_SHUTDOWN = "2d3a6e0f5c194c0b8a41a5f0d3c7b9e8"
    NO_SHUTDOWN_LOCK = "7be0c2d94f6a4f17b5d8e1a36c90f24b"
    NOT_WRITTEN = "b04b2a4de6fc4d0d9bbd6c1b2f1f6a90"
    PUT_BACK = "6ac0f5a1f42c4d2fa8a2a5a1d7c7a3c5"
    KVM_CHANGED = "3f80b2ca55f84803b34c60175e39c1f8"


class _Sender:
    """Gives entries to journald in order, and never waits for it.

    It speaks the native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL) itself: libsystemd's sd_journal_send(3) blocks
    while journald takes nothing, and python-systemd holds the interpreter's lock meanwhile, so that a thread is no way
    out.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque()
        self._left_out = 0

    def put(self, entry: dict[str, str]) -> None:
        """Write an entry, or keep it until journald takes it; it is left out if too many wait already."""
        if len(self._waiting) >= QUEUE:
            self._left_out += 1
            return
        self._waiting.append(_encode(entry))
        if len(self._waiting) == 1:
            self._go_on()

    def flush(self, timeout: float) -> None:
        """Wait until all is written, so many seconds at most."""
        end = time.monotonic() + timeout
        while not self._send() and time.monotonic() < end:
            time.sleep(RETRY / 10)

    def _go_on(self) -> None:
        if not self._send():
            with contextlib.suppress(RuntimeError):  # no event loop: the next entry, or the end, tries again
                asyncio.get_running_loop().call_later(RETRY, self._go_on)

    def _send(self) -> bool:
        """Send what waits; whether that is all."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        while self._waiting:
            try:
                self._socket.sendto(self._waiting[0], socket.MSG_DONTWAIT, _JOURNALD)
            except BlockingIOError:
                return False
            except OSError:
                pass  # there is no journald
            self._waiting.popleft()
            if self._left_out and not self._waiting:
                text = f"{self._left_out} entries were left out while the journal took none"
                self._left_out = 0
                self._waiting.append(_encode({"MESSAGE": text, "PRIORITY": str(WARNING)}))
        return True


def _encode(entry: dict[str, str]) -> bytes:
    """As the protocol has it: a length before a value with line breaks."""
    parts = []
    for key, text in {"SYSLOG_IDENTIFIER": "vfsd", **entry}.items():
        value = text.encode(errors="surrogateescape")[:FIELD_MAX]
        broken = b"\n" in value
        between = b"\n" + len(value).to_bytes(8, "little") if broken else b"="
        parts.append(key.encode() + between + value + b"\n")
    return b"".join(parts)


_sender = _Sender()


def flush() -> None:
    """Before vfsd ends: wait for the entries that are still to be written, as long as makes sense."""
    _sender.flush(FLUSH_TIMEOUT)


class _Handler(logging.Handler):
    """Python's own log messages, with their tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        priority = ERROR if record.levelno >= logging.ERROR else WARNING
        entry = {"MESSAGE": self.format(record), "PRIORITY": str(priority), "LOGGER": record.name}
        _sender.put(entry | {"MESSAGE_ID": MessageId.INTERNAL_ERROR.value})


class Journal:
    """Writes entries for one scope."""

    def __init__(self, scope: Scope) -> None:
        self._unit_field = "OBJECT_SYSTEMD_UNIT" if scope is Scope.SYSTEM else "OBJECT_SYSTEMD_USER_UNIT"

    def write(
        self, message_id: MessageId, priority: int, text: str, *, unit: str = "", **fields: Any
    ) -> None:
        """Write one entry.

        :param unit: the unit that the entry is about, so that `journalctl -u` shows it.
        :param fields: further fields without the VFSD_ prefix, in lower case; empty ones are left out.
        """
        named = {f"VFSD_{key.upper()}": str(value) for key, value in fields.items() if value != ""}
        if unit:
            named[self._unit_field] = unit
        own = {"MESSAGE": text, "MESSAGE_ID": message_id.value, "PRIORITY": str(priority)}
        _sender.put(own | named)


class Pace:
    """Bounds how often somebody untrusted can cause an entry: a guest can reboot some times a second, for ever."""

    COUNT, WINDOW = 10, 60.0
    """Entries within so many seconds, unless it is told otherwise."""

    def __init__(self, count: int = COUNT, window: float = WINDOW) -> None:
        self._written: deque[float] = deque(maxlen=count)
        self._window = window
        self._left_out = 0

    def pace(self, text: str) -> str:
        """The text to write, which says how many were left out before; "" if it is to be left out."""
        now = time.monotonic()
        if len(self._written) == self._written.maxlen and now - self._written[0] < self._window:
            self._left_out += 1
            return ""
        self._written.append(now)
        left_out, self._left_out = self._left_out, 0
        return f"{text} ({left_out} entries of this kind were left out before)" if left_out else text


def log_to_journal() -> None:
    """Send Python's own log messages, tracebacks included, to the journal."""
    handler = _Handler()
    handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


async def exit_of(scope: Scope, invocation: str) -> tuple[str, int]:
    """How a unit's main process ended, as systemd noted: killed, dumped or exited, and the signal or exit code.

    ("", 0) if the journal does not tell, which is so for a normal end too.
    """
    return await asyncio.to_thread(_exit_of, scope, invocation) if invocation else ("", 0)


def _exit_of(scope: Scope, invocation: str) -> tuple[str, int]:
    # the fields with an underscore are journald's: nobody else can have written the entry
    system = scope is Scope.SYSTEM
    writer = {"_PID": "1"} if system else {"_UID": str(os.getuid()), "_SYSTEMD_USER_UNIT": "init.scope"}
    try:
        with journal.Reader() as reader:
            reader.add_match(MESSAGE_ID=_PROCESS_EXIT, **writer)
            reader.add_match(**{"INVOCATION_ID" if system else "USER_INVOCATION_ID": invocation})
            for entry in reader:
                if entry.get("COMMAND") == "ExecStart":
                    return str(entry.get("EXIT_CODE", "")), int(entry.get("EXIT_STATUS", 0))
    except (OSError, ValueError):
        pass
    return "", 0


async def last_words(invocation: str, identifier: str, *, unique: bool = False, begun: float = 0) -> str:
    """What the processes of a unit's invocation said last, one line; "" if the journal can't be read.

    :param identifier: SYSLOG_IDENTIFIER of the lines, which leaves out systemd's own.
    :param unique: whether no other unit has that identifier. Then a line counts, too, that journald got to when the
        process had ended, and of which it therefore does not know the unit.
    :param begun: since when such a line can be of this invocation, in s since the epoch.
    """
    for delay in _JOURNAL_DELAYS if invocation else ():
        await asyncio.sleep(delay)
        spoken = await asyncio.to_thread(_spoken, invocation, identifier, unique=unique, begun=begun)
        if spoken is None:
            return ""
        if spoken:
            # the reason is often followed by advice
            return next((line for line in spoken if "error" in line.lower()), spoken[0])
    return ""


async def said(invocation: str, identifier: str, begin: str) -> bool:
    """Whether one of the last lines of a unit's invocation, which has ended, begins so."""
    lines = await asyncio.to_thread(_spoken, invocation, identifier, unique=True) if invocation else None
    return any(line.startswith(begin) for line in lines or ())


async def lines_since(invocation: str, identifier: str, since: float) -> list[str]:
    """The last few lines of a unit's invocation that were written since a time (s since the epoch), the last first."""
    return await asyncio.to_thread(_last_lines, invocation, identifier, since) or []


def _spoken(invocation: str, identifier: str, *, unique: bool, begun: float = 0) -> list[str] | None:
    """The last few lines, those of which journald does not know the unit if there are no others; see last_words()."""
    lines = _last_lines(invocation, identifier)
    return _lines_of_nobody(identifier, begun) if unique and lines == [] else lines


def _last_lines(invocation: str, identifier: str, since: float = 0) -> list[str] | None:
    """The last few lines, the last one first; None if this user can't read the journal at all."""
    try:
        with journal.Reader() as reader:
            reader.seek_tail()
            if not reader.get_previous():
                return None
            reader.add_match(_SYSTEMD_INVOCATION_ID=invocation)
            reader.add_match(SYSLOG_IDENTIFIER=identifier)
            entries = _last_entries(reader)
    except OSError:
        return None
    return _texts(entry for entry in entries if entry and entry["__REALTIME_TIMESTAMP"].timestamp() >= since)


def _lines_of_nobody(identifier: str, begun: float) -> list[str]:
    """The same since then and of the last seconds, of a unit of ours that journald does not know."""
    try:
        with journal.Reader() as reader:
            reader.this_boot()
            reader.add_match(_TRANSPORT="stdout", SYSLOG_IDENTIFIER=identifier)
            entries = _last_entries(reader)
    except OSError:
        return []
    begin = time.monotonic() - _JUST_NOW
    return _texts(
        entry
        for entry in entries
        if "_SYSTEMD_INVOCATION_ID" not in entry
        and _is_ours(entry.get("_UID", -1))
        and entry["__MONOTONIC_TIMESTAMP"].timestamp.total_seconds() >= begin
        and entry["__REALTIME_TIMESTAMP"].timestamp() >= begun
    )


def _last_entries(reader: journal.Reader) -> list[dict[str, Any]]:
    """What matches, the last one first; an empty one for each that there is not."""
    reader.seek_tail()
    return [reader.get_previous() or {} for _ in range(_LINES)]


def _is_ours(uid: int) -> bool:
    """Whether a line is of this user, or, on the system bus, of a user that systemd made (DynamicUser=)."""
    return uid == os.getuid() or (os.getuid() == 0 and uid in _DYNAMIC_USERS)


def _texts(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    return [line for entry in entries if (line := str(entry.get("MESSAGE", "")).strip())]
