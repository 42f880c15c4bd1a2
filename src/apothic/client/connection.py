"""The way to the control plane: who it is, what to show it, and one pool for threads, tasks and forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from apothic import config
from apothic.client import embedded
from apothic.client.blocking import Facet, awaiting, blocking
from apothic.client.loop import LOOP
from apothic.config import Settings
from apothic.context import calling
from apothic.direct import on_loop
from apothic.errors import ConfigError, JobError
from apothic.nearby import Nearby
from apothic.protocol.routes import Route
from apothic.transport import Answer, Transport

A = TypeVar("A", bound=Struct)
R = TypeVar("R", bound=Struct)

TIMEOUT_S = 600.0


class ControlPlaneClient:
    """Ask one control plane. Share one freely between threads, event loops and forked processes.

    Without `base_url`, the control plane is the one that `APOTHIC_BASE_URL` or the profile names, else a local server,
    which is found by its data directory and started when none is running. Code that runs in a job asks the job's
    own control plane with the job's own token. Nothing is opened before the first use. `timeout_s` is how long
    handles wait that were given no time of their own.

    >>> client = ControlPlaneClient("http://127.0.0.1:8700")
    >>> client.close()
    """

    def __init__(
        self, base_url: str | None = None, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.timeout_s = float(timeout_s)
        self.paged_until = 0.0  # server-sent events do not get through before this, by the monotonic clock
        self._given = (base_url, api_key)
        self._home: Transport | None = None
        self._opened: list[Transport] = []
        self._settings: Settings | None = None
        self._jobs_own: dict[str, Transport] = {}
        self._lock: tuple[int, asyncio.Lock] | None = None
        weakref.finalize(self, _abandon, self._opened).atexit = False

    @property
    def base_url(self) -> str | None:
        """Return the control plane's URL; `None` while it is not known, before the first use."""
        return self._home.base_url if self._home is not None else self._given[0]

    @property
    def settings(self) -> Settings:
        """Return the settings that hold for this client. Raises `ConfigError`."""
        if self._settings is None:
            base_url, api_key = self._given
            self._settings = config.load(
                {"base_url": base_url, "api_key": api_key}, environ=os.environ, cwd=Path.cwd(), home=Path.home()
            )
        return self._settings

    async def ask(self, route: Route[A, R], message: A, *, timeout_s: float | None = None) -> R:
        """Ask one thing and return the answer, from any event loop. Raises what `Transport.ask` raises."""
        return await LOOP.hop(lambda: self._ask(route, message, timeout_s))

    def ask_blocking(self, route: Route[A, R], message: A, *, timeout_s: float | None = None) -> R:
        """Ask one thing and return the answer. Ctrl-C gives up and closes the connection."""
        return LOOP.direct(lambda: self._ask(route, message, timeout_s))

    async def _ask(self, route: Route[A, R], message: A, timeout_s: float | None) -> R:
        LOOP.at_stop(_close_all)
        transport, key = await self.way()
        with self._naming():
            return await transport.ask(route, message, timeout_s=timeout_s, api_key=key)

    async def open(self, route: Route[A, Any], message: A, *, accept: str) -> Answer:
        """Ask once, and return the answer as it begins; see `Transport.open`. Only on the library's own loop."""
        LOOP.at_stop(_close_all)
        transport, key = await self.way()
        with self._naming():
            return await transport.open(route, message, accept=accept, api_key=key)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Give an error about a job the handle of that job."""
        try:
            yield
        except JobError as error:
            job = error.details.get("job")
            if error.job is None and isinstance(job, str):
                from apothic.client.job import Job  # which imports this

                error.job = Job(job, self)
            raise

    async def way(self) -> tuple[Transport, str | None]:
        """Return the transport for the current context, and the key to show if it is not the transport's own."""
        job = calling()
        if job is not None and self._given == (None, None):
            transport = self._jobs_own.get(job.base_url)
            if transport is None:
                transport = self._jobs_own[job.base_url] = self._kept(Transport(job.base_url))
            return transport, job.token
        if self._home is None:
            await on_loop()
            async with self._only_one():
                if self._home is None:
                    self._home = self._kept(await self._settle())
        return self._home, None

    async def has_server(self) -> bool:
        """Tell whether there is a control plane to ask without starting one. Only on the library's own loop."""
        if self._home is not None or calling() is not None or self.settings.base_url is not None:
            return True
        return await embedded.find(self.settings.data_dir) is not None

    async def upload(
        self, source: Path | bytes, sha256: str, size: int, *, given: bool = False, timeout_s: float | None = None
    ) -> None:
        """Send bytes under their hash, as `Transport.put_blob` does. Only on the library's own loop."""
        transport, key = await self.way()
        await transport.put_blob(source, sha256, size, given=given, timeout_s=timeout_s, api_key=key)

    async def fetch(self, sha256: str, dest: Path, *, timeout_s: float | None = None) -> None:
        """Write the bytes of that hash to the new file `dest`. Only on the library's own loop."""
        transport, key = await self.way()
        await transport.get_blob(sha256, dest, timeout_s=timeout_s, api_key=key)

    async def _settle(self) -> Transport:
        settings = self.settings
        folder = settings.data_dir
        if settings.base_url is not None:
            url = settings.base_url
            return Transport(url, settings.api_key or (lambda: embedded.admin_key(folder, url)))

        async def relocate() -> str:
            return (await embedded.find_or_start(folder, autostart=settings.autostart)).base_url

        home = Transport(await relocate(), relocate=relocate, nearby=Nearby(folder / "blobs", links=True))
        home.use_key(settings.api_key or (lambda: embedded.admin_key(folder, home.base_url)))
        return home

    def _kept(self, transport: Transport) -> Transport:
        self._opened.append(transport)
        _OPENED.add(transport)
        return transport

    def _only_one(self) -> asyncio.Lock:
        # A lock that a parent process held when it forked would be held for ever here.
        if self._lock is None or self._lock[0] != os.getpid():
            self._lock = os.getpid(), asyncio.Lock()
        return self._lock[1]

    @blocking
    async def close(self, /) -> None:
        """Close the connections. The client can be used again, and opens new ones."""
        await self._close()

    async def _close(self) -> None:
        for transport in list(self._opened):
            await transport.close()

    @property
    def aio(self) -> ControlPlaneClientAio:
        return ControlPlaneClientAio(self)

    def __enter__(self) -> ControlPlaneClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> ControlPlaneClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aio.close()

    def __repr__(self) -> str:
        return f"<ControlPlaneClient {self.base_url or 'of the settings'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the key: a pickle may be read by others, and who unpickles it has settings of their own.
        return _again, (self._given[0], self.timeout_s)


