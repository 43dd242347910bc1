"""A guest's agent: a client of QEMU's guest agent protocol (qga/qapi-schema.json).

The guest is not trusted. What it says is bounded in size and in time, checked before it is used, and read only while
an answer is awaited: an agent that talks without being asked fills a buffer of the kernel's and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfsd.errors import GuestTimeout, NotSupported, VfsdError

COMMAND_TIMEOUT = 5.0
"""Seconds in which an agent answers a command."""
CLOSE_TIMEOUT = 1.0
"""The same for a command that only tidies up."""
REPLY_MAX = 4 << 20
"""Bytes of one reply. qemu-ga itself keeps up to 16 MiB of a command's output."""
FILE_MAX = 1 << 20
"""Bytes of a file that is read through the agent."""
_CHUNK = 64 << 10
_POLL_FIRST, _POLL_LAST = 0.005, 0.2
"""Seconds between questions whether a command has ended; each time twice as long."""
_INPUT_RATE = 100_000
"""Bytes of a program's input that a guest takes in a second at least; one on a busy TCG takes a megabyte."""
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SENTINEL = b"\xff"
"""Begins the answer to guest-sync-delimited, and makes the agent forget half a request."""
_WORDS_MAX = 300
"""Characters of the guest's that are passed on in an error."""
_SHORT = 64 << 10
_PARTS_MAX = 64
"""What is longer than _SHORT is one long string, and has no more parts than this: Python makes 60 bytes of each."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command in the guest ended."""

    status: int
    """Its exit code, or 128 and the number of a signal."""
    output: bytes
    errors: bytes


