"""One request, from its head to the end of its answer: a container is found, both bodies are streamed, and if the
container is lost before it has answered, another one is asked."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from apothic.control.gateway import heads
from apothic.control.gateway.frames import FrameError, Meter
from apothic.control.gateway.heads import Answer, Header, Request
from apothic.control.gateway.paths import Place, place
from apothic.control.gateway.refusals import Refusal
from apothic.control.gateway.upstream import BUFFER, Upstream

if TYPE_CHECKING:
    from apothic.control.gateway.backend import Backend
    from apothic.control.gateway.door import Door
    from apothic.control.gateway.gateway import Gateway
    from apothic.control.gateway.service import Service

log = logging.getLogger("apothic.control")

TRIES = 3
KEPT = 64 * 1024  # as much of a request's body as is remembered for another try


class Lost(NamedTuple):
    """Why a container has not answered, and whether the request may have reached it."""

    why: str
    reached: bool


class Exchange:
    """One request of a client's connection. It hears the client by way of its door, and the container's answer.

    Where a container is at hand it is asked at once, and its answer ends the exchange: a task of its own for each
    request costs as much as all that is done for it. What has to be waited for (a look at the store, a key, a free
    container, a connection) is done in one.
    """

    status = 0  # of the answer, once it has begun
    service: Service | None = None
    container = "gateway"
    place: Place | None = None
    backend: Backend | None = None
    _upstream: Upstream | None = None
    _task: asyncio.Task[None] | None = None
    _waits_since: float | None = None  # for the head of the answer
    _meters: tuple[Meter, Meter] | None = None
    _asking = False  # a container has it
    _answered = False  # to the end; what came with the end in one piece is still being looked at
    _finished = False
    _chunked = False  # the answer goes out in chunks
    _ending = b""  # what ends a body in chunks
    _size = 0
    _tries = 0

    def __init__(self, gateway: Gateway, door: Door, asked: Request) -> None:
        self.asked = asked
        self.method = asked.method
        self.began = door.heard_at
        self.whole = not asked.fields.has_body  # the request has arrived to its end
        self._gateway = gateway
        self._door = door
        self._unsent: list[bytes] = []
        self._kept: list[bytes] | None = []
        self._close = not asked.keeps

    def start(self) -> None:
        """Begin: those before it on the same connection are answered."""
        if not (self._finished or self._ask_at_once()):
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _ask_at_once(self) -> bool:
        """Ask a container that is at hand; tell whether there is one."""
        try:
            where = self.place = place(self.asked.target, self.asked.fields.host)
            service = self._gateway.at_hand(where)
            if service is None:
                return False
            self._check_size(service, max(self.asked.fields.length or 0, self._size))
        except Refusal:
            return False
        self.service = service
        backend = service.take()
        if backend is None:
            return False
        upstream = backend.take(self.method)
        if upstream is None:
            service.release(backend)
            return False
        self._ask(backend, upstream)
        return True

    async def _run(self, lost: Lost | None = None) -> None:
        try:
            if self.service is None:
                self.place = place(self.asked.target, self.asked.fields.host)
                service = await self._gateway.admit(self.asked, self.place)
                self._check_size(service, max(self.asked.fields.length or 0, self._size))
                self.service = service
            while lost is None or await self._may_again(lost):
                backend = await self.service.acquire()
                lost = await self._reach(self.service, backend)
                if lost is None:
                    return
        except Refusal as refusal:
            self._refuse(refusal)
        except asyncio.CancelledError:
            pass  # the client has gone, or has been refused
        except Exception:
            log.exception("gateway.bug target=%s", self.asked.target[:200])
            self._refuse(Refusal(500, "internal", "the gateway made a mistake", hint="the server's log has more"))
        self._finish()

    async def _reach(self, service: Service, backend: Backend) -> Lost | None:
        """Ask one container over a connection that may have to be opened first; return why it cannot be reached."""
        self.backend, self.container = backend, backend.id
        try:
            upstream = backend.take(self.method) or await backend.open()
        except BaseException as error:
            service.release(backend)
            if isinstance(error, OSError | TimeoutError):
                return Lost(str(error) or type(error).__name__, False)
            raise
        self._ask(backend, upstream)
        return None

    async def _may_again(self, lost: Lost) -> bool:
        """Tell that another container may be asked. Raises `Refusal` when none may."""
        assert self.backend is not None
        self.backend.doubt()
        self._tries += 1
        again = not lost.reached or (self.method in heads.IDEMPOTENT and self._kept is not None)
        if not again or self._tries >= TRIES:
            why = await self._gateway.why(self.backend, lost.why)
            raise Refusal(502, "container_lost", f"the container of {self.name} was lost before it answered: {why}")
        return True

    @property
    def name(self) -> str:
        """Return the service's name as people write it."""
        return f"{self.place.app}.{self.place.function}" if self.place is not None else "-"

    def _ask(self, backend: Backend, upstream: Upstream) -> None:
        """Give the request to a container, as far as it has come."""
        assert self.place is not None and self.service is not None
        self.backend, self.container, self._upstream, self._asking = backend, backend.id, upstream, True
        self._waits_since = self._gateway.clock.monotonic()
        self._door.go_on()
        head = heads.for_container(
            self.asked, self.place.target, peer=self._door.peer, mount=self.place.mount,
            keyed=self._gateway.is_keyed(self.service),
        )  # fmt: skip
        unsent, self._unsent = self._unsent, []
        if self.whole and self._ending:
            unsent.append(self._ending)
        upstream.begin(self, b"".join([head, *unsent]) if unsent else head)
        if self._door.full:
            upstream.transport.pause_reading()

    def _end(self, lost: str | None) -> None:
        """Let go of the container: it has answered, or is lost, or is not needed any more."""
        if not self._asking:
            if lost is None and self._task is not None:
                self._task.cancel()
            return
        backend, upstream, service = self.backend, self._upstream, self.service
        assert backend is not None and upstream is not None and service is not None
        self._asking, self._waits_since = False, None
        if self._meters is not None:
            backend.tunnels -= 1
            upstream.release()
            upstream.transport.close()
        elif lost is None and upstream.clean and self.whole:
            backend.give_back(upstream)
        else:
            upstream.close()
        service.release(backend)
        if lost is None or self._meters is not None:
            self._finish()
        elif self.status:
            backend.doubt()
            self._close = True
            self._door.abort()  # the client must not take half an answer for a whole one
            self._finish()
        else:
            self._unsent, self._upstream = [*(self._kept or self._unsent)], None
            self._task = asyncio.get_running_loop().create_task(self._run(Lost(lost, True)))

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._gateway.told(self)
            self._door.answered(self, keep=not self._close)

    def _refuse(self, refusal: Refusal) -> None:
        if not self.status:
            self.status = refusal.status
            # The rest of a body that nobody wants may be long.
            self._close = self._close or not self.whole
            self._door.push(refusal.answer(close=self._close, bodiless=self.method == b"HEAD"))
            self._door.flush()

    def check(self, now: float) -> None:
        """End it when the container has had its time to begin an answer."""
        limit = self.service.timeout_s if self.service is not None else None
        if self._waits_since is not None and limit is not None and now - self._waits_since > limit:
            self._waits_since = None
            self._refuse(Refusal(504, "timeout", f"{self.name} did not begin to answer within {limit:g} s (timeout_s)"))
            self._end(None)

    # --- the client's side

    def on_body(self, data: bytes) -> None:
        """Take a piece of the request's body."""
        self._size += len(data)
        if self._finished:  # nobody reads it any more
            if self.service is None or self._size > self.service.largest_request:
                self._door.abort()
            return
        try:
            if self.service is not None:
                self._check_size(self.service, self._size)
        except Refusal as refusal:
            self._refuse(refusal)
            self._close = True
            self._end(None)
            return
        if self.asked.fields.chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._kept is not None:
            self._kept = [*self._kept, data] if self._size <= KEPT else None
        if self._asking and self._upstream is not None:
            if not self._upstream.closed:
                self._upstream.transport.write(data)
        else:
            self._unsent.append(data)
            if self._size > BUFFER:
                self._door.hold()

    def on_body_end(self, trailers: list[Header]) -> None:
        """Take the end of the request."""
        self.whole = True
        if self.asked.fields.chunked:
            self._ending = heads.trailers(trailers)
            if self._asking and self._upstream is not None and not self._upstream.closed:
                self._upstream.transport.write(self._ending)

    def on_gone(self) -> None:
        """The client has left: whoever works for it stops."""
        if self._asking or self._task is not None:
            self._end(None)
        else:
            self._finish()

    def on_client_full(self, full: bool) -> None:
        """The client takes no more of the answer for now, or takes it again."""
        if self._asking and self._upstream is not None and not self._upstream.closed:
            transport = self._upstream.transport
            if full:
                transport.pause_reading()
            elif not transport.is_closing():
                transport.resume_reading()

    def on_client_bytes(self, data: bytes) -> None:
        """Take what comes from the client of an open websocket."""
        if self._upstream is None or self._meters is None or not data:
            return
        try:
            self._meters[0].feed(data)
            self._upstream.transport.write(data)
        except FrameError as error:
            self._broken(error)

    # --- the container's side

    def on_interim(self, told: Answer) -> None:
        if self.asked.fields.newer and (told.status != 100 or self.asked.fields.expects):
            self._door.push(heads.for_client(told, chunked=False, close=False, mount=None))

    def on_answer(self, told: Answer) -> None:
        asked = self.asked.fields
        self._waits_since = None
        self.status = told.status
        self._close = self._close or asked.upgrades or (told.until_end and not asked.newer)
        self._chunked = not told.empty and told.length is None and asked.newer
        if asked.expects and not self.whole and not self._size:
            self._close = True  # nobody can tell whether the body will still come
        rewrites = self.service is not None and self.service.kind == "web_server"
        below = self.place.mount if rewrites and self.place is not None else None
        chunked = self._chunked or (told.empty and told.chunked)
        self._door.push(heads.for_client(told, chunked=chunked, close=self._close, mount=below))

    def on_answer_body(self, data: bytes) -> None:
        if self._chunked:
            self._door.push(b"%x\r\n" % len(data))
            self._door.push(data)
            self._door.push(b"\r\n")
        else:
            self._door.push(data)

    def on_answer_end(self, trailers: list[Header]) -> None:
        if self._chunked:
            self._door.push(heads.trailers(trailers))
        self._answered = True

    def on_flush(self) -> None:
        self._door.flush()
        if self._answered:
            self._end(None)

    def on_lost(self, why: str) -> None:
        if self._meters is not None:
            self._door.flush()
        self._end(why)

    def on_container_full(self, full: bool) -> None:
        if full:
            self._door.hold()
        else:
            self._door.go_on()

    def on_upgraded(self, told: Answer, rest: bytes) -> None:
        if not self.asked.fields.upgrades or self._upstream is None:
            self._end("it has changed the protocol without being asked")
            return
        self.status = 101
        self._close = True
        self._waits_since = None
        self._meters = Meter(masked=True), Meter(masked=False)
        self._gateway.opened(self)
        self._upstream.tunnel()
        self._door.push(heads.for_upgrade(told))
        self._door.flush()
        self._door.tunnel(self)
        if rest:
            self.on_tunnel(rest)

    def on_tunnel(self, data: bytes) -> None:
        if self._meters is not None:
            try:
                self._meters[1].feed(data)
            except FrameError as error:
                self._broken(error)
            else:
                self._door.push(data)
                self._door.flush()

    def _broken(self, error: FrameError) -> None:
        log.info("gateway.websocket service=%s error=%s", self.name, error)
        self.cut()

    def cut(self) -> None:
        """End an open websocket at once."""
        self._door.abort()
        self._end(None)

    def _check_size(self, service: Service, size: int) -> None:
        if size > service.largest_request:
            mib = service.largest_request >> 20
            raise Refusal(
                413, "payload_too_large", f"the request's body is over the {mib:,} MiB that {self.name} takes",
                hint="its max_request_mb says how much",
            )  # fmt: skip
