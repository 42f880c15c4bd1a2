"""The asking end of every route: one pool for each process and loop, keys, resending, errors by their names, blobs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import os
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from apothic import __version__, errors
from apothic.clock import Clock, SystemClock
from apothic.protocol import routes
from apothic.protocol.messages import Blob, BlobView, ErrorReply
from apothic.protocol.routes import Route

if TYPE_CHECKING:
    import aiohttp

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)
T = TypeVar("T")

MSGPACK = "application/msgpack"
VERSION_HEADER = "Apothic-Version"
# Full jitter between these: the first resend comes soon, and a server that starts is not met by all at once.
BACKOFF_S = (0.1, 2.0)
# Until a server has answered once, nobody there is the likeliest reason for a refused connection.
FIRST_PATIENCE_S = 3.0
PATIENCE_S = 60.0
CONNECT_S = 10.0
ANSWER_S = 60.0  # for an answer to begin, besides the time that was asked for by `wait_s`
CHUNK = 1 << 20
_GATEWAY_STATUSES = (502, 503, 504)


class Transport:
    """Asks one control plane. Safe for any number of tasks and loops, and after `fork`.

    `api_key` may be a function, which is asked each time. `relocate` is awaited after a refused connection and returns
    the URL to go on with, which may be another one: a local server comes back on another port.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | Callable[[], str | None] | None = None,
        *,
        clock: Clock | None = None,
        relocate: Callable[[], Awaitable[str]] | None = None,
        first_patience_s: float = FIRST_PATIENCE_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._clock = clock or SystemClock()
        self._relocate = relocate
        self._patience = (first_patience_s, patience_s)
        self._met = False
        # A session of a parent process stays here untouched: its sockets are the parent's.
        self._sessions: dict[tuple[int, asyncio.AbstractEventLoop], aiohttp.ClientSession] = {}

    def use_key(self, api_key: str | Callable[[], str | None] | None) -> None:
        """Show that key from now on."""
        self._api_key = api_key

    async def ask(
        self, route: Route[A, R], message: A, *, timeout_s: float | None = None, api_key: str | None = None
    ) -> R:
        """Ask, and return the answer. `timeout_s` bounds the resending when the server cannot be reached.

        Raises the error that the server names, `AuthError`, `ServerUnavailableError` (after resending what may be
        resent), `VersionMismatchError`. Cancelling it closes the connection; what was asked may happen all the same.
        """
        form = _form(route)

        async def once() -> R:
            session = await self._session()
            async with session.request(
                route.method,
                self.base_url + form.path(message),
                params=form.query(message),
                data=form.body(message),
                headers=self._headers(api_key, form.has_body),
                timeout=_limits(getattr(message, "wait_s", 0.0)),
            ) as answer:
                body = await answer.read()
                self._check(answer.status, answer.headers, body, route)
                return _decode(route.reply, answer.headers.get("Content-Type", ""), body)

        return await self._persist(route, once, timeout_s)

    async def has_blob(self, sha256: str) -> bool:
        """Tell whether the server has those bytes."""

        async def once() -> bool:
            session = await self._session()
            url = self.base_url + _form(routes.HEAD_BLOB).path(Blob(sha256=sha256))
            async with session.head(url, headers=self._headers(None, False), timeout=_limits(0.0)) as answer:
                if answer.status == 404:
                    return False
                self._check(answer.status, answer.headers, b"", routes.HEAD_BLOB)
                return True

        return await self._persist(routes.HEAD_BLOB, once, None)

    async def put_blob(
        self,
        source: Path | bytes,
        sha256: str,
        size: int,
        *,
        timeout_s: float | None = None,
        api_key: str | None = None,
    ) -> BlobView:
        """Send a file's bytes, or those given, under their hash; never the whole of a file in memory."""

        async def once() -> BlobView:
            session = await self._session()
            headers = self._headers(api_key, False) | {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size),
            }
            url = self.base_url + _form(routes.PUT_BLOB).path(Blob(sha256=sha256))
            data = source if isinstance(source, bytes) else _chunks_of(source)
            try:
                async with session.put(url, data=data, headers=headers, timeout=_streaming()) as answer:
                    body = await answer.read()
                    self._check(answer.status, answer.headers, body, routes.PUT_BLOB)
                    return _decode(BlobView, answer.headers.get("Content-Type", ""), body)
            finally:
                if not isinstance(data, bytes):
                    with contextlib.suppress(RuntimeError):  # it is being cancelled, which closes it as well
                        await data.aclose()  # a lost connection leaves it standing, its file open

        return await self._persist(routes.PUT_BLOB, once, timeout_s)

    async def get_blob(
        self, sha256: str, dest: Path, *, timeout_s: float | None = None, api_key: str | None = None
    ) -> None:
        """Write those bytes to the new file `dest`, which appears complete and checked, or not at all.

        Raises `SerializationError` when what came does not have that hash.
        """

        async def once() -> None:
            session = await self._session()
            url = self.base_url + _form(routes.GET_BLOB).path(Blob(sha256=sha256))
            headers = self._headers(api_key, False)
            async with session.get(url, headers=headers, timeout=_streaming(), read_bufsize=CHUNK) as answer:
                if answer.status >= 300:
                    self._check(answer.status, answer.headers, await answer.read(), routes.GET_BLOB)
                self._check(answer.status, answer.headers, b"", routes.GET_BLOB)
                await _write_checked(answer.content.iter_chunked(CHUNK), sha256, dest)

        await self._persist(routes.GET_BLOB, once, timeout_s)

    async def close(self) -> None:
        """Close the connections of this process and loop. The next ask opens new ones."""
        session = self._sessions.pop((os.getpid(), asyncio.get_running_loop()), None)
        if session is not None:
            await session.close()

    async def _session(self) -> aiohttp.ClientSession:
        key = os.getpid(), asyncio.get_running_loop()
        session = self._sessions.get(key)
        if session is None or session.closed:
            aiohttp = await _library()
            session = self._sessions[key] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Content-Type"),
                auto_decompress=True,
            )
        return session

    def _headers(self, api_key: str | None, has_body: bool) -> dict[str, str]:
        key = api_key or (self._api_key() if callable(self._api_key) else self._api_key)
        headers = {"Accept": MSGPACK, VERSION_HEADER: __version__}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if has_body:
            headers["Content-Type"] = MSGPACK
        return headers

    async def _persist(self, route: Route[Any, Any], once: Callable[[], Awaitable[T]], timeout_s: float | None) -> T:
        """Do it; on a lost or refused connection again, where the route allows, until patience or time is at an end."""
        aiohttp = await _library()
        begun = self._clock.monotonic()
        tries = 0
        while True:
            try:
                answer = await once()
                self._met = True
                return answer
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                if isinstance(error, aiohttp.InvalidURL):
                    raise errors.ConfigError(
                        f"{self.base_url} is no URL", hint="use one such as http://127.0.0.1:8700"
                    ) from None
                trouble = self._unavailable(error)
                refused = isinstance(error, aiohttp.ClientConnectorError)
            except errors.ServerUnavailableError as error:
                trouble, refused = error, False
            patience = self._patience[self._met] if timeout_s is None or not self._met else max(timeout_s, 0.0)
            delay = random.uniform(0, min(BACKOFF_S[1], BACKOFF_S[0] * 2**tries))
            tries += 1
            # A refused connection carried nothing over, so any route may be asked again.
            if not (route.resend or refused) or self._clock.monotonic() - begun + delay > patience:
                raise trouble from None
            await self._clock.sleep(delay)
            if refused and self._relocate is not None:
                self.base_url = (await self._relocate()).rstrip("/")

    def _unavailable(self, error: BaseException) -> errors.ServerUnavailableError:
        said = str(error) or type(error).__name__
        refused = getattr(error, "os_error", None)  # of a connection error, whose own text repeats the address twice
        if isinstance(refused, OSError) and refused.errno:
            said = os.strerror(refused.errno) if refused.errno > 0 else str(refused.strerror)
        return errors.ServerUnavailableError(
            f"no control plane answers at {self.base_url}: {said}",
            url=self.base_url,
            hint="start one with `apothic up`, or set APOTHIC_BASE_URL to one that runs",
        )

    def _check(self, status: int, headers: Any, body: bytes, route: Route[Any, Any]) -> None:
        version = headers.get(VERSION_HEADER)
        if version is not None and _minor(version) != _minor(__version__):
            raise errors.VersionMismatchError(
                f"the control plane at {self.base_url} is apothic {version}, this is apothic {__version__}",
                hint="install the same version on both sides; a local server is ended by `apothic down`",
                details={"server": version, "client": __version__, "url": self.base_url},
            )
        if status < 300 or (route is routes.READYZ and status == 503 and version is not None):
            return
        error = _read_error(body, headers.get("Content-Type", ""))
        if error is None:
            error = self._nameless(status, version is not None)
        if isinstance(error, errors.AuthError):
            error = errors.AuthError(
                f"{error.message} ({self.base_url})",
                hint=error.hint or "set APOTHIC_API_KEY; `apothic key create` makes a key",
                details=error.details | {"url": self.base_url},
            )
        if isinstance(error, errors.ServerUnavailableError) and not error.url:
            error.url = self.base_url
        if "Retry-After" in headers:
            error.details.setdefault("retry_after_s", _seconds(headers["Retry-After"]))
        raise error

    def _nameless(self, status: int, ours: bool) -> errors.ApothicError:
        """Make the error for an answer without a body that names one: of a HEAD, or of somebody in between."""
        if status in _GATEWAY_STATUSES:
            return self._unavailable(RuntimeError(f"the answer is {status}"))
        if not ours:
            return errors.ServerUnavailableError(
                f"what answers at {self.base_url} is no control plane: it says {status}",
                url=self.base_url,
                hint="look at APOTHIC_BASE_URL and at who holds that port",
            )
        fitting = (cls for cls in errors.family() if cls.http == status and not issubclass(cls, errors.JobError))
        cls = next(fitting, errors.ApothicError)
        return cls(f"{self.base_url} answers {status}")


