"""uvicorn's connections in a service's container: who calls, and when a caller leaves, what works for it is cancelled.

An app that listens for the disconnect is told by uvicorn and has a second to end by itself; one that does not listen
would go on for nobody. What runs after a complete answer is the app's own affair.
"""

from __future__ import annotations

import asyncio
import select
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from apothic.joined import Joined

_END_S = 1.0  # for an app that listens to end by itself
_LOOK_S = 0.5
_SCHEMES = {b"http": ("http", "ws"), b"https": ("https", "wss")}
_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def introduce(scope: Any) -> None:
    """Tell the app who calls whom: only the control plane connects, and its word on both is taken.

    A Unix socket has neither host nor port, and apps make URLs of them.
    """
    host = client = proto = b""
    for name, value in scope["headers"]:
        if name == b"host":
            host = value
        elif name == b"x-forwarded-for":
            client = value
        elif name == b"x-forwarded-proto":
            proto = value
    if proto in _SCHEMES:
        scope["scheme"] = _SCHEMES[proto][scope["type"] == "websocket"]
    if client:
        scope["client"] = client.partition(b",")[0].strip().decode("latin-1"), 0
    scope["server"] = _server(host, scope.get("scheme", "http"))


@lru_cache(maxsize=256)
def _server(host: bytes, scheme: str) -> tuple[str, int | None]:
    text = host.decode("latin-1")
    name, _, port = text.rpartition(":")
    if name and port.isdigit():
        return name, int(port)
    return text or "localhost", _PORTS.get(scheme, 80)


class _Attended:
    """An app for one connection, whose work can be cancelled. There is one request at a time at work on it."""

    def __init__(self, app: Any, writer: Joined | None = None) -> None:
        self._app = app
        self._writer = writer
        self._at_work: asyncio.Task[Any] | None = None  # for a caller that waits
        self._cancelled: asyncio.Task[Any] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        introduce(scope)
        task = self._at_work = asyncio.current_task()

        def tell(message: Any) -> Any:  # no coroutine of its own: there are two messages in the least of answers
            if message["type"] == "http.response.start":
                if self._writer is not None:
                    self._writer.hold()
            elif not message.get("more_body", False) and self._at_work is task:
                self._at_work = None
            return send(message)

        async def hear() -> Any:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._at_work = None  # it knows, and may have to clean up
            return message

        try:
            await self._app(scope, *((receive, tell) if scope["type"] == "http" else (hear, send)))
        except asyncio.CancelledError:
            if self._cancelled is not task:
                raise
        finally:
            if self._at_work is task:
                self._at_work = None

    def left(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take note that the caller has left."""
        if self._at_work is not None:
            loop.call_later(_END_S, self._cancel, self._at_work)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if self._at_work is task:
            self._cancelled = task
            task.cancel()


class HttpCaller(HttpToolsProtocol):
    """An HTTP connection. While its app reads no more of a long body, it looks whether the caller is still there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._looking = False

    def connection_made(self, transport: Any) -> None:
        writer = Joined(transport, self.loop)
        self.app: Any = _Attended(self.app, writer)
        super().connection_made(writer)  # type: ignore[arg-type]

    def on_response_complete(self) -> None:
        if self.pipeline:
            super().on_response_complete()
        else:  # without a timer for each request: it is the gateway that lets go of a connection
            self.server_state.total_requests += 1
            if not self.transport.is_closing():
                self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.flow.read_paused and not self._looking:
            self._looking = True
            self.loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = False
        if self.transport.is_closing() or not self.flow.read_paused:
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), 0)
        if poll.poll(0):  # a hangup, which needs no asking for; what is unread may wait before it
            self.transport.abort()
        else:
            self._looking = True
            self.loop.call_later(_LOOK_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.app.left(self.loop)


class SocketCaller(WebSocketsSansIOProtocol):
    """A websocket."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app: Any = _Attended(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.app.left(self.loop)