class Agent:
    """One machine's agent; connects when it is first asked. One command at a time."""

    def __init__(self, path: Path, machine: str) -> None:
        self._path = path
        self._who = f'the agent in the guest of machine "{machine}"'
        self._lock = asyncio.Lock()
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self._in_step = False
        """Whether the next line that comes answers the next command."""
        self.answers = False
        """Whether it gave an answer, were it a refusal, when it was asked last."""

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            # who waits for an answer learns that none comes, before the descriptor is gone
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            asyncio.get_running_loop().call_soon(self._socket.close)
        self._socket = None
        self._in_step = self.answers = False
        self._received.clear()

    def move(self, path: Path) -> None:
        """The agent is reached at another socket from now on; what is under way is answered at neither."""
        self._path = path
        self.close()

    @contextlib.asynccontextmanager
    async def silence(self, timeout: float) -> AsyncIterator[None]:
        """Let no command be under way, unless one is that the agent does not answer within `timeout` seconds."""
        held = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                held = await self._lock.acquire()
        try:
            yield
        finally:
            if held:
                self._lock.release()

    async def command(self, name: str, timeout: float = COMMAND_TIMEOUT, **arguments: object) -> Any:
        """Run a command of the agent's and return its answer.

        :param arguments: with `_` in place of `-`.
        :raise GuestTimeout: no answer. NotSupported: it does not know the command. VfsdError: it refused or lied.
        """
        async with self._turn(name, timeout):
            await self._get_in_step()
            await self._send(_request(name, arguments))
            self._in_step = False
            answer = self._parse(await self._line())
            self._in_step = self.answers = True
        if "error" in answer:
            raise self._refusal(name, answer["error"])
        return answer.get("return")

    async def tell(self, name: str, timeout: float = COMMAND_TIMEOUT, **arguments: object) -> None:
        """Run a command that has no answer when it succeeds. :raise VfsdError: as command(), but for a refusal."""
        async with self._turn(name, timeout):
            await self._get_in_step()
            await self._send(_request(name, arguments))
            self._in_step = False

    async def execute(
        self,
        arguments: Sequence[str],
        *,
        data: bytes = b"",
        environment: Sequence[str] = (),
        timeout: float = COMMAND_TIMEOUT,
    ) -> Done:
        """Run a program in the guest to its end. :raise GuestTimeout: it runs still. VfsdError: see command()."""
        end = time.monotonic() + timeout
        wanted: dict[str, object] = {
            "path": arguments[0],
            "arg": list(arguments[1:]),
            "capture_output": True,
        }
        if environment:
            has_path = any(word.startswith("PATH=") for word in environment)
            wanted["env"] = [*environment, *([] if has_path else [_PATH])]
        if data:
            wanted["input_data"] = base64.b64encode(data).decode()
        patience = COMMAND_TIMEOUT + len(data) / _INPUT_RATE
        started = await self.command("guest-exec", min(timeout, patience), **wanted)
        pid = self._field(started, "pid", int)
        delay = _POLL_FIRST
        while True:
            left = max(end - time.monotonic(), 0.1)
            told = await self.command("guest-exec-status", min(left, COMMAND_TIMEOUT), pid=pid)
            if self._field(told, "exited", bool):
                return self._done(told)
            if time.monotonic() + delay > end:
                raise GuestTimeout(f"{self._who} runs {arguments[0]} still after {timeout:.0f} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _POLL_LAST)

    async def read_file(self, path: str) -> bytes:
        """The content of a file in the guest, FILE_MAX bytes at most. :raise VfsdError: see command()."""
        handle = await self.command("guest-file-open", path=path, mode="r")
        content = bytearray()
        try:
            while len(content) < FILE_MAX:
                answer = await self.command("guest-file-read", handle=handle, count=_CHUNK)
                content += self._bytes(answer, "buf-b64")
                if self._field(answer, "eof", bool) or not answer.get("count"):
                    break
        finally:
            with contextlib.suppress(VfsdError):
                await self.command("guest-file-close", CLOSE_TIMEOUT, handle=handle)
        return bytes(content[:FILE_MAX])

    # talking

    @contextlib.asynccontextmanager
    async def _turn(self, name: str, timeout: float) -> AsyncIterator[None]:
        """This command's turn; waiting for it counts. :raise GuestTimeout, NotSupported."""
        begun = False
        try:
            async with asyncio.timeout(timeout), self._lock:
                begun = True
                try:
                    yield
                except OSError as error:
                    self.close()
                    raise NotSupported(f"{self._who} can't be reached: {error.strerror or error}") from None
        except TimeoutError:
            if begun:
                # QEMU keeps a port throttled for ever to which the guest wrote as a connection ended; the end of
                # another one frees it
                self.close()
            raise GuestTimeout(f"{self._who} did not answer {name} within {timeout:.0f} s") from None

    async def _get_in_step(self) -> None:
        """Have a connection on which nothing is left of what was said before."""
        if (
            self._in_step
            and self._socket is not None
            and not self._received
            and not self._spoken(self._socket)
        ):
            return
        if self._socket is None:
            await self._connect()
        self._received.clear()
        identity = secrets.randbelow(1 << 31)
        await self._send(_SENTINEL + _request("guest-sync-delimited", {"id": identity}))
        while True:
            await self._skip_to_sentinel()
            answer = _document(await self._line())
            if isinstance(answer, dict) and answer.get("return") == identity:
                break
        self._in_step = True

    def _spoken(self, connection: socket.socket) -> bool:
        """Whether something came that nobody asked for, or the connection is closed."""
        data = b""
        try:
            data = connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        if not data:
            self.close()
        return True

    async def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        await asyncio.get_running_loop().sock_connect(self._socket, str(self._path))

    async def _send(self, data: bytes) -> None:
        if self._socket is None:
            raise ConnectionResetError("the connection is closed")
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def _receive(self) -> None:
        if self._socket is None:
            raise ConnectionResetError("the connection is closed")
        data = await asyncio.get_running_loop().sock_recv(self._socket, _CHUNK)
        if not data:
            raise ConnectionResetError("it closed the connection")
        self._received += data
        # sock_recv does not wait as long as there is something, so no time limit and nobody else would have a turn
        await asyncio.sleep(0)

    async def _skip_to_sentinel(self) -> None:
        while _SENTINEL not in self._received:
            self._received.clear()
            await self._receive()
        del self._received[: self._received.rindex(_SENTINEL) + 1]

    async def _line(self) -> bytes:
        """The next line. :raise VfsdError: it is too long."""
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            if searched > REPLY_MAX:
                self.close()
                raise VfsdError(f"{self._who} gave an answer of more than {REPLY_MAX >> 20} MiB")
            await self._receive()
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    # understanding

    def _parse(self, line: bytes) -> Mapping[str, Any]:
        answer = _document(line)
        if not isinstance(answer, dict):
            raise self._wrong()
        return answer

    def _field(self, answer: Any, name: str, kind: type) -> Any:
        value = answer.get(name) if isinstance(answer, dict) else None
        if type(value) is not kind:
            raise self._wrong()
        return value

    def _bytes(self, answer: Any, name: str) -> bytes:
        if not isinstance(answer, dict) or not answer.get(name):
            return b""
        try:
            return base64.b64decode(self._field(answer, name, str))
        except (binascii.Error, ValueError):
            raise self._wrong() from None

    def _done(self, told: Mapping[str, Any]) -> Done:
        if "signal" in told:
            status = 128 + self._field(told, "signal", int)
        else:
            status = self._field(told, "exitcode", int) if "exitcode" in told else 0
        if not 0 <= status < 1 << 31:
            raise self._wrong()
        return Done(status, self._bytes(told, "out-data"), self._bytes(told, "err-data"))

    def _wrong(self) -> VfsdError:
        self._in_step = self.answers = False
        return VfsdError(f"{self._who} gave an answer that makes no sense")

    def _refusal(self, name: str, error: Any) -> VfsdError:
        kind = error.get("class") if isinstance(error, dict) else ""
        words = clean(str(error.get("desc", "") if isinstance(error, dict) else error), _WORDS_MAX)
        if kind in ("CommandNotFound", "CommandDisabled"):
            return NotSupported(f"{self._who} does not allow {name}: {words}")
        return VfsdError(f"{self._who} refused {name}: {words}")


def clean(text: str, size: int) -> str:
    """A text of the guest's that can be shown: printable, and not longer than so many characters."""
    return "".join(char if char.isprintable() else " " for char in text[: size * 2]).strip()[:size]


def _document(line: bytes) -> Any:
    """What a line says in JSON; None if it says nothing, or more than an agent has to say."""
    if len(line) > _SHORT and sum(line.count(mark) for mark in (b",", b"[", b"{")) > _PARTS_MAX:
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _request(name: str, arguments: Mapping[str, object]) -> bytes:
    document: dict[str, object] = {"execute": name}
    if arguments:
        document["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"
