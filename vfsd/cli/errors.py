"""What can go wrong, as a user reads it: one sentence, one hint, one exit code."""

from __future__ import annotations

import enum
from typing import NamedTuple

from vfsd.names import BUS_NAME, ERROR_PREFIX, Scope

_STANDARD = "org.freedesktop.DBus.Error."
NO_REPLY = _STANDARD + "NoReply"
DISCONNECTED = _STANDARD + "Disconnected"
INVALID_ARGS = _STANDARD + "InvalidArgs"
UNKNOWN_METHOD = _STANDARD + "UnknownMethod"
UNKNOWN_OBJECT = _STANDARD + "UnknownObject"
NO_SUCH_SHARE = ERROR_PREFIX + "NoSuchShare"
SHARE_EXISTS = ERROR_PREFIX + "ShareExists"
NO_SUCH_MACHINE = ERROR_PREFIX + "NoSuchMachine"
ACCESS_DENIED = _STANDARD + "AccessDenied"
INTERACTIVE_AUTHORIZATION_REQUIRED = _STANDARD + "InteractiveAuthorizationRequired"
WRONG_STATE = ERROR_PREFIX + "WrongState"


class Exit(enum.IntEnum):
    """Exit codes. 4 for what is unknown is systemctl's, 125 for a runner's own failure env's and docker's."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NO_SUCH = 4
    UNREACHABLE = 5
    RUN_FAILED = 125
    INTERRUPTED = 130


EXIT_CODES_HELP = """\
\b
Exit codes:
  0    done
  1    it failed, or a check found a failure
  2    wrong usage
  4    there is no such share or machine
  5    vfsd can't be reached
  125  "exec" or "run --exec" failed; any other code of theirs is the command's own
  130  interrupted (Ctrl-C)
"""


class CliError(Exception):
    """Something that vfsctl found wrong itself; the message is the sentence."""

    def __init__(self, message: str, hint: str = "", code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


class CallFailed(Exception):  # it says what happened
    """A call over the bus was answered with an error, or not at all."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message or name)
        self.name = name
        self.message = message


class BusGone(CallFailed):
    """The connection to the bus ended."""

    def __init__(self) -> None:
        super().__init__(DISCONNECTED, "the bus closed the connection")


