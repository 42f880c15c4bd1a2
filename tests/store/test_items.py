"""What a generator yields, as it is stored: once, in order, with its blobs; and what a second attempt makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from storerig import DONE, RAISED, Store, broken, items, lines, spec

from apothic.protocol.messages import Failure
from apothic.protocol.session import Assignment, Item, Outcome, Packed
from apothic.protocol.specs import Retries
from apothic.store import events

LOST = Outcome(failure=Failure(kind="worker_lost", type="ProcessDied", message="signal 9", retriable=True))
DRAINED = Outcome(requeue="the server stops")


def three(count: int = 3) -> Outcome:
    return Outcome(value=DONE.value, items=count, ran_s=60.0)


async def began(store: Store, stream: Any = "none", **options: Any) -> Assignment:
    """Return the first attempt of a job, begun."""
    retries = Retries(5, initial_delay_s=0, jitter=False, stream=stream)
    await store.submit(await store.live("app", spec(retries=retries, **options)))
    (given,) = store.taken()
    await store.report(given, began=True)
    return given


async def again(store: Store) -> Assignment:
    """Return the next attempt, begun."""
    await store.clock.advance(120)
    await store.fleet.renew("agt")
    await store.fleet.sweep()
    (given,) = store.taken()
    await store.report(given, began=True)
    return given


async def told(store: Store, job: str, *types: str) -> list[tuple[int, str, Any]]:
    """Return all that is kept, with resets under their ids."""
    found: list[tuple[int, str, Any]] = []
    after = -1
    while True:
        page = await store.page(job, after, *types)
        found += [(index, kind, json.loads(data)) for index, kind, data in page.events]
        if page.reset is not None:
            found.append((page.reset[0], "job.reset", json.loads(page.reset[1])))
        after = page.next_index
        if not (page.more or page.reset):
            return found


def values(found: list[tuple[int, str, Any]]) -> list[Any]:
    return [data["value"]["data"] for _, kind, data in found if kind == "job.stream_item"]


async def test_lines_and_items_share_one_order(store: Store) -> None:
    given = await began(store)
    await store.report(given, seq=1, said=[*lines("a"), *items(1), *lines("b", "c"), *items(2, first=1)])
    found = await told(store, given.job, "job.log", "job.stream_item")
    assert [(index, kind) for index, kind, _ in found] == [
        (3, "job.log"), (4, "job.stream_item"), (5, "job.log"), (6, "job.log"), (7, "job.stream_item"),
    ]  # fmt: skip
    assert [data.get("line", data.get("item_index")) for _, _, data in found] == [0, 0, 1, 2, 1]


async def test_values_stand_as_they_were_packed(store: Store) -> None:
    given = await began(store)
    pickle = Packed(encoding="pickle", data=b"\x80\x05N.", size=4, repr="None")
    spread = Packed(encoding="json", data=b'{"a":\n [1,\r\n 2]}')
    await store.report(given, seq=1, said=[Item(index=0, value=pickle), Item(index=1, value=spread)])
    (_, _, first), (_, _, second) = await told(store, given.job, "job.stream_item")
    assert first["value"] == {"encoding": "pickle", "data": "gAVOLg==", "repr": "None"}
    assert second["value"] == {"encoding": "json", "data": {"a": [1, 2]}}
    rows = await store.rows("SELECT data FROM events WHERE type = 'job.stream_item'")
    assert all("\n" not in data and "\r" not in data for (data,) in rows)  # a frame's data is one line


@pytest.mark.parametrize("data", [b"{", b"1 2", b"\xff", b"NaN", b""])
async def test_a_value_that_is_no_json_fails_its_attempt_alone(store: Store, data: bytes) -> None:
    given = await began(store)
    bad = Item(index=0, value=Packed(encoding="json", data=data))
    assert await store.report(given, seq=1, said=[bad]) == []
    job = await store.jobs.show(given.job)
    assert (job.status, job.failure and job.failure.kind) == ("failed", "serialization")
    assert broken(store.path) == {}


async def test_a_result_that_is_no_json_fails_its_job(store: Store) -> None:
    given = await began(store)
    await store.report(given, seq=1, outcome=Outcome(value=Packed(encoding="json", data=b"[")))
    assert await store.status(given.job) == "failed"
    assert broken(store.path) == {}


async def test_an_item_that_was_passed_over_fails_its_attempt(store: Store) -> None:
    given = await began(store)
    await store.report(given, seq=1, said=items("b", first=1))
    job = await store.jobs.show(given.job)
    assert job.failure is not None and "item 1 was reported before item 0" in job.failure.message


async def test_an_items_blob_is_named_as_long_as_the_item_is_kept(store: Store) -> None:
    given = await began(store, stream_window=2)
    sha256 = "a" * 64
    blob = Packed(encoding="pickle", sha256=sha256, size=1_000)
    await store.db.write(lambda tx: tx.run("insert_blob", sha256=sha256, size=1_000, now=0.0))
    await store.report(given, seq=1, said=[Item(index=0, value=blob), *items(1, first=1)])
    ((_, _, first), _) = await told(store, given.job, "job.stream_item")
    assert first["ref"] == {"encoding": "pickle", "sha256": sha256, "size": 1_000}
    assert await store.rows("SELECT sha256, size FROM event_blobs") == [(sha256, 1_000)]
    ((size,),) = await store.rows("SELECT bytes FROM windows WHERE type = 'job.stream_item'")
    assert 1_000 < size < 1_300  # what it names counts
    await store.report(given, seq=2, said=items(2, first=2))
    assert await store.rows("SELECT * FROM event_blobs") == []
    ((size,),) = await store.rows("SELECT bytes FROM windows WHERE type = 'job.stream_item'")
    assert size < 300 and broken(store.path) == {}


async def test_an_item_whose_blob_is_not_here_fails_its_attempt(store: Store) -> None:
    given = await began(store)
    blob = Packed(encoding="pickle", sha256="b" * 64, size=1_000)
    await store.report(given, seq=1, said=[Item(index=0, value=blob)])
    assert await store.status(given.job) == "failed"
    assert broken(store.path) == {}


async def test_the_newest_item_is_kept_however_large_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(events.BUDGETS, events.ITEM, 100)
    given = await began(store)
    await store.report(given, seq=1, said=items("x" * 50, "y" * 1_000))
    assert values((await told(store, given.job, "job.stream_item"))[1:]) == ["y" * 1_000]


async def test_the_items_of_a_job_that_has_ended_are_its_window(store: Store) -> None:
    given = await began(store, stream_window=4)
    await store.report(given, seq=1, said=items(*range(7)))
    await store.report(given, seq=2, said=items(*range(7, 9), first=7), outcome=three(9))
    assert await store.rows("SELECT count(*) FROM events WHERE type = 'job.stream_item'") == [(4,)]


# --- a second attempt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [RAISED, LOST, DRAINED])
async def test_what_has_published_is_not_run_again(store: Store, outcome: Outcome) -> None:
    given = await began(store)
    await store.report(given, seq=1, said=items(1))
    await store.report(given, seq=2, outcome=outcome)
    job = await store.jobs.show(given.job)
    assert (job.status, job.failure and job.failure.kind) == ("failed", "user" if outcome is RAISED else "worker_lost")
    assert broken(store.path) == {}


@pytest.mark.parametrize("outcome", [RAISED, LOST, DRAINED])
async def test_before_the_first_item_it_is_run_again(store: Store, outcome: Outcome) -> None:
    given = await began(store)
    await store.report(given, seq=1, said=lines("not an item"))
    await store.report(given, seq=2, outcome=outcome)
    assert await store.status(given.job) in ("queued", "retrying", "starting")


@pytest.mark.parametrize("outcome", [RAISED, LOST])
async def test_a_replay_is_one_sequence(store: Store, outcome: Outcome) -> None:
    given = await began(store, "replay")
    await store.report(given, seq=1, said=items("a", "b"))
    await store.report(given, seq=2, outcome=outcome)
    second = await again(store)
    await store.report(second, seq=1, said=items("a"))
    await store.report(second, seq=2, said=items("b", "c", first=1), outcome=three())
    found = await told(store, given.job, "job.stream_item")
    assert values(found) == ["a", "b", "c"]
    assert [data["item_index"] for _, kind, data in found if kind == "job.stream_item"] == [0, 1, 2]
    assert not any(kind == "job.reset" for _, kind, _ in found)
    assert await store.status(given.job) == "succeeded" and broken(store.path) == {}


async def test_a_replay_that_yields_less_than_before_has_failed(store: Store) -> None:
    given = await began(store, "replay")
    await store.report(given, seq=1, said=items("a", "b"))
    await store.report(given, seq=2, outcome=RAISED)
    second = await again(store)
    await store.report(second, seq=1, said=items("a"), outcome=three(1))
    job = await store.jobs.show(given.job)
    assert job.failure is not None and job.failure.type == "ReplayDiverged"
    assert "yielded 1 items, an earlier one 2" in job.failure.message
    assert broken(store.path) == {}


@pytest.mark.parametrize("outcome", [RAISED, LOST])
async def test_a_restart_begins_at_0_and_says_so_where_the_attempt_was_opened(store: Store, outcome: Outcome) -> None:
    given = await began(store, "restart")
    await store.report(given, seq=1, said=items("a", "b"))
    await store.report(given, seq=2, outcome=outcome)
    second = await again(store)
    await store.report(second, seq=1, said=items("A", "B", "C"), outcome=three())
    found = await told(store, given.job)
    opened = next(index for index, kind, data in found if kind == "job.status" and data["attempt"] == 2)
    place = next(n for n, (_, kind, _) in enumerate(found) if kind == "job.reset")
    reset = found[place][2]
    assert found[place - 1][0] == opened == found[place][0] == reset["resume_index"]
    assert reset["reason"] == "attempt_restarted" and reset["trimmed"] == {}
    assert values(found[:place]) == ["a", "b"] and values(found[place:]) == ["A", "B", "C"]
    no_items = await told(store, given.job, "job.status", "job.log")
    assert not any(kind == "job.reset" for _, kind, _ in no_items)
    later = await store.page(given.job, opened)
    assert later.reset is None  # told once
    assert broken(store.path) == {}


async def test_a_restart_before_the_first_item_is_none(store: Store) -> None:
    given = await began(store, "restart")
    await store.report(given, seq=1, outcome=LOST)
    second = await again(store)
    await store.report(second, seq=1, said=items("A"), outcome=three(1))
    assert await store.rows("SELECT * FROM restarts") == []
    assert not any(kind == "job.reset" for _, kind, _ in await told(store, given.job))
