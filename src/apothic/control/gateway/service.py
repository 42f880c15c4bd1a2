"""A service as the gateway sees it: which of its containers takes the next request, who waits, how many are wanted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import ceil, inf

from apothic.clock import Clock
from apothic.control.gateway.backend import Backend
from apothic.control.gateway.refusals import Refusal, unavailable
from apothic.store.services import Served


class Service:
    """What answers at `/{app}/{function}/`, through all its versions. `changed` is called when its load has changed."""

    def __init__(
        self, served: Served, clock: Clock, startup_timeout_s: float, changed: Callable[[Service], None]
    ) -> None:
        self.served = served
        self.live = True
        self.backends: list[Backend] = []  # of the live version
        self._clock = clock
        self._startup_timeout_s = startup_timeout_s
        self._changed = changed
        self._waiting: deque[asyncio.Future[Backend]] = deque()
        self._most = served.options.inputs_at_once  # that one container has at once
        self._load = 0  # requests that containers have
        self._enough = 0.0  # as many they have without more being wanted
        self._wants = True  # more may have been wanted when the load was last told

    @property
    def name(self) -> str:
        """Return its name as people write it."""
        return f"{self.served.app}.{self.served.name}"

    @property
    def kind(self) -> str:
        return self.served.kind

    @property
    def timeout_s(self) -> float:
        """Return how long an answer may take to begin, in seconds."""
        return float(self.served.options.timeout_s)

    @property
    def largest_request(self) -> int:
        """Return the most bytes that the body of a request may have."""
        return self.served.options.max_request_mb << 20

    def set(self, served: Served, backends: list[Backend]) -> None:
        """Take how things stand; who waits gets what is free now."""
        self.served, self.live = served, True
        self.backends = backends
        self._most = served.options.inputs_at_once
        self._enough = len(backends) * self._share if len(backends) < served.options.max_containers else inf
        for backend in backends:
            backend.timeout_s = self.timeout_s
        self.feed()

    def stop(self) -> None:
        """It is not live any more: nobody waits for it."""
        self.live, self.backends = False, []
        self.fail(Refusal(404, "not_found", f"{self.name} has been stopped"))

    async def acquire(self) -> Backend:
        """Return the container for one request; give it back with `release`. Raises `Refusal`."""
        return self.take() or await self._wait()

    def take(self) -> Backend | None:
        """Return the container for one request if one is free; give it back with `release`."""
        found = None
        for backend in self.backends:
            if backend.busy < (self._most if found is None else found.busy) and backend.takes:
                found = backend
        if found is not None:
            found.busy += 1
            self._load += 1
        return found

    async def _wait(self) -> Backend:
        options = self.served.options
        if len(self._waiting) >= options.max_pending_tasks:
            raise unavailable(
                f"{self.name} has {len(self._waiting):,} requests waiting, its max_pending_tasks", code="queue_full"
            )
        future: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._changed(self)
        wait_s = options.service_startup_timeout_s or self._startup_timeout_s
        try:
            async with asyncio.timeout(wait_s):
                return await future
        except (TimeoutError, asyncio.CancelledError) as error:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # it came in the very moment of giving up
            if isinstance(error, asyncio.CancelledError):
                raise
            raise unavailable(
                f"no container of {self.name} was free within {wait_s:g} s",
                hint=f"`apothic app logs {self.served.app}` may say why; more max_containers let more run at once",
            ) from None
        finally:
            self._leave(future)

    def _leave(self, future: asyncio.Future[Backend]) -> None:
        if future in self._waiting:
            self._waiting.remove(future)
        if future.done() and not future.cancelled() and future.exception() is None:
            return
        self._changed(self)

    def release(self, backend: Backend) -> None:
        """Take note that a request has ended."""
        backend.busy -= 1
        self._load -= 1
        backend.used_at = self._clock.monotonic()
        over = self._load > self._enough
        if self._waiting:
            self.feed()
        elif over or self._wants:  # else nothing was wanted, and less is less so
            self._wants = over
            self._changed(self)
        backend.look()

    def feed(self) -> None:
        """Give containers to those that wait, first come, first served."""
        while self._waiting:
            if self._waiting[0].done():
                self._waiting.popleft()
            elif (backend := self.take()) is not None:
                self._waiting.popleft().set_result(backend)
            else:
                break
        self._wants = True
        self._changed(self)

    def fail(self, refusal: Refusal) -> None:
        """Refuse all that wait."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(refusal)
        self._changed(self)

    @property
    def _share(self) -> int:
        """Return how many requests one container shall have; past that, another one is wanted."""
        options = self.served.options
        target = options.concurrency.target_inputs if options.concurrency is not None else None
        per_container = target or (options.tasks_per_container if options.tasks_per_container > 1 else 0)
        return per_container or options.inputs_at_once

    @property
    def wanted(self) -> int:
        """Return how many containers are wanted now, if that is more than there are; else 0."""
        options = self.served.options
        load = len(self._waiting) + sum(backend.busy for backend in self.backends)
        needed = min(options.max_containers, ceil(load / self._share))
        return needed if self.live and needed > sum(backend.takes for backend in self.backends) else 0