# --- messages as requests ---------------------------------------------------------------------------------------


class _Form:
    """Which fields of a route's message go where."""

    def __init__(self, route: Route[Any, Any]) -> None:
        fields = [field.name for field in msgspec.structs.fields(route.ask)]
        rest = [name for name in fields if name not in route.in_path]
        self._route = route
        self._query = [name for name in rest if not route.body or name in route.query]
        self._body = [name for name in rest if name not in self._query]
        self.has_body = bool(route.body)

    def path(self, message: Struct) -> str:
        return self._route.path.format(
            **{name: quote(str(getattr(message, name)), safe="") for name in self._route.in_path}
        )

    def query(self, message: Struct) -> dict[str, str] | None:
        told = {name: getattr(message, name) for name in self._query}
        return {name: str(value) for name, value in told.items() if value is not None} or None

    def body(self, message: Struct) -> bytes | None:
        if not self.has_body:
            return None
        if self._route.body != "*":
            return msgspec.msgpack.encode(getattr(message, self._route.body))
        told = {name: getattr(message, name) for name in self._body}
        return msgspec.msgpack.encode({name: value for name, value in told.items() if value is not None})


_FORMS: dict[str, _Form] = {}


def _form(route: Route[Any, Any]) -> _Form:
    form = _FORMS.get(route.name)
    if form is None:
        form = _FORMS[route.name] = _Form(route)
    return form


