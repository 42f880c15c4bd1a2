"""The reader of streams: what it asks, what it gives out, when it ends. Against a scripted control plane."""

from __future__ import annotations

import asyncio
from math import inf
from typing import Any

import pytest
import scripted
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import (
    CUT,
    HANG,
    Answer,
    Client,
    cut_after,
    declared,
    end,
    greeting,
    item,
    line,
    page,
    pictured,
    status,
)

from apothic.client import patience, stream
from apothic.client.patience import Backoff, Patience
from apothic.client.stream import Arrival, Numbers, Reader
from apothic.errors import (
    ApothicError,
    AuthError,
    ConfigError,
    InvalidRequestError,
    JobGoneError,
    NotFoundError,
    QueueFullError,
    ServerUnavailableError,
    StorageFullError,
    VersionMismatchError,
    WaitTimeoutError,
)

WHOLE = [status(0, "queued", 0), status(1, "starting", 1), item(2, 0), line(3, 0), item(4, 1), end(5)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "BACKOFF_S", (0.0, 0.0))


async def read(
    client: Client, after: int | None = -1, types: tuple[str, ...] = (), timeout_s: float = 30.0, **more: Any
) -> list[Arrival]:
    job = scripted.job(client)
    reader = Reader(job, after, types, Patience(job, timeout_s), **more)
    return [arrival async for batch in reader.batches() for arrival in batch]


def indices(arrivals: list[Arrival]) -> list[int | None]:
    return [arrival.index for arrival in arrivals]


def test_the_times_are_those_of_the_contract() -> None:
    assert (stream.FIRST_S, stream.SILENCE_S, stream.STREAM_AGAIN_S, stream.PAGE_WAIT_S) == (20.0, 45.0, 300.0, 25.0)
    assert stream.BARREN == 3


# --- one connection ---------------------------------------------------------------------------------------------


async def test_events_come_in_order_and_end_with_the_jobs_end() -> None:
    answer = Answer(greeting(-1), "".join(WHOLE[:3]), "".join(WHOLE[3:]) + item(6, 2))
    client = Client(answer)

    found = await read(client, types=("job.log",), attached=True)

    assert indices(found) == [arrival.place for arrival in found] == [0, 1, 2, 3, 4, 5]
    assert [arrival.event for arrival in found[2:4]] == ["job.stream_item", "job.log"]
    assert found[3].data["text"] == "line 0"
    assert answer.closed
    (ask,) = client.asked
    assert (ask.after, ask.type, ask.snapshot, ask.attached) == (-1, ["job.log"], False, True)


async def test_a_place_behind_the_end_is_the_end() -> None:
    client = Client(Answer(status=204))
    assert await read(client, 5) == []
    assert [ask.after for ask in client.asked] == [5]


async def test_leaving_early_closes_the_connection() -> None:
    answer = Answer(greeting(-1) + WHOLE[0], HANG)
    job = scripted.job(Client(answer))
    batches = Reader(job, -1, (), Patience(job)).batches()
    assert indices(await anext(batches)) == [0]
    await batches.aclose()
    assert answer.closed


async def test_bytes_that_are_no_stream_of_ours_are_told_as_another_version() -> None:
    for text in ("id: x\n\n", "id: 0\nevent: job.log\ndata: {\n\n"):
        with pytest.raises(VersionMismatchError, match="event stream cannot be read"):
            await read(Client(Answer(text)))


# --- many connections -------------------------------------------------------------------------------------------


async def test_the_end_of_a_connection_is_not_the_end() -> None:
    client = Client(
        Answer(greeting(-1) + WHOLE[0] + WHOLE[1]),
        Answer(greeting(1) + WHOLE[2], CUT),
        ServerUnavailableError("refused"),
        Answer(greeting(2), "".join(WHOLE[3:])),
    )
    assert indices(await read(client)) == [0, 1, 2, 3, 4, 5]
    assert [ask.after for ask in client.asked] == [-1, 1, 2, 2]


async def test_what_comes_again_is_not_given_out_again() -> None:
    client = Client(Answer(greeting(-1) + "".join(WHOLE[:3])), Answer(greeting(-1) + "".join(WHOLE)))
    assert indices(await read(client)) == [0, 1, 2, 3, 4, 5]


