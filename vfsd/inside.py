"""What one machine knows of its guest, and does in it, through the guest's agent."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vfsd import commands
from vfsd.agent import Agent, Done, clean
from vfsd.context import Context
from vfsd.errors import GuestTimeout, NotSupported, ShareBusy, VfsdError, WrongState

if TYPE_CHECKING:
    from vfsd.lifecycle import Lifecycle

AGENT_TIMEOUT = 10.0
"""Seconds to wait for the agent of a guest that has only just gone on."""
END_GRACE = 0.5
"""Seconds in which a machine must have ended whose agent does not answer any more, if that is why."""
GREETINGS = 5
"""How often an agent that has opened its port is greeted before it is given up until it opens the port again."""
_SYSTEM_MAX = 256
"""Characters of the guest's name of its operating system."""
_SHELL = "/bin/sh"
_PATH_MAX = 4096
"""Bytes of a path, and characters of options (PATH_MAX, a page: mount(2))."""
_MOUNTS = "/proc/1/mountinfo"
_OCTAL = re.compile(r"\\([0-7]{3})")
# A device that was plugged just now may not be known to the guest's file system yet.
_MOUNT = """
work() {
	[ -d "$2" ] || mkdir -p -- "$2" || return
	left=10
	until said=$(mount -t virtiofs -o "$3" -- "$1" "$2" 2>&1); do
		code=$? left=$((left - 1))
		[ $left -gt 0 ] || { echo "$said" >&2; return $code; }
		sleep 0.1
	done
}
"""
_UNMOUNT = 'work() { umount -- "$1"; }'
_TOUCH = 'for place; do df -- "$place" </dev/null >/dev/null 2>&1 & done'
_AND_TELL = f"""
work "$@"
code=$?
cat {_MOUNTS}
exit $code
"""
# The file system is dead: what waits for its answer waits for ever. So nothing here looks at it, and umount is not
# waited for; it has taken the mount away long before it says its last words to virtiofsd.
_REMOUNT = """
mounts() { mounts=0; while read -r _; do mounts=$((mounts + 1)); done </proc/self/mountinfo; }
count=$1
shift
while [ $count -gt 0 ]; do
	mounts
	before=$mounts left=50
	umount -l -- "$1" &
	while [ $left -gt 0 ] && mounts && [ $mounts -ge $before ]; do sleep 0.02; left=$((left - 1)); done
	shift
	count=$((count - 1))
done
while [ $# -gt 0 ]; do
	[ -d "$2" ] || mkdir -p -- "$2"
	if [ "$4" = / ]; then
		mount -t virtiofs -o "$3" -- "$1" "$2" || exit
	else
		whole=$(mktemp -d) && mount -t virtiofs -o "$3" -- "$1" "$whole" || exit
		mount --bind "$whole$4" "$2" || exit
		umount -l "$whole"
		rmdir "$whole"
	fi
	shift 4
done
"""


@dataclass(frozen=True, slots=True)
class GuestMount:
    """A virtio-fs file system where the guest has it mounted."""

    tag: str
    mount_point: str
    options: str
    root: str = "/"
    """The folder of the file system that is seen there: another one is that of a bind mount."""


