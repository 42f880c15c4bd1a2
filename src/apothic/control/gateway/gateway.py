"""The gateway: a listener of its own at which services answer. It holds connections, and no truth.

What is live, and where its containers are, is read from the store whenever that rings; what the gateway wants, and what
it sees, it writes there. A container is told to stop only once nothing of it is under way here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial

from apothic.clock import Clock, wait_for
from apothic.control.gateway.access import Access
from apothic.control.gateway.backend import IDLE_S, Backend
from apothic.control.gateway.door import Door
from apothic.control.gateway.exchange import Exchange
from apothic.control.gateway.heads import Request
from apothic.control.gateway.paths import Place
from apothic.control.gateway.refusals import Refusal, unavailable
from apothic.control.gateway.service import Service
from apothic.control.hub import Hub
from apothic.control.keys import Keys
from apothic.errors import ApothicError, AuthError
from apothic.protocol.messages import Failure
from apothic.protocol.session import Downward, StopContainer
from apothic.store.services import SERVICES, Services, ServiceTable

log = logging.getLogger("apothic.control")

LOOK_S = 1.0
NEWS_S = 1.0  # how long the reason of a container's end is waited for: its agent buries it first
KEY_S = 60.0  # how often the key of a websocket is looked at again
Push = Callable[[str, Downward], None]


class Gateway:
    """Routes requests to the containers of services.

    `hosts` are the names it may be addressed by, `None` for any. With `open_by_default`, services that do not say
    otherwise need no key. `push` gives a frame to an agent.
    """

    def __init__(
        self, services: Services, keys: Keys, hub: Hub, clock: Clock, push: Push, *, hosts: set[str] | None,
        open_by_default: bool, startup_timeout_s: float, grace_s: float,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.doors: set[Door] = set()
        self.leaving = False
        self._store = services
        self._keys = keys
        self._hub = hub
        self._push = push
        self._hosts = hosts
        self._open_by_default = open_by_default
        self._startup_timeout_s = startup_timeout_s
        self._grace_s = grace_s
        self._access = Access(clock)
        self._services: dict[tuple[str, str], Service] = {}
        self._versions: dict[int, Service] = {}
        self._backends: dict[str, Backend] = {}
        self._changed: set[Service] = set()
        self._wanted: dict[int, int] = {}
        self._next_look: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._news = asyncio.Event()
        self._ends: dict[str, str] = {}  # container → why it ended
        self._ended = asyncio.Event()
        self._open: dict[Exchange, tuple[Place, float]] = {}  # websockets of keyed services, and when that was checked

    # --- its life

    async def serve(self, listener: socket.socket) -> None:
        """Answer until cancelled. What is open is closed by `close`, before."""
        await self._look()
        server = await asyncio.get_running_loop().create_server(partial(Door, self), sock=listener)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(self._tell_demands())
                group.create_task(self._keep_time())
                group.create_task(self._write())
        finally:
            server.close()
            for door in list(self.doors):
                door.abort()
            for backend in self._backends.values():
                backend.close_idle()

    async def close(self, within_s: float) -> None:
        """Take no more requests, let those that are under way end, and let the containers stop that have none."""
        self.leaving = True
        for backend in list(self._backends.values()):
            self.push(backend.agent, StopContainer(container=backend.id, reason="the server stops"))
        until = self.clock.monotonic() + within_s
        for door in list(self.doors):
            door.leave()
        while self.doors and self.clock.monotonic() < until:
            await self.clock.sleep(0.02)
        await self._write_once()

    async def _follow(self) -> None:
        with self._hub.listen([SERVICES]) as bell:
            while True:
                try:
                    await self._look()
                except ApothicError as error:
                    log.warning("gateway.look error=%s", error.message)
                    await self.clock.sleep(LOOK_S)
                    continue
                await bell.rung.wait()
                bell.take()

    async def _look_now(self) -> None:
        """Look at the store; who asks while a look is under way shares it."""
        if self._next_look is None:
            self._next_look = asyncio.get_running_loop().create_task(self._look())
            self._next_look.add_done_callback(self._looked)
        try:
            await asyncio.shield(self._next_look)
        except ApothicError as error:
            raise unavailable(f"the gateway cannot read what is live: {error.message}") from None

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._next_look = None
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _look(self) -> None:
        # One after the other: a table that was read before another and taken after it would forget a container that is
        # at work, and find it anew, with nothing to do.
        async with self._looking:
            self._take(await self._store.table())

    def _take(self, table: ServiceTable) -> None:
        told = {serving.container: serving for serving in table.containers}
        for container, serving in told.items():
            if container not in self._backends:
                self._backends[container] = Backend(serving, self.clock)
            self._backends[container].usable = serving.usable
        for container in self._backends.keys() - told.keys():
            gone = self._backends.pop(container)
            gone.usable = False
            gone.close_idle()
        live = {(served.app, served.name): served for served in table.live}
        for key in self._services.keys() - live.keys():
            self._services.pop(key).stop()
        self._versions = {}
        for key, served in live.items():
            service = self._services.get(key)
            if service is None:
                service = self._services[key] = Service(served, self.clock, self._startup_timeout_s, self._touch)
            self._versions[served.version] = service
            service.set(served, [b for b in self._backends.values() if b.version == served.version and b.usable])

    def _touch(self, service: Service) -> None:
        if service not in self._changed:
            self._changed.add(service)
            self._news.set()

    async def _tell_demands(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            changed, self._changed = self._changed, set()
            wanted = {service.served.version: service.wanted for service in changed}
            fresh = {version: count for version, count in wanted.items() if self._wanted.get(version, 0) != count}
            if not fresh:
                continue
            self._wanted.update(fresh)
            try:
                await self._store.want(fresh)
            except ApothicError as error:
                log.warning("gateway.want error=%s", error.message)
                for version in fresh:
                    self._wanted.pop(version, None)
                self._changed |= changed
                await self.clock.sleep(LOOK_S)
                self._news.set()

    # --- what exchanges ask

    def check_host(self, host: bytes) -> None:
        """Refuse a name that is not ours: a page of elsewhere whose name was bent to this address may ask so."""
        if self._hosts is None:
            return
        name = host.decode("latin-1").lower()
        name = name.partition("]")[0].lstrip("[") if name.startswith("[") else name.partition(":")[0]
        if name and name not in self._hosts and not name.endswith(".localhost"):
            raise Refusal(
                421, "misdirected", f"the gateway is not called {name!r}",
                hint="set gateway_url to the address under which services are found",
            )  # fmt: skip

    def is_keyed(self, service: Service) -> bool:
        """Tell whether requests to a service need a key."""
        needs = service.served.options.requires_key
        return not self._open_by_default if needs is None else needs

    def at_hand(self, place: Place) -> Service | None:
        """Return the service that a request is for, if that is known without a look at the store or at a key."""
        service = self._services.get((place.app, place.function)) if place.rest else None
        return service if service is not None and not self.is_keyed(service) else None

    async def admit(self, asked: Request, place: Place) -> Service:
        """Return the service that a request is for. Raises `Refusal`."""
        key = place.app, place.function
        for _ in range(2):  # it may have gone live a moment ago, and of two looks one is younger than the request
            if key not in self._services:
                await self._look_now()
        service = self._services.get(key)
        if service is None:
            raise Refusal(
                404, "not_found", f"there is no service {place.app}.{place.function}",
                hint="`apothic app list` shows what is deployed",
            )  # fmt: skip
        if self.is_keyed(service):
            await self._check_key(asked, place)
        if not place.rest:
            raise Refusal(
                308, "moved", "services are at /{app}/{function}/, with a slash",
                headers=(("location", f"/{place.app}/{place.function}/{place.query.decode('latin-1')}"),),
            )  # fmt: skip
        return service

    async def _check_key(self, asked: Request, place: Place) -> None:
        shown = next((value for name, value in asked.fields.headers if name.lower() == b"authorization"), b"")
        kind, _, text = shown.decode("latin-1").partition(" ")
        try:
            principal = await self._keys.check(text.strip() if kind.lower() == "bearer" else "")
        except AuthError as error:
            raise Refusal(
                401, error.code, error.message, hint="send Authorization: Bearer with an API key",
                headers=(("www-authenticate", "Bearer"),),
            ) from None  # fmt: skip
        if not principal.may_invoke(place.app, place.function):
            raise Refusal(
                403, "auth", f"this key may not invoke {place.app}/{place.function}", hint="ask for one with that scope"
            )

    def opened(self, exchange: Exchange) -> None:
        """Note a websocket."""
        if exchange.backend is not None:
            exchange.backend.tunnels += 1
        if exchange.service is not None and exchange.place is not None and self.is_keyed(exchange.service):
            self._open[exchange] = exchange.place, self.clock.monotonic()

    def told(self, exchange: Exchange) -> None:
        """Note that an exchange is over."""
        self._open.pop(exchange, None)
        self._access.add(exchange)

    async def why(self, backend: Backend, seen: str) -> str:
        """Return why a container has ended, if that is told within a moment; else what was seen of it."""
        until = self.clock.monotonic() + NEWS_S
        while backend.id not in self._ends and (left := until - self.clock.monotonic()) > 0:
            self._ended.clear()
            await wait_for(self.clock, self._ended, left)
        return self._ends.get(backend.id, seen)

    # --- what becomes of containers

    def obituary(self, container: str, version: int, state: str, failure: Failure | None) -> None:
        """Take note that a container of a service has ended, `state` being how it stood before."""
        if failure is not None:
            self._ends[container] = failure.message
            while len(self._ends) > 1_000:
                del self._ends[next(iter(self._ends))]
        self._ended.set()
        service = self._versions.get(version)
        if state == "starting" and failure is not None and failure.kind != "worker_lost" and service is not None:
            app = service.served.app
            message = f"{service.name} did not start: {failure.type}: {failure.message}"
            service.fail(Refusal(503, "startup", message, hint=f"`apothic app logs {app}` shows what it printed"))

    def push(self, agent: str, frame: Downward) -> None:
        """Give a frame to an agent; that a container is to stop is told once it has answered what it has."""
        backend = self._backends.get(frame.container) if isinstance(frame, StopContainer) else None
        if backend is None:
            self._push(agent, frame)
        else:
            backend.drain(partial(self._push, agent, frame))

    # --- time

    async def _keep_time(self) -> None:
        while True:
            await self.clock.sleep(LOOK_S)
            now = self.clock.monotonic()
            for door in list(self.doors):
                door.check(now)
            for backend in list(self._backends.values()):
                backend.close_idle(now - IDLE_S)
                backend.look(self._grace_s)
            for service in self._services.values():
                service.feed()
                if service.wanted:  # said again, as long as it is not met: whoever was told may have died of it
                    self._wanted.pop(service.served.version, None)
                    self._touch(service)
            for exchange, (place, checked) in list(self._open.items()):
                if now - checked >= KEY_S:
                    try:
                        await self._check_key(exchange.asked, place)
                        self._open[exchange] = place, now
                    except Refusal:
                        exchange.cut()

    async def _write(self) -> None:
        while True:
            await self.clock.sleep(LOOK_S)
            await self._write_once()

    async def _write_once(self) -> None:
        busy = [b.id for b in self._backends.values() if b.busy and not b.marked_busy]
        idle = {b.id: b.used_at for b in self._backends.values() if not b.busy and b.used_at is not None}
        try:
            if busy or idle:
                await self._store.used(busy, idle)
                for backend in self._backends.values():
                    if backend.id in busy:
                        backend.marked_busy = True
                    elif backend.id in idle and backend.used_at == idle[backend.id]:
                        backend.used_at, backend.marked_busy = None, False
            if lines := self._access.take():
                await self._store.say(lines)
        except ApothicError as error:
            log.warning("gateway.write error=%s", error.message)
