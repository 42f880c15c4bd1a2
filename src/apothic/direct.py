"""A request and its answer in the thread of who asks: over a kept connection, a blocking socket, and no event loop.

Client CPU measured for one small POST and its answer: http.client 74 µs, aiohttp 146 and 62 more for the way to its
loop and back, urllib3 192, a socket with httptools 13.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import types
from collections.abc import Generator
from contextvars import ContextVar
from typing import NamedTuple
from urllib.parse import urlsplit

from apothic.errors import ConfigError

CONNECT_S = 10.0
_PIECE = 1 << 16
_FREE_OF_BODY = ("GET", "DELETE")

# Set while a coroutine is driven in the thread of its caller. Whatever needs an event loop awaits `on_loop` first.
DIRECT: ContextVar[bool] = ContextVar("apothic_direct", default=False)


@types.coroutine
def on_loop() -> Generator[None, None, None]:
    """Go on on the library's event loop, when driven in the caller's thread: what follows needs a loop."""
    if DIRECT.get():
        yield


class Unreached(ConnectionError):
    """No connection came about, so nothing was carried over."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.os_error = None if isinstance(error, ssl.SSLError) else error


class Lost(ConnectionError):
    """The connection ended, or what came was no HTTP, before the answer was whole."""


class Reply(NamedTuple):
    """A whole answer. The names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connections:
    """Kept connections to one URL: each is used by one thread at a time, and a forked child opens its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._pid = os.getpid()
        self._idle: list[_Connection] = []
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url} is no URL", hint="use one such as http://127.0.0.1:8700")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address = parts.hostname, port or (443 if self._tls else 80)
        self._host = parts.netloc.rpartition("@")[2]
        self._root = parts.path

    def exchange(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, *, silence_s: float
    ) -> Reply:
        """Send a request and return the answer. Whatever interrupts it (Ctrl-C) closes the connection.

        Raises `Unreached`, `Lost`, `TimeoutError` when nothing comes for `silence_s`, another `OSError`.
        """
        told = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if told.count("\n") != len(headers) or told.count("\r") != len(headers):
            raise ConfigError("what is shown to the control plane has a line end in it", hint="look at the API key")
        size = "" if body is None and method in _FREE_OF_BODY else f"Content-Length: {len(body or b'')}\r\n"
        head = f"{method} {self._root}{target} HTTP/1.1\r\nHost: {self._host}\r\n{told}{size}\r\n".encode()
        connection = self._taken()
        try:
            reply = connection.exchange(head + body if body else head, silence_s)
        except BaseException:
            connection.close()
            raise
        if connection.keeps:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().close()

    def _taken(self) -> _Connection:
        if self._pid != os.getpid():
            self.close()  # this process's ends of them; the parent's stay as they are
            self._pid = os.getpid()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return _Connection(self._connected())
            if connection.is_quiet():
                return connection
            connection.close()

    def _connected(self) -> socket.socket:
        try:
            sock = socket.create_connection(self._address, CONNECT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self._tls.wrap_socket(sock, server_hostname=self._address[0]) if self._tls is not None else sock
        except TimeoutError:
            raise
        except OSError as error:
            raise Unreached(error) from None


class _Connection:
    """One connection. What the parser finds goes into a reply; see httptools for when it calls which method."""

    def __init__(self, sock: socket.socket) -> None:
        self.keeps = False
        self._sock = sock
        self._news = select.poll()
        self._news.register(sock, select.POLLIN)
        self._silence_s = CONNECT_S
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._status = 0
        self._whole = False

    def is_quiet(self) -> bool:
        """Tell whether the other end has sent nothing since: it would be the end of the connection."""
        return not self._news.poll(0)

    def close(self) -> None:
        self._sock.close()

    def exchange(self, request: bytes, silence_s: float) -> Reply:
        import httptools

        if silence_s != self._silence_s:
            self._sock.settimeout(silence_s)
            self._silence_s = silence_s
        self._sock.sendall(request)
        self._parser = httptools.HttpResponseParser(self)
        self._whole = self.keeps = False
        self._begin()
        while not self._whole:
            piece = self._sock.recv(_PIECE)
            if not piece:
                if not self._until_end:
                    raise Lost("the connection was closed before the answer was whole")
                break
            try:
                self._parser.feed_data(piece)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                raise Lost(f"what came is no HTTP: {error}") from None
        return Reply(self._status, self._headers, b"".join(self._pieces))

    @property
    def _until_end(self) -> bool:
        """Tell whether the end of the connection is that of the answer, which says nothing of its length."""
        return self._status >= 200 and not {"content-length", "transfer-encoding"} & set(self._headers)

    def _begin(self) -> None:
        self._headers, self._pieces, self._status = {}, [], 0

    # --- the parser

    def on_message_begin(self) -> None:
        if self._whole:
            raise ValueError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._status >= 200:
            self._whole = True
            self.keeps = self._parser.should_keep_alive()  # which it knows only now
        else:  # an interim answer
            self._begin()
