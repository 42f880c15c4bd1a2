"""uvicorn's connections, for the worst that can come in: who is gone is told so, and garbage leaves no traceback."""

from __future__ import annotations

import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from apothic.joined import Joined

log = logging.getLogger("apothic.control")

QUEUED = 16  # messages that may wait for the application before a websocket is read no further


class Door(HttpToolsProtocol):
    """An HTTP connection. Applications find `abort` in their scope's state, to drop one whose reader takes nothing."""

    _answering: RequestResponseCycle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        joined = Joined(self.transport, self.loop)
        joined.hold()  # what an answer begins with is its head
        cycle.transport = joined  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_answer()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP. Whoever is still answering a request before it has nobody to answer any more."""
        if not self.transport.is_closing():
            super().send_400_response(msg)
        self._end_answer()

    def _end_answer(self) -> None:
        # uvicorn tells the newest of pipelined requests only, which has not begun yet: the one that is being answered
        # would wait for ever, or write to a closed connection.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()


class SessionDoor(WebSocketsSansIOProtocol):
    """A websocket. What breaks its rules, at the handshake too, ends it with one line in the log."""

    def send_receive_event_to_app(self) -> None:
        # uvicorn stops reading at each message until it is taken: two system calls for every frame of an agent.
        if self.queue.qsize() >= QUEUED:
            super().send_receive_event_to_app()
            return
        is_paused, self.read_paused = self.read_paused, True
        super().send_receive_event_to_app()
        self.read_paused = is_paused

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception as error:  # the parser's way to say no differs with how far the connection had come
            log.warning("session.garbage error=%s %s", type(error).__name__, error)
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1002})
            self.disconnected = True
            self.transport.close()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "send_now": self.send_now}

    def send_now(self, data: bytes) -> bool:
        """Write a frame at once, without a task's turn; tell whether that could be done."""
        if self.disconnected or not self.handshake_complete or self.close_sent or not self.writable.is_set():
            return False
        self.conn.send_binary(data)
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def handle_text(self, event: Any) -> None:
        raise ValueError("frames of a session are binary")
