"""A WSGI app as an ASGI app: a2wsgi, with what it leaves open closed.

a2wsgi drops a cancelled request's queue while its thread still writes into it, which then waits for ever; so its own
work is never cancelled, and the thread ends at its next chunk. It also takes a caller that has left in the middle of a
body for that body's end.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from a2wsgi import WSGIMiddleware

_LEFT = "apothic.left"


class Wsgi:
    """Runs `app` in that many threads."""

    def __init__(self, app: Callable[..., Iterable[bytes]], *, threads: int) -> None:
        self._app = app
        run: Any = self._run
        self._middleware: Any = WSGIMiddleware(run, workers=threads)
        self._at_work: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})  # before it was accepted: a plain refusal
            return

        async def hear() -> Any:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError("the caller left before its request was whole")
            return message

        left = threading.Event()
        work = asyncio.ensure_future(self._middleware({**scope, _LEFT: left}, hear, send))
        self._at_work.add(work)
        work.add_done_callback(self._over)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            left.set()
            raise

    def _over(self, work: asyncio.Task[None]) -> None:
        self._at_work.discard(work)
        if not work.cancelled():
            work.exception()  # of one whose caller has left, nobody else asks

    def _run(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        left: threading.Event = environ.pop("asgi.scope")[_LEFT]
        environ["wsgi.errors"] = sys.stderr
        environ["wsgi.input_terminated"] = True  # a chunked body has an end that `read` finds
        environ["wsgi.multiprocess"] = False
        answer = self._app(environ, start_response)
        return _while_wanted(answer, left)


def _while_wanted(answer: Iterable[bytes], left: threading.Event) -> Iterator[bytes]:
    try:
        for chunk in answer:
            if left.is_set():
                return
            yield chunk
    finally:
        close = getattr(answer, "close", None)
        if close is not None:
            close()
