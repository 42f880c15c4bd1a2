"""Heads of requests and answers: what is refused, what is passed on, what is set. Pure.

Nothing is forwarded as it came. The parser has refused what is no HTTP (both lengths, bare LF, folded lines, NUL, names
that are no tokens); a head is checked here once more and written anew, so what a container sees is one well-formed
request or none.
"""

from __future__ import annotations

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
_SEPARATED = b": ".join
_END = b"", b""
_BODILESS = frozenset({204, 304})
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})  # RFC 9110, 9.2.2


class Fields:
    """The header fields of a request, checked. `length` is `None` without one; `upgrades` asks for a websocket.

    `size` is what they take on the wire. How they were last written for a container is kept: on a connection that stays
    most requests say the same fields again (HPACK, RFC 7541, lives on that).
    """

    def __init__(self, version: str, headers: list[Header]) -> None:
        self.version = version
        self.headers = headers
        self.newer = version == "1.1"  # an answer may come in chunks
        self.size = sum(len(name) + len(value) + 4 for name, value in headers)
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value)
        hosts = found.get(b"host", [])
        if len(hosts) > 1 or (not hosts and self.newer):
            raise Refusal(400, "bad_request", "a request has one Host header")
        lengths, codings = found.get(b"content-length", []), found.get(b"transfer-encoding", [])
        if len(lengths) + len(codings) > 1 or (codings and (codings[0].lower() != b"chunked" or not self.newer)):
            raise Refusal(400, "bad_request", "the length of the request's body is not clear")
        if lengths and not lengths[0].isdigit():
            raise Refusal(400, "bad_request", "Content-Length is no number")
        self.host = hosts[0] if hosts else b""
        self.length = int(lengths[0]) if lengths else None
        self.chunked = bool(codings)
        self.has_body = self.chunked or bool(self.length)
        self.named = _tokens(found.get(b"connection", []))
        another = b"upgrade" in found and b"upgrade" in self.named
        if another and self.has_body:
            # The parser reads no body here, and would take it for the next request.
            raise Refusal(400, "bad_request", "a request with a body cannot ask for another protocol")
        self.upgrades = another and found[b"upgrade"][0].lower() == b"websocket"
        self.expects = found.get(b"expect", [b""])[-1].lower() == b"100-continue" and self.newer
        self._written: tuple[str, str, bool, bytes] = "", "", False, b""

    def written(self, peer: str, mount: str, keyed: bool) -> bytes:
        """Return them as a container gets them. One with `_` is dropped: WSGI cannot tell `X_A` from `X-A`."""
        if self._written[0] != peer or self._written[1] != mount or self._written[2] is not keyed:
            self._written = peer, mount, keyed, self._write(peer, mount, keyed)
        return self._written[3]

    def _write(self, peer: str, mount: str, keyed: bool) -> bytes:
        lines = []
        dropped = (self.named - {b"host"}) | ({b"authorization"} if keyed else set())
        for name, value in self.headers:
            low = name.lower()
            if low in _HOPS or low in _OURS or low in dropped or b"_" in low or low.startswith(_OUR_PREFIXES):
                continue
            lines.append(name + b": " + value)
        if not self.host:
            lines.append(b"host: localhost")
        if self.length is not None:
            lines.append(b"content-length: %d" % self.length)
        elif self.chunked:
            lines.append(b"transfer-encoding: chunked")
        if self.expects:
            lines.append(b"expect: 100-continue")
        if self.upgrades:
            lines.append(b"connection: upgrade\r\nupgrade: websocket")
        forwarded = f"x-forwarded-for: {peer}\r\nx-forwarded-proto: http\r\nx-forwarded-prefix: {mount}"
        lines.append(forwarded.encode("latin-1"))
        lines.append(b"x-forwarded-host: " + (self.host or b"localhost"))
        return b"\r\n".join([*lines, b"", b""])


class Request(NamedTuple):
    """The head of a request, checked."""

    method: bytes
    target: bytes
    fields: Fields
    keeps: bool


