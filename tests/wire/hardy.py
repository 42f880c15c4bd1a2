"""Services that take and give much, die, and notice who leaves."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import apothic

app = apothic.App("hardy")
SMALL: dict[str, Any] = {"cpu": 0.1, "memory_mb": 512}
PIECE = b"0123456789abcdef" * 4096


@app.asgi(max_containers=2, **SMALL)
def web() -> Callable[..., Any]:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path, headers = scope["path"].rpartition("/")[2], {}
        if path == "sum":
            sha, more = hashlib.sha256(), True
            while more:
                message = await receive()
                sha.update(message.get("body", b""))
                more = message.get("more_body", False)
            out = sha.hexdigest().encode()
        elif path == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif path == "much":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(int(scope["query_string"])):
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        else:
            await asyncio.sleep(0.01)
            out = str(os.getpid()).encode()
        headers["content-length"] = str(len(out))
        told = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": told})
        await send({"type": "http.response.body", "body": out})

    return answer


@app.endpoint(**SMALL)
async def waits(book: str) -> str:
    try:
        Path(book, "begun").touch()
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        Path(book, "left").touch()
        raise
    return "nobody left"


@app.endpoint(**SMALL)
async def yields(book: str) -> AsyncIterator[str]:
    try:
        number = 0
        while True:
            yield f"{number}\n"
            Path(book, "begun").touch()
            number += 1
            await asyncio.sleep(0.05)
    finally:
        Path(book, "left").touch()


@app.asgi(**SMALL)
def deaf() -> Callable[..., Any]:
    """It never asks whether its client is still there."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await waits.local(scope["query_string"].decode())

    return answer
