# dbus-next is typed in part and re-exports nothing by name: what vfsd uses, by hand.
from dbus_next.constants import BusType as BusType
from dbus_next.constants import MessageFlag as MessageFlag
from dbus_next.constants import MessageType as MessageType
from dbus_next.message import Message as Message
from dbus_next.signature import Variant as Variant
