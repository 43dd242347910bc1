from dbus_next.aio.message_bus import MessageBus as MessageBus
