"""Routes as an ASGI application: check the caller, decode by the table, ask the plane, encode."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from typing import Any, get_origin, get_type_hints
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import msgspec

from apothic import __version__, nearby
from apothic.control import metrics, pages
from apothic.control.keys import Keys, Principal, refused
from apothic.control.plane import Asker, Plane
from apothic.control.sessions import Sessions
from apothic.control.streams import Connection
from apothic.errors import (
    ApothicError,
    AuthError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    QueueFullError,
)
from apothic.probe import Probe
from apothic.protocol.events import ITEM
from apothic.protocol.lifecycle import FINAL
from apothic.protocol.messages import ErrorBody, ErrorReply, FollowJob, Health, JobResult
from apothic.protocol.routes import EVENTS, ROUTES, SESSION_PATH, SUBMIT, Route
from apothic.store.blobs import Offer
from apothic.store.gauges import Gauges

log = logging.getLogger("apothic.control")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

JSON, MSGPACK, EVENT_STREAM = "application/json", "application/msgpack", "text/event-stream"
# A batch of 500 inputs of 64 KiB, in base64, with room to spare. Larger values are blobs, which are streamed.
LARGEST_BODY = 64 * 1024 * 1024
NOBODY = Principal("", ())


class _Match:
    """A route with what is worked out once: the pattern of its path, the types of its fields."""

    def __init__(self, route: Route[Any, Any]) -> None:
        self.route = route
        self.pattern = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path))
        self.types = get_type_hints(route.ask)
        self.reply = f"{route.name}.reply"
        fields = set(self.types) - set(route.in_path)
        self.query = set(route.query) if route.body else fields

    def from_text(self, name: str, text: list[str]) -> Any:
        """Decode one field of the path or the query by its declared type."""
        try:
            given = text if get_origin(self.types[name]) is list else text[-1]
            return msgspec.convert(given, self.types[name], strict=False)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(f"{name}: {error}") from error


class Http:
    """The application. One instance a server."""

    def __init__(
        self, plane: Plane, keys: Keys, sessions: Sessions, hosts: set[str], gauges: Callable[[], Awaitable[Gauges]],
        probe: Probe,
    ) -> None:  # fmt: skip
        self._plane = plane
        self._keys = keys
        self._sessions = sessions
        self._hosts = frozenset(host.lower() for host in hosts)
        self.gauges = gauges
        self._probe = probe
        self._matches = [_Match(route) for route in ROUTES]
        self._likely: dict[tuple[str, int], list[_Match]] = {}  # by method and how many parts the path has
        for match in self._matches:
            self._likely.setdefault((match.route.method, match.route.path.count("/")), []).append(match)
        self.requests = 0

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request or serve one agent's session."""
        if scope["type"] == "websocket":
            await self._session(scope, receive, send)
        elif scope["type"] == "http":
            self.requests += 1
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            try:
                await self._answer(scope, headers, receive, send)
            except Refused as refused:
                await self._refuse(send, headers, refused.error, refused.status)
            except ApothicError as error:
                await self._refuse(send, headers, error, error.http)
            except OverflowError:
                # Python's whole numbers are longer than those of the store and of MessagePack.
                too_long = InvalidRequestError("a number of the request does not fit into 64 bits")
                await self._refuse(send, headers, too_long, too_long.http)
            except Exception:
                log.exception("http.bug method=%s path=%s", scope["method"], scope["path"])
                bug = ApothicError(
                    "the server made a mistake", hint="the server's log has the traceback; please report it"
                )
                await self._refuse(send, headers, bug, bug.http)

    async def _answer(self, scope: dict[str, Any], headers: dict[str, str], receive: Receive, send: Send) -> None:
        self._check_origin(headers)
        if (page := pages.find(scope["method"], scope["path"])) is not None:
            await respond(send, 200, page.body(), page.content_type)
            return
        if (scope["method"], scope["path"]) == ("GET", metrics.PATH):
            await self._allowed(metrics.SCOPE, headers)
            await respond(send, 200, metrics.exposition(await self.gauges()), metrics.CONTENT_TYPE)
            return
        match, in_path = self._find(scope["method"], scope["raw_path"].decode("latin-1").partition("?")[0])
        route = match.route
        text = scope["query_string"].decode("latin-1")
        query = parse_qs(text, keep_blank_values=True) if text else {}
        asker = Asker(await self._principal(route, headers, query), MSGPACK in headers.get("accept", ""))
        fields = _fields(match, in_path, query)
        if route.streamed and wants_stream(headers, query):
            await self._stream(route, asker, _followed(route, fields, headers), headers, scope, receive, send)
            return
        if route.raw:
            await self._blob(match, asker, route.ask(**fields), headers, receive, send)
            return
        if route.body:
            fields |= _body(match, headers, await read_all(receive))
        asked = _convert(route, fields)
        try:
            reply = await getattr(self._plane, route.name)(asker, asked)
        except AuthError as error:  # the key is known by now, so it is good, but not for this
            raise Refused(403, error) from error
        body = msgspec.msgpack.encode(reply) if asker.binary else msgspec.json.encode(reply)
        self._probe.reach(match.reply)
        if route is SUBMIT and asked.attached and EVENT_STREAM in headers.get("accept", ""):
            with contextlib.suppress(QueueFullError):  # of streams: who is told of its job comes for its items later
                follow = FollowJob(job=reply.job.id, type=[ITEM], attached=True)
                await self._stream(EVENTS, asker, follow, headers, scope, receive, send)
                return
        await respond(send, status_of(reply), body, MSGPACK if asker.binary else JSON)

    def _find(self, method: str, path: str) -> tuple[_Match, dict[str, str]]:
        for match in self._likely.get((method, path.count("/")), ()):
            found = match.pattern.fullmatch(path)
            if found is not None:
                return match, {name: unquote(text) for name, text in found.groupdict().items()}
        allowed = [match.route.method for match in self._matches if match.pattern.fullmatch(path)]
        if allowed:
            raise Refused(405, InvalidRequestError(f"{path} takes {', '.join(allowed)}, not {method}"))
        raise NotFoundError(f"there is no route {path}", hint="GET /openapi.json describes them all")

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Refuse a page of another origin, for every method (Ray's guard forgot DELETE: CVE-2026-27482)."""
        host = headers.get("host", "")
        if not allowed_host(host, self._hosts):
            raise forbidden(f"this server is not {host!r}", hint="use the address that the server printed")
        origin = headers.get("origin")
        site = _split(origin) if origin is not None else None
        if origin is not None and (site is None or site.netloc != host):
            raise forbidden(f"requests from pages of {origin!r} are refused")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise forbidden("requests from pages of another site are refused")

    async def _principal(
        self, route: Route[Any, Any], headers: dict[str, str], query: dict[str, list[str]]
    ) -> Principal:
        if route.scope is None:
            return NOBODY
        if route.streamed and "token" in query and "authorization" not in headers:
            return await self._keys.check_stream(query["token"][-1])
        return await self._allowed(route.scope, headers)

    async def _allowed(self, scope: str, headers: dict[str, str]) -> Principal:
        principal = await self._identify(headers)
        if not principal.may(scope):
            raise forbidden(f"this key has not the scope {scope!r}", hint="ask for a key that has it")
        return principal

    async def _identify(self, headers: dict[str, str]) -> Principal:
        scheme, _, text = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise refused()
        return await self._keys.check(text.strip())

    async def _stream(
        self, route: Route[Any, Any], asker: Asker, ask: Any, headers: dict[str, str], scope: dict[str, Any],
        receive: Receive, send: Send,
    ) -> None:  # fmt: skip
        """Answer with server-sent events."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def allowed() -> bool:
            try:
                if asker.principal.only is not None:
                    return await self._keys.still_good(asker.principal.id)
                return (await self._identify(headers)).may(route.scope or "")
            except ApothicError:
                return False

        abort = scope.get("state", {}).get("abort", lambda: None)
        follow = self._plane.follow if route is EVENTS else self._plane.follow_deployment
        await follow(asker, ask, Connection(send, gone, allowed, abort, asker.principal.id))

    async def _blob(
        self, match: _Match, asker: Asker, ask: Any, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        if match.route.method == "PUT":
            name = headers.get(nearby.HEADER)
            source = body_chunks(receive) if name is None else Offer(name)
            view = await self._plane.put_blob(asker, ask, source)
            self._probe.reach(match.reply)
            await respond(send, 200, msgspec.json.encode(view), JSON)
            return
        if match.route.method == "HEAD":
            view = await self._plane.head_blob(asker, ask)
            await respond(send, 200, b"", "application/octet-stream", length=view.size)
            return
        view, chunks = self._plane.get_blob(asker, ask)
        await send(_start(200, "application/octet-stream", view.size))
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _refuse(self, send: Send, headers: dict[str, str], error: ApothicError, status: int) -> None:
        body = ErrorBody(code=error.code, message=error.message, hint=error.hint, details=error.details)
        reply = ErrorReply(error=body)
        more = []
        if status in (429, 503):
            more.append((b"retry-after", str(int(error.details.get("retry_after_s", 1))).encode()))
        if status == 401:
            more.append((b"www-authenticate", b"Bearer"))
        if MSGPACK in headers.get("accept", ""):
            await respond(send, status, msgspec.msgpack.encode(reply), MSGPACK, more=more)
        else:
            await respond(send, status, msgspec.json.encode(reply), JSON, more=more)

    async def _session(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        async def allowed() -> bool:
            try:
                return (await self._identify(headers)).may("worker")
            except ApothicError:
                return False

        try:
            self._check_origin(headers)
            key = await self._identify(headers)
            if scope["path"] != SESSION_PATH or not await allowed():
                raise forbidden("only an agent's key opens a session")
        except (ApothicError, Refused) as error:
            log.warning("session.refused reason=%s", error)
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "websocket.accept", "headers": [(b"apothic-version", __version__.encode())]})
        send_now = scope.get("state", {}).get("send_now", lambda data: False)
        await self._sessions.serve(receive, send, key.id, allowed, send_now)


class Refused(Exception):
    """An error under another status than its own: the key is good but not for this, say."""

    def __init__(self, status: int, error: ApothicError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


def forbidden(message: str, hint: str = "") -> Refused:
    """Return a 403."""
    return Refused(403, AuthError(message, hint=hint))


def wants_stream(headers: dict[str, str], query: dict[str, list[str]]) -> bool:
    """Tell whether a reader wants server-sent events: it says so, or says nothing of the kind (`curl -N`)."""
    accept = headers.get("accept", "*/*")
    return EVENT_STREAM in accept or (accept.strip() == "*/*" and not {"limit", "wait_s"} & set(query))


def _fields(match: _Match, in_path: dict[str, str], query: dict[str, list[str]]) -> dict[str, Any]:
    fields = {name: match.from_text(name, [text]) for name, text in in_path.items()}
    for name, texts in query.items():
        if name not in match.query:
            raise InvalidRequestError(
                f"{match.route.path} has no parameter {name!r}",
                hint=f"it knows {', '.join(sorted(match.query)) or 'none'}",
            )
        fields[name] = match.from_text(name, texts)
    return fields


def _followed(route: Route[Any, Any], fields: dict[str, Any], headers: dict[str, str]) -> Any:
    # An EventSource that reconnects sends the URL it was made with, and its true place in this header.
    if "last-event-id" in headers:
        try:
            fields["after"] = int(headers["last-event-id"])
        except ValueError:
            raise InvalidRequestError(
                "Last-Event-ID is no index", hint="it is the id of a frame of the stream"
            ) from None
    return _convert(route, fields)


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # "http://[", say
        return None


@lru_cache(256)  # of a name there are few, and an address takes 10 µs to read
def allowed_host(host: str, known: frozenset[str]) -> bool:
    """Tell whether a Host header is ours: an IP address, or a name we know. A rebound name is neither."""
    parts = _split(f"//{host}")
    name = parts.hostname if parts is not None else None
    if name is None:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in known
    return True


def status_of(reply: Any) -> int:
    """Return the status of a reply: 202 for a job that has not ended, 503 for a server that is not ready."""
    if isinstance(reply, JobResult):
        return 200 if reply.job.status in FINAL else 202
    return 503 if isinstance(reply, Health) and not reply.ok else 200


async def read_all(receive: Receive) -> bytes:
    """Return a body of bounded size."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in body_chunks(receive):
        chunks.append(chunk)
        size += len(chunk)
        if size > LARGEST_BODY:
            raise PayloadTooLargeError(size=size, limit=LARGEST_BODY, what="the request's body")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def body_chunks(receive: Receive) -> AsyncIterator[bytes]:
    """Yield a body as it comes. Raises `InvalidRequestError` when the client leaves in the middle."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequestError("the connection was closed before the body was complete")
        more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


async def respond(
    send: Send, status: int, body: bytes, content_type: str, *, length: int | None = None,
    more: list[tuple[bytes, bytes]] | None = None,
) -> None:  # fmt: skip
    """Send a whole answer."""
    start = _start(status, content_type, len(body) if length is None else length)
    start["headers"] += more or []
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _start(status: int, content_type: str, length: int) -> dict[str, Any]:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(length).encode()),
        (b"apothic-version", __version__.encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    return {"type": "http.response.start", "status": status, "headers": headers}


def _body(match: _Match, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body:
        return _keyed(match, headers, {})
    if kind not in (JSON, MSGPACK):
        error = InvalidRequestError(f"the body is {kind or 'of no type'}", hint=f"send {JSON} or {MSGPACK}")
        raise Refused(415, error)
    try:
        decoded = msgspec.json.decode(body) if kind == JSON else msgspec.msgpack.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"the body is not {kind}: {error}") from error
    if match.route.body != "*":
        return {match.route.body: decoded}
    if not isinstance(decoded, dict):
        raise InvalidRequestError("the body is not an object")
    unknown = set(map(str, decoded)) - set(match.types)
    if unknown:
        raise InvalidRequestError(f"{match.route.path} knows no field {', '.join(sorted(unknown))}")
    foreign = set(map(str, decoded)) & (match.query | set(match.route.in_path))
    if foreign:
        raise InvalidRequestError(f"{', '.join(sorted(foreign))}: belongs in the path or the query, not in the body")
    return _keyed(match, headers, decoded)


def _keyed(match: _Match, headers: dict[str, str], fields: dict[str, Any]) -> dict[str, Any]:
    key = headers.get("idempotency-key")
    if key is not None and "idempotency_key" in match.types:
        if fields.get("idempotency_key", key) != key:
            raise InvalidRequestError("the Idempotency-Key header and the body's idempotency_key differ")
        fields["idempotency_key"] = key
    return fields


def _convert(route: Route[Any, Any], fields: dict[str, Any]) -> Any:
    try:
        return msgspec.convert(fields, route.ask)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidRequestError(f"the request does not fit {route.path}: {error}") from error
