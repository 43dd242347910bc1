"""A file chooser for the tests: the desktop's portal, in which somebody chooses at once.

It runs as the user, alone. Arguments: a file for what was asked, and the folder that is chosen, or nothing if the user
cancels.
"""

import asyncio
import json
import sys
from pathlib import Path

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

NAME = "org.freedesktop.portal.Desktop"


async def main() -> None:
    asked, chosen = Path(sys.argv[1]), sys.argv[2:]
    bus = await MessageBus().connect()

    def answer(message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "OpenFile":
            return False
        parent, title, options = message.body
        plain = {key: value.value for key, value in options.items()}
        asked.write_text(json.dumps([message.interface, parent, title, plain]))
        caller = message.sender.removeprefix(":").replace(".", "_")
        path = f"/org/freedesktop/portal/desktop/request/{caller}/{plain['handle_token']}"
        bus.send(Message.new_method_return(message, "o", [path]))
        results = {"uris": Variant("as", [Path(folder).as_uri() for folder in chosen])} if chosen else {}
        response = [0 if chosen else 1, results]
        bus.send(Message.new_signal(path, "org.freedesktop.portal.Request", "Response", "ua{sv}", response))
        return True

    bus.add_message_handler(answer)
    driver = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
    await bus.call(Message(*driver, "RequestName", signature="su", body=[NAME, 0]))
    await bus.wait_for_disconnect()


asyncio.run(main())