class Inside:
    """The guest of one machine."""

    def __init__(self, context: Context, machine: Lifecycle) -> None:
        self._context = context
        self._machine = machine
        self._agent: Agent | None = None
        self._ready = asyncio.Event()
        self._greeting: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        """Held from the question for the mounts to what becomes of the answer: no older one comes after it."""
        self.system = ""
        self.mounts: list[GuestMount] = []
        """In the order in which they were mounted."""

    @property
    def ready(self) -> bool:
        """Whether the agent answers."""
        return self._ready.is_set()

    # what QEMU tells

    def port_changed(self, *, is_open: bool) -> None:
        """The agent opened its port, or closed it."""
        self.forget()
        if is_open:
            self._greeting = self._context.spawn(self._greet())

    async def find(self) -> None:
        """Look whether the guest of a machine that runs already has an agent. :raise MonitorFailed."""
        for device in await self._machine.qemu.execute("query-chardev"):
            if device.get("label") == commands.AGENT and device.get("frontend-open"):
                self.port_changed(is_open=True)

    def silence(self, timeout: float) -> AbstractAsyncContextManager[None]:
        """Ask the agent nothing for a while; what is under way may take `timeout` seconds still."""
        return contextlib.nullcontext() if self._agent is None else self._agent.silence(timeout)

    def moved(self) -> None:
        """Another QEMU has the guest, and the agent's port is there."""
        if self._agent is not None:
            self._agent.move(self._machine.paths.agent)

    def forget(self) -> None:
        """The guest is gone, or begins anew."""
        if self._greeting is not None and self._greeting is not asyncio.current_task():
            self._greeting.cancel()
        self._greeting = None
        if self._agent is not None:
            self._agent.close()
        self._agent = None
        known = self.ready or self.system or self.mounts
        self._ready.clear()
        self.system, self.mounts = "", []
        if known:
            self.tell()

    # asking

    async def wait_ready(self, timeout: float) -> None:
        """Wait for the agent, `timeout` seconds at most; one that fell silent is asked again."""
        with contextlib.suppress(TimeoutError, VfsdError):
            async with asyncio.timeout(timeout):
                if self._agent is not None and self._greeting is not None and self._greeting.done():
                    await self.query_mounts()
                await self._ready.wait()

    async def has_agent(self) -> bool:
        """Whether the guest has an agent, which answers. :raise GuestTimeout: it does not. MonitorFailed."""
        if self._greeting is None:
            await self.find()  # vfsd may have come up just now
        if self._greeting is None:
            return False
        await self.wait_ready(AGENT_TIMEOUT)
        if not self.ready:
            raise GuestTimeout(f"the agent of {self._who} does not answer; try again, or see to the guest")
        return True

    async def query(self) -> None:
        """Ask for the system and the mounts anew. :raise VfsdError: the agent does not answer."""
        agent = self._require()
        async with self._judged(agent):
            with contextlib.suppress(NotSupported):
                answer = await agent.command("guest-get-osinfo")
                self.system = _system(answer)
            await self._query_mounts()

    async def query_mounts(self) -> None:
        """Ask for the mounts anew. :raise VfsdError: the agent does not answer."""
        async with self._judged(self._require()):
            await self._query_mounts()

    async def execute(
        self, arguments: Sequence[str], data: bytes, environment: Sequence[str], timeout: float
    ) -> Done:
        """Run a program in the guest. :raise VfsdError: see the interface."""
        agent = self._require()
        async with self._judged(agent):
            return await agent.execute(arguments, data=data, environment=environment, timeout=timeout)

    async def set_time(self) -> None:
        """Tell a guest what time it is that stood still for long, if it has an agent that takes it."""
        with contextlib.suppress(VfsdError):
            await self._require().command("guest-set-time", time=time.time_ns())

    async def shut_down(self, timeout: float) -> None:
        """Ask the guest to power off; it says nothing if it does. :raise VfsdError: it could not be asked."""
        await self._require().tell("guest-shutdown", timeout, mode="powerdown")

    async def touch_shares(self) -> None:
        """Make the guest ask something of each share that is mounted: virtiofsd looks at all that waits for it then.

        To be done when the guest was moved, since notice of a request may have been lost on the way.
        """
        with contextlib.suppress(VfsdError):
            await self.query_mounts()
            await self._script(_TOUCH, *(mount.mount_point for mount in self.mounts))

    # mounting

    async def mount(self, tag: str, mount_point: str, options: str) -> None:
        """Mount a share. :raise VfsdError: the guest did not."""
        done = await self._change_mounts(_MOUNT, tag, mount_point, options)
        there = any((mount.tag, mount.mount_point) == (tag, mount_point) for mount in self.mounts)
        if done.status and not there:
            raise GuestTimeout(f"{self._who} did not mount it at {mount_point}: {_words(done)}")

    async def unmount(self, mount_point: str) -> None:
        """Unmount a share. :raise ShareBusy: processes in the guest use it. VfsdError: the guest did not."""
        done = await self._change_mounts(_UNMOUNT, mount_point)
        if not done.status or not any(mount.mount_point == mount_point for mount in self.mounts):
            return
        words = _words(done)
        if "busy" in words.lower():
            raise ShareBusy(
                f"processes in {self._who} use {mount_point}; end them, or let them leave it, and detach again"
            )
        raise GuestTimeout(f"{self._who} did not unmount {mount_point}: {words}")

    async def remount(self, old_tags: Sequence[str], new_tag: str) -> list[str]:
        """Mount another device wherever one of some was whose file systems are dead; returns the places.

        Other shares that were mounted inside of it went with it, so they are mounted again too.

        :raise VfsdError: the guest did not.
        """
        await self._query_mounts()
        found = [mount for mount in self.mounts if mount.tag in old_tags]
        if not found:
            return []
        back = []
        for number, mount in enumerate(self.mounts):
            if mount.tag in old_tags:
                back += [new_tag, mount.mount_point, mount.options, mount.root]
            elif any(mount.mount_point.startswith(f"{outer.mount_point}/") for outer in found) and any(
                outer.tag in old_tags for outer in self.mounts[:number]
            ):
                back += [mount.tag, mount.mount_point, mount.options, mount.root]
        away = [mount.mount_point for mount in reversed(found)]
        done = await self._script(_REMOUNT, str(len(away)), *away, *back)
        await self._query_mounts()
        if done.status:
            raise GuestTimeout(f"{self._who} did not mount it again: {_words(done)}")
        return [mount.mount_point for mount in found]

    # inner workings

    @property
    def _who(self) -> str:
        return f'the guest of machine "{self._machine.name}"'

    def _require(self) -> Agent:
        """:raise NotSupported: there is no agent. One that did not answer is given another chance."""
        if self._agent is None:
            raise NotSupported(
                f"{self._who} has no agent that answers; install and start qemu-guest-agent in it"
            )
        return self._agent

    @contextlib.asynccontextmanager
    async def _judged(self, agent: Agent) -> AsyncIterator[None]:
        """Whether the agent is ready shows in whether it answers.

        :raise WrongState: the machine ended meanwhile.
        """
        try:
            yield
        except VfsdError:
            if agent is self._agent and agent.answers:
                raise
            # an agent's end is told on its own socket first: wait for what else there is to know
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_GRACE):
                    await self._machine.wait_idle()
            if not self._machine.live:
                raise WrongState(f'machine "{self._machine.name}" ended meanwhile') from None
            raise
        finally:
            if agent is self._agent and self.ready is not agent.answers:
                (self._ready.set if agent.answers else self._ready.clear)()
                self.tell()

    async def _greet(self) -> None:
        self._agent = Agent(self._machine.paths.agent, self._machine.name)
        for _ in range(GREETINGS):
            try:
                await self._agent.command("guest-ping")
                break
            except VfsdError:
                continue
        else:
            return
        self._ready.set()
        self.tell()
        with contextlib.suppress(VfsdError):
            await self.query()

    async def _script(self, script: str, *arguments: str) -> Done:
        return await self._require().execute([_SHELL, "-c", script, _SHELL, *arguments])

    async def _change_mounts(self, script: str, *arguments: str) -> Done:
        """Run a script that defines the function `work`, and learn what is mounted after it."""
        async with self._asking:
            done = await self._script(script + _AND_TELL, *arguments)
            if done.output:
                self.mounts = parse_mounts(done.output.decode(errors="replace"))
                self.tell()
        if not done.output:
            await self._query_mounts()
        return done

    async def _query_mounts(self) -> None:
        async with self._asking:
            text = await self._require().read_file(_MOUNTS)
            self.mounts = parse_mounts(text.decode(errors="replace"))
            self.tell()

    def tell(self) -> None:
        """Tell of the machine, and its shares where they are mounted."""
        machine = self._machine
        for share in machine.shares:
            plugged = machine.layout.of(share.name)
            tag = plugged.tag if plugged else share.spec.tag
            found = next((mount for mount in self.mounts if mount.tag == tag), None)
            share.mounted(found.mount_point if found else "", found.options if found else "")
        machine.changed()


def parse_mounts(text: str) -> list[GuestMount]:
    """The virtio-fs file systems of a mountinfo file (proc_pid_mountinfo(5)); lines that make no sense are left out."""
    found = []
    for line in text.splitlines():
        here, _, there = line.partition(" - ")
        fields, source = here.split(" "), there.split(" ")
        if len(fields) < 6 or len(source) < 2 or source[0] != "virtiofs":
            continue
        words = (_plain(source[1]), _plain(fields[4]), fields[5], _plain(fields[3]))
        # a path that no kernel has; NUL can't be told over the bus either
        if all(len(word) <= _PATH_MAX and "\0" not in word for word in words):
            found.append(GuestMount(*words))
    return found


def _plain(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _words(done: Done) -> str:
    return clean(done.errors.decode(errors="replace"), 200) or f"exit code {done.status}"


def _system(answer: Any) -> str:
    name = answer.get("pretty-name") or answer.get("name") if isinstance(answer, dict) else ""
    return clean(name, _SYSTEM_MAX) if isinstance(name, str) else ""
