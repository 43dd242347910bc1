"""polkit as tests need it: rules, an agent that answers when it is told to, and callers that are asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pty
import pwd
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from dbus_next import Message, MessageType, Variant

from tests.integration.harness import TESTER, Client, Vfsd, until

UID = pwd.getpwnam(TESTER).pw_uid if any(user.pw_name == TESTER for user in pwd.getpwall()) else -1
RULES = Path("/etc/polkit-1/rules.d/00-vfsd-test.rules")
AUTHORITY = (
    "org.freedesktop.PolicyKit1",
    "/org/freedesktop/PolicyKit1/Authority",
    "org.freedesktop.PolicyKit1.Authority",
)
AGENT_PATH = "/org/vfsd1/test/agent"
TESTER_IS_ADMINISTRATOR = f"polkit.addAdminRule(function() {{ return ['unix-user:{TESTER}']; }});"
"""Whom polkit asks: with Debian's own rules the group sudo, which has no members in the lab."""
_numbers = itertools.count(1)


def rule(condition: str) -> str:
    """A rule that allows what meets a condition, of those that are about vfsd."""
    return (
        "polkit.addRule(function(action, subject) {"
        f"if (action.id.indexOf('org.vfsd1.') === 0 && subject.user === '{TESTER}' && ({condition}))"
        "{ return polkit.Result.YES; } });\n"
    )


@contextlib.asynccontextmanager
async def rules(root: Client, *texts: str) -> AsyncIterator[None]:
    """Rules of polkit that hold in the body of this; polkitd notices by itself."""
    number = str(next(_numbers))
    sentinel = (
        "polkit.addRule(function(action) {"
        f"if (action.lookup('test') === '{number}') {{ return polkit.Result.YES; }} }});\n"
    )
    try:
        # complete and readable at once: each further change would have polkitd read it again, in the midst of a test
        new = RULES.with_suffix(".new")
        new.write_text("".join((sentinel, *texts)))
        new.chmod(0o644)
        new.rename(RULES)
        await _wait_until(root, number, holds=True)
        yield
    finally:
        RULES.unlink(missing_ok=True)
        await _wait_until(root, number, holds=False)


async def _wait_until(root: Client, number: str, *, holds: bool) -> None:
    # a process of the user's: root may do everything
    process = Vfsd("system").unit_property(f"user@{UID}.service", "MainPID")
    body = [["unix-process", _described(int(process))], "org.vfsd1.inspect", {"test": number}, 0, ""]
    for _ in range(400):
        [[allowed, _, _]] = await root.raw(*AUTHORITY, "CheckAuthorization", "(sa{sv})sa{ss}us", body)
        if allowed == holds:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("polkitd does not notice its rules")


def _described(pid: int) -> dict[str, Variant]:
    start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    uid = Path(f"/proc/{pid}").stat().st_uid
    return {"pid": Variant("u", pid), "start-time": Variant("t", start), "uid": Variant("i", uid)}


class Agent:
    """An authentication agent. It is root's, so that it may say itself that somebody has authenticated."""

    def __init__(self, root: Client) -> None:
        self._root = root
        self.asked: list[Message] = []
        """BeginAuthentication: action, message, icon, details, cookie, identities."""
        self.cancelled: list[str] = []
        """Cookies."""
        root.bus.add_message_handler(self._on_message)

    async def serve(self, pid: int) -> None:
        """Be the agent of a process."""
        subject = ["unix-process", _described(pid)]
        body = [subject, "C.UTF-8", AGENT_PATH]
        await self._root.raw(*AUTHORITY, "RegisterAuthenticationAgent", "(sa{sv})ss", body)

    async def question(self, number: int = 1) -> Message:
        """The question of that number, once it was asked."""
        await until(lambda: len(self.asked) >= number, "the agent is asked")
        return self.asked[number - 1]

    async def accept(self, question: Message) -> None:
        """Somebody has authenticated."""
        cookie, identity = question.body[4], ["unix-user", {"uid": Variant("u", UID)}]
        body = [UID, cookie, identity]
        await self._root.raw(*AUTHORITY, "AuthenticationAgentResponse2", "us(sa{sv})", body)
        self._root.bus.send(Message.new_method_return(question))

    def dismiss(self, question: Message) -> None:
        """Somebody has closed the dialog."""
        name = "org.freedesktop.PolicyKit1.Error.Cancelled"
        self._root.bus.send(Message.new_error(question, name, "dismissed"))

    def _on_message(self, message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL or message.path != AGENT_PATH:
            return False
        if message.member == "BeginAuthentication":
            self.asked.append(message)
        else:
            self.cancelled.append(message.body[0])
            self._root.bus.send(Message.new_method_return(message))
        return True


class Caller:
    """A command of the tester's that calls vfsd, and does not before it is told to."""

    def __init__(self, *command: str, terminal: bool = False) -> None:
        self._terminal, there = pty.openpty() if terminal else (-1, -1)
        self.process = subprocess.Popen(
            [
                *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--init-groups"),
                *("sh", "-c", 'read -r _; exec "$@"', "sh", *command),
            ],
            stdin=there if terminal else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"},
            start_new_session=True,
        )
        if terminal:
            os.close(there)

    @property
    def pid(self) -> int:
        return self.process.pid

    def begin(self) -> None:
        """Let it call."""
        if self._terminal >= 0:
            os.write(self._terminal, b"\n")
        elif self.process.stdin:
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    async def output(self) -> str:
        """What it said once it has ended."""
        out, _ = await asyncio.to_thread(self.process.communicate, None, 60)
        self.close()
        return out.decode()

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.communicate()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1


def busctl(
    member: str, signature: str = "", *arguments: str, path: str = "/org/vfsd1", interface: str = "Manager"
) -> list[str]:
    """A call that allows for authentication."""
    return [
        *("busctl", "--system", "--allow-interactive-authorization=yes", "--timeout=60", "call", "org.vfsd1"),
        *(path, f"org.vfsd1.{interface}", member, *((signature, *arguments) if signature else ())),
    ]


@contextlib.asynccontextmanager
async def calling(agent: Agent, *command: str, terminal: bool = False) -> AsyncIterator[Caller]:
    """A caller that has this agent and has begun to call."""
    caller = Caller(*command, terminal=terminal)
    try:
        command_line = Path(f"/proc/{caller.pid}/cmdline")
        await until(lambda: command_line.read_bytes().startswith(b"sh\0"), "it is the user's by now")
        await agent.serve(caller.pid)
        caller.begin()
        yield caller
    finally:
        caller.close()


def polkitd() -> int:
    """The process id of polkitd, 0 if it does not run."""
    return int(Vfsd("system").unit_property("polkit.service", "MainPID"))
