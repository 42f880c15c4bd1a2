"""uvicorn's connections in a service's container: when a caller leaves, what works for it is cancelled.

An app that listens for the disconnect is told by uvicorn and has a second to end by itself; one that does not listen
would go on for nobody. What runs after a complete answer is the app's own affair.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_END_S = 1.0  # for an app that listens to end by itself
_LOOK_S = 0.5


class _Attended:
    """An app for one connection, whose work can be cancelled."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._at_work: dict[asyncio.Task[Any], bool] = {}  # whether it was cancelled

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._at_work[task] = False

        async def tell(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._at_work.pop(task, None)

        async def hear() -> Any:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self._at_work.pop(task, None)  # it knows, and may have to clean up
            return message

        try:
            await self._app(scope, *((receive, tell) if scope["type"] == "http" else (hear, send)))
        except asyncio.CancelledError:
            if not self._at_work.get(task, False):
                raise
        finally:
            self._at_work.pop(task, None)

    def left(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take note that the caller has left."""
        for task in self._at_work:
            loop.call_later(_END_S, self._cancel, task)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if task in self._at_work:
            self._at_work[task] = True
            task.cancel()


class HttpCaller(HttpToolsProtocol):
    """An HTTP connection. While its app reads no more of a long body, it looks whether the caller is still there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app: Any = _Attended(self.app)
        self._looking = False

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