async def test_a_bookmark_moves_the_place_to_go_on_from_but_never_back() -> None:
    client = Client(Answer(greeting(-1), "id: 700\n\n"), Answer("id: 3\n\n"), Answer(greeting(700) + end(701)))
    assert indices(await read(client)) == [701]
    assert [ask.after for ask in client.asked] == [-1, 700, 700]


RESTARTED = {3: 2, 6: 3}  # index of the status that opened an attempt → the attempt


def history(after: int) -> str:
    """Return what a server sends behind a place of a job whose generator began again twice."""
    frames = [status(0, "queued", 0), status(1, "starting", 1), item(2, 0), status(3, "starting", 2), item(4, 0),
              line(5, 0), status(6, "starting", 3), item(7, 0), end(8)]  # fmt: skip
    sent = [greeting(after)]
    for index, text in enumerate(frames):
        if index > after:
            sent.append(text)
            if index in RESTARTED:
                sent.append(declared(index, "attempt_restarted", attempt=RESTARTED[index]))
    return "".join(sent)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1_500), st.sampled_from([None, CUT])), max_size=12))
def test_nothing_is_lost_and_nothing_comes_twice_wherever_connections_are_cut(cuts: list[tuple[int, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "BACKOFF_S", (0.0, 0.0))
        patch.setattr(stream, "BARREN", inf)
        client = Client(*(cut_after(history, size, how) for size, how in cuts), cut_after(history, 1 << 20))
        found = asyncio.run(read(client))

    assert [(arrival.event == "job.reset", arrival.place) for arrival in found] == [
        (False, 0), (False, 1), (False, 2), (False, 3), (True, 3), (False, 4), (False, 5), (False, 6), (True, 6),
        (False, 7), (False, 8),
    ]  # fmt: skip
    assert [arrival.index for arrival in found if arrival.event == "job.reset"] == [None, None]


async def test_cut_off_between_an_attempts_opening_and_its_reset_the_reset_is_still_owed() -> None:
    opening = status(3, "starting", 2)
    client = Client(
        Answer(greeting(-1) + opening), Answer(greeting(2) + opening + declared(3, "attempt_restarted")), Answer(end(4))
    )
    assert [arrival.event for arrival in await read(client)] == ["job.status", "job.reset", "job.end"]
    assert [ask.after for ask in client.asked] == [-1, 2, 3]


async def test_a_place_beyond_the_head_is_declared_and_all_comes_again() -> None:
    client = Client(Answer(greeting(900) + declared(-1, "cursor_ahead") + WHOLE[0]), Answer("".join(WHOLE[1:])))
    found = await read(client, 900)
    assert indices(found) == [None, 0, 1, 2, 3, 4, 5]
    assert found[0].place == -1 and found[0].data["reason"] == "cursor_ahead"
    assert [ask.after for ask in client.asked] == [900, 0]


# --- snapshots --------------------------------------------------------------------------------------------------


async def test_a_snapshot_comes_first_and_what_follows_it_after() -> None:
    client = Client(Answer(greeting(2) + pictured(2)), Answer(greeting(2) + "".join(WHOLE[3:])))
    found = await read(client, None, snapshot=True)
    assert [(arrival.event, arrival.place) for arrival in found[:2]] == [("job.snapshot", 2), ("job.log", 3)]
    assert [(ask.after, ask.snapshot) for ask in client.asked] == [(None, True), (2, False)]


async def test_cut_off_before_the_snapshot_it_is_asked_for_again_from_the_start() -> None:
    client = Client(Answer(greeting(2)), Answer(greeting(4) + pictured(4) + end(5)))
    assert indices(await read(client, None, snapshot=True)) == [None, 5]
    assert [(ask.after, ask.snapshot) for ask in client.asked] == [(None, True), (None, True)]


async def test_with_a_place_to_go_on_from_events_follow_from_there() -> None:
    client = Client(Answer(greeting(2) + pictured(4) + "".join(WHOLE[3:])))
    found = await read(client, 2, snapshot=True)
    assert [(arrival.event, arrival.place) for arrival in found] == [
        ("job.snapshot", 2), ("job.log", 3), ("job.stream_item", 4), ("job.end", 5),
    ]  # fmt: skip


async def test_a_reset_is_followed_by_a_fresh_snapshot_from_the_connection_that_was_asked_for_one() -> None:
    client = Client(Answer(greeting(2) + pictured(2) + declared(3) + pictured(4) + pictured(4) + end(5)))
    found = await read(client, None, snapshot=True)
    assert [arrival.event for arrival in found] == ["job.snapshot", "job.reset", "job.snapshot", "job.end"]
    assert len(client.asked) == 1


async def test_a_connection_that_sends_no_snapshots_is_left_at_a_reset_for_one_that_does() -> None:
    client = Client(
        Answer(greeting(2) + pictured(2)),
        Answer(greeting(2) + declared(3) + item(4, 1), HANG),
        Answer(greeting(3) + pictured(4) + item(4, 1) + end(5)),
    )
    found = await read(client, None, snapshot=True)
    assert [arrival.event for arrival in found] == [
        "job.snapshot", "job.reset", "job.snapshot", "job.stream_item", "job.end",
    ]  # fmt: skip
    assert [(ask.after, ask.snapshot) for ask in client.asked] == [(None, True), (2, False), (3, True)]


async def test_no_snapshot_is_given_out_that_was_not_asked_for() -> None:
    assert indices(await read(Client(Answer(pictured(2) + end(5))))) == [5]


# --- pages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answers",
    [
        [Answer("<html>", content_type="text/html")],
        [Answer(HANG)],
        [HANG],
        [Answer(), Answer(CUT), Answer(greeting(-1))],
    ],
    ids=["another content type", "no byte comes", "no answer comes", "three connections bring nothing"],
)
async def test_where_events_do_not_get_through_pages_are_asked_for(
    answers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "FIRST_S", 0.05)
    pages = [page(*WHOLE[:3], next_index=2), page(line(3, 0), next_index=8), page(end(9), next_index=9, end=True)]
    client = Client(*answers, pages=pages)

    found = await read(client, types=("job.log",), attached=True)

    assert indices(found) == [0, 1, 2, 3, 9]
    assert [ask.after for ask in client.polled] == [-1, 2, 8]
    assert all((ask.type, ask.attached, ask.wait_s) == (["job.log"], True, 25.0) for ask in client.polled)
    assert len(client.asked) == len(answers)


async def test_two_connections_that_bring_nothing_are_no_reason_for_pages() -> None:
    client = Client(Answer(), Answer(), Answer(WHOLE[0]), Answer(), Answer(), Answer(end(5)))
    assert indices(await read(client)) == [0, 5]
    assert client.polled == []


async def test_a_connection_on_which_signs_of_life_come_is_none_that_brings_nothing() -> None:
    idle = [Answer(greeting(-1), ":\n\n") for _ in range(5)]
    client = Client(*idle, Answer(end(0)))
    assert indices(await read(client)) == [0]
    assert client.polled == []


async def test_the_streams_of_a_client_all_take_the_way_that_is_open() -> None:
    client = Client(Answer(content_type="text/html"), pages=[page(end(0), next_index=0, end=True)] * 2)
    assert indices(await read(client)) == indices(await read(client)) == [0]
    assert len(client.asked) == 1


async def test_server_sent_events_are_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STREAM_AGAIN_S", 0.0)
    client = Client(Answer(content_type="text/html"), Answer(end(0)))
    assert indices(await read(client)) == [0]
    assert (len(client.asked), client.polled) == (2, [])


async def test_the_end_of_a_page_is_the_end_without_a_last_event() -> None:
    client = Client(pages=[page(next_index=5, end=True)])
    client.paged_until = inf
    assert await read(client, 5) == []


async def test_a_page_holds_a_snapshot_and_a_reset_as_a_stream_does() -> None:
    opened = page(status(3, "starting", 2), next_index=3, reset=scripted.reset(3, "attempt_restarted"))
    client = Client(
        pages=[
            page(next_index=2, snapshot=scripted.snapshot(2)),
            opened,
            page(end(4), next_index=4, end=True, snapshot=scripted.snapshot(4)),
        ]
    )
    client.paged_until = inf
    found = await read(client, None, snapshot=True)
    assert [arrival.event for arrival in found] == [
        "job.snapshot", "job.status", "job.reset", "job.snapshot", "job.end",
    ]  # fmt: skip
    assert [(ask.after, ask.snapshot) for ask in client.polled] == [(None, True), (2, False), (3, True)]


async def test_between_pages_of_a_server_that_does_not_wait_is_a_pause() -> None:
    client = Client()
    client.paged_until = inf
    with pytest.raises(WaitTimeoutError):
        await read(client, timeout_s=0.2, poll_interval_s=0.05)
    assert 1 < len(client.polled) < 10
    assert client.polled[-1].wait_s < 0.2


async def test_a_page_that_does_not_come_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "FIRST_S", 0.01)
    monkeypatch.setattr(stream, "PAGE_WAIT_S", 0.01)
    client = Client(pages=[HANG, CUT, page(end(0), next_index=0, end=True)])
    client.paged_until = inf
    assert indices(await read(client)) == [0]


