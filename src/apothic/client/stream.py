"""A job's event stream as it is read: over as many connections as it takes, each event once, each gap with its size.

Server-sent events, and pages of JSON where those do not get through. All of it runs on the library's own loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from apothic.client.patience import Backoff, Patience
from apothic.errors import ApothicError, VersionMismatchError
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.events import END, ITEM, LOG, NUMBERED, RESET, SNAPSHOT, STATUS, Splitter

if TYPE_CHECKING:
    from apothic.client.job import Job
    from apothic.transport import Answer

Told = tuple[str, Any, int | None]  # event, data, the frame's id; without an event a bookmark

EVENT_STREAM = "text/event-stream"
FIRST_S = 20.0  # a proxy that lets nothing through for so long keeps all to itself until the end
SILENCE_S = 45.0  # three heartbeats of the server
BARREN = 3  # connections in a row that brought nothing
STREAM_AGAIN_S = 300.0  # pages are asked for so long, then server-sent events are tried once more
PAGE_WAIT_S = 25.0
_OWN = ("", RESET, SNAPSHOT)  # made for one connection
_decode = msgspec.json.Decoder().decode


class Arrival(Struct, frozen=True):
    """An event that has come: its type, its data, its index, and the place in the stream behind it."""

    event: str
    data: dict[str, Any]
    index: int | None
    place: int


class Reader:
    """One job's events behind `after`; behind a snapshot of it, when `after` is `None` and a snapshot is wanted.

    With `latest`, what comes behind a reset begins at the head.
    """

    def __init__(
        self,
        job: Job,
        after: int | None,
        types: tuple[str, ...],
        patience: Patience,
        *,
        snapshot: bool = False,
        attached: bool = False,
        opened: Answer | None = None,
        latest: bool = False,
        poll_interval_s: float = 1.0,
    ) -> None:
        self.cursor = after if snapshot else (-1 if after is None else after)
        self._ask = m.FollowJob(job=job.job_id, type=list(types), attached=attached)
        self._client = job._client
        self._opened = opened  # the first connection, when it is there already
        self._patience = patience
        self._poll_interval_s = poll_interval_s
        self._latest = latest
        self._snapshots = snapshot
        self._owed = snapshot  # one is to come; any other is a repetition
        self._asked = False  # this connection sends snapshots
        self._seen = self.cursor if self.cursor is not None else -1  # what came again is not given out again
        self._numbers = Numbers(known=self.cursor == -1)
        self._backoff = Backoff()
        self._barren = 0
        self._ended = False
        self._turn = False  # what this connection sends from here on is not wanted: ask anew, at once

    async def batches(self) -> AsyncGenerator[list[Arrival], None]:
        """Yield what comes, none of it twice, until nothing follows ever.

        Raises `WaitTimeoutError`, and what the server answers for good: that there is no such job, say. A server that
        cannot be reached is tried again for as long as patience lasts.
        """
        clock = self._patience.clock
        while not self._ended:
            if self._barren >= BARREN:
                self._use_pages()
            paged = self._opened is None and clock.monotonic() < self._client.paged_until
            self._turn = False
            pause_s: float | None = None
            try:
                async with contextlib.aclosing(self._page() if paged else self._connection()) as source:
                    async for told in source:
                        if batch := self._taken(told):
                            yield batch
                        if self._turn or self._ended:
                            break
            except ApothicError as trouble:
                pause_s = self._backoff.next_s(trouble)
            else:
                if not (paged or self._turn or self._ended):
                    pause_s = self._backoff.next_s()
            if pause_s is not None:
                await self._patience.during(clock.sleep(pause_s))

    # --- the two ways to the events -------------------------------------------------------------------------------

    async def _connection(self) -> AsyncGenerator[list[Told], None]:
        """Yield what one stream of server-sent events brings, as it comes."""
        self._asked = self._owed
        ask = replace(self._ask, after=self.cursor, snapshot=self._asked)
        answer, self._opened = self._opened, None
        try:
            if answer is None:
                opening = self._client.open(routes.EVENTS, ask, accept=EVENT_STREAM)
                answer = await self._patience.during(opening, FIRST_S)
        except TimeoutError:
            self._use_pages()
            return
        with contextlib.closing(answer):
            if answer.status == 204:
                self._ended = True
                return
            if not answer.content_type.startswith(EVENT_STREAM):
                self._use_pages()
                return
            splitter, first = Splitter(), True
            self._barren += 1
            while True:
                try:
                    chunk = await self._patience.during(answer.read(), FIRST_S if first else SILENCE_S)
                except TimeoutError:
                    if first:
                        self._use_pages()
                    return
                if not chunk:
                    return
                told = _told(splitter, chunk)
                # Every connection is greeted with a bookmark; only what comes beyond it shows that the way is clear.
                if not first or any(event for event, _, _ in told):
                    self._barren = self._backoff.tries = 0
                first = False
                yield told

    async def _page(self) -> AsyncGenerator[list[Told], None]:
        """Yield one page; wait for the next one where the server does not."""
        clock = self._patience.clock
        begun = clock.monotonic()
        self._asked = False  # a reset is the last in its page: the next one is asked for the snapshot
        wait_s = min(PAGE_WAIT_S, self._patience.left_s)
        ask = replace(self._ask, after=self.cursor, snapshot=self._owed, wait_s=wait_s)
        try:
            page = await self._patience.during(self._client._ask(routes.EVENTS, ask, 0.0), wait_s + FIRST_S)
        except TimeoutError:
            return
        self._backoff.tries = 0
        told: list[Told] = [(SNAPSHOT, page.snapshot, None)] if page.snapshot is not None else []
        told += [(one.event, one.data, one.index) for one in page.events]
        if page.reset is not None:
            told.append((RESET, page.reset, page.reset["resume_index"]))
        yield [*told, ("", None, page.next_index)]
        self._ended = self._ended or page.end
        pause_s = self._poll_interval_s - (clock.monotonic() - begun)
        if not (told or page.end) and pause_s > 0:
            await self._patience.during(clock.sleep(pause_s))

    def _use_pages(self) -> None:
        """Ask for pages for a while: all streams of this client take the same way."""
        self._barren = 0
        self._client.paged_until = self._patience.clock.monotonic() + STREAM_AGAIN_S

    # --- what came --------------------------------------------------------------------------------------------------

    def _taken(self, told: list[Told]) -> list[Arrival]:
        found: list[Arrival] = []
        for event, data, index in told:
            if event in _OWN:
                arrival = self._take_own(event, data, index)
            elif index is None or index <= self._seen:
                continue
            else:
                arrival = self._take(event, data, index)
            if arrival is not None:
                found.append(arrival)
            if self._turn or self._ended:
                break
        return found

    def _take(self, event: str, data: dict[str, Any], index: int) -> Arrival:
        self.cursor = self._seen = index
        if event in NUMBERED:
            self._numbers.note(event, data)
        elif event == END:
            self._ended = True
        elif event == STATUS and data["status"] == "starting" and data["attempt"] > 1:
            # The reset that this may open comes behind it under the same index: cut off in between, we are owed it.
            self.cursor = index - 1
        return Arrival(event, data, index, index)

    def _take_own(self, event: str, data: dict[str, Any], index: int | None) -> Arrival | None:
        """Take what is made for one connection: a bookmark, a snapshot, a reset."""
        if event == RESET:
            assert index is not None, "a reset has its place for an id"
            data["lost"] = self._numbers.lost(data)
            self.cursor = self._seen = index
            if self._latest:
                self.cursor = self._seen = int(data["head_index"])
                self._numbers = Numbers(known=False)
            # A connection that was asked for a snapshot sends one behind each reset; another one has to be asked.
            self._turn = self._latest or (self._snapshots and not self._asked)
            self._owed = self._snapshots
            return Arrival(RESET, data, None, index)
        if event == SNAPSHOT and self._owed:
            self._owed = False
            if self.cursor is None:
                self.cursor = self._seen = int(data["as_of_index"])
                self._numbers.begin(data)
            return Arrival(SNAPSHOT, data, None, self.cursor)
        if event == "" and index is not None and self.cursor is not None:
            self.cursor = max(self.cursor, index)
        return None


class Numbers:
    """What a reader has seen of the types that number their events, to tell how many are lost behind a reset."""

    def __init__(self, *, known: bool) -> None:
        self._next = dict.fromkeys(NUMBERED, 0) if known else {}
        self._gaps = dict.fromkeys(NUMBERED, 0)

    def begin(self, snapshot: dict[str, Any]) -> None:
        """Start behind a snapshot, which counts what there was. Items of several attempts may have been counted."""
        counts = snapshot["counts"]
        self._next = {LOG: counts[LOG]} | ({ITEM: counts[ITEM]} if snapshot["attempt"] <= 1 else {})

    def note(self, event: str, data: dict[str, Any]) -> None:
        """Take an event's number; a jump is a gap that a reset is going to declare."""
        number = data[NUMBERED[event]]
        due = self._next.get(event, number)
        if number > due:
            self._gaps[event] += number - due
        self._next[event] = number + 1

    def lost(self, reset: dict[str, Any]) -> dict[str, int]:
        """Return by type how many events a reset declares lost, where that is known."""
        if reset["reason"] != "window_rotated":
            for kind in NUMBERED if reset["reason"] == "cursor_ahead" else (ITEM,):
                self._next[kind] = self._gaps[kind] = 0
            return {}
        found: dict[str, int] = {}
        for kind, due in self._next.items():
            count, self._gaps[kind] = self._gaps[kind], 0
            # What is kept begins below what is due when some of it came before the reset, and its jump was noted; or in
            # another attempt, and then nobody knows how many this one had.
            if kind in reset["trimmed"] and (first := reset["retained_from"][kind]) > due:
                count += first - due
                self._next[kind] = first
            if count:
                found[kind] = count
        return found


def _told(splitter: Splitter, chunk: bytes) -> list[Told]:
    try:
        return [(one.event, _decode(one.data) if one.event else None, one.id) for one in splitter.feed(chunk)]
    except (ValueError, msgspec.DecodeError) as error:
        raise VersionMismatchError(
            f"the event stream cannot be read: {error}", hint="look whether a control plane of this version runs there"
        ) from None
