from collections.abc import Sequence
from typing import Any, Self

from dbus_next.constants import MessageFlag, MessageType

class Message:
    destination: str | None
    path: str
    interface: str | None
    member: str
    message_type: MessageType
    flags: MessageFlag
    error_name: str
    reply_serial: int
    sender: str
    unix_fds: list[int]
    signature: str
    body: list[Any]
    serial: int
    def __init__(
        self,
        destination: str | None = None,
        path: str | None = None,
        interface: str | None = None,
        member: str | None = None,
        message_type: MessageType = ...,
        flags: MessageFlag = ...,
        error_name: str | None = None,
        reply_serial: int | None = None,
        sender: str | None = None,
        unix_fds: Sequence[int] = ...,
        signature: str = "",
        body: Sequence[object] = ...,
        serial: int = 0,
    ) -> None: ...
    @staticmethod
    def new_error(msg: Message, error_name: str, error_text: str) -> Message: ...
    @staticmethod
    def new_method_return(
        msg: Message, signature: str = "", body: Sequence[object] = ..., unix_fds: Sequence[int] = ...
    ) -> Message: ...
    @classmethod
    def new_signal(
        cls, path: str, interface: str, member: str, signature: str = "", body: Sequence[object] = ...
    ) -> Self: ...
    def _marshall(self, negotiate_unix_fd: bool = False) -> bytes: ...
