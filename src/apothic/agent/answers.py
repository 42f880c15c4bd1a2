"""What an endpoint's function returned → an HTTP answer: JSON, text, bytes, or a stream of chunks or events."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from typing import Any

import msgspec

from apothic.response import Response

Headers = list[tuple[bytes, bytes]]

_JSON, _TEXT, _BYTES = "application/json", "text/plain; charset=utf-8", "application/octet-stream"
_LINES, _EVENTS = "application/x-ndjson", "text/event-stream"
_END: Any = object()


class Answers:
    """Sends what a function returned. Generators that are not async run in `threads`."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads

    async def send(self, result: Any, scope: Any, receive: Any, send: Any) -> None:
        """Send it, a stream as fast as it is taken. Raises what the stream raises; `TypeError` for what is no JSON."""
        given = result if isinstance(result, Response) else Response(result)
        content = given.content
        if isinstance(content, Iterator | AsyncIterator):
            await self._stream(given, content, scope, send)
        elif given is not result and _is_asgi(content):
            await content(scope, receive, send)
        else:
            data, kind = encode(content)
            headers = _headers(given, kind)
            if not _has(headers, b"content-length") and given.status_code not in (204, 304):
                headers.append((b"content-length", b"%d" % len(data)))
            await send({"type": "http.response.start", "status": given.status_code, "headers": headers})
            await send({"type": "http.response.body", "body": data})

    async def _stream(self, given: Response, content: Any, scope: Any, send: Any) -> None:
        items = content if isinstance(content, AsyncIterator) else _Threaded(content, self._threads)
        try:
            if given.media_type is None and wants_events(scope):
                frame = event
                headers = [*_headers(given, _EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
                first = _END
            else:
                first = await anext(items, _END) if scope["method"] != "HEAD" else ""
                frame = chunk
                headers = _headers(given, _kind_of(first))
            await send({"type": "http.response.start", "status": given.status_code, "headers": headers})
            if scope["method"] != "HEAD":
                if first is not _END:
                    await send({"type": "http.response.body", "body": frame(first), "more_body": True})
                async for item in items:
                    await send({"type": "http.response.body", "body": frame(item), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()


class _Threaded:
    """A plain generator as an async one: each step in a thread, never two at once."""

    def __init__(self, items: Iterator[Any], threads: Executor) -> None:
        self._items = items
        self._threads = threads
        self._lock = threading.Lock()
        self._context = contextvars.copy_context()

    def __aiter__(self) -> _Threaded:
        return self

    async def __anext__(self) -> Any:
        item = await asyncio.get_running_loop().run_in_executor(self._threads, self._step)
        if item is _END:
            raise StopAsyncIteration
        return item

    def _step(self) -> Any:
        with self._lock:
            return self._context.run(next, self._items, _END)

    async def aclose(self) -> None:
        """Close it, once the step that may still run has ended; nobody waits for that."""
        self._threads.submit(self._close)

    def _close(self) -> None:
        with self._lock:
            close = getattr(self._items, "close", None)
            if close is not None:
                self._context.run(close)


def encode(content: Any) -> tuple[bytes, str]:
    """Return a value's bytes and media type. Raises `TypeError` for what JSON cannot say."""
    if isinstance(content, str):
        return content.encode(), _TEXT
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content), _BYTES
    return json(content), _JSON


def json(value: Any) -> bytes:
    """Return JSON. Raises `TypeError` for what it cannot say."""
    return msgspec.json.encode(value, enc_hook=_simpler)


def _simpler(value: Any) -> Any:
    for way in ("model_dump", "tolist"):  # pydantic's models, numpy's arrays and numbers
        simpler = getattr(value, way, None)
        if simpler is not None and not isinstance(value, type):
            return simpler()
    raise TypeError(f"an object of type {type(value).__name__} cannot be JSON")


def chunk(item: Any) -> bytes:
    """Return one item of a stream as it is sent: text and bytes as they are, others as a line of JSON."""
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    return json(item) + b"\n"


def event(item: Any) -> bytes:
    """Return one item as a server-sent event; a line break in a text begins a line of data anew."""
    if isinstance(item, bytes | bytearray | memoryview):
        item = bytes(item).decode("utf-8", "replace")
    text = item if isinstance(item, str) else json(item).decode()
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines).encode() + b"\n"


def wants_events(scope: Any) -> bool:
    """Tell whether a request asks for server-sent events."""
    return any(name == b"accept" and b"text/event-stream" in value.lower() for name, value in scope["headers"])


def _kind_of(first: Any) -> str:
    if isinstance(first, str) or first is _END:
        return _TEXT
    return _BYTES if isinstance(first, bytes | bytearray | memoryview) else _LINES


def _headers(given: Response, kind: str) -> Headers:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given.headers]
    if given.media_type is not None:
        return [(b"content-type", given.media_type.encode("latin-1")), *headers]
    return headers if _has(headers, b"content-type") else [(b"content-type", kind.encode()), *headers]


def _has(headers: Headers, name: bytes) -> bool:
    return any(known == name for known, _ in headers)


def _is_asgi(content: Any) -> bool:
    if not callable(content) or isinstance(content, type):
        return False
    try:
        inspect.signature(content).bind(1, 2, 3)
    except (TypeError, ValueError):
        return False
    return True
