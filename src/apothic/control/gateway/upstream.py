"""One connection to a container: a request goes in, its answer comes out, one after the other."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from apothic.control.gateway import heads
from apothic.control.gateway.heads import Answer, Header

CONNECT_S = 5.0
# What may lie in our memory for one direction of one connection before its other end is asked to wait.
BUFFER = 64 * 1024


class Listener(Protocol):
    """Who gets the answer."""

    method: bytes

    def on_interim(self, told: Answer) -> None: ...

    def on_answer(self, told: Answer) -> None: ...

    def on_answer_body(self, data: bytes) -> None: ...

    def on_answer_end(self, trailers: list[Header]) -> None: ...

    def on_upgraded(self, told: Answer, rest: bytes) -> None: ...

    def on_tunnel(self, data: bytes) -> None: ...

    def on_flush(self) -> None:
        """What had come at one moment is told, and what came behind an answer has been seen."""
        ...

    def on_lost(self, why: str) -> None:
        """The connection has ended before the answer has."""
        ...

    def on_container_full(self, full: bool) -> None:
        """The container takes no more of the request for now, or takes it again."""
        ...


class Upstream(asyncio.Protocol):
    """A connection to a container. `clean` while nothing of a message is under way on it."""

    transport: asyncio.Transport

    def __init__(self, on_end: Callable[[Upstream], None], greeting: bytes = b"") -> None:
        self._on_end = on_end
        self._greeting = greeting
        self.greeted: asyncio.Future[None] | None = None
        self.closed = False
        self.clean = True
        self.idle_since = 0.0
        self._listener: Listener | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[Header] = []
        self._trailers: list[Header] = []
        self._reason = b""
        self._answer: Answer | None = None
        self._tunnel = False

    # --- what is asked

    def begin(self, listener: Listener, head: bytes) -> None:
        """Send the head of a request; `listener` hears all that comes back."""
        self._listener = listener
        self._answer = None
        self.clean = False
        self.transport.write(head)

    def tunnel(self) -> None:
        """Pass on what comes from now on as it is."""
        self._tunnel = True

    def release(self) -> None:
        """Have nobody listen any more."""
        self._listener = None

    def close(self) -> None:
        """End it at once: whoever works for the one who has left is told so."""
        self._listener = None
        self.transport.abort()

    # --- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by name
        self.transport.set_write_buffer_limits(high=BUFFER)
        if self._greeting:
            self.greeted = asyncio.get_running_loop().create_future()
            self.transport.write(self._greeting)

    def data_received(self, data: bytes) -> None:
        if self.greeted is not None and not self.greeted.done():
            if data == b"OK\n":
                self.greeted.set_result(None)
            else:
                self.transport.abort()
            return
        listener = self._listener
        if listener is None:  # nobody has asked for it: whatever it is, it must not become an answer
            self.transport.abort()
            return
        if self._tunnel:
            listener.on_tunnel(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
        except (httptools.HttpParserError, ValueError):
            self._broken("its answer is no HTTP")
        listener.on_flush()

    def eof_received(self) -> bool:
        if self._answer is not None and self._answer.until_end and not self.clean:
            listener = self._listener
            self._complete(False)
            if listener is not None:
                listener.on_flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.greeted is not None and not self.greeted.done():
            self.greeted.set_exception(ConnectionError("the relay refused the connection"))
            self.greeted.exception()  # who waits for it may have given up
        listener, self._listener = self._listener, None
        if listener is not None:
            if self._answer is not None and self._answer.until_end and exc is None:
                listener.on_answer_end([])
                listener.on_flush()
            else:
                listener.on_lost(f"its connection ended: {exc}" if exc else "its connection ended")
        self._on_end(self)

    def pause_writing(self) -> None:
        if self._listener is not None:
            self._listener.on_container_full(True)

    def resume_writing(self) -> None:
        if self._listener is not None:
            self._listener.on_container_full(False)

    def _broken(self, why: str) -> None:
        listener, self._listener = self._listener, None
        self.transport.abort()
        if listener is not None:
            listener.on_lost(why)

    # --- the parser

    def on_message_begin(self) -> None:
        if self._listener is None:
            self.clean = False
            self.transport.abort()
        self._headers, self._trailers, self._reason = [], [], b""
        self._answer = None

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        (self._headers if self._answer is None else self._trailers).append((name, value))

    def on_headers_complete(self) -> None:
        listener = self._listener
        if listener is None:
            return
        status = self._parser.get_status_code()
        told = heads.answer(status, self._reason, self._headers, method=listener.method)
        self._answer = told
        if status == 101:
            return
        if status < 200:
            listener.on_interim(told)
            return
        listener.on_answer(told)
        if listener.method == b"HEAD":
            keeps = self._parser.should_keep_alive()
            # The parser does not know that no body follows, so the next answer is for another one.
            self._parser = httptools.HttpResponseParser(self)
            self._complete(keeps)

    def on_body(self, data: bytes) -> None:
        if self._listener is not None:
            self._listener.on_answer_body(data)
        else:
            self.transport.abort()

    def on_message_complete(self) -> None:
        if self._answer is not None and self._answer.status >= 200:
            self._complete(self._parser.should_keep_alive() and not self._answer.until_end)

    def _complete(self, keeps: bool) -> None:
        # From here on nobody listens: what follows an answer in the same piece must not be taken for a part of it.
        listener, self._listener = self._listener, None
        if listener is not None:
            self.clean = keeps
            listener.on_answer_end(self._trailers)

    def _upgraded(self, rest: bytes) -> None:
        if self._listener is not None and self._answer is not None and self._answer.status == 101:
            self._listener.on_upgraded(self._answer, rest)
        else:
            self._broken("it has changed the protocol without being asked")


async def connect(address: str, container: str, secret: str, on_end: Callable[[Upstream], None]) -> Upstream:
    """Return a connection to where a container answers. Raises `OSError`, `TimeoutError`."""
    loop = asyncio.get_running_loop()
    kind, _, where = address.partition(":")
    async with asyncio.timeout(CONNECT_S):
        if kind == "unix":
            sock = await _unix(where)
            _, upstream = await loop.create_unix_connection(lambda: Upstream(on_end), sock=sock)
        elif kind == "port":
            _, upstream = await loop.create_connection(lambda: Upstream(on_end), "127.0.0.1", int(where))
        else:
            host, _, port = where.rpartition(":")
            greeting = f"APOTHIC {container} {secret}\n".encode()
            _, upstream = await loop.create_connection(lambda: Upstream(on_end, greeting), host, int(port))
            assert upstream.greeted is not None
            await upstream.greeted
    return upstream


async def _unix(path: str) -> socket.socket:
    # A socket's name has 108 bytes, and data directories are longer; the way by the folder's descriptor is short.
    folder, name = os.path.split(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            while True:
                try:
                    sock.connect(f"/proc/self/fd/{fd}/{name}")
                    return sock
                except BlockingIOError:  # its queue of connections is full
                    await asyncio.sleep(0.01)
        finally:
            os.close(fd)
    except BaseException:
        sock.close()
        raise
