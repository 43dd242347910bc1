from enum import Enum, IntFlag

class BusType(Enum):
    SESSION = 1
    SYSTEM = 2

class MessageType(Enum):
    METHOD_CALL = 1
    METHOD_RETURN = 2
    ERROR = 3
    SIGNAL = 4

class MessageFlag(IntFlag):
    NONE = 0
    NO_REPLY_EXPECTED = 1
    NO_AUTOSTART = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4
