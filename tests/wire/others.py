"""Whole applications of others, deployed as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apothic

app = apothic.App("others")
SMALL: dict[str, Any] = {"cpu": 0.1, "memory_mb": 512}


@app.wsgi_app(**SMALL)
def bin() -> Callable[..., Any]:
    import httpbin

    application: Callable[..., Any] = httpbin.app
    return application


@app.asgi(**SMALL)
def star() -> Callable[..., Any]:
    import asyncio
    import hashlib

    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    done: list[str] = []

    async def room(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_json({"heard": text, "at": str(socket.url)})

    async def ticks(request: Request) -> StreamingResponse:
        async def told() -> Any:
            for number in range(3):
                yield f"id: {number}\ndata: tick {number}\n\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(told(), media_type="text/event-stream")

    async def later(request: Request) -> JSONResponse:
        async def work() -> None:
            await asyncio.sleep(1.5)  # longer than somebody who has left would be waited for
            done.append(request.query_params["name"])

        return JSONResponse(list(done), background=BackgroundTask(work))

    async def upload(request: Request) -> JSONResponse:
        async with request.form() as form:
            files = {name: file for name, file in form.items() if not isinstance(file, str)}
            sums = {
                name: [file.filename, hashlib.sha256(await file.read()).hexdigest()] for name, file in files.items()
            }
            return JSONResponse({"fields": [form["word"]], "files": sums})

    async def whole(request: Request) -> FileResponse:
        return FileResponse(asyncio.__file__)

    async def home(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.url_for("whole")))

    return Starlette(
        routes=[
            Route("/", home), WebSocketRoute("/room", room), Route("/ticks", ticks), Route("/later", later),
            Route("/upload", upload, methods=["POST"]), Route("/whole", whole),
        ],
    )  # fmt: skip


@app.fastapi_endpoint(method="POST", path="/price", **SMALL)
def price(pieces: int, each: float, currency: str = "SEK") -> dict[str, Any]:
    """Add up an order."""
    return {"total": pieces * each, "currency": currency}
