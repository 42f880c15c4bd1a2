"""Items that are kept for an attached reader, and for how long."""

from __future__ import annotations

import pytest
from storerig import DONE, Store, broken, items, new_job, spec

from apothic.protocol.messages import CallOptions
from apothic.protocol.session import Assignment, Packed, Reports, Resume
from apothic.store import events, holds
from apothic.store.intake import HOLD_S, NewJob

KEPT = 3
WAY = 1_000


@pytest.fixture(autouse=True)
def a_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "ON_ITS_WAY_BYTES", WAY)


async def attached(store: Store) -> tuple[str, Assignment]:
    """Return a job whose caller is attached, and its first attempt, begun."""
    function = await store.live("app", spec(stream_window=KEPT))
    new = NewJob(
        function_id=function, input=Packed(encoding="json", data=b"[]"), accept=("json",), options=CallOptions(),
        attached=True,
    )  # fmt: skip
    job = await store.jobs.submit(new)
    (given,) = store.taken()
    await store.report(given, began=True)
    return job, given


async def kept(store: Store, job: str) -> list[int]:
    """Return the places of the items that are kept."""
    sql = "SELECT idx FROM events JOIN jobs ON jobs.seq = events.job WHERE id = ? AND type = 'job.stream_item'"
    return [index for (index,) in await store.rows(sql, job)]


async def test_items_are_kept_from_the_submit_on_until_they_were_sent(store: Store) -> None:
    job, given = await attached(store)
    await store.report(given, seq=1, said=items(*range(10)))
    assert await kept(store, job) == list(range(3, 13))  # nobody is connected yet, and all is kept
    held = await store.holds.attach(job, -1)
    assert held is not None
    await held.sent(8, 500)
    await store.report(given, seq=2, said=items(10, first=10))
    assert await kept(store, job) == list(range(3, 14))  # sent, and perhaps still on its way
    await held.sent(13, WAY)
    await store.report(given, seq=3, said=items(11, first=11))
    assert await kept(store, job) == list(range(9, 15))
    await held.sent(14, WAY)
    await store.report(given, seq=4, said=items(12, first=12))
    assert await kept(store, job) == [13, 14, 15]
    assert broken(store.path) == {}


async def test_an_ordinary_job_keeps_its_window(store: Store) -> None:
    job = await store.submit(await store.live("app", spec(stream_window=KEPT)))
    (given,) = store.taken()
    await store.report(given, began=True, said=items(*range(10)))
    assert await kept(store, job) == [10, 11, 12]
    assert await store.holds.attach(job, -1) is None


async def test_the_end_of_the_hold_brings_the_window_back(store: Store) -> None:
    job, given = await attached(store)
    held = await store.holds.attach(job, -1)
    await store.report(given, seq=1, said=items(*range(10)), outcome=DONE)
    assert len(await kept(store, job)) == 10
    assert held is not None
    await held.sent(15, 100)
    await held.close()
    assert len(await kept(store, job)) == 10  # the end itself may be on its way
    await store.clock.advance(HOLD_S + 1)
    await store.holds.sweep()
    assert len(await kept(store, job)) == KEPT
    assert await store.rows("SELECT * FROM holds") == []
    assert broken(store.path) == {}


async def test_a_lost_reader_has_a_minute_to_come_back(store: Store) -> None:
    job, given = await attached(store)
    held = await store.holds.attach(job, -1)
    assert held is not None
    await held.sent(2, 100)
    await held.close()
    await store.report(given, seq=1, said=items(*range(10)))
    await store.clock.advance(HOLD_S - 1)
    await store.holds.sweep()
    assert len(await kept(store, job)) == 10
    assert await store.holds.attach(job, 2) is not None
    for _ in range(10):  # connected, it is renewed for as long as it takes
        await store.clock.advance(HOLD_S / 2)
        await store.holds.sweep()
    assert len(await kept(store, job)) == 10


async def test_a_reader_that_stays_away_is_given_up(store: Store) -> None:
    job, given = await attached(store)
    await store.report(given, seq=1, said=items(*range(10)))
    await store.clock.advance(HOLD_S + 1)
    await store.holds.sweep()
    assert len(await kept(store, job)) == KEPT
    page = await store.page(job, -1, "job.stream_item")
    assert page.reset is not None and "window_rotated" in page.reset[1]


async def test_a_new_control_plane_gives_the_reader_its_minute(store: Store) -> None:
    job, given = await attached(store)
    await store.report(given, seq=1, said=items(*range(10)))
    await store.clock.advance(HOLD_S - 1)
    store.jobs.readers.sent.clear()  # what the old one knew
    await store.holds.restart()
    await store.clock.advance(HOLD_S - 1)
    await store.holds.sweep()
    assert len(await kept(store, job)) == 10


async def test_a_generator_far_ahead_of_its_reader_is_paused_and_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HELD_BYTES", 1_000)
    job, given = await attached(store)
    held = await store.holds.attach(job, -1)
    assert held is not None

    async def told(seq: int, count: int, first: int) -> list[str]:
        from apothic.protocol.session import Report

        report = Report(
            job=given.job, attempt=1, token=given.token, seq=seq, at=0.0, said=items(*range(count), first=first)
        )
        return (await store.fleet.reports("agt", Reports(number=0, reports=[report]))).paused

    assert await told(1, 5, 0) == []
    assert await told(2, 20, 5) == [given.token]
    assert await told(3, 1, 25) == [given.token]  # what was on its way is taken, and it goes on waiting
    await held.sent(5, WAY)
    await held.sent(5, WAY)
    assert store.frames == []  # too much is still to be read
    assert (await store.jobs.show(job)).reason == "paused"
    await held.sent(28, WAY)
    await held.sent(28, WAY)
    assert store.frames == [("agt", Resume(token=given.token))]
    assert (await store.jobs.show(job)).reason is None
    assert await told(4, 1, 26) == []
    await held.sent(29, WAY)
    assert len(store.frames) == 1  # told once
    assert len(await kept(store, job)) >= KEPT
    assert broken(store.path) == {}


async def test_a_paused_generator_goes_on_when_its_reader_is_given_up(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HELD_BYTES", 100)
    _, given = await attached(store)
    await store.report(given, seq=1, said=items(*range(20)))
    await store.clock.advance(HOLD_S + 1)
    await store.holds.sweep()
    assert store.frames == [("agt", Resume(token=given.token))]


async def test_a_second_submit_under_the_same_key_makes_no_second_hold(store: Store) -> None:
    function = await store.live("app", spec())
    first = new_job(function, key="k")
    job = await store.jobs.submit(first)
    again = await store.jobs.submit(new_job(function, key="k"))
    assert job == again and await store.rows("SELECT * FROM holds") == []