class ControlPlaneClientAio(Facet[ControlPlaneClient]):
    """The asynchronous side of `ControlPlaneClient`."""

    close = awaiting(ControlPlaneClient.close)

    @property
    def ask(self) -> Callable[..., Any]:
        """Ask one thing; the same as `ControlPlaneClient.ask`."""
        return self._handle.ask


_OPENED: set[Transport] = set()
_DEFAULT: dict[str | None, ControlPlaneClient] = {}


def _again(base_url: str | None, timeout_s: float) -> ControlPlaneClient:
    return ControlPlaneClient(base_url, timeout_s=timeout_s)


def _abandon(opened: list[Transport]) -> None:
    """Close what a client that nobody has any more left open."""
    for transport in opened:
        _OPENED.discard(transport)
        LOOP.leave(transport.close)


async def _close_all() -> None:
    for transport in list(_OPENED):
        await transport.close()


def client_for(client: ControlPlaneClient | None = None, base_url: str | None = None) -> ControlPlaneClient:
    """Return the client that was given, else this process's own one for that URL, or for the settings."""
    if client is not None:
        if base_url is not None:
            raise ConfigError("both client and base_url were given", hint="give one of the two")
        return client
    return _DEFAULT.setdefault(base_url, _DEFAULT.get(base_url) or ControlPlaneClient(base_url))
