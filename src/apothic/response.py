"""An answer of an endpoint with a status, headers or a media type of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Response:
    """Return it from an `@app.endpoint` function where the plain value does not say enough.

    `content` is whatever such a function may return, a generator included. `headers` is a mapping, or pairs where a
    name comes more than once. `media_type` is used as it is; without one the content decides.

    >>> Response({"id": 7}, 201, {"Location": "/items/7"}).status_code
    201
    """

    __slots__ = ("content", "headers", "media_type", "status_code")

    def __init__(
        self,
        content: Any = None,
        status_code: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        media_type: str | None = None,
    ) -> None:
        self.content = content
        self.status_code = status_code
        given: Any = headers.items() if isinstance(headers, Mapping) else headers or ()
        self.headers: list[tuple[str, str]] = list(given)
        self.media_type = media_type

    def __repr__(self) -> str:
        return f"Response({self.content!r}, {self.status_code})"
