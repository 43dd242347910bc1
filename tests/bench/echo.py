"""A bare dbus-next service: answers each call with one variant. What a Get costs at least in Python."""

from __future__ import annotations

import asyncio
import sys

from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus

from tests.bench.bus import BUS, SYSTEM_BUS


async def serve(name: str) -> None:
    """Print the name once it is owned, then answer until the bus is gone."""
    bus = MessageBus(bus_type=BusType.SYSTEM, bus_address=f"unix:path={SYSTEM_BUS}")

    def answer(message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        return Message.new_method_return(message, "v", [Variant("s", "listening")])

    bus.add_message_handler(answer)
    await bus.connect()
    request = Message(
        destination=BUS[0],
        path=BUS[1],
        interface=BUS[2],
        member="RequestName",
        signature="su",
        body=[name, 0],
    )
    await bus.call(request)
    print(name, flush=True)
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
