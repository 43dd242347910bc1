from typing import BinaryIO

from dbus_next.message import Message

class Unmarshaller:
    def __init__(self, stream: BinaryIO, sock: object | None = None) -> None: ...
    def unmarshall(self) -> Message | None: ...
