"""What an agent has to tell: put together as it comes, sent in order, kept until it is acknowledged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from apothic.agent.credit import Credit
from apothic.clock import Clock
from apothic.protocol.session import ContainerNews, ContainerSaid, Item, Lease, Line, Outcome, Report, Reports, Said

TOGETHER_S = 0.002  # what is ready within this time shares a frame
FRAME_BYTES = 1024 * 1024
# Past this the containers' output is left in their pipes, so that a long absence of the control plane costs memory
# once and no line at all.
UNACKNOWLEDGED_BYTES = 16 * 1024 * 1024
_TOGETHER_ITEMS = 64  # that many wait for no more company
_LINE_COST = 48  # bytes of a line's frame beside its text
_ITEM_COST = 64


@dataclass
class Story:
    """One attempt's news: the lease it is told under, and what has not been put into a frame."""

    lease: Lease
    seq: int = 0
    began: bool = False
    said: list[Said] = field(default_factory=list)
    size: int = 0  # of what was said
    items: int = 0  # of what was said, how many are items
    outcome: Outcome | None = None
    muted: bool = False  # the lease is lost, nobody listens


class _Piece(NamedTuple):
    """A report as large as a frame at most; `upto` is behind the last item in it."""

    report: Report
    cost: int
    upto: int | None


@dataclass(frozen=True)
class _Kept:
    number: int
    frame: bytes
    ends: list[Lease]
    gone: list[str]
    items: list[tuple[Lease, int]]


