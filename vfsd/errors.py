"""The error tree: each class declares its own D-Bus name.

The message of an error names the object and says what to do. Nothing else (no traceback, no internal path)
crosses the bus.
"""

from __future__ import annotations

import re
from typing import ClassVar

from vfsd.names import ERROR_PREFIX

_STANDARD = "org.freedesktop.DBus.Error."


class VfsdError(Exception):
    """A refusal or failure that the caller is told about."""

    dbus_name: ClassVar[str] = _STANDARD + "Failed"


class InvalidArgs(VfsdError):
    """An argument is malformed; nothing was done."""

    dbus_name = _STANDARD + "InvalidArgs"


class AccessDenied(VfsdError):
    """The caller may not do this."""

    dbus_name = _STANDARD + "AccessDenied"


class InteractiveAuthorizationRequired(VfsdError):
    """The caller may do this once somebody has authenticated, which the call does not allow for."""

    dbus_name = _STANDARD + "InteractiveAuthorizationRequired"


class NotSupported(VfsdError):
    """vfsd, or the QEMU or virtiofsd that it found, cannot do this."""

    dbus_name = _STANDARD + "NotSupported"


class UnknownMethod(VfsdError):
    """The object has no such method."""

    dbus_name = _STANDARD + "UnknownMethod"


class UnknownObject(VfsdError):
    """There is no object at that path."""

    dbus_name = _STANDARD + "UnknownObject"


class UnknownInterface(VfsdError):
    """The object has no such interface."""

    dbus_name = _STANDARD + "UnknownInterface"


class UnknownProperty(VfsdError):
    """The interface has no such property."""

    dbus_name = _STANDARD + "UnknownProperty"


class PropertyReadOnly(VfsdError):
    """The property can't be set."""

    dbus_name = _STANDARD + "PropertyReadOnly"


class LimitsExceeded(VfsdError):
    """There are too many already: calls of one caller, readers of one console."""

    dbus_name = _STANDARD + "LimitsExceeded"


class NoSuchShare(VfsdError):
    """No share has that name."""

    dbus_name = ERROR_PREFIX + "NoSuchShare"


class ShareExists(VfsdError):
    """A share has that name already."""

    dbus_name = ERROR_PREFIX + "ShareExists"


class ShareBusy(VfsdError):
    """The share is in use."""

    dbus_name = ERROR_PREFIX + "ShareBusy"


class SourceNotFound(VfsdError):
    """The directory that was to be shared is not there."""

    dbus_name = ERROR_PREFIX + "SourceNotFound"


class NoSuchMachine(VfsdError):
    """No machine has that name."""

    dbus_name = ERROR_PREFIX + "NoSuchMachine"


class MachineExists(VfsdError):
    """A machine has that name already."""

    dbus_name = ERROR_PREFIX + "MachineExists"


class WrongState(VfsdError):
    """The object's state does not allow this."""

    dbus_name = ERROR_PREFIX + "WrongState"


class PrerequisiteMissing(VfsdError):
    """This host lacks something that the call needs; the message says what and how to get it."""

    dbus_name = ERROR_PREFIX + "PrerequisiteMissing"


class UnitFailed(VfsdError):
    """systemd could not start or stop a unit."""

    dbus_name = ERROR_PREFIX + "UnitFailed"


class MonitorFailed(VfsdError):
    """QEMU's monitor does not answer, or refused."""

    dbus_name = ERROR_PREFIX + "MonitorFailed"


class GuestTimeout(VfsdError):
    """The guest did not do in time what it was asked."""

    dbus_name = ERROR_PREFIX + "GuestTimeout"


def without_path(text: str, path: str) -> str:
    """A message without a path: of `"/x", the kernel of it, is bad` remains `the kernel of it is bad`."""
    explained = rf'"{re.escape(path)}", (the [a-z]+(?: of [a-z]+(?: "[^"]*")?)*),?'
    return re.sub(explained, lambda match: match[1], text)
