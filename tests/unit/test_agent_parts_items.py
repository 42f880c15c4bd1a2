"""Items in an agent: through the outbox soon and in order, held back behind what is stored, and their credit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apothic.agent.credit import Credit
from apothic.agent.outbox import FRAME_BYTES, Outbox, Story
from apothic.agent.passage import Passage
from apothic.clock import ManualClock
from apothic.protocol.session import Item, Lease, Line, Outcome, Packed, Reports, Said

VALUE = Outcome(value=Packed(encoding="json", data=b"1", size=1))


def _story(n: int = 1) -> Story:
    return Story(Lease(job=f"job_{n}", attempt=1, token=f"token_{n}"))


def _outbox(**more: Any) -> tuple[Outbox, list[Reports]]:
    sent: list[Reports] = []
    outbox = Outbox(ManualClock(), lambda frame: sent.append(msgspec.msgpack.decode(frame, type=Reports)), **more)
    return outbox, sent


def _items(first: int, count: int = 1, size: int = 1) -> list[Item]:
    return [
        Item(index=n, value=Packed(encoding="pickle", data=b"x" * size, size=size)) for n in range(first, first + count)
    ]


def _line(text: str) -> Line:
    return Line(stream="stdout", text=text, at=1.0)


def _said(sent: list[Reports]) -> list[Said]:
    return [one for frame in sent for report in frame.reports for one in report.said]


async def _turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


# --- the outbox -------------------------------------------------------------------------------------------------


async def test_an_item_is_told_at_once_when_nothing_is_unacknowledged() -> None:
    outbox, sent = _outbox()
    story = _story()

    outbox.began(story)
    outbox.said(story, _items(0))
    await _turn()

    assert [(report.began, len(report.said)) for frame in sent for report in frame.reports] == [(True, 1)]


async def test_items_gather_while_some_are_unacknowledged() -> None:
    outbox, sent = _outbox()
    story = _story()
    outbox.said(story, _items(0))
    await _turn()

    outbox.said(story, _items(1))
    await _turn()
    assert len(sent) == 1
    outbox.said(story, _items(2, 62))
    await _turn()
    assert len(sent) == 1
    outbox.said(story, _items(64))
    await _turn()

    assert [len(frame.reports[0].said) for frame in sent] == [1, 64]
    outbox.acknowledged(1)
    outbox.said(story, _items(65))
    await _turn()
    assert len(sent) == 3


async def test_items_that_gather_are_told_soon_all_the_same() -> None:
    outbox, sent = _outbox()
    outbox.said(_story(1), _items(0))
    await _turn()

    outbox.said(_story(2), _items(0))
    async with asyncio.timeout(5):
        while len(sent) < 2:
            await asyncio.sleep(0.001)


async def test_lines_and_items_keep_their_order_in_frames_near_their_cap() -> None:
    sizes: list[int] = []
    frames: list[Reports] = []

    def heard(frame: bytes) -> None:
        sizes.append(len(frame))
        frames.append(msgspec.msgpack.decode(frame, type=Reports))

    outbox = Outbox(ManualClock(), heard)
    story = _story()
    told: list[Said] = []
    for n in range(100):
        for said in ([_line(f"{n:016000}")], _items(n, size=50_000)):
            told += said
            outbox.said(story, said)
    told += _items(100, 60, size=50_000)
    outbox.said(story, told[-60:])  # more than a frame at once
    outbox.ended(story, VALUE)
    outbox.flush()

    assert _said(frames) == told and frames[-1].reports[-1].outcome is not None
    assert max(sizes) <= FRAME_BYTES * 1.1 and len(sizes) >= 6
    assert [report.seq for frame in frames for report in frame.reports] == list(range(len(frames)))


async def test_what_is_on_disk_is_told_up_to_the_last_item_of_each_frame() -> None:
    outbox, _ = _outbox()
    taken: list[tuple[str, int]] = []
    outbox.credit.on_taken = lambda lease, upto: taken.append((lease.token, upto))
    one, two = _story(1), _story(2)

    outbox.said(one, _items(0, 3))
    outbox.said(one, [_line("x")])
    outbox.said(two, [_line("no item")])
    outbox.flush()
    outbox.said(one, _items(3))
    outbox.said(two, _items(0, 2))
    outbox.flush()
    assert taken == []
    outbox.acknowledged(0)
    assert taken == [("token_1", 3)]
    outbox.acknowledged(1, ["token_1"])
    assert taken == [("token_1", 3), ("token_2", 2)]
    outbox.credit.resume("token_1")

    assert taken == [("token_1", 3), ("token_2", 2), ("token_1", 4)]


async def test_bytes_that_are_held_elsewhere_make_the_outbox_full() -> None:
    outbox, _ = _outbox(limit=10_000)
    rang: list[bool] = []
    outbox.on_room = lambda: rang.append(outbox.full)

    outbox.hold(20_000)
    assert outbox.full
    outbox.hold(-5_000)
    assert rang == []
    outbox.hold(-15_000)

    assert rang == [False]


# --- credit -----------------------------------------------------------------------------------------------------


def _credit() -> tuple[Credit, list[int], Lease]:
    credit, taken = Credit(), list[int]()
    credit.on_taken = lambda lease, upto: taken.append(upto)
    return credit, taken, _story().lease


def test_what_is_withheld_is_given_with_the_next_that_is_not() -> None:
    credit, taken, lease = _credit()

    credit.on_disk(lease, 1, paused=True)
    credit.on_disk(lease, 2, paused=False)
    credit.resume_all()

    assert taken == [2]


def test_a_pause_that_was_ended_before_it_came_is_none() -> None:
    credit, taken, lease = _credit()

    credit.resume(lease.token)
    credit.on_disk(lease, 1, paused=True)
    credit.on_disk(lease, 2, paused=True)
    assert taken == [1]
    credit.resume(lease.token)

    assert taken == [1, 2]


def test_a_new_session_forgets_pauses_and_their_ends() -> None:
    credit, taken, lease = _credit()
    credit.on_disk(lease, 1, paused=True)
    credit.resume("token_of_another")

    credit.resume_all()
    assert taken == [1]
    credit.on_disk(lease, 2, paused=True)
    credit.on_disk(Lease(job="job_2", attempt=1, token="token_of_another"), 7, paused=True)

    assert taken == [1]


def test_what_has_ended_is_told_nothing_more() -> None:
    credit, taken, lease = _credit()
    credit.on_disk(lease, 1, paused=True)

    credit.ended(lease)
    credit.resume_all()

    assert taken == []


# --- the way to the outbox --------------------------------------------------------------------------------------


class _Store:
    """Keeps what it is given once it may; fails when it shall."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.trouble: OSError | None = None
        self.stored: list[str] = []

    async def store(self, path: Path, sha256: str, size: int) -> None:
        assert path.exists()
        await self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.stored.append(sha256)