# --- trouble ----------------------------------------------------------------------------------------------------


async def test_a_connection_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE_S", 0.05)
    silent = Answer(greeting(-1) + WHOLE[0], HANG)
    client = Client(silent, Answer(end(5)))
    assert indices(await read(client)) == [0, 5]
    assert silent.closed
    assert client.polled == []


PASSING = [
    ServerUnavailableError("gone"), StorageFullError("full"), ApothicError("a bug"),
    QueueFullError("too many streams", details={"retry_after_s": 0.01}),
    ServerUnavailableError("502", details={"status": 502}),
]  # fmt: skip
LASTING = [
    NotFoundError("no such job"), JobGoneError("gone"), AuthError("no"), InvalidRequestError("what?"),
    VersionMismatchError("0.2"), ConfigError("no URL"), ApothicError("unknown", details={"status": 403}),
]  # fmt: skip


@pytest.mark.parametrize("trouble", PASSING, ids=lambda error: f"{type(error).__name__}: {error.message}")
async def test_trouble_that_may_pass_is_waited_for(trouble: ApothicError) -> None:
    client = Client(*[trouble] * 5, Answer(end(0)))
    assert indices(await read(client)) == [0]


@pytest.mark.parametrize("trouble", LASTING, ids=lambda error: f"{type(error).__name__}: {error.message}")
async def test_an_answer_for_good_is_raised_at_once(trouble: ApothicError) -> None:
    client = Client(trouble)
    with pytest.raises(type(trouble)) as caught:
        await read(client)
    assert caught.value is trouble
    assert len(client.asked) == 1


