"""The asking end of every route: a pool for each process and loop, keys, resending, errors by name, blobs, streams."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import random
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from msgspec import Struct

from apothic import __version__, errors
from apothic.clock import Clock, SystemClock
from apothic.direct import CONNECT_S, DIRECT, Connections, Reply, Unreached, on_loop
from apothic.inflow import Inflow
from apothic.nearby import HEADER, Nearby
from apothic.protocol import routes
from apothic.protocol.forms import MSGPACK, decode, form_of, read_error
from apothic.protocol.messages import Blob, BlobView
from apothic.protocol.routes import Route

if TYPE_CHECKING:
    import aiohttp

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)
T = TypeVar("T")

VERSION_HEADER = "apothic-version"
# Full jitter between these: the first resend comes soon, and a server that starts is not met by all at once.
BACKOFF_S = (0.1, 2.0)
# Until a server has answered once, nobody there is the likeliest reason for a refused connection.
FIRST_PATIENCE_S = 3.0
PATIENCE_S = 60.0
ANSWER_S = 60.0  # for an answer to begin, besides the time that was asked for by `wait_s`
CHUNK = 1 << 20
STREAM_CHUNK = 1 << 18
_GATEWAY_STATUSES = (502, 503, 504)


class Transport:
    """Asks one control plane. Safe for any number of tasks and loops, and after `fork`.

    `api_key` may be a function, which is asked each time. `relocate` is awaited after a refused connection and returns
    the URL to go on with, which may be another one: a local server comes back on another port. `nearby` are that
    server's blobs, if they are at hand.
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
        nearby: Nearby | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._api_key = api_key
        self._clock = clock or SystemClock()
        self._relocate = relocate
        self._patience = (first_patience_s, patience_s)
        self._met = False
        self._nearby = nearby
        # A session of a parent process stays here untouched: its sockets are the parent's.
        self._sessions: dict[tuple[int, asyncio.AbstractEventLoop], aiohttp.ClientSession] = {}
        self._connections: Connections | None = None

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
        form = form_of(route)

        async def once() -> R:
            headers = self._headers(api_key, form.has_body)
            query, body = form.query(message), form.body(message)
            target = form.path(message) + (f"?{urlencode(query)}" if query else "")
            silence_s = getattr(message, "wait_s", 0.0) + ANSWER_S
            exchange = self._directly if DIRECT.get() else self._exchanged
            answer = await exchange(route.method, target, headers, body, silence_s)
            self._check(answer.status, answer.headers, answer.body, route)
            return decode(route.reply, answer.headers.get("content-type", ""), answer.body)

        return await self._persist(route, once, timeout_s)

    async def has_blob(self, sha256: str, *, timeout_s: float | None = None, api_key: str | None = None) -> bool:
        """Tell whether the server has those bytes."""

        async def once() -> bool:
            session = await self._session()
            url = self.base_url + form_of(routes.HEAD_BLOB).path(Blob(sha256=sha256))
            async with session.head(url, headers=self._headers(api_key, False), timeout=_limits(ANSWER_S)) as answer:
                if answer.status == 404:
                    return False
                self._check(answer.status, answer.headers, b"", routes.HEAD_BLOB)
                return True

        return await self._persist(routes.HEAD_BLOB, once, timeout_s)

    async def put_blob(
        self,
        source: Path | bytes,
        sha256: str,
        size: int,
        *,
        given: bool = False,
        timeout_s: float | None = None,
        api_key: str | None = None,
    ) -> BlobView:
        """Send a file's bytes, or those given, under their hash; never the whole of a file in memory.

        To a server whose blobs are at hand it goes as a file; with `given`, that very file: nobody writes to it again.
        """

        async def once() -> BlobView:
            await on_loop()
            if self._nearby is not None and isinstance(source, Path):
                # It costs nothing to see that it seems to be there, and 1 ms in 12 to be told that it is.
                if self._nearby.has(sha256) and await self.has_blob(sha256, timeout_s=timeout_s, api_key=api_key):
                    return BlobView(sha256=sha256, size=size)
                async with self._nearby.offering(source, given=given) as name:
                    if name is not None:
                        with contextlib.suppress(errors.NotFoundError):  # it was not for this server
                            return await self._put(b"", sha256, api_key, {HEADER: name})
            if isinstance(source, bytes):
                return await self._put(source, sha256, api_key, {})
            chunks = _chunks_of(source)
            try:
                return await self._put(chunks, sha256, api_key, {"Content-Length": str(size)})
            finally:
                with contextlib.suppress(RuntimeError):  # it is being cancelled, which closes it as well
                    await chunks.aclose()  # a lost connection leaves it standing, its file open

        return await self._persist(routes.PUT_BLOB, once, timeout_s)

    async def _put(
        self, data: bytes | AsyncGenerator[bytes, None], sha256: str, api_key: str | None, more: dict[str, str]
    ) -> BlobView:
        session = await self._session()
        headers = self._headers(api_key, False) | {"Content-Type": "application/octet-stream"} | more
        url = self.base_url + form_of(routes.PUT_BLOB).path(Blob(sha256=sha256))
        async with session.put(url, data=data, headers=headers, timeout=_streaming()) as answer:
            body = await answer.read()
            self._check(answer.status, answer.headers, body, routes.PUT_BLOB)
            return decode(BlobView, answer.headers.get("content-type", ""), body)

    async def get_blob(
        self, sha256: str, dest: Path, *, timeout_s: float | None = None, api_key: str | None = None
    ) -> None:
        """Write those bytes to the new file `dest`, which appears complete and checked, or not at all.

        Raises `SerializationError` when what came does not have that hash.
        """

        async def once() -> None:
            await on_loop()
            if self._nearby is not None and await self._nearby.fetch(sha256, dest):
                return
            session = await self._session()
            url = self.base_url + form_of(routes.GET_BLOB).path(Blob(sha256=sha256))
            headers = self._headers(api_key, False)
            async with session.get(url, headers=headers, timeout=_streaming(), read_bufsize=CHUNK) as answer:
                if answer.status >= 300:
                    self._check(answer.status, answer.headers, await answer.read(), routes.GET_BLOB)
                self._check(answer.status, answer.headers, b"", routes.GET_BLOB)
                await _write_checked(answer.content.iter_any(), sha256, dest)

        await self._persist(routes.GET_BLOB, once, timeout_s)

    async def open(self, route: Route[A, Any], message: A, *, accept: str, api_key: str | None = None) -> Answer:
        """Ask once, and return the answer as it begins: its body is to be read, and the answer to be closed.

        No time limit holds but that of connecting. Raises what `ask` raises, `ServerUnavailableError` without asking
        again; after a refused connection, the next try goes to where the server is by then.
        """
        aiohttp = await library()
        form = form_of(route)
        session = await self._session()
        answer = None
        try:
            answer = await session.request(
                route.method,
                self.base_url + form.path(message),
                params=form.query(message),
                data=form.body(message),
                headers=self._headers(api_key, form.has_body) | {"Accept": accept},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                read_bufsize=STREAM_CHUNK,
            )
            body = await answer.read() if answer.status >= 300 else b""
            self._check(answer.status, answer.headers, body, route)
        except BaseException as error:
            if answer is not None:
                answer.close()
            if not isinstance(error, (aiohttp.ClientError, TimeoutError, ConnectionError)):
                raise
            trouble = self._trouble(error)
            if isinstance(error, aiohttp.ClientConnectorError):
                await self._move()
            raise trouble from None
        return Answer(self, answer)

    async def close(self) -> None:
        """Close the connections of this process and loop. The next ask opens new ones."""
        if self._connections is not None:
            self._connections.close()
        session = self._sessions.pop((os.getpid(), asyncio.get_running_loop()), None)
        if session is not None:
            await session.close()

    async def _directly(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, silence_s: float
    ) -> Reply:
        """Exchange a request for its answer in this thread. It never suspends."""
        connections = self._connections
        if connections is None or connections.url != self.base_url:
            if connections is not None:
                connections.close()
            connections = self._connections = Connections(self.base_url)
            weakref.finalize(self, connections.close)
        return connections.exchange(method, target, headers, body, silence_s=silence_s)

    async def _exchanged(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, silence_s: float
    ) -> Reply:
        """Exchange a request for its answer on this event loop."""
        session = await self._session()
        async with session.request(
            method,
            self.base_url + target,
            data=body,
            headers=headers,
            timeout=_limits(silence_s),
            allow_redirects=False,
        ) as answer:
            found = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, found, await answer.read())

    async def _session(self) -> aiohttp.ClientSession:
        await on_loop()
        aiohttp = await library()  # before the look: of two that wait for it, the second finds the first one's session
        key = os.getpid(), asyncio.get_running_loop()
        session = self._sessions.get(key)
        if session is None or session.closed:
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
        begun = self._clock.monotonic()
        tries = 0
        while True:
            try:
                answer = await once()
                self._met = True
                return answer
            except errors.ServerUnavailableError as error:
                trouble, refused = error, False
            except Exception as error:
                trouble, refused = self._trouble(error), _is_refusal(error)
            patience = self._patience[self._met] if timeout_s is None or not self._met else max(timeout_s, 0.0)
            delay = random.uniform(0, min(BACKOFF_S[1], BACKOFF_S[0] * 2**tries))
            tries += 1
            # A refused connection carried nothing over, so any route may be asked again.
            if not (route.resend or refused) or self._clock.monotonic() - begun + delay > patience:
                raise trouble from None
            await on_loop()
            await self._clock.sleep(delay)
            if refused:
                await self._move()

    async def _move(self) -> None:
        if self._relocate is not None:
            self.base_url = (await self._relocate()).rstrip("/")

    def _trouble(self, error: BaseException) -> errors.ServerUnavailableError:
        """Name what is wrong with the connection. Raises what is wrong with something else."""
        library = sys.modules.get("aiohttp")
        if library is not None and isinstance(error, library.InvalidURL):
            raise errors.ConfigError(
                f"{self.base_url} is no URL", hint="use one such as http://127.0.0.1:8700"
            ) from None
        if not isinstance(error, TimeoutError | ConnectionError | (library.ClientError if library else Unreached)):
            raise error
        return self._unavailable(error)

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
        error = read_error(body, headers.get("content-type", ""))
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
        if error.http != status:
            error.details.setdefault("status", status)
        if "retry-after" in headers:
            error.details.setdefault("retry_after_s", _seconds(headers["retry-after"]))
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