def _large(index: int) -> list[Item]:
    return [Item(index=index, value=Packed(encoding="pickle", sha256=f"{index:064}", size=9))]


class _Way:
    def __init__(self, folder: Path) -> None:
        self.store = _Store()
        self.outbox, self.sent = _outbox()
        self.tasks: list[asyncio.Task[None]] = []
        self.passage = Passage(_story(), self.outbox, self.store.store, self._spawn)
        self.told: list[str] = []
        self.passage.on_told = lambda: self.told.append("told")
        self.passage.on_spoilt = lambda: self.told.append("spoilt")
        self._folder = folder

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        self.tasks.append(asyncio.get_running_loop().create_task(work))
        return self.tasks[-1]

    def file(self, name: str) -> Path:
        path = self._folder / name
        path.write_bytes(b"something")
        return path

    async def settle(self) -> list[Said]:
        """Let the store go on, and return what was told."""
        self.store.gate.set()
        await asyncio.gather(*self.tasks)
        self.outbox.flush()
        return _said(self.sent)

    @property
    def outcome(self) -> Outcome | None:
        return self.sent[-1].reports[-1].outcome


@pytest.fixture
def way(tmp_path: Path) -> _Way:
    return _Way(tmp_path)


async def test_what_comes_behind_a_large_item_waits_for_it(way: _Way, tmp_path: Path) -> None:
    said: list[list[Said]] = [[_line("a")], _large(0), [_line("b")], [*_items(1)], _large(2), [_line("c")]]
    for n, one in enumerate(said):
        way.passage.say(one, way.file(str(n)) if n in (1, 4) else None)
    way.passage.end(VALUE)
    way.outbox.flush()
    assert _said(way.sent) == [_line("a")] and way.told == []

    assert await way.settle() == [one for group in said for one in group]
    assert way.outcome == VALUE and way.told == ["told"]
    assert way.store.stored == [f"{0:064}", f"{2:064}"] and list(tmp_path.iterdir()) == []


async def test_a_large_item_that_is_lost_takes_the_items_behind_it_and_the_success(way: _Way, tmp_path: Path) -> None:
    way.store.trouble = OSError("no space")
    way.passage.say(_items(0))
    for n in (1, 2):
        way.passage.say(_large(n), way.file(str(n)))
    way.passage.say([_line("a line")])
    way.passage.say(_items(3))
    way.passage.end(VALUE)

    assert await way.settle() == [*_items(0), _line("a line")]
    assert way.outcome is not None and way.outcome.failure is not None
    assert way.outcome.failure.kind == "worker_lost" and "no space" in way.outcome.failure.message
    assert way.told == ["spoilt", "told"] and list(tmp_path.iterdir()) == []


async def test_nothing_is_stored_for_a_lost_lease(way: _Way, tmp_path: Path) -> None:
    way.passage.story.muted = True
    way.passage.say(_large(0), way.file("0"))
    way.passage.end(VALUE, way.file("1"))

    assert await way.settle() == [] and way.sent == []
    assert way.store.stored == [] and way.told == ["told"] and list(tmp_path.iterdir()) == []


async def test_what_waits_is_deleted_when_the_agent_ends(way: _Way, tmp_path: Path) -> None:
    for n in range(3):
        way.passage.say(_large(n), way.file(str(n)))
    await _turn()

    way.tasks[0].cancel()
    await asyncio.gather(*way.tasks, return_exceptions=True)

    assert list(tmp_path.iterdir()) == []


async def test_what_waits_counts_until_it_is_told(way: _Way) -> None:
    way.passage.say(_large(0), way.file("0"))
    way.passage.say([_line("x" * 10_000_000)])
    way.passage.say([_line("x" * 10_000_000)])
    assert way.outbox.full

    await way.settle()
    way.outbox.acknowledged(way.sent[-1].number)

    assert not way.outbox.full