class Outbox:
    """Collects news and makes numbered frames of it. `send` gets each new frame once; it must not block."""

    def __init__(
        self, clock: Clock, send: Callable[[bytes], None] = lambda frame: None, *, limit: int = UNACKNOWLEDGED_BYTES
    ) -> None:
        self.send = send
        self.on_room: Callable[[], None] = lambda: None
        self.credit = Credit()
        self._clock = clock
        self._limit = limit
        self._number = 0
        self._waiting: dict[str, Story] = {}  # by token, in the order of their first news
        self._containers: list[ContainerNews] = []
        self._own: list[ContainerSaid] = []
        self._pending = 0
        self._held = 0  # bytes that wait elsewhere, behind something that is being stored
        self._items = 0
        self._kept: deque[_Kept] = deque()
        self._kept_bytes = 0
        self._timer: asyncio.Handle | None = None
        self._soon = False
        self._was_full = False
        self._encoder = msgspec.msgpack.Encoder()

    # --- what comes in

    def began(self, story: Story) -> None:
        """Tell that the function's code is entered."""
        story.began = True
        self._add(story)

    def said(self, story: Story, said: Sequence[Said]) -> None:
        """Tell what an attempt printed, or what it yielded: all lines, or all items."""
        if story.muted or not said:
            return
        size = sum(map(cost, said))
        story.said += said
        story.size += size
        self._pending += size
        items = len(said) if isinstance(said[0], Item) else 0
        story.items += items
        self._items += items
        # Who reads items waits for each; only when the control plane is busy with some do the next ones gather.
        self._add(story, soon=items > 0 and (not self._kept or self._items >= _TOGETHER_ITEMS))
        if self._pending > FRAME_BYTES:
            self.flush()

    def hold(self, size: int) -> None:
        """Count bytes that wait elsewhere to be told; less than 0 when they do no longer."""
        self._held += size
        self._tell_room()

    def ended(self, story: Story, outcome: Outcome) -> None:
        """Tell how an attempt ended: the last news of it."""
        story.outcome = outcome
        if outcome.value is not None and outcome.value.data is not None:
            self._pending += len(outcome.value.data)
        self._add(story, soon=True)

    def container(self, news: ContainerNews) -> None:
        """Tell how a container stands."""
        self._containers.append(news)
        self._schedule(soon=True)

    def own(self, said: ContainerSaid) -> None:
        """Tell what a container printed that belongs to no job."""
        self._own.append(said)
        self._pending += sum(map(cost, said.lines))
        self._schedule(soon=False)
        if self._pending > FRAME_BYTES:
            self.flush()

    def _add(self, story: Story, *, soon: bool = False) -> None:
        if not story.muted:
            self._waiting[story.lease.token] = story
            self._schedule(soon=soon)

    def _schedule(self, *, soon: bool) -> None:
        # An outcome waits only for what the same turn of the loop brings; somebody waits for it.
        if soon and not self._soon:
            if self._timer is not None:
                self._timer.cancel()
            self._soon = True
            self._timer = asyncio.get_running_loop().call_soon(self._flush_ended)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TOGETHER_S, self.flush)

    # --- what goes out

    def _flush_ended(self) -> None:
        """Make frames of what somebody waits for.

        That a job has begun can wait for its own end: the next one begins in the very turn in which this one ends, and
        would have cost each job two reports.
        """
        begun = {t: s for t, s in self._waiting.items() if s.began and not s.said and s.outcome is None}
        for token in begun:
            del self._waiting[token]
        self.flush()
        if begun:
            self._waiting |= begun
            self._schedule(soon=False)

    def flush(self) -> None:
        """Make frames of everything that waits."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._soon = None, False
        now = self._clock.now()
        pieces: list[_Piece] = []
        size = 0
        for story in self._waiting.values():
            if story.muted:
                continue
            for piece in _pieces(story, now):
                if size and size + piece.cost > FRAME_BYTES:
                    self._post(pieces, [])
                    pieces, size = [], 0
                pieces.append(piece)
                size += piece.cost
        own, self._own = self._own, []
        containers, self._containers = self._containers, []
        self._waiting.clear()
        self._pending = self._items = 0
        if own and size:  # either may be as large as a frame
            self._post(pieces, [])
            pieces = []
        if pieces or own or containers:
            self._post(pieces, containers, own)
        self._tell_room()  # a frame is smaller than what was reckoned for it

    def _tell_room(self) -> None:
        if self._was_full and self._kept_bytes + self._pending + self._held <= self._limit:
            self._was_full = False
            self.on_room()

    def _post(self, pieces: list[_Piece], containers: list[ContainerNews], own: Sequence[ContainerSaid] = ()) -> None:
        reports = [piece.report for piece in pieces]
        frame = self._encoder.encode(
            Reports(number=self._number, reports=reports, said=list(own), containers=containers)
        )
        ends = [_lease(report) for report in reports if report.outcome is not None]
        gone = [news.id for news in containers if news.state == "gone"]
        items = [(_lease(piece.report), piece.upto) for piece in pieces if piece.upto is not None]
        self._kept.append(_Kept(self._number, frame, ends, gone, items))
        self._kept_bytes += len(frame)
        self._number += 1
        self.send(frame)

    # --- what is on disk

    def acknowledged(self, number: int, paused: Collection[str] = ()) -> None:
        """Forget every frame up to `number`, and let generators go on, but for those whose tokens are `paused`."""
        while self._kept and self._kept[0].number <= number:
            kept = self._kept.popleft()
            self._kept_bytes -= len(kept.frame)
            for lease, upto in kept.items:
                self.credit.on_disk(lease, upto, paused=lease.token in paused)
            for lease in kept.ends:
                self.credit.ended(lease)
        self._tell_room()

    def unacknowledged(self) -> list[bytes]:
        """Return the frames to send again after a cut, in order."""
        return [kept.frame for kept in self._kept]

    def ended_leases(self) -> list[Lease]:
        """Return the leases whose end is told and not yet acknowledged."""
        told = [lease for kept in self._kept for lease in kept.ends]
        return told + [story.lease for story in self._waiting.values() if story.outcome is not None]

    def ended_containers(self) -> list[ContainerNews]:
        """Return the containers whose end is told and not yet acknowledged."""
        told = [name for kept in self._kept for name in kept.gone]
        told += [news.id for news in self._containers if news.state == "gone"]
        return [ContainerNews(id=name, state="stopping") for name in told]

    @property
    def full(self) -> bool:
        """Whether containers must not be read for now; `on_room` is called when that is over."""
        if self._kept_bytes + self._pending + self._held > self._limit:
            self._was_full = True
            return True
        return False

    @property
    def empty(self) -> bool:
        """Whether everything was told and acknowledged."""
        return not (self._kept or self._waiting or self._own or self._containers)


def cost(one: Said) -> int:
    """Reckon how many bytes of a frame it takes."""
    if isinstance(one, Line):
        return len(one.text) + _LINE_COST
    data = one.value.data
    return _ITEM_COST if data is None else len(data) + _ITEM_COST


def _lease(report: Report) -> Lease:
    return Lease(job=report.job, attempt=report.attempt, token=report.token)


def _pieces(story: Story, now: float) -> Iterator[_Piece]:
    """Take what a story has to tell, in pieces of about a frame."""
    said, story.said = story.said, []
    size, story.size = story.size, 0
    items, story.items = story.items, 0
    outcome = story.outcome
    value = outcome.value if outcome is not None else None
    inline = len(value.data or b"") if value is not None else 0
    if size + inline > FRAME_BYTES - 1024:
        start = size = 0
        for place, one in enumerate(said):
            more = cost(one)
            if size and size + more > FRAME_BYTES - 1024:
                yield _piece(story, now, said[start:place], None, size, items > 0)
                start, size = place, 0
            size += more
        said = said[start:]
        if size + inline > FRAME_BYTES - 1024:
            yield _piece(story, now, said, None, size, items > 0)
            said, size = [], 0
    if story.began or said or outcome is not None:
        yield _piece(story, now, said, outcome, size + inline, items > 0)


def _piece(story: Story, now: float, said: list[Said], outcome: Outcome | None, size: int, yielded: bool) -> _Piece:
    lease, seq, began = story.lease, story.seq, story.began
    story.seq += 1
    story.began = False
    report = Report(
        job=lease.job, attempt=lease.attempt, token=lease.token, seq=seq, at=now, began=began, said=said,
        outcome=outcome,
    )  # fmt: skip
    upto = next((one.index + 1 for one in reversed(said) if isinstance(one, Item)), None) if yielded else None
    return _Piece(report, 200 + size, upto)