@pytest.mark.parametrize(
    "answer", [Answer(greeting(-1), HANG), HANG, CUT], ids=["while idle", "while connecting", "while refused"]
)
async def test_patience_is_all_that_ends_the_waiting(answer: Any) -> None:
    client = Client(*[answer] * 100_000)
    with pytest.raises(WaitTimeoutError, match=r"has not ended after 0\.1 s") as caught:
        await read(client, timeout_s=0.1)
    assert caught.value.job.job_id == scripted.JOB


def test_pauses_double_up_to_a_limit_and_never_undercut_what_the_server_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "BACKOFF_S", (0.25, 10.0))
    monkeypatch.setattr("random.uniform", lambda low, high: (low, high)[1])
    backoff = Backoff()
    assert [backoff.next_s() for _ in range(8)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    backoff.tries = 0
    assert backoff.next_s(QueueFullError(details={"retry_after_s": 5.0})) == 5.0
    backoff.tries = 10**6
    assert backoff.next_s(CUT) == 10.0


async def test_any_sign_of_life_makes_the_next_pause_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(patience, "BACKOFF_S", (1.0, 64.0))
    monkeypatch.setattr("random.uniform", lambda low, high: asked.append(high) or 0.0)
    lively = Answer(greeting(-1), ":\n\n", CUT)
    await read(Client(CUT, CUT, CUT, lively, CUT, Answer(WHOLE[0], CUT), CUT, Answer(end(5))))
    assert asked == [1.0, 2.0, 4.0, 1.0, 2.0, 1.0, 2.0]


async def test_what_is_insisted_on_is_tried_until_it_is_answered() -> None:
    left = [CUT, CUT]

    async def deed() -> str:
        if left:
            raise left.pop()
        return "done"

    assert await Patience(scripted.job(Client())).insist(deed) == "done"


# --- how much is lost -------------------------------------------------------------------------------------------


def gap(index: int, **first: int) -> str:
    """Return a reset behind which the first of each type has that number."""
    kinds = {"lines": "job.log", "items": "job.stream_item"}
    retained = {kinds[name]: number for name, number in first.items()}
    return declared(index, retained_from=retained, trimmed=dict.fromkeys(retained, index))


@pytest.mark.parametrize(
    ("after", "frames", "lost"),
    [
        (-1, [gap(9, lines=7)], {"job.log": 7}),
        (-1, [line(0, 0), line(1, 1), gap(9, lines=7)], {"job.log": 5}),
        (-1, [line(0, 0), item(1, 0), gap(9, lines=7, items=3)], {"job.log": 6, "job.stream_item": 2}),
        (4, [gap(9, lines=7)], {}),
        (4, [line(5, 3), gap(9, lines=7)], {"job.log": 3}),
        (4, [line(5, 3), gap(9, lines=7, items=3)], {"job.log": 3}),
        # kept items before the reset have jumped over what was lost, whether the reset names their type or not
        (-1, [item(0, 0), item(6, 5), item(7, 6), gap(9, lines=7, items=5)], {"job.log": 7, "job.stream_item": 4}),
        (-1, [item(0, 0), item(6, 5), gap(9, lines=7)], {"job.log": 7, "job.stream_item": 4}),
        # all that was left of the first attempt is gone: how much that was, nobody knows
        (-1, [item(0, 0), gap(5, items=0)], {}),
    ],
)
async def test_a_reset_says_how_much_is_lost_where_that_is_known(
    after: int, frames: list[str], lost: dict[str, int]
) -> None:
    found = await read(Client(Answer("".join(frames) + end(99))), after)
    assert [arrival.data["lost"] for arrival in found if arrival.event == "job.reset"] == [lost]


async def test_what_was_declared_once_is_not_counted_again() -> None:
    frames = [line(0, 0), gap(9, lines=7), line(10, 7), gap(20, lines=10), end(99)]
    found = await read(Client(Answer("".join(frames))))
    assert [arrival.data["lost"] for arrival in found if arrival.event == "job.reset"] == [
        {"job.log": 6}, {"job.log": 2},
    ]  # fmt: skip


async def test_items_count_from_0_again_in_another_attempt() -> None:
    frames = [
        line(0, 0), item(1, 0), item(2, 1), declared(3, "attempt_restarted"), item(4, 0),
        gap(9, items=4, lines=5), end(99),
    ]  # fmt: skip
    found = await read(Client(Answer("".join(frames))))
    assert [arrival.data["lost"] for arrival in found if arrival.event == "job.reset"] == [
        {}, {"job.log": 4, "job.stream_item": 3},
    ]  # fmt: skip


async def test_everything_counts_from_0_again_beyond_the_head() -> None:
    frames = [declared(-1, "cursor_ahead"), line(0, 0), gap(9, lines=7), end(99)]
    found = await read(Client(Answer("".join(frames))), 900)
    assert [arrival.data["lost"] for arrival in found if arrival.event == "job.reset"] == [{}, {"job.log": 6}]


@pytest.mark.parametrize(("attempt", "lost"), [(1, {"job.log": 2, "job.stream_item": 3}), (2, {"job.log": 2})])
async def test_a_snapshot_tells_which_numbers_come_next(attempt: int, lost: dict[str, int]) -> None:
    frames = [pictured(4, lines=5, items=2, attempt=attempt), gap(9, lines=7, items=5), end(99)]
    found = await read(Client(Answer("".join(frames))), None, snapshot=True)
    assert [arrival.data["lost"] for arrival in found if arrival.event == "job.reset"] == [lost]


def test_numbers_of_a_type_that_was_not_seen_are_not_guessed() -> None:
    numbers = Numbers(known=False)
    numbers.note("job.log", {"line": 40})
    told = scripted.reset(9, retained_from={"job.log": 50, "job.stream_item": 50},
                          trimmed={"job.log": 9, "job.stream_item": 9})  # fmt: skip
    assert numbers.lost(told) == {"job.log": 9}


# --- from the head on -------------------------------------------------------------------------------------------


async def test_latest_goes_on_at_the_head_of_the_reset() -> None:
    client = Client(
        Answer(greeting(-1) + item(0, 0) + declared(5, head_index=50) + item(6, 5) + item(7, 6), HANG),
        Answer(greeting(50) + item(51, 50) + end(52)),
    )
    found = await read(client, latest=True)
    assert indices(found) == [0, None, 51, 52]
    assert [ask.after for ask in client.asked] == [-1, 50]
