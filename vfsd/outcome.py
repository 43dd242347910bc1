"""What the end of a process means, in words that a person understands.

virtiofsd's exit codes mislead: protocol errors end with 0, a SIGTERM with 1, and its sandbox's waiting parent turns
a child that was killed by signal n into exit code 256 - n, which systemd prints as an error of its own
(225 as NETWORK). QEMU's are plain.
"""

from __future__ import annotations

import signal

from vfsd.supervisor import UnitStatus

_EXITED = 1  # CLD_EXITED
_OF_SYSTEMD = {
    200: "could not enter its folder (is the source still there?)",
    203: "can't be executed",
    216: "could not take its group",
    218: "could not trim its capabilities",
    225: "could not get a network namespace",
    226: "could not be given its view of the file system (is the source still there?)",
    228: "could not be given its system call filter",
}
"""Exit codes by which systemd says that a process never began (systemd.exec(5), "Process Exit Codes")."""
_OF_RESULT = {
    "oom-kill": "was killed because memory ran out",
    "timeout": "did not end in time and was killed",
    "watchdog": "no longer answered and was killed",
    "resources": "could not be started for want of resources",
    "start-limit-hit": "was started too often in a short time",
}
_FIRST_SIGNAL_CODE = 256 - 64
_STOPPED_CODE = 256 - signal.SIGINT


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def virtiofsd_end(status: UnitStatus, *, had_begun: bool) -> str:
    """Why virtiofsd ended abnormally; "" if the end is a normal one.

    :param had_begun: whether the process had been executed, before which an exit code is systemd's.
    """
    who = "virtiofsd"
    if status.result in _OF_RESULT:
        return f"{who} {_OF_RESULT[status.result]}"
    if status.exit_code != _EXITED:
        # its KillSignal=, before virtiofsd was ready to handle it
        stopped = status.exit_code and status.exit_status == signal.SIGINT
        return "" if stopped else _signalled(who, status)
    code = status.exit_status
    if code in (0, _STOPPED_CODE):
        return ""
    if not had_begun and code in _OF_SYSTEMD:
        return f"{who} {_OF_SYSTEMD[code]}"
    if code >= _FIRST_SIGNAL_CODE:
        number = 256 - code
        why = " for a system call that its filter forbids" if number == signal.SIGSYS else ""
        return f"{who} was killed by {signal_name(number)}{why}"
    return f"{who} ended with exit code {code}"


def qemu_end(status: UnitStatus) -> str:
    """Why QEMU ended abnormally; "" if the end is a normal one."""
    if status.result in _OF_RESULT:
        return f"QEMU {_OF_RESULT[status.result]}"
    if status.exit_code != _EXITED:
        return _signalled("QEMU", status)
    code = status.exit_status
    if code == 0:
        return ""
    return f"QEMU {_OF_SYSTEMD.get(code, f'ended with exit code {code}')}"


def may_be_panic(status: UnitStatus) -> bool:
    """Whether QEMU ended as it does when its guest panics (`-action panic=exit-failure`), and with some errors."""
    return (status.exit_code, status.exit_status) == (_EXITED, 1)


def _signalled(who: str, status: UnitStatus) -> str:
    if status.exit_code == 0:
        return "" if status.result == "success" else f"{who} failed ({status.result})"
    return f"{who} was killed by {signal_name(status.exit_status)}"
