"""Says to virtiofsd what is no message, and gives it queues that make no sense.

Each may end virtiofsd, which is the guest's own loss; none may end more.
"""

from __future__ import annotations

from tests.integration.hostile.attack import tell
from tests.integration.hostile.device import HEADER, NEXT, PAGE, WRITE, Device, Silence

LOOKUP, ROOT = 1, 1
BEYOND = 1 << 52
device = Device("broken")
device.begin()
here, there = device.question.address, device.answer.address
MESSAGES = {
    "says less than it has": device.message(LOOKUP, ROOT, b"hello\0", 8),
    "says more than it has": device.message(LOOKUP, ROOT, b"hello\0", 1 << 31),
    "half a header": bytes(HEADER // 2),
    "noise": b"\xff" * PAGE,
}
QUEUES = {
    "a loop": ((here, HEADER, NEXT, 0),),
    "outside of memory": ((BEYOND, HEADER, NEXT, 1), (there, PAGE, WRITE, 0)),
    "an answer outside of memory": ((here, HEADER, NEXT, 1), (BEYOND, PAGE, WRITE, 0)),
    "longer than memory": ((here, 0xFFFFFFFF, NEXT, 1), (there, 0xFFFFFFFF, WRITE, 0)),
    "beyond the table": ((here, HEADER, NEXT, 0xFFFF), (there, PAGE, WRITE, 0)),
    "nothing": ((0, 0, 0, 0),),
    "the answer first": ((there, PAGE, WRITE | NEXT, 1), (here, HEADER, 0, 0)),
}
found = {}
try:
    for name, message in MESSAGES.items():
        found[name] = "not answered"
        found[name] = str(device.raw(message, 2)[0])
except Silence:
    device.start()
for name, parts in QUEUES.items():
    try:
        device.chain(*parts, timeout=0.3)
        found[name] = "taken"
    except Silence:
        found[name] = "not answered"
        device.start()
tell(found)