class Unreachable(Exception):  # the same
    """There is no bus to talk to; the message says which and why."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Explanation(NamedTuple):
    """An error as it is shown."""

    sentence: str
    hint: str
    code: Exit


def journal_command(scope: Scope, unit: str = "vfsd.service", login: str = "") -> str:
    """How to read the journal of a unit of that scope. :param login: see `explain()`."""
    there = f"ssh -t {login} " if login else ""
    return f"{there}journalctl {'--user ' if scope is Scope.USER else ''}-e -u {unit}"


_HINTS = {
    NO_SUCH_SHARE: '"vfsctl share list" shows which shares there are.',
    NO_SUCH_MACHINE: '"vfsctl machine list" shows which machines there are.',
    SHARE_EXISTS: 'choose another name, or remove the share with "vfsctl share remove NAME".',
    ERROR_PREFIX + "MachineExists": 'choose another name, or remove it with "vfsctl machine remove NAME".',
    ERROR_PREFIX + "ShareBusy": '"vfsctl status" shows who uses it; shut that down first, or detach it.',
    ERROR_PREFIX + "SourceNotFound": "make the directory, or correct the path.",
    WRONG_STATE: '"vfsctl status NAME" shows its state and why.',
    ERROR_PREFIX + "PrerequisiteMissing": '"vfsctl check" lists all that is needed and how to get it.',
    ERROR_PREFIX + "GuestTimeout": 'the guest may be busy; "vfsctl machine kill NAME" ends it by force.',
    INVALID_ARGS: "vfsd.machine(5) and vfsd.share(5) describe the options.",
    _STANDARD + "LimitsExceeded": "too much is under way; end some of it, or try again in a moment.",
}

_AUTHENTICATE = (
    'call it from a terminal or a desktop session, where you can be asked, without --no-ask-password; or use "sudo '
    'vfsctl --system …", or your own vfsd with --user.'
)
_NAME_ANOTHER_USER = "nobody is asked over --host: name a user who may do it there, such as --host root@HOST."
_JOURNAL_TELLS_MORE = {
    ERROR_PREFIX + "UnitFailed",
    ERROR_PREFIX + "MonitorFailed",
    _STANDARD + "Failed",
}

_NOT_INSTALLED = {
    _STANDARD + "ServiceUnknown",
    _STANDARD + "NameHasNoOwner",
    "org.freedesktop.systemd1.NoSuchUnit",
}


def explain(error: CallFailed, scope: Scope, login: str = "") -> Explanation:
    """Put an error of the bus or of vfsd into words.

    :param login: what ssh is given to get to the host whose vfsd it is; "" for this one.
    """
    name, message = error.name, error.message or error.name
    journal = f'"{journal_command(scope, login=login)}" tells more.'
    if name in (NO_SUCH_SHARE, NO_SUCH_MACHINE):
        return Explanation(message, _HINTS[name], Exit.NO_SUCH)
    if name in _HINTS:
        return Explanation(message, _HINTS[name], Exit.FAILED)
    if name in _JOURNAL_TELLS_MORE:
        return Explanation(message, journal, Exit.FAILED)
    if name in _NOT_INSTALLED:
        sentence = f"vfsd is not installed for the {_bus(scope)}"
        return Explanation(sentence, _other_bus(scope), Exit.UNREACHABLE)
    if name == INTERACTIVE_AUTHORIZATION_REQUIRED:
        return Explanation(message, _NAME_ANOTHER_USER if login else _AUTHENTICATE, Exit.FAILED)
    if name == ACCESS_DENIED:
        return _denied(message, scope, login)
    if name == DISCONNECTED:
        ended = f"the connection to the {_bus(scope)}{' there' if login else ''} ended"
        return Explanation(ended, "call vfsctl again when the bus is back.", Exit.UNREACHABLE)
    if name in (NO_REPLY, _STANDARD + "Timeout", _STANDARD + "TimedOut"):
        return Explanation(f"vfsd did not answer on the {_bus(scope)}", journal, Exit.UNREACHABLE)
    if name.startswith((_STANDARD + "Spawn.", "org.freedesktop.systemd1.")):
        return Explanation(f"vfsd could not be started: {message}", journal, Exit.UNREACHABLE)
    if name.startswith(_STANDARD + "Unknown"):
        return Explanation(
            f"this vfsd can't do that: {message}",
            'vfsctl and vfsd may be of different versions; "vfsctl --version" and "vfsctl status" show them.',
            Exit.FAILED,
        )
    return Explanation(message, journal, Exit.FAILED)


def explain_unreachable(error: Unreachable, scope: Scope) -> Explanation:
    """Put a missing bus into words."""
    return Explanation(str(error), error.hint or _other_bus(scope), Exit.UNREACHABLE)


def _denied(message: str, scope: Scope, login: str) -> Explanation:
    if login:
        hint = _NAME_ANOTHER_USER
    elif scope is Scope.SYSTEM:
        hint = (
            'use "sudo vfsctl --system …", or your own vfsd with --user; vfsd(8) tells how an administrator can allow '
            "it by a rule of polkit."
        )
    else:
        hint = "this bus belongs to another user; call vfsctl as that user."
    # dbus-daemon's own sentence is a dump of the rule that matched; a person wants the gist.
    by_the_bus = message.startswith(("Rejected send message", "Sender is not authorized"))
    sentence = f"you may not talk to {BUS_NAME} on the {_bus(scope)}" if by_the_bus else message
    return Explanation(sentence, hint, Exit.UNREACHABLE if by_the_bus else Exit.FAILED)


def _bus(scope: Scope) -> str:
    return "user bus" if scope is Scope.USER else "system bus"


def _other_bus(scope: Scope) -> str:
    if scope is Scope.USER:
        return "the user's vfsd needs a login session (systemd --user); --system talks to the system's vfsd."
    return "--user talks to your own vfsd, which needs no privileges."
