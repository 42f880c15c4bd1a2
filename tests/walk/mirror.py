"""An ASGI application that tells what it was asked, answers as it is told to, and speaks over websockets."""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import Any
from urllib.parse import parse_qsl

# What the gateway adds to a request, or takes from it. All else arrives as it was sent.
ADDED = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-prefix", "x-forwarded-host"}
TAKEN = {
    "connection", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade", "forwarded", "x-real-ip",
    "x-forwarded-for", "x-forwarded-host", "apothic-user", "http2-settings", "x-hop", "x_under",
}  # fmt: skip
# What differs between two answers to the same request: the time, and what belongs to a connection.
VARIES = {"date", "connection", "keep-alive"}
FILE = bytes(range(256)) * 400


async def mirror(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer by the query: `status`, `pieces`, `gzip`, `cookies`, `early` (without reading), `file` (with ranges)."""
    if scope["type"] == "websocket":
        await _talk(scope, receive, send)
        return
    wish = dict(parse_qsl(scope["query_string"].decode()))
    body, more = b"", "early" not in wish
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    told = {
        "method": scope["method"], "path": scope["path"], "raw_path": scope["raw_path"].decode(),
        "root_path": scope["root_path"], "query": scope["query_string"].decode(), "version": scope["http_version"],
        "headers": sorted([name, value] for name, value in headers if name not in ADDED | TAKEN),
        "body": [len(body), hashlib.sha256(body).hexdigest()],
    }  # fmt: skip
    status, extra, out = int(wish.get("status", "200")), [], json.dumps(told, indent=1).encode()
    if "file" in wish:
        status, extra, out = _ranged(dict(headers))
    if "gzip" in wish:
        out, extra = gzip.compress(out, mtime=0), [*extra, (b"content-encoding", b"gzip")]
    extra += [(b"set-cookie", b"c%d=%d; Path=/" % (n, n)) for n in range(int(wish.get("cookies", "0")))]
    if status in (204, 304):
        out = b""
    pieces = int(wish.get("pieces", "0"))
    if not pieces and status != 204:
        extra.append((b"content-length", b"%d" % len(out)))
    await send({"type": "http.response.start", "status": status, "headers": extra})
    for n in range(pieces):
        await send({"type": "http.response.body", "body": out[n::pieces], "more_body": True})
    await send({"type": "http.response.body", "body": b"" if pieces else out})


def _ranged(headers: dict[str, str]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    unit, _, spans = headers.get("range", "").partition("=")
    first, _, last = spans.partition("-")
    if unit != "bytes" or not first.isdigit():
        return 200, [(b"accept-ranges", b"bytes"), (b"etag", b'"file"')], FILE
    start, stop = int(first), min(int(last or len(FILE) - 1), len(FILE) - 1)
    if start > stop:
        return 416, [(b"content-range", b"bytes */%d" % len(FILE))], b""
    told = (b"content-range", b"bytes %d-%d/%d" % (start, stop, len(FILE)))
    return 206, [told], FILE[start : stop + 1]


async def _talk(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await receive()
    wish = dict(parse_qsl(scope["query_string"].decode()))
    if "deny" in wish:
        await send({"type": "websocket.http.response.start", "status": 418, "headers": [(b"x-why", b"tea")]})
        await send({"type": "websocket.http.response.body", "body": b"no coffee"})
        return
    chosen = scope["subprotocols"][0] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"x-room", b"1")]})
    while (message := await receive())["type"] == "websocket.receive":
        text, data = message.get("text"), message.get("bytes")
        if text == "close":
            await send({"type": "websocket.close", "code": 4321, "reason": "as you wish"})
            return
        await send({"type": "websocket.send", **({"text": text[::-1]} if text is not None else {"bytes": data[::-1]})})
