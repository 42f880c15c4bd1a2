"""Event streams on their way out: server-sent events and pages over one code path.

A connection is a cursor over the store and nothing more: it is rung, reads the next page, sends it, and keeps none of
it. So a slow reader costs a page, slows nobody, and comes back with its cursor when it was cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from apothic.clock import Clock, wait_for
from apothic.control.hub import Bell, Hub
from apothic.errors import ApothicError, QueueFullError
from apothic.protocol.events import RESET, SNAPSHOT, frame
from apothic.store.holds import Held, Holds
from apothic.store.stream import Page, Stream, Wish

log = logging.getLogger("apothic.control")

Send = Callable[[dict[str, Any]], Awaitable[None]]

BEAT_S = 15.0  # a reader that hears nothing for three of these takes the connection for dead
# Deploys and load balancers end long connections anyway; doing it on purpose keeps the way back in use.
LIFE_S, LIFE_SPREAD = 600.0, 0.2
RECHECK_S = 60.0  # how long a stream outlives its key
STALL_S = 30.0  # of a write that the other end does not take; Kubernetes ends unresponsive watchers as well
LARGEST_PER_KEY = 1_000  # streams of one key on one job
# All streams share one thread. Past a few, each waits so long for every one before it looks again, so that a hundred
# readers of one generator come to two thousand looks a second, and slow it by 2 % instead of 5 %.
SHARE_S, FEW = 0.0005, 10
# A reader takes a page in as a whole; a full one first would be most of the time to the first event.
FIRST_EVENTS = 50
SHELF = 16  # pages that are kept for whoever asks for the same: at most 4 MiB

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


@dataclass(frozen=True)
class Connection:
    """The other end of one stream. `allowed` tells whether its key still opens it; `abort` drops the connection."""

    send: Send
    gone: Callable[[], Awaitable[None]]
    allowed: Callable[[], Awaitable[bool]]
    abort: Callable[[], None]
    key: str


class Pages:
    """Reads a page once for all who ask for the same of a job in which nothing has happened in between."""

    def __init__(self, stream: Stream, hub: Hub) -> None:
        self._stream = stream
        self._hub = hub
        self._shelf: OrderedDict[tuple[Wish, int], asyncio.Future[Page]] = OrderedDict()

    async def get(self, wish: Wish) -> Page:
        """Return what comes next. To be asked while listening to the job."""
        key = wish, self._hub.rings(wish.job)
        reading = self._shelf.get(key)
        if reading is None or (reading.done() and (reading.cancelled() or reading.exception() is not None)):
            reading = self._shelf[key] = asyncio.ensure_future(self._stream.page(wish))
            while len(self._shelf) > SHELF:
                self._shelf.popitem(last=False)
        return await asyncio.shield(reading)


class Streams:
    """All open streams of this process."""

    def __init__(self, stream: Stream, holds: Holds, hub: Hub, clock: Clock, most: int, dice: random.Random) -> None:
        self._pages = Pages(stream, hub)
        self._holds = holds
        self._hub = hub
        self._clock = clock
        self._most = most
        self._dice = dice
        self._open: Counter[tuple[str, str]] = Counter()
        self._bells: set[Bell] = set()
        self._closing = False

    def __len__(self) -> int:
        return len(self._bells)

    def close(self) -> None:
        """End every stream; the readers come back to the next server."""
        self._closing = True
        for bell in self._bells:
            bell.rung.set()

    async def page(self, wish: Wish, wait_s: float) -> Page:
        """Return the next page; while there is nothing, look again at each ring, at most `wait_s`."""
        until = self._clock.monotonic() + wait_s
        with self._hub.listen([wish.job]) as bell:
            while True:
                page = await self._pages.get(wish)
                left = until - self._clock.monotonic()
                if page.events or page.reset or page.snapshot or page.end or left <= 0 or self._closing:
                    return page
                await wait_for(self._clock, bell.rung, left)
                bell.take()

    async def serve(self, wish: Wish, other: Connection, *, attached: bool) -> None:
        """Answer one request with a stream: 204 when nothing follows ever. Raises what is wrong before the first byte.

        Raises `NotFoundError`, `QueueFullError` (too many streams).
        """
        with self._admitted(wish.job, other.key) as bell:
            first = await self._pages.get(replace(wish, limit=min(wish.limit, FIRST_EVENTS)))
            if first.end and not first.events and first.snapshot is None:
                await other.send({"type": "http.response.start", "status": 204, "headers": []})
                await other.send({"type": "http.response.body", "body": b""})
                return
            held = await self._holds.attach(wish.job, _accepted(wish, first)) if attached else None
            reader = _Reader(wish, other, bell, held, self._clock)
            watching = asyncio.create_task(reader.watch())
            try:
                # Who submits a job and is answered with its stream learns here which job it is.
                headers = [*HEADERS, (b"apothic-job", wish.job.encode())] if not wish.deployment else HEADERS
                await other.send({"type": "http.response.start", "status": 200, "headers": headers})
                await self._follow(reader, first)
            except Exception as error:
                # A write that stalled, or a store that failed. Closing in good order would wait for the very bytes that
                # it does not take; a reader that is cut off comes back with its cursor.
                log.warning("stream.dropped job=%s cursor=%d error=%r", wish.job, reader.cursor, error)
                other.abort()
            finally:
                watching.cancel()
                if held is not None:
                    with contextlib.suppress(ApothicError):  # a full disk; the hold lapses by itself
                        await held.close()

    async def _follow(self, reader: _Reader, page: Page) -> None:
        started = checked = self._clock.monotonic()
        life = LIFE_S * self._dice.uniform(1 - LIFE_SPREAD, 1 + LIFE_SPREAD)
        await reader.write(f"retry: 1000\nid: {_accepted(reader.wish, page)}\n\n")
        while not (reader.gone or self._closing):
            await reader.take(page)
            if reader.ended:
                break
            if not (page.more or page.reset):
                await reader.rest()
                if not reader.gone and (together := self._hub.listeners(reader.wish.job)) > FEW:
                    await self._clock.sleep(together * SHARE_S)
            now = self._clock.monotonic()
            if now - checked >= RECHECK_S:
                if not await reader.other.allowed():
                    break
                checked = now
            if now - started >= life:
                break
            reader.bell.take()
            page = await self._pages.get(reader.wish)
        if not reader.gone:
            await reader.write("", more=False)

    @contextmanager
    def _admitted(self, job: str, key: str) -> Iterator[Bell]:
        if len(self._bells) >= self._most or self._open[key, job] >= LARGEST_PER_KEY:
            raise QueueFullError(
                "too many event streams are open" + (f" on {job}" if len(self._bells) < self._most else ""),
                hint="close some, or raise the server's streams_max",
                details={"retry_after_s": 5.0},
            )
        self._open[key, job] += 1
        try:
            with self._hub.listen([job]) as bell:
                self._bells.add(bell)
                try:
                    yield bell
                finally:
                    self._bells.discard(bell)
        finally:
            self._open[key, job] -= 1
            if not self._open[key, job]:
                del self._open[key, job]


class _Reader:
    """One connection: where it stands, and what it was told last."""

    def __init__(self, wish: Wish, other: Connection, bell: Bell, held: Held | None, clock: Clock) -> None:
        self.wish = wish
        self.other = other
        self.bell = bell
        self.gone = False
        self.ended = False  # it was sent the end
        self.cursor = wish.after if wish.after is not None else -1
        self._snapshots = wish.snapshot
        self._held = held
        self._clock = clock
        self._told = self.cursor
        self._wrote_at = clock.monotonic()

    async def watch(self) -> None:
        """Note that the other end is gone."""
        await self.other.gone()
        self.gone = True
        self.bell.rung.set()

    async def write(self, text: str, *, more: bool = True) -> None:
        """Send bytes at once. Raises `TimeoutError` when the other end does not take them."""
        async with asyncio.timeout(STALL_S):
            await self.other.send({"type": "http.response.body", "body": text.encode(), "more_body": more})
        self._wrote_at = self._clock.monotonic()

    async def take(self, page: Page) -> None:
        """Send a page, and stand behind it."""
        if text := encode(page):
            await self.write(text)
            if self._held is not None:
                await self._held.sent(page.next_index, len(text))
            if page.events or page.reset:
                self._told = page.reset[0] if page.reset else page.events[-1][0]
        self.cursor = page.next_index
        self.ended = page.end and not self.gone
        # Behind a reset a watcher's picture is void: a fresh one comes first (Kubernetes lists anew).
        again = self._snapshots and page.reset is not None
        self.wish = replace(self.wish, after=self.cursor, snapshot=again)

    async def rest(self) -> None:
        """Wait for news; send a sign of life when there is none for long: where it stands, if that has moved."""
        if not await wait_for(self._clock, self.bell.rung, self._wrote_at + BEAT_S - self._clock.monotonic()):
            await self.write(f"id: {self.cursor}\n\n" if self.cursor != self._told else ":\n\n")
            self._told = self.cursor


def encode(page: Page) -> str:
    """Return the frames of a page."""
    frames = [] if page.snapshot is None else [frame(SNAPSHOT, page.snapshot, None)]
    frames += [f"id: {index}\nevent: {kind}\ndata: {data}\n\n" for index, kind, data in page.events]
    if page.reset is not None:
        frames.append(frame(RESET, page.reset[1], page.reset[0]))
    return "".join(frames)


def _accepted(wish: Wish, first: Page) -> int:
    """Return the cursor that a stream starts from."""
    if wish.after is not None:
        return wish.after
    return first.head if wish.snapshot else -1
