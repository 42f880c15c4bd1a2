"""The way from the control plane to the services of an agent on another machine: one TCP port for all of them.

Who connects names a container and its secret, in one line; from then on bytes go both ways as they come. A side that
has read all it may hold waits for the other, and a side that ends its half leaves the other half open.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import socket
from collections.abc import Callable

from apothic.agent.door import Door
from apothic.clock import Clock

PREAMBLE_S = 5.0
_WORD = b"APOTHIC"
_LONGEST = 1024  # of the preamble
_CHUNK = 64 * 1024
_QUEUED_S = 5.0  # for a service whose queue of connections is full
_LOOK_S = 0.01
_log = logging.getLogger("apothic.agent")

Find = Callable[[str], Door | None]


class Relay:
    """Listens once it is opened. `find` knows the door of a container that serves."""

    def __init__(self, find: Find, clock: Clock) -> None:
        self.address = ""  # HOST:PORT
        self._find = find
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._host = ""
        self._callers: set[asyncio.Task[None]] = set()

    async def open(self, host: str) -> None:
        """Listen at this address of ours; the same one as before changes nothing. Raises `OSError`."""
        if self._server is not None and host == self._host:
            return
        before = self._server
        self._server = await asyncio.start_server(self._enter, host, 0, limit=_CHUNK)
        self._host = host
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        _log.info("services are reached at %s", self.address)
        if before is not None:
            before.close()  # what came in there goes on

    async def close(self) -> None:
        """End everything."""
        if self._server is not None:
            self._server.close()
        for caller in self._callers:
            caller.cancel()
        await asyncio.gather(*self._callers, return_exceptions=True)

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._callers.add(task)
        try:
            with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
                async with asyncio.timeout(PREAMBLE_S):
                    door = await self._admit(reader)
                if door is not None:
                    await self._join(reader, writer, door)
                writer.close()  # once all is written
                await writer.wait_closed()
        finally:
            self._callers.discard(task)
            writer.transport.abort()

    async def _admit(self, reader: asyncio.StreamReader) -> Door | None:
        line = await reader.readuntil(b"\n")
        word, container, secret = line[:_LONGEST].rstrip(b"\n").split(b" ")
        door = self._find(container.decode("ascii", "replace"))
        wanted = door.secret.encode() if door is not None else b""
        if not hmac.compare_digest(secret, wanted) or not wanted or word != _WORD:
            _log.warning("refused a connection to the relay: a wrong container or secret")
            return None
        return door

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, door: Door) -> None:
        sock = await self._connect(door)
        opened = asyncio.open_unix_connection if sock.family == socket.AF_UNIX else asyncio.open_connection
        inner, outer = await opened(sock=sock, limit=_CHUNK)
        try:
            writer.write(b"OK\n")
            async with asyncio.TaskGroup() as both:
                both.create_task(_carry(reader, outer))
                both.create_task(_carry(inner, writer))
            outer.close()
            await outer.wait_closed()
        except* OSError:
            writer.transport.abort()  # one of them is gone, and the other is told
        finally:
            outer.transport.abort()

    async def _connect(self, door: Door) -> socket.socket:
        until = self._clock.monotonic() + _QUEUED_S
        while True:
            try:
                return door.connect()
            except BlockingIOError:
                if self._clock.monotonic() > until:
                    raise
                await self._clock.sleep(_LOOK_S)


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Carry bytes to the end of one half; end it on the other side too."""
    while data := await source.read(_CHUNK):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()
    await sink.drain()