_DECODERS: dict[tuple[type[Struct], bool], Any] = {}


def _decode(kind: type[R], content_type: str, body: bytes) -> R:
    binary = content_type.startswith(MSGPACK)
    decoder = _DECODERS.get((kind, binary))
    if decoder is None:
        decoder = (msgspec.msgpack if binary else msgspec.json).Decoder(kind)
        _DECODERS[kind, binary] = decoder
    try:
        return decoder.decode(body)  # type: ignore[no-any-return]
    except msgspec.MsgspecError as error:
        raise errors.VersionMismatchError(
            f"the answer cannot be read as {kind.__name__}: {error}",
            hint="look whether a control plane of this version runs there",
        ) from None


def _read_error(body: bytes, content_type: str) -> errors.ApothicError | None:
    if not body:
        return None
    try:
        codec = msgspec.msgpack if content_type.startswith(MSGPACK) else msgspec.json
        told = codec.decode(body, type=ErrorReply).error
    except msgspec.MsgspecError:
        return None
    return errors.from_wire(told.code, told.message, told.hint, told.details)


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


async def _library() -> Any:
    """Import aiohttp, beside the loop: 0.1 s is long for others who use it, and `import apothic` is light without."""
    found = sys.modules.get("aiohttp")
    if found is not None and not getattr(found.__spec__, "_initializing", False):
        return found
    return await asyncio.to_thread(importlib.import_module, "aiohttp")  # which waits for another thread's import


def _limits(wait_s: float) -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=wait_s + ANSWER_S, sock_connect=CONNECT_S)


def _streaming() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S)


# --- files ------------------------------------------------------------------------------------------------------


async def _chunks_of(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, CHUNK):
            yield chunk


async def _write_checked(chunks: AsyncIterator[bytes], sha256: str, dest: Path) -> None:
    found = hashlib.sha256()
    part = dest.with_name(f"{dest.name}.{os.getpid()}.{random.getrandbits(32):08x}.part")

    def take(chunk: bytes) -> None:
        found.update(chunk)
        sink.write(chunk)

    try:
        with part.open("xb") as sink:
            async for chunk in chunks:
                await asyncio.to_thread(take, chunk)
        if found.hexdigest() != sha256:
            raise errors.SerializationError(
                f"the bytes of blob {sha256} came damaged: they hash to {found.hexdigest()}", hint="ask again"
            )
        part.replace(dest)
    finally:
        part.unlink(missing_ok=True)
