"""A container of a service as the gateway sees it: its idle connections, and what it has to answer."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from apothic.clock import Clock
from apothic.control.gateway.heads import IDEMPOTENT
from apothic.control.gateway.upstream import Upstream, connect
from apothic.store.services import Serving

# uvicorn in our containers keeps a connection for an hour, so it is always this end that lets go. Another server may
# close one at the very moment when it is used again; what cannot be asked twice gets a new one there.
IDLE_S = 60.0
DOUBT_S = 1.0


class Backend:
    """One container. `busy` counts the requests that it has, `tunnels` those among them that are websockets."""

    def __init__(self, serving: Serving, clock: Clock) -> None:
        self.id = serving.container
        self.agent = serving.agent
        self.version = serving.version
        self.usable = serving.usable
        self.busy = 0
        self.tunnels = 0
        self.used_at: float | None = None  # when its last request ended, until that is told
        self.marked_busy = False
        self.timeout_s = 0.0  # of its function, as long as it is live
        self.draining_since: float | None = None
        self._serving = serving
        self._clock = clock
        self._idle: list[Upstream] = []
        self._then: Callable[[], None] | None = None
        self._doubted_until = -inf

    def doubt(self) -> None:
        """Give it nothing for a moment: it has let a request down, and if it is dead that is told soon."""
        self._doubted_until = self._clock.monotonic() + DOUBT_S

    @property
    def takes(self) -> bool:
        """Whether it may be given requests."""
        if not self.usable or self.draining_since is not None:
            return False
        return self._doubted_until == -inf or self._clock.monotonic() >= self._doubted_until

    @property
    def ours(self) -> bool:
        """Whether the server in it is one that we have set up."""
        return not self._serving.address.startswith("port:")

    def take(self, method: bytes) -> Upstream | None:
        """Return a connection that is open already and has nothing to do."""
        while self._idle:
            upstream = self._idle.pop()
            if upstream.closed or upstream.transport.is_closing():
                continue
            if self.ours or method in IDEMPOTENT:
                return upstream
            upstream.close()
        return None

    async def open(self) -> Upstream:
        """Return a new connection. Raises `OSError`, `TimeoutError`."""
        return await connect(self._serving.address, self.id, self._serving.secret, self._forget)

    def give_back(self, upstream: Upstream) -> None:
        """Keep a connection for the next request."""
        upstream.release()
        if upstream.closed or not self.takes:
            upstream.close()
            return
        upstream.transport.resume_reading()  # it was paused if the client is still taking the end of its answer
        upstream.idle_since = self._clock.monotonic()
        self._idle.append(upstream)

    def _forget(self, upstream: Upstream) -> None:
        if upstream in self._idle:
            self._idle.remove(upstream)

    def close_idle(self, before: float = inf) -> None:
        """Close the connections that have been idle since before a moment, or all of them."""
        for upstream in [each for each in self._idle if each.idle_since < before]:
            upstream.close()
        self._idle = [each for each in self._idle if each.idle_since >= before]

    # --- its end

    def drain(self, then: Callable[[], None]) -> None:
        """Give it no more; `then` is called once it has answered what it has."""
        if self.draining_since is None:
            self.draining_since = self._clock.monotonic()
        self._then = then
        self.close_idle()
        self.look()

    def look(self, grace_s: float = inf) -> None:
        """Finish draining when nothing is left, or nothing that may still go on: requests have their function's time,
        websockets, which could stay for days and can be opened again, the grace."""
        if self._then is None or self.draining_since is None:
            return
        waited = self._clock.monotonic() - self.draining_since
        requests = self.busy - self.tunnels
        if (requests == 0 or waited > self.timeout_s) and (self.tunnels == 0 or waited > grace_s):
            then, self._then = self._then, None
            then()
