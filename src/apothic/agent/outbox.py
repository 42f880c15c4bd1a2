"""What an agent has to tell: put together as it comes, sent in order, kept until it is acknowledged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from apothic.clock import Clock
from apothic.protocol.session import ContainerNews, Lease, Line, Outcome, Report, Reports

TOGETHER_S = 0.002  # what is ready within this time shares a frame
FRAME_BYTES = 1024 * 1024
# Past this the containers' output is left in their pipes, so that a long absence of the control plane costs memory
# once and no line at all.
UNACKNOWLEDGED_BYTES = 16 * 1024 * 1024
_LINE_COST = 48  # bytes of a line's frame beside its text


@dataclass
class Story:
    """One attempt's news: the lease it is told under, and what has not been put into a frame."""

    lease: Lease
    seq: int = 0
    began: bool = False
    lines: list[Line] = field(default_factory=list)
    outcome: Outcome | None = None
    muted: bool = False  # the lease is lost, nobody listens


@dataclass(frozen=True)
class _Kept:
    number: int
    frame: bytes
    ends: list[Lease]
    gone: list[str]


class Outbox:
    """Collects news and makes numbered frames of it. `send` gets each new frame once; it must not block."""

    def __init__(
        self, clock: Clock, send: Callable[[bytes], None] = lambda frame: None, *, limit: int = UNACKNOWLEDGED_BYTES
    ) -> None:
        self.send = send
        self.on_room: Callable[[], None] = lambda: None
        self._clock = clock
        self._limit = limit
        self._number = 0
        self._waiting: dict[str, Story] = {}  # by token, in the order of their first news
        self._containers: list[ContainerNews] = []
        self._pending = 0
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

    def lines(self, story: Story, lines: list[Line]) -> None:
        """Tell what an attempt printed."""
        if story.muted:
            return
        story.lines += lines
        self._pending += sum(len(line.text) + _LINE_COST for line in lines)
        self._add(story)
        if self._pending > FRAME_BYTES:
            self.flush()

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
        begun = {t: s for t, s in self._waiting.items() if s.began and not s.lines and s.outcome is None}
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
        reports: list[Report] = []
        size = 0
        for story in self._waiting.values():
            if story.muted:
                continue
            for report in _reports(story, now):
                cost = _cost(report)
                if size and size + cost > FRAME_BYTES:
                    self._post(reports, [])
                    reports, size = [], 0
                reports.append(report)
                size += cost
        containers, self._containers = self._containers, []
        self._waiting.clear()
        self._pending = 0
        if reports or containers:
            self._post(reports, containers)
        self._tell_room()  # a frame is smaller than what was reckoned for it

    def _tell_room(self) -> None:
        if self._was_full and self._kept_bytes + self._pending <= self._limit:
            self._was_full = False
            self.on_room()

    def _post(self, reports: list[Report], containers: list[ContainerNews]) -> None:
        frame = self._encoder.encode(Reports(number=self._number, reports=reports, containers=containers))
        ends = [Lease(job=r.job, attempt=r.attempt, token=r.token) for r in reports if r.outcome is not None]
        gone = [news.id for news in containers if news.state == "gone"]
        self._kept.append(_Kept(self._number, frame, ends, gone))
        self._kept_bytes += len(frame)
        self._number += 1
        self.send(frame)

    def acknowledged(self, number: int) -> None:
        """Forget every frame up to `number`."""
        while self._kept and self._kept[0].number <= number:
            self._kept_bytes -= len(self._kept.popleft().frame)
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
        if self._kept_bytes + self._pending > self._limit:
            self._was_full = True
            return True
        return False

    @property
    def empty(self) -> bool:
        """Whether everything was told and acknowledged."""
        return not (self._kept or self._waiting or self._containers)


def _cost(report: Report) -> int:
    value = report.outcome.value if report.outcome is not None else None
    inline = len(value.data) if value is not None and value.data is not None else 0
    return 200 + inline + sum(len(line.text) + _LINE_COST for line in report.lines)


def _reports(story: Story, now: float) -> list[Report]:
    """Take what a story has to tell, in pieces of about a frame."""
    found: list[Report] = []
    lines, story.lines = story.lines, []
    began, story.began = story.began, False
    start = size = 0
    for place, line in enumerate(lines):
        cost = len(line.text) + _LINE_COST
        if size and size + cost > FRAME_BYTES - 1024:
            found.append(_report(story, now, began, lines[start:place], None))
            began, start, size = False, place, 0
        size += cost
    outcome = story.outcome
    inline = len(outcome.value.data or b"") if outcome is not None and outcome.value is not None else 0
    if outcome is not None and size and size + inline > FRAME_BYTES:
        found.append(_report(story, now, began, lines[start:], None))
        began, start = False, len(lines)
    if began or outcome is not None or start < len(lines):
        found.append(_report(story, now, began, lines[start:], outcome))
    return found


def _report(story: Story, now: float, began: bool, lines: list[Line], outcome: Outcome | None) -> Report:
    lease, seq = story.lease, story.seq
    story.seq += 1
    return Report(
        job=lease.job, attempt=lease.attempt, token=lease.token, seq=seq, at=now, began=began, lines=lines,
        outcome=outcome,
    )  # fmt: skip
