"""How a rank says how long it ran: eight bytes in front of its answer. Imported on both sides, so without torch."""

from __future__ import annotations

import dataclasses
import struct
from typing import Final

from conformance.ranks import Reply

CLOCK: Final = struct.Struct("<d")  # seconds


def with_clock(seconds: float, payload: bytes) -> bytes:
    return CLOCK.pack(seconds) + payload


def read_clock(reply: Reply) -> tuple[float, Reply]:
    """The seconds, and the reply as it would be without them; 0 where a lost rank said nothing."""
    if reply.payload is None:
        return 0.0, reply
    (seconds,) = CLOCK.unpack_from(reply.payload)
    return seconds, dataclasses.replace(reply, payload=reply.payload[CLOCK.size :])
