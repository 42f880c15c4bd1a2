"""The frames of a websocket that passes through: their heads are read, and what breaks the rules ends it.

The payload goes on as it is, so that extensions (compression among them) are between the client and the application.
"""

from __future__ import annotations

# What uvicorn takes at most, and what ours serve with.
LARGEST_FRAME = 16 * 1024 * 1024
_OPCODES = frozenset({0, 1, 2, 8, 9, 10})


class FrameError(Exception):
    """Bytes that are no websocket frame, or one that is too large."""


class Meter:
    """Follows one direction of a websocket. What a client sends is masked, what a server sends is not."""

    def __init__(self, *, masked: bool) -> None:
        self._masked = masked
        self._head = bytearray()
        self._left = 0  # of the payload of the frame that is passing

    def feed(self, data: bytes) -> None:
        """Follow these bytes. Raises `FrameError`."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            self._head.append(data[at])
            at += 1
            if len(self._head) >= 2 and len(self._head) == self._size():
                self._begin()

    def _size(self) -> int:
        kind = self._head[1] & 0x7F
        return 2 + (2 if kind == 126 else 8 if kind == 127 else 0) + (4 if self._head[1] & 0x80 else 0)

    def _begin(self) -> None:
        head = self._head
        if head[0] & 0x0F not in _OPCODES or bool(head[1] & 0x80) is not self._masked:
            raise FrameError("bytes that are no websocket frame")
        length = head[1] & 0x7F
        if length >= 126:
            length = int.from_bytes(head[2 : 4 if length == 126 else 10], "big")
        if length > LARGEST_FRAME:
            raise FrameError(f"a frame of {length:,} bytes, the limit is {LARGEST_FRAME:,}")
        if head[0] & 0x08 and length > 125:
            raise FrameError("a control frame that is too long")
        self._left = length
        self._head = bytearray()
