"""`Executor`: durable jobs behind the standard library's `concurrent.futures`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from apothic.client import errand
from apothic.client.app import App
from apothic.client.connection import ControlPlaneClient
from apothic.client.function import Function
from apothic.client.future import Future
from apothic.client.pool import Pool
from apothic.client.submission import Address, Submission
from apothic.errors import ApothicError, ConfigError
from apothic.protocol import values
from apothic.protocol.values import Envelope

P = ParamSpec("P")
T = TypeVar("T")

_TAKEN = {"max_containers": "say max_workers", "schedule": "there is nothing to call at a tick"}


class Executor(futures.Executor):
    """A standard executor whose calls are jobs: durable, and found again by `future.job` when this process is gone.

    It deploys a function of its own as the app `app_name`, with the first call; executors of the same name and options
    share its containers, of which there are at most `max_workers`. `function_options` are those of `App.function`.
    What is submitted travels by value, unless it comes from Python or an installed package. Raises `ConfigError`.

    >>> with Executor(max_workers=4, app_name="sums") as executor:
    ...     pass
    """

    def __init__(
        self,
        *,
        max_workers: int = 2,
        app_name: str = "executor",
        client: ControlPlaneClient | None = None,
        **function_options: Any,
    ) -> None:
        if isinstance(max_workers, bool) or not isinstance(max_workers, int) or max_workers <= 0:
            raise ConfigError("max_workers must be greater than 0", hint="max_workers is a whole number")
        for name, instead in _TAKEN.items():
            if name in function_options:
                raise ConfigError(f"an executor's function has no {name}", hint=instead)
        app = App(app_name, client=client)
        function = app.function(max_containers=max_workers, **function_options)(errand.run)
        at_once = function.options.concurrent_requests
        self._max_workers = max_workers
        self._target = _Target(app, function)
        self._pool = Pool(self._target, max_workers * at_once)
        weakref.finalize(self, self._pool.close).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit a call; return its future at once, and its job by the future's `job`, once that is on disk.

        What keeps the call from being sent (it cannot be packed, the function cannot be deployed) is the future's
        exception. Waits when many calls are unsent because the queue is full, as long as the client's `timeout_s`;
        then raises `QueueFullError`. Raises `RuntimeError` after `shutdown`.
        """
        try:
            envelope = self._target.packed(fn, args, kwargs)
        except ApothicError as error:
            self._pool.check()
            future: Future[T] = Future()
            future.set_exception(error)
            return future
        return self._pool.put(envelope)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **newer: Any,
    ) -> Iterator[T]:
        """Return an iterator over the results of `map(fn, *iterables)`, in their order.

        `chunksize` calls share a job. Raises what a call raised in its place, `TimeoutError` when a result is not
        there `timeout` seconds after `map` was called; then, and when the iterator is closed, what is left of the calls
        is cancelled. `newer` are keywords that the running Python's own executors have, as `buffersize`.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **newer)
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        return _flat(super().map(partial(errand.each, fn), chunks, timeout=timeout, **newer))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. With `wait`, return when all futures are done; with `cancel_futures`, cancel those whose
        calls no worker has. Without either, the jobs go on, and so do their futures."""
        self._pool.close()
        if cancel_futures:
            self._pool.cancel_all()
        if wait:
            self._pool.join()

    def __repr__(self) -> str:
        return f"<Executor {self._target.app.name}, {self._max_workers} workers>"


class _Target:
    """The function that an executor deploys. Its jobs go to that very deployment.

    Another executor of the same name may have other options, and then its deployment is the live one.
    """

    def __init__(self, app: App, function: Function[..., Any, Any]) -> None:
        self.app = app
        self._function = function

    @property
    def name(self) -> str:
        return f"executor {self.app.name}"

    @property
    def submitted_with(self) -> Submission:
        return self._function.submitted_with

    def client_here(self) -> ControlPlaneClient:
        return self._function.client_here()

    async def address(self) -> Address:
        found = await self._function.address()
        return found if found.deployment is not None else replace(found, deployment=self.app.deployment_id)

    def forget(self) -> None:
        self._function.forget()

    def packed(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Envelope:
        """Pack one call, in the caller's thread. Raises `SerializationError`, `PayloadTooLargeError`."""
        limit = self.client_here().settings.payload_limit
        return values.pack_arguments((fn, *args), kwargs, payload_limit=limit, what=self.name, whole=True)


def _chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(calls, size)):
        yield chunk


def _flat(chunks: Iterator[list[T]]) -> Iterator[T]:
    # Results are not kept once they are handed over.
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
