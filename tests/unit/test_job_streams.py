"""A job's events in the caller's hands: places, policies, values, errors. Against a scripted control plane."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import scripted
from scripted import (
    CUT,
    HANG,
    JOB,
    Answer,
    Client,
    declared,
    end,
    greeting,
    item,
    job_view,
    line,
    pictured,
    sent,
    status,
)

import apothic
from apothic import ControlPlaneClient, Job, JobStreamCheckpoint, JobStreamCursor, JobStreamResetError
from apothic.client import patience
from apothic.client.blocking import AHEAD
from apothic.errors import JobFailedError, NotFoundError, SerializationError, WaitTimeoutError
from apothic.protocol import messages as m
from apothic.protocol import values
from apothic.protocol.events import EVENT_TYPES

OTHER = "job_1123456789abcdefghjkmnpqrs"
LINES = [line(n, n) for n in range(4)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "BACKOFF_S", (0.0, 0.0))


def handle(*frames: str, **more: Any) -> tuple[Job, Client]:
    client = Client(Answer(greeting(-1) + "".join(frames)), **more)
    return scripted.job(client), client


class Seen:
    """A value that remembers where it was read."""

    read: ClassVar[list[str]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return _seen, ()


def _seen() -> Seen:
    Seen.read.append(threading.current_thread().name)
    return Seen()


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return _broken, ()


def _broken() -> Any:
    raise LookupError("no legs")


def stored(client: Client, value: Any) -> dict[str, Any]:
    """Make the bytes of a value a blob; return the reference to it."""
    envelope = values.pack(value, payload_limit=1 << 30, inline_limit=0)
    assert envelope.file is not None and envelope.packed.sha256 is not None
    client.blobs[envelope.packed.sha256] = envelope.file.read_bytes()
    envelope.discard()
    return {"ref": scripted.told(envelope.packed)}


def referred(client: Client, index: int, number: int, value: Any) -> str:
    """Return the frame of an item whose bytes are a blob."""
    return sent("job.stream_item", {"item_index": number, "attempt": 1} | stored(client, value), index)


# --- arguments: checked at the call, before anything is asked ---------------------------------------------------

HERE = JobStreamCheckpoint(JOB, 3, ("job.log",))
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"checkpoint": HERE, "cursor": JobStreamCursor(3)}, "checkpoint and cursor"),
    ({"checkpoint": HERE, "last_index": 3}, "checkpoint and last_index"),
    ({"cursor": JobStreamCursor(3), "last_index": 3}, "cursor and last_index"),
    ({"checkpoint": JobStreamCheckpoint(OTHER, 3)}, OTHER),
    ({"last_index": -2}, "last_index"),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG)
@pytest.mark.parametrize("name", ["stream_events", "watch", "wait_gen"])
def test_a_resume_point_that_cannot_be_is_refused_at_the_call(name: str, arguments: dict[str, Any], named: str) -> None:
    job, client = handle()
    for side in (job, job.aio):
        with pytest.raises(ValueError, match=named):
            getattr(side, name)(**arguments)
    assert (client.asked, client.other) == ([], [])


@pytest.mark.parametrize("name", ["stream_events", "watch"])
def test_an_unknown_type_is_refused_at_the_call_with_the_eight_names(name: str) -> None:
    job, client = handle()
    for side in (job, job.aio):
        with pytest.raises(ValueError) as caught:
            getattr(side, name)(event_types=["job.logs"])
        assert all(known in str(caught.value) for known in EVENT_TYPES)
    assert client.asked == []


def test_an_unknown_policy_is_refused_at_the_call() -> None:
    job, client = handle()
    with pytest.raises(ValueError, match="'raise', 'continue', 'latest'"):
        job.wait_gen(on_reset="ignore")
    assert client.other == []


def asked(job: Job, **arguments: Any) -> tuple[int | None, list[str], bool]:
    """Return from where, of which types and whether with a snapshot a watch asks for events."""
    client: Any = job._client
    assert list(job.watch(**arguments)) == []
    ask = client.asked[-1]
    return ask.after, ask.type, ask.snapshot


def test_each_form_of_a_resume_point_says_the_same() -> None:
    job = scripted.job(Client())
    assert asked(job) == (-1, [], False)
    assert asked(job, snapshot=True) == (None, [], True)
    assert asked(job, last_index=3) == asked(job, cursor=JobStreamCursor(3)) == (3, [], False)
    assert asked(job, last_index=-1, snapshot=True) == (-1, [], True)
    assert asked(job, checkpoint=JobStreamCheckpoint(JOB, 3)) == (3, [], False)


def test_a_checkpoints_filter_holds_unless_another_is_given() -> None:
    job = scripted.job(Client())
    assert asked(job, checkpoint=HERE) == (3, ["job.log"], False)
    assert asked(job, checkpoint=HERE, event_types=["job.result"]) == (3, ["job.result"], False)
    assert asked(job, checkpoint=HERE, event_types=()) == (3, [], False)


# --- the handle's place -----------------------------------------------------------------------------------------


def test_the_place_is_that_of_the_event_in_hand_not_of_what_was_read_ahead() -> None:
    job, _ = handle(*LINES, end(4))
    assert job.checkpoint() == JobStreamCheckpoint(JOB, -1)
    places = []
    for event in job.stream_events():
        places.append((event.index, job.checkpoint().last_index))
    assert places == [(n, n) for n in range(5)]


async def test_the_place_is_the_same_on_the_asynchronous_side() -> None:
    job, _ = handle(*LINES, end(4))
    async for event in job.aio.stream_events(event_types=["job.log"]):
        if event.index == 2:
            break
    assert await job.aio.checkpoint() == job.checkpoint() == JobStreamCheckpoint(JOB, 2, ("job.log",))


def test_a_checkpoint_has_the_filter_of_the_last_reading_and_what_is_given_instead() -> None:
    job, _ = handle(*LINES)
    next(iter(job.stream_events(event_types=("job.log", "job.result"))))
    assert job.checkpoint() == JobStreamCheckpoint(JOB, 0, ("job.log", "job.result"))
    assert job.checkpoint(event_types=["job.end"]) == JobStreamCheckpoint(JOB, 0, ("job.end",))
    assert job.checkpoint(event_types=()) == JobStreamCheckpoint(JOB, 0)
    assert job.checkpoint(last_index=7) == job.checkpoint(cursor=JobStreamCursor(7))
    assert job.checkpoint(last_index=7) == JobStreamCheckpoint(JOB, 7, ("job.log", "job.result"))
    with pytest.raises(ValueError, match="cursor and last_index"):
        job.checkpoint(cursor=JobStreamCursor(7), last_index=7)
    with pytest.raises(ValueError, match="no event type"):
        job.checkpoint(event_types=["job.nonsense"])


def test_behind_a_snapshot_and_a_reset_the_place_is_where_they_let_one_go_on() -> None:
    job, _ = handle(pictured(2) + declared(6) + pictured(8) + line(7, 3) + end(9))
    places = [(event.event, job.checkpoint().last_index) for event in job.watch(snapshot=True)]
    assert places == [("job.snapshot", 2), ("job.reset", 6), ("job.snapshot", 6), ("job.log", 7), ("job.end", 9)]


def test_reading_on_from_a_place_where_nothing_came_stands_there() -> None:
    job = scripted.job(Client())
    assert list(job.stream_events(checkpoint=HERE)) == []
    assert job.checkpoint() == HERE


def test_attached_at_a_checkpoint_a_handle_begins_there_every_time() -> None:
    client: Any = Client()
    job = Job.attach(str(HERE), client=client)
    assert job.checkpoint() == HERE
    assert asked(job) == asked(job) == (3, ["job.log"], False)
    assert asked(job, snapshot=True) == (3, ["job.log"], True)
    assert asked(job, event_types=["job.end"]) == (3, ["job.end"], False)
    assert asked(job, last_index=-1) == (-1, [], False)
    client.result = m.JobResult(job=job_view(status="succeeded"), value=m.Value(encoding="json"))
    assert list(job.wait_gen()) == []
    assert client.asked[-1].after == 3
    assert job == Job.attach(JOB, client=client)


def test_a_handle_that_was_not_attached_begins_at_the_start_every_time() -> None:
    client = Client(Answer(*LINES))
    job = scripted.job(client)
    with contextlib.closing(job.stream_events()) as events:  # type: ignore[type-var]
        assert next(events).index == 0
    assert asked(job) == (-1, [], False)


def test_a_pickled_handle_keeps_where_it_was_attached() -> None:
    client = ControlPlaneClient("http://127.0.0.1:1")
    again = pickle.loads(pickle.dumps(Job.attach(str(HERE), client=client)))
    assert again.checkpoint() == HERE
    assert pickle.loads(pickle.dumps(Job(JOB, client))).checkpoint() == JobStreamCheckpoint(JOB)


def test_events_are_read_ahead_a_little_way_only() -> None:
    answer = Answer(*(line(n, n) for n in range(10_000)), HANG)
    with contextlib.closing(scripted.job(Client(answer)).stream_events()) as events:  # type: ignore[type-var]
        assert [next(events).index for _ in range(3)] == [0, 1, 2]
        assert answer.reads <= 3 * AHEAD


# --- events -----------------------------------------------------------------------------------------------------


def test_a_gap_is_an_event_among_the_others() -> None:
    told = declared(9, trimmed={"job.log": 9}, retained_from={"job.log": 7})
    job, _ = handle(LINES[0], told, line(10, 7), end(11, "failed"))
    log, reset, *rest = job.stream_events()
    assert isinstance(log, apothic.JobLogEvent) and isinstance(reset, apothic.JobResetEvent)
    assert (reset.index, reset.resume_index, reset.lost) == (None, 9, {"job.log": 6})
    assert [event.index for event in rest] == [10, 11]


def test_a_failed_job_is_no_error_of_its_events() -> None:
    job, client = handle(status(0, "failed", 1), end(1, "failed"))
    assert [event.event for event in job.watch()] == ["job.status", "job.end"]
    assert client.other == []


def test_a_value_is_read_when_it_is_looked_at_and_by_whom() -> None:
    Seen.read.clear()
    job, _ = handle(item(0, 0, Seen()), item(1, 1, Unreadable()), end(2))
    first, second, _ = job.stream_events()
    assert Seen.read == []
    assert isinstance(first.value, Seen)  # type: ignore[attr-defined]
    assert Seen.read == [threading.current_thread().name]
    with pytest.raises(SerializationError, match="no legs"):
        second.value  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize("colour", ["blocking", "awaiting"])
def test_a_large_value_is_fetched_and_read_and_leaves_nothing_behind(
    colour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Seen.read.clear()
    client = Client()
    frames = [referred(client, 0, 0, Seen()), referred(client, 1, 1, Unreadable()), referred(client, 2, 2, [1] * 9)]
    client.answers = [Answer("".join(frames) + end(3))]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job = scripted.job(client)

    async def collected() -> list[Any]:
        return [event async for event in job.aio.stream_events()]

    first, second, third, _ = list(job.stream_events()) if colour == "blocking" else asyncio.run(collected())

    assert isinstance(first.value, Seen)
    assert third.value == [1] * 9
    with pytest.raises(SerializationError, match="no legs"):
        second.value  # noqa: B018
    (reader,) = Seen.read
    # What needs a file would hold up the caller's loop: another thread reads it.
    assert (reader == threading.current_thread().name) is (colour == "blocking")
    assert list(tmp_path.iterdir()) == []


def test_a_large_value_that_is_gone_says_so_when_it_is_looked_at() -> None:
    client = Client()
    client.answers = [Answer(referred(client, 0, 0, [1, 2]) + line(1, 0) + end(2))]

    async def gone(sha256: str, dest: Path) -> None:
        raise NotFoundError(f"there is no blob {sha256}")

    client.fetch = gone  # type: ignore[method-assign]
    first, *rest = scripted.job(client).stream_events()
    assert len(rest) == 2
    with pytest.raises(NotFoundError, match="no blob"):
        first.value  # type: ignore[attr-defined] # noqa: B018


def test_a_large_result_in_a_snapshot_is_fetched() -> None:
    client = Client()
    told = scripted.snapshot(4) | {"status": "succeeded", "result": stored(client, ["big"])}
    client.answers = [Answer(sent("job.snapshot", told, None))]
    (event,) = scripted.job(client).watch(snapshot=True)
    assert event.result == ["big"]  # type: ignore[attr-defined]


# --- items ------------------------------------------------------------------------------------------------------


def test_items_are_the_values_and_the_place_moves_with_them() -> None:
    job, client = handle(item(0, 0, "a"), line(1, 0), item(2, 1, (1, 2)), end(3))
    found = [(value, job.checkpoint().last_index) for value in job.wait_gen()]
    assert found == [("a", 0), ((1, 2), 2)]
    assert job.checkpoint() == JobStreamCheckpoint(JOB, 2, ("job.stream_item",))
    assert client.asked[0].type == ["job.stream_item"]
    assert client.asked[0].attached is False
    assert client.other == ["show_job"]


async def test_items_come_to_the_asynchronous_side_too() -> None:
    job, _ = handle(item(0, 0), item(1, 1), end(2))
    assert [value async for value in job.aio.wait_gen(last_index=-1)] == [0, 1]


def failed(client: Client) -> None:
    failure = m.Failure(kind="user", type="LookupError", message="dry", traceback="Traceback …", attempt=1)
    client.result = m.JobResult(job=job_view(status="failed", failure=failure))


@pytest.mark.parametrize("last", [[end(2, "failed")], []], ids=["told by the end", "already behind the end"])
def test_what_the_job_failed_with_is_raised_behind_its_items(last: list[str]) -> None:
    job, client = handle(item(0, 0), item(1, 1), *last)
    failed(client)
    found: list[Any] = []
    with pytest.raises(LookupError, match="dry") as caught:
        found.extend(job.wait_gen())
    assert found == [0, 1]
    assert any(JOB in note for note in caught.value.__notes__)
    assert "Traceback …" in str(caught.value.__cause__)


def test_behind_the_end_of_a_job_that_succeeded_is_nothing() -> None:
    job, client = handle()
    client.answers = [Answer(status=204)]
    client.result = m.JobResult(job=job_view(status="succeeded"), value=m.Value(encoding="json"))
    assert list(job.wait_gen(last_index=9)) == []


def test_a_plain_functions_job_has_no_items() -> None:
    job, client = handle(view=job_view(is_generator=False))
    with pytest.raises(TypeError, match=r"count is no generator function: use wait\(\)"):
        next(iter(job.wait_gen()))
    assert client.asked == []


def test_a_server_that_cannot_be_reached_is_waited_for_from_the_first_question_on() -> None:
    job, client = handle(item(0, 0), end(1))
    ask, left = client._ask, [CUT] * 3

    async def refusing(*args: Any) -> Any:
        if left:
            raise left.pop()
        return await ask(*args)

    client._ask = refusing  # type: ignore[method-assign]
    client.answers.insert(0, CUT)
    assert list(job.wait_gen()) == [0]


def test_patience_has_an_end_and_the_job_goes_on() -> None:
    client = Client(Answer(item(0, 0), HANG))
    job = scripted.job(client)
    found: list[Any] = []
    with pytest.raises(WaitTimeoutError) as caught:
        found.extend(job.wait_gen(timeout_s=0.2))
    assert found == [0]
    assert caught.value.job is job
    assert isinstance(caught.value, TimeoutError)
    assert client.other == ["show_job"]  # it was not cancelled


def test_an_item_is_read_by_whom_it_is_handed_to_and_one_that_cannot_be_read_raises() -> None:
    Seen.read.clear()
    job, _ = handle(item(0, 0, Seen()), item(1, 1, Unreadable()), item(2, 2), end(3))
    items = job.wait_gen()
    next(items)
    assert Seen.read == [threading.current_thread().name]
    with pytest.raises(SerializationError, match="no legs"):
        next(items)
    assert job.checkpoint().last_index == 0


GAP = declared(9, head_index=40, trimmed={"job.stream_item": 9}, retained_from={"job.stream_item": 7})


def test_a_gap_raises_with_the_event_and_where_to_go_on() -> None:
    job, _ = handle(item(0, 0), GAP, item(10, 7), end(11))
    items = job.wait_gen()
    assert next(items) == 0
    with pytest.raises(JobStreamResetError, match="6 items are lost") as caught:
        next(items)
    assert caught.value.event.lost == {"job.stream_item": 6}
    assert caught.value.checkpoint == JobStreamCheckpoint(JOB, 9, ("job.stream_item",))
    assert caught.value.hint
    assert job.checkpoint().last_index == 0

    onward, client = handle(item(10, 7), end(11))
    assert list(onward.wait_gen(checkpoint=caught.value.checkpoint)) == [7]
    assert client.asked[0].after == 9


@pytest.mark.parametrize("reason", ["cursor_ahead", "attempt_restarted"])
def test_a_gap_of_another_sort_raises_too(reason: str) -> None:
    job, _ = handle(declared(-1, reason))
    with pytest.raises(JobStreamResetError) as caught:
        list(job.wait_gen())
    assert caught.value.event.reason == reason


def test_with_continue_a_gap_is_warned_of_once_and_passed() -> None:
    again = declared(20, trimmed={"job.stream_item": 20}, retained_from={"job.stream_item": 15})
    job, _ = handle(item(0, 0), GAP, item(10, 7), again, item(21, 15), end(22))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = list(job.wait_gen(on_reset="continue"))
    assert found == [0, 7, 15]
    assert [(each.category, each.filename) for each in caught] == [(UserWarning, __file__)]
    assert JOB in str(caught[0].message) and "6 items are lost" in str(caught[0].message)


async def test_with_continue_the_asynchronous_side_warns_at_the_same_line() -> None:
    job, _ = handle(GAP, item(10, 7), end(11))
    with pytest.warns(UserWarning, match="items are lost") as caught:
        assert [value async for value in job.aio.wait_gen(on_reset="continue")] == [7]
    assert [each.filename for each in caught] == [__file__]


def test_with_latest_items_go_on_at_the_head() -> None:
    client = Client(Answer(item(0, 0), GAP + item(10, 7), HANG), Answer(greeting(40) + item(41, 30) + end(42)))
    assert list(scripted.job(client).wait_gen(on_reset="latest")) == [0, 30]
    assert [ask.after for ask in client.asked] == [-1, 40]


# --- leaving ----------------------------------------------------------------------------------------------------


def left(leave: Callable[[Any], None]) -> tuple[Answer, Client]:
    answer = Answer(item(0, 0), HANG)
    client = Client(answer)
    items = scripted.job(client).wait_gen()
    assert next(items) == 0
    leave(items)
    del items
    gc.collect()
    return answer, client


@pytest.mark.parametrize("leave", [lambda items: items.close(), lambda items: None], ids=["closed", "dropped"])
def test_leaving_closes_the_connection_and_lets_the_job_be(leave: Callable[[Any], None]) -> None:
    answer, client = left(leave)
    assert answer.closed
    assert client.other == ["show_job"]


async def test_cancelling_closes_the_connection_and_lets_the_job_be() -> None:
    answer = Answer(item(0, 0), HANG)
    client = Client(answer)
    got = asyncio.Event()

    async def read() -> None:
        async for _ in scripted.job(client).aio.wait_gen():
            got.set()

    reading = asyncio.create_task(read())
    await got.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert answer.closed
    assert client.other == ["show_job"]


def test_failed_without_a_reason_is_told_as_such() -> None:
    job, client = handle(end(0, "failed"))
    client.result = m.JobResult(job=job_view(status="failed"))
    with pytest.raises(JobFailedError, match="nothing tells why"):
        list(job.wait_gen())
