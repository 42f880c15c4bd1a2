"""The no-op application that is measured behind bare uvicorn, and as a service of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import apothic

app = apothic.App("bench-web")
PAUSE_S = 0.02  # between the pieces of a stream


async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer with two bytes, or at `/ticks` with the time that each of some pieces was sent at."""
    if scope["type"] != "http":
        return
    if scope["path"].endswith("/ticks"):
        await ticks(send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def ticks(send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """Send pieces, a while apart."""
    from apothic.clock import SystemClock

    clock = SystemClock()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(50):
        await send({"type": "http.response.body", "body": f"{clock.monotonic()}\n".encode(), "more_body": True})
        await asyncio.sleep(PAUSE_S)
    await send({"type": "http.response.body", "body": b""})


@app.asgi(max_containers=1, concurrent_requests=1_000)
def web() -> Any:
    """Serve it."""
    return answer


@app.asgi(max_containers=1, keep_warm_s=0)
def cold() -> Any:
    """Serve it, and stop as soon as nothing is asked."""
    return answer
