"""The user's ASGI app as uvicorn sees it: what it says when it cannot start is kept, and it knows its public host."""

from __future__ import annotations

from typing import Any

from apothic.errors import ConfigError

_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class Lifespan:
    """Passes everything on. A start that fails leaves its exception here."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._error: BaseException | None = None
        self._said = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        scope["server"] = _server(scope)
        await self._app(scope, receive, send)

    async def _live(self, scope: Any, receive: Any, send: Any) -> None:
        async def listen(message: Any) -> None:
            if message["type"] == "lifespan.startup.failed":
                self._said = message.get("message", "")
                message = {**message, "message": ""}  # it is told once, as the failure of the start
            await send(message)

        try:
            await self._app(scope, receive, listen)
        except BaseException as error:
            self._error = error
            raise

    def failure(self) -> BaseException:
        """Return why the app did not start."""
        return self._error or ConfigError(self._said or "its lifespan failed to start")


def _server(scope: Any) -> tuple[str, int | None]:
    """Return host and port as they were asked for: the Unix socket has neither, and apps make URLs of them."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    name, _, port = host.rpartition(":")
    if name and port.isdigit():
        return name, int(port)
    return host or "localhost", _PORTS.get(scope.get("scheme", "http"), 80)
