"""Heads of requests and answers: what is refused, what is passed on, what is set. Pure.

Nothing is forwarded as it came. The parser has refused what is no HTTP (both lengths, bare LF, folded lines, NUL, names
that are no tokens); a head is checked here once more and written anew, so what a container sees is one well-formed
request or none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from apothic.control.gateway.refusals import Refusal

Header = tuple[bytes, bytes]

# What belongs to one connection and not to the message (RFC 9110, 7.6.1), and what is written anew.
_HOPS = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
        b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
# Who says from where a request came is the gateway, and nobody before it.
_OURS = frozenset({b"forwarded", b"x-real-ip", b"expect", b"content-length"})
_OUR_PREFIXES = (b"x-forwarded-", b"apothic-")
_BODILESS = frozenset({204, 304})
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})  # RFC 9110, 9.2.2


class Request(NamedTuple):
    """The head of a request, checked. `length` is `None` without one; `upgrades` asks for a websocket."""

    method: bytes
    target: bytes
    headers: list[Header]
    host: bytes
    length: int | None
    chunked: bool
    upgrades: bool
    expects: bool
    keeps: bool
    newer: bool  # HTTP/1.1: an answer may come in chunks

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


def request(method: bytes, target: bytes, version: str, headers: list[Header], *, keeps: bool) -> Request:
    """Return the head of a request. Raises `Refusal`."""
    if version not in ("1.0", "1.1"):
        raise Refusal(505, "bad_request", f"HTTP/{version} is not spoken here")
    if method == b"CONNECT":
        raise Refusal(405, "bad_request", "CONNECT is for proxies", headers=(("allow", "GET, HEAD, POST, PUT"),))
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    hosts = found.get(b"host", [])
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise Refusal(400, "bad_request", "a request has one Host header")
    lengths, codings = found.get(b"content-length", []), found.get(b"transfer-encoding", [])
    if len(lengths) + len(codings) > 1 or (codings and (codings[0].lower() != b"chunked" or version == "1.0")):
        raise Refusal(400, "bad_request", "the length of the request's body is not clear")
    if lengths and not lengths[0].isdigit():
        raise Refusal(400, "bad_request", "Content-Length is no number")
    another = b"upgrade" in found and b"upgrade" in _tokens(found)
    length, chunked = int(lengths[0]) if lengths else None, bool(codings)
    if another and (chunked or length):
        # The parser reads no body here, and would take it for the next request.
        raise Refusal(400, "bad_request", "a request with a body cannot ask for another protocol")
    upgrades = another and found[b"upgrade"][0].lower() == b"websocket"
    if upgrades and method != b"GET":
        raise Refusal(400, "bad_request", "a websocket is asked for with GET")
    expects = found.get(b"expect", [b""])[-1].lower() == b"100-continue" and version == "1.1"
    host = hosts[0] if hosts else b""
    newer = version == "1.1"
    return Request(method, target, headers, host, length, chunked, upgrades, expects, keeps and newer, newer)


def _tokens(found: dict[bytes, list[bytes]]) -> set[bytes]:
    return {token.strip().lower() for value in found.get(b"connection", []) for token in value.split(b",")}


def _named(headers: Iterable[Header]) -> set[bytes]:
    """Return the names that `Connection` says belong to this connection alone."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")} - {b"host"}


def for_container(asked: Request, target: bytes, *, peer: str, mount: str, keyed: bool) -> bytes:
    """Return the head that a container gets. A header with `_` is dropped: WSGI cannot tell `X_A` from `X-A`."""
    lines = [asked.method + b" " + (target or b"/") + b" HTTP/1.1"]
    dropped = _named(asked.headers) | ({b"authorization"} if keyed else set())
    for name, value in asked.headers:
        low = name.lower()
        if low in _HOPS or low in _OURS or low in dropped or b"_" in low or low.startswith(_OUR_PREFIXES):
            continue
        lines.append(name + b": " + value)
    if not asked.host:
        lines.append(b"host: localhost")
    if asked.length is not None:
        lines.append(b"content-length: %d" % asked.length)
    elif asked.chunked:
        lines.append(b"transfer-encoding: chunked")
    if asked.expects:
        lines.append(b"expect: 100-continue")
    if asked.upgrades:
        lines.append(b"connection: upgrade\r\nupgrade: websocket")
    forwarded = f"x-forwarded-for: {peer}\r\nx-forwarded-proto: http\r\nx-forwarded-prefix: {mount}"
    lines.append(forwarded.encode("latin-1"))
    lines.append(b"x-forwarded-host: " + (asked.host or b"localhost"))
    return b"\r\n".join(lines) + b"\r\n\r\n"


class Answer(NamedTuple):
    """The head of an answer. `length` is `None` when the body is chunked, or ends with the connection (`until_end`).

    An `empty` one has no body, whatever it says about one.
    """

    status: int
    reason: bytes
    headers: list[Header]
    length: int | None
    chunked: bool
    empty: bool

    @property
    def until_end(self) -> bool:
        return self.length is None and not self.chunked and not self.empty


def answer(status: int, reason: bytes, headers: list[Header], *, method: bytes) -> Answer:
    """Return the head of an answer. Raises `ValueError` when its length is not clear."""
    lengths = {value for name, value in headers if name.lower() == b"content-length"}
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    if len(lengths) > 1 or (lengths and codings):
        raise ValueError("the length of the answer is not clear")
    empty = method == b"HEAD" or status in _BODILESS or status < 200
    return Answer(status, reason, headers, int(lengths.pop()) if lengths else None, bool(codings), empty)


def for_client(told: Answer, *, chunked: bool, close: bool, mount: str | None) -> bytes:
    """Return the head that the client gets. With `mount`, a `Location` within the service leads below it."""
    lines = [b"HTTP/1.1 %d " % told.status + told.reason]
    dropped = _named(told.headers)
    for name, value in told.headers:
        low = name.lower()
        if low in _HOPS or low in dropped:
            continue
        if mount is not None and low == b"location":
            value = _below(value, mount.encode())
        lines.append(name + b": " + value)
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    if close:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _below(location: bytes, mount: bytes) -> bytes:
    """Put a path of a server that does not know its mount below it, as nginx does by default (`proxy_redirect`)."""
    inside = location == mount or location.startswith(mount + b"/")
    return mount + location if location.startswith(b"/") and location[1:2] != b"/" and not inside else location


def for_upgrade(told: Answer) -> bytes:
    """Return the head that tells a client that its websocket is open."""
    kept = [b": ".join(header) for header in told.headers if header[0].lower() not in _HOPS]
    lines = [b"HTTP/1.1 101 " + told.reason, *kept, b"connection: upgrade", b"upgrade: websocket"]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def trailers(headers: list[Header]) -> bytes:
    """Return the last chunk with what follows it."""
    forbidden = _HOPS | _OURS | {b"host", b"authorization"}
    kept = [name + b": " + value + b"\r\n" for name, value in headers if name.lower() not in forbidden]
    return b"0\r\n" + b"".join(kept) + b"\r\n"
