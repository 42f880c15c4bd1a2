"""What the gateway answers itself, in the form that errors of the API have."""

from __future__ import annotations

import msgspec

from apothic.protocol.messages import ErrorBody, ErrorReply

_REASONS = {
    308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 413: "Content Too Large", 421: "Misdirected Request",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable", 504: "Gateway Timeout", 505: "HTTP Version Not Supported",
}  # fmt: skip


class Refusal(Exception):
    """A request that is answered without asking any service. `headers` go with the answer."""

    def __init__(
        self, status: int, code: str, message: str, *, hint: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.hint = hint
        self.headers = headers

    def answer(self, *, close: bool, bodiless: bool = False) -> bytes:
        """Return the whole answer; without its body for HEAD."""
        body = msgspec.json.encode(ErrorReply(error=ErrorBody(code=self.code, message=self.message, hint=self.hint)))
        lines = [
            f"HTTP/1.1 {self.status} {_REASONS[self.status]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.headers),
            *(("connection: close",) if close else ()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if bodiless else body)


def unavailable(message: str, *, code: str = "unavailable", hint: str = "", after_s: int = 1) -> Refusal:
    """Return a 503 that says when to try again."""
    return Refusal(503, code, message, hint=hint, headers=(("retry-after", str(after_s)),))
