"""The user's ASGI app as uvicorn sees it: what it says when it cannot start is kept."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from apothic.errors import ConfigError


class Lifespan:
    """Passes everything on. A start that fails leaves its exception here."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._error: BaseException | None = None
        self._said = ""

    def __call__(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        live: Any = self._live if scope["type"] == "lifespan" else self._app
        return live(scope, receive, send)  # type: ignore[no-any-return]

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
