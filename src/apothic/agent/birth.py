"""What an agent and its zygote say to each other: one packet asks for a container, one answers with its pid.

The descriptors of a container travel with the packet, in this order: socket, stdout, stderr, and a service's listener.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

LONGEST = 128 * 1024  # of a packet: less than what a Unix socket takes at once
DESCRIPTORS = 4


class Order(Struct, frozen=True):
    """A container that is wanted: its environment and its directory."""

    env: dict[str, str]
    work_dir: str


class Born(Struct, frozen=True):
    """Its pid, and the number that its listener has there. Without a pid: what the system said to a fork.

    The first one, all zero, comes unasked: the zygote is ready.
    """

    pid: int = 0
    listener: int | None = None
    errno: int = 0


encode = msgspec.msgpack.Encoder().encode
order_in = msgspec.msgpack.Decoder(Order).decode
born_in = msgspec.msgpack.Decoder(Born).decode
