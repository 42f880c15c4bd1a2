"""The floor of streams: a bare endpoint of server-sent events on the same server library. It keeps nothing."""

from __future__ import annotations

import http.client
import time
from typing import Any
from urllib.parse import parse_qsl


async def stream(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Send so many small events, so many of them in a write."""
    asked = {name: int(value) for name, value in parse_qsl(scope["query_string"].decode())}
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for start in range(0, asked["n"], asked["batch"]):
        numbers = range(start, min(start + asked["batch"], asked["n"]))
        body = "".join(f"id: {number}\nevent: item\ndata: {number}\n\n" for number in numbers)
        await send({"type": "http.response.body", "body": body.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def read(connection: http.client.HTTPConnection, n: int, batch: int) -> tuple[float, float]:
    """Read a stream in chunks and split it; return the seconds to the first event, and to the last."""
    began = time.perf_counter()
    connection.request("GET", f"/?n={n}&batch={batch}")
    answer = connection.getresponse()
    first, got, held = 0.0, 0, b""
    while data := answer.read1(1 << 16):
        *events, held = (held + data).split(b"\n\n")
        got += len(events)
        first = first or time.perf_counter() - began
    assert got == n and held == b""
    return first, time.perf_counter() - began
