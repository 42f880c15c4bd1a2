"""An app of services, and of functions that know where they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apothic

app = apothic.App("serves")


@app.endpoint(path="/double/{number}")
def double(number: int) -> dict[str, int]:
    return {"value": 2 * number}


@app.asgi()
def web() -> Callable[..., Any]:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"here"})

    return answer


@app.function()
def whereabouts() -> tuple[str | None, str]:
    return double.service_url, double.get_web_url()


@app.endpoint(cpu=0.1)
async def asks(twice: int = 0) -> list[str | None]:
    first, found = await whereabouts.aio.remote()
    return [first, found, double.service_url, app.deployment_id]


@app.endpoint(cpu=0.1)
def asks_plainly() -> list[str | None]:
    return list(whereabouts.remote())


def late(name: str, gate: str) -> apothic.App:
    """Return an app whose service starts once there is a file `gate`; with an `x` in it, it does not."""
    app = apothic.App(name)

    @app.asgi()
    def gated() -> Callable[..., Any]:
        while not Path(gate).exists():
            time.sleep(0.01)
        assert Path(gate).read_text() == ""

        async def answer(scope: Any, receive: Any, send: Any) -> None: ...

        return answer

    return app
