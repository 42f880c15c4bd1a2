"""The asking end of every route: a pool for each process and loop, keys, resending, errors by name, blobs, streams."""

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

from msgspec import Struct

from apothic import __version__, errors
from apothic.clock import Clock, SystemClock
from apothic.protocol import routes
from apothic.protocol.forms import MSGPACK, decode, form_of, read_error
from apothic.protocol.messages import Blob, BlobView
from apothic.protocol.routes import Route

if TYPE_CHECKING:
    import aiohttp

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)
T = TypeVar("T")

VERSION_HEADER = "Apothic-Version"
# Full jitter between these: the first resend comes soon, and a server that starts is not met by all at once.
BACKOFF_S = (0.1, 2.0)
# Until a server has answered once, nobody there is the likeliest reason for a refused connection.
FIRST_PATIENCE_S = 3.0
PATIENCE_S = 60.0
CONNECT_S = 10.0
ANSWER_S = 60.0  # for an answer to begin, besides the time that was asked for by `wait_s`
CHUNK = 1 << 20
STREAM_CHUNK = 1 << 18
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
        form = form_of(route)

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
                return decode(route.reply, answer.headers.get("Content-Type", ""), body)

        return await self._persist(route, once, timeout_s)

    async def has_blob(self, sha256: str) -> bool:
        """Tell whether the server has those bytes."""

        async def once() -> bool:
            session = await self._session()
            url = self.base_url + form_of(routes.HEAD_BLOB).path(Blob(sha256=sha256))
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
            url = self.base_url + form_of(routes.PUT_BLOB).path(Blob(sha256=sha256))
            data = source if isinstance(source, bytes) else _chunks_of(source)
            try:
                async with session.put(url, data=data, headers=headers, timeout=_streaming()) as answer:
                    body = await answer.read()
                    self._check(answer.status, answer.headers, body, routes.PUT_BLOB)
                    return decode(BlobView, answer.headers.get("Content-Type", ""), body)
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
            url = self.base_url + form_of(routes.GET_BLOB).path(Blob(sha256=sha256))
            headers = self._headers(api_key, False)
            async with session.get(url, headers=headers, timeout=_streaming(), read_bufsize=CHUNK) as answer:
                if answer.status >= 300:
                    self._check(answer.status, answer.headers, await answer.read(), routes.GET_BLOB)
                self._check(answer.status, answer.headers, b"", routes.GET_BLOB)
                await _write_checked(answer.content.iter_chunked(CHUNK), sha256, dest)

        await self._persist(routes.GET_BLOB, once, timeout_s)

    async def open(self, route: Route[A, Any], message: A, *, accept: str, api_key: str | None = None) -> Answer:
        """Ask once, and return the answer as it begins: its body is to be read, and the answer to be closed.

        No time limit holds but that of connecting. Raises what `ask` raises, `ServerUnavailableError` without asking
        again; after a refused connection, the next try goes to where the server is by then.
        """
        aiohttp = await _library()
        form = form_of(route)
        session = await self._session()
        answer = None
        try:
            answer = await session.request(
                route.method,
                self.base_url + form.path(message),
                params=form.query(message),
                headers=self._headers(api_key, False) | {"Accept": accept},
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
                trouble = self._trouble(error)
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
            if refused:
                await self._move()

    async def _move(self) -> None:
        if self._relocate is not None:
            self.base_url = (await self._relocate()).rstrip("/")

    def _trouble(self, error: BaseException) -> errors.ServerUnavailableError:
        """Name what the library raised. Raises `ConfigError` when no time can mend it."""
        if isinstance(error, sys.modules["aiohttp"].InvalidURL):
            raise errors.ConfigError(
                f"{self.base_url} is no URL", hint="use one such as http://127.0.0.1:8700"
            ) from None
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
        error = read_error(body, headers.get("Content-Type", ""))
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


class Answer:
    """An answer that is read as it comes."""

    def __init__(self, transport: Transport, answer: aiohttp.ClientResponse) -> None:
        self.status = answer.status
        self.content_type = answer.headers.get("Content-Type", "")
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