class Answer:
    """An answer that is read as it comes."""

    def __init__(self, transport: Transport, answer: aiohttp.ClientResponse) -> None:
        self.status = answer.status
        self.content_type = answer.headers.get("content-type", "")
        self.job: str | None = answer.headers.get("apothic-job")  # whose stream it is
        self._transport = transport
        self._answer = answer

    async def read(self) -> bytes:
        """Return what has come since, at least one byte; none at the end. Raises `ServerUnavailableError`."""
        aiohttp = sys.modules["aiohttp"]
        try:
            return await self._answer.content.readany()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._transport._trouble(error) from None

    def close(self) -> None:
        """Let go of the connection, wherever it stands."""
        self._answer.close()


# --- details ----------------------------------------------------------------------------------------------------


def _is_refusal(error: Exception) -> bool:
    """Tell whether no connection came about."""
    library = sys.modules.get("aiohttp")
    return isinstance(error, Unreached) or (library is not None and isinstance(error, library.ClientConnectorError))


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


async def library() -> Any:
    """Import aiohttp, beside the loop: 0.1 s is long for others who use it, and `import apothic` is light without."""
    found = sys.modules.get("aiohttp")
    if found is not None and not getattr(found.__spec__, "_initializing", False):
        return found
    return await asyncio.to_thread(importlib.import_module, "aiohttp")  # which waits for another thread's import


def _limits(total_s: float) -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S)


def _streaming() -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=ANSWER_S)


# --- files ------------------------------------------------------------------------------------------------------


async def _chunks_of(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, CHUNK):
            yield chunk


async def _write_checked(chunks: AsyncIterator[bytes], sha256: str, dest: Path) -> None:
    part = dest.with_name(f"{dest.name}.{os.getpid()}.{random.getrandbits(32):08x}.part")
    try:
        with contextlib.closing(Inflow(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))) as inflow:
            async for chunk in chunks:
                await inflow.take(chunk)
            found = await inflow.finish(sync=False)
        if found != sha256:
            raise errors.SerializationError(
                f"the bytes of blob {sha256} came damaged: they hash to {found}", hint="ask again"
            )
        part.replace(dest)
    finally:
        part.unlink(missing_ok=True)