def request(
    method: bytes, target: bytes, version: str, headers: list[Header], *, keeps: bool, before: Fields | None = None
) -> Request:
    """Return the head of a request; `before` are the fields of the one before it. Raises `Refusal`."""
    if before is not None and before.headers == headers and before.version == version:
        fields = before
    elif version not in ("1.0", "1.1"):
        raise Refusal(505, "bad_request", f"HTTP/{version} is not spoken here")
    else:
        fields = Fields(version, headers)
    if method == b"CONNECT":
        raise Refusal(405, "bad_request", "CONNECT is for proxies", headers=(("allow", "GET, HEAD, POST, PUT"),))
    if fields.upgrades and method != b"GET":
        raise Refusal(400, "bad_request", "a websocket is asked for with GET")
    return Request(method, target, fields, keeps and fields.newer)


def _tokens(values: list[bytes]) -> set[bytes]:
    """Return what `Connection` names: with options, the fields that belong to this connection alone."""
    return {token.strip().lower() for value in values for token in value.split(b",")}


def for_container(asked: Request, target: bytes, *, peer: str, mount: str, keyed: bool) -> bytes:
    """Return the head that a container gets."""
    fields = asked.fields.written(peer, mount, keyed)
    return b"%b %b HTTP/1.1\r\n%b" % (asked.method, target or b"/", fields)


class Answer(NamedTuple):
    """The head of an answer, without what belongs to the connection that it came over.

    `length` is `None` when the body is chunked, or ends with the connection (`until_end`). An `empty` one has no body,
    whatever it says about one.
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
    kept: list[Header] = []
    named: list[bytes] = []
    length: bytes | None = None
    chunked = False
    for header in headers:
        name = header[0].lower()
        if name in _HOPS:
            chunked = chunked or name == b"transfer-encoding"
            if name == b"connection":
                named.append(header[1])
            continue
        if name == b"content-length":
            if length is not None and length != header[1]:
                raise ValueError("the length of the answer is not clear")
            length = header[1]
        kept.append(header)
    if length is not None and chunked:
        raise ValueError("the length of the answer is not clear")
    if named:
        dropped = _tokens(named) - {b"host"}
        kept = [header for header in kept if header[0].lower() not in dropped]
    empty = method == b"HEAD" or status in _BODILESS or status < 200
    return Answer(status, reason, kept, int(length) if length is not None else None, chunked, empty)


def for_client(told: Answer, *, chunked: bool, close: bool, mount: str | None) -> bytes:
    """Return the head that the client gets. With `mount`, a `Location` within the service leads below it."""
    lines = [b"HTTP/1.1 %d %b" % (told.status, told.reason)]
    if mount is None:
        lines += map(_SEPARATED, told.headers)
    else:
        below = mount.encode()
        for name, value in told.headers:
            lines.append(name + b": " + (_below(value, below) if name.lower() == b"location" else value))
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    if close:
        lines.append(b"connection: close")
    lines += _END
    return b"\r\n".join(lines)


def _below(location: bytes, mount: bytes) -> bytes:
    """Put a path of a server that does not know its mount below it, as nginx does by default (`proxy_redirect`)."""
    inside = location == mount or location.startswith(mount + b"/")
    return mount + location if location.startswith(b"/") and location[1:2] != b"/" and not inside else location


def for_upgrade(told: Answer) -> bytes:
    """Return the head that tells a client that its websocket is open."""
    kept = map(_SEPARATED, told.headers)
    lines = [b"HTTP/1.1 101 " + told.reason, *kept, b"connection: upgrade", b"upgrade: websocket", *_END]
    return b"\r\n".join(lines)


def trailers(headers: list[Header]) -> bytes:
    """Return the last chunk with what follows it."""
    forbidden = _HOPS | _OURS | {b"host", b"authorization"}
    kept = [name + b": " + value + b"\r\n" for name, value in headers if name.lower() not in forbidden]
    return b"0\r\n" + b"".join(kept) + b"\r\n"
