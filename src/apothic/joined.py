"""The head of an answer and what follows it at the same moment, in one system call.

uvicorn writes a head by itself: one more call here, and one more wake-up of whoever reads.
"""

from __future__ import annotations

import asyncio
from typing import Any


class Joined:
    """A connection's transport that can hold a head back. One that nothing follows leaves with the next loop round."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._holds = False
        self._head = b""
        self.is_closing = transport.is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def hold(self) -> None:
        """Hold what is written next until more comes, or the moment is over."""
        self._holds = True

    def write(self, data: bytes) -> None:
        """Write it, behind what is held."""
        if self._holds:
            self._holds = False
            self._head = data
            self._loop.call_soon(self.flush)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write what is held."""
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def close(self) -> None:
        """Close it once all is written."""
        self.flush()
        self._transport.close()
