"""Schedules: each tick once, what is missed, what overlaps, what comes and goes with a deployment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from storerig import Store, broken, spec

from apothic.errors import QueueFullError
from apothic.protocol.specs import Cron, Period
from apothic.store import schedules
from apothic.store.schedules import Schedules, key_of
from apothic.store.tx import Tx

MINUTE, HOUR = 60.0, 3600.0


class Rounds:
    """A store whose schedules are looked at by hand."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.schedules = Schedules(store.db, store.clock, store.jobs)
        self.function = ""
        self.since = 0.0

    async def live(self, schedule: Cron | Period | None, **options: Any) -> None:
        self.function = await self.store.live("app", spec(schedule=schedule, **options))
        self.since = self.store.clock.now()

    async def pass_(self, seconds: float, *, look_every: float | None = None) -> float | None:
        """Let time pass, and look at the end of it, or as often as is said."""
        step, due = look_every or seconds, None
        for _ in range(round(seconds / step)):
            await self.store.clock.advance(step)
            due = await self.schedules.tick()
        return due

    async def end_jobs(self) -> None:
        for given in self.store.taken():
            await self.store.finish(given)

    async def ticks(self) -> list[tuple[float, str]]:
        """Return what became of each tick, in seconds from when the schedule began."""
        found = await self.store.rows("SELECT at, outcome FROM ticks ORDER BY at")
        return [(at - self.since, outcome) for at, outcome in found]

    async def jobs(self) -> int:
        return int((await self.store.rows("SELECT count(*) FROM jobs"))[0][0])


@pytest.fixture
async def rounds(store: Store) -> AsyncIterator[Rounds]:
    yield Rounds(store)


async def test_each_tick_makes_a_job_without_arguments(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=1))
    assert await rounds.schedules.tick() == rounds.since + MINUTE
    assert await rounds.pass_(59) == rounds.since + MINUTE and await rounds.ticks() == []
    for n in range(3):
        assert await rounds.pass_(60) == rounds.since + (n + 2) * MINUTE
        await rounds.end_jobs()
    assert await rounds.ticks() == [(60, "job"), (120, "job"), (180, "job")]
    found = await rounds.store.rows(
        "SELECT jobs.idempotency_key, input, status FROM ticks JOIN jobs ON jobs.id = ticks.job ORDER BY at"
    )
    assert [key for key, _, _ in found] == [key_of(rounds.function, rounds.since + n * MINUTE) for n in (1, 2, 3)]
    assert all(b'"args":[]' in data and b'"kwargs":{}' in data for _, data, _ in found)
    assert {status for _, _, status in found} == {"succeeded"}


async def test_cron_is_read_in_its_zone(rounds: Rounds) -> None:
    await rounds.live(Cron("30 7 * * *", timezone="Asia/Kathmandu"))
    due = await rounds.schedules.tick()
    assert due is not None
    assert datetime.fromtimestamp(due, UTC).strftime("%H:%M") == "01:45"


async def test_a_tick_is_skipped_while_the_job_before_it_runs(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=1))
    await rounds.pass_(180, look_every=60)
    await rounds.end_jobs()
    await rounds.pass_(60)
    assert await rounds.ticks() == [(60, "job"), (120, "overlap"), (180, "overlap"), (240, "job")]
    (view,) = (await rounds.store.catalog.app("app")).functions
    assert view.next_tick == rounds.since + 300
    assert view.last_tick is not None
    assert (view.last_tick.at, view.last_tick.outcome) == (rounds.since + 240, "job")
    assert await rounds.store.status(view.last_tick.job or "") == "starting"


async def test_a_tick_that_finds_the_queue_full_is_refused(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=1), max_pending_tasks=1)
    with pytest.raises(QueueFullError):
        for _ in range(100):
            await rounds.store.submit(rounds.function)
    await rounds.pass_(60)
    assert await rounds.ticks() == [(60, "refused")]


async def test_after_a_time_away_the_newest_missed_tick_makes_a_job(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=10))
    await rounds.pass_(10 * HOUR + 9 * MINUTE)
    assert await rounds.ticks() == [(10 * HOUR - 600, "missed"), (10 * HOUR, "job")]
    assert await rounds.pass_(MINUTE) == rounds.since + 10 * HOUR + 20 * MINUTE


@pytest.mark.parametrize(("late_s", "outcome"), [(HOUR, "job"), (HOUR + 1, "missed")])
async def test_a_tick_that_was_missed_by_more_than_an_hour_makes_none(
    rounds: Rounds, late_s: float, outcome: str
) -> None:
    await rounds.live(Period(days=1))
    await rounds.pass_(24 * HOUR + late_s)
    assert await rounds.ticks() == [(24 * HOUR, outcome)]
    assert await rounds.jobs() == (outcome == "job")


async def test_years_away_are_one_row(rounds: Rounds) -> None:
    await rounds.live(Period(seconds=1))
    await rounds.pass_(3 * 366 * 24 * HOUR)
    assert [outcome for _, outcome in await rounds.ticks()] == ["missed", "job"]


@pytest.mark.parametrize("schedule", [Cron("*/10 * * * *"), Period(minutes=10)])
async def test_a_deploy_between_ticks_neither_loses_nor_doubles_one(rounds: Rounds, schedule: Cron | Period) -> None:
    await rounds.live(schedule)
    first = await rounds.schedules.tick()
    assert first is not None
    await rounds.store.clock.advance(first - rounds.since + 1)  # it is due, and nobody has looked
    await rounds.live(schedule, max_containers=2)
    await rounds.pass_(1)
    assert await rounds.store.rows("SELECT at, outcome FROM ticks") == [(first, "job")]
    await rounds.end_jobs()
    await rounds.live(schedule, max_containers=3)  # it has been looked at
    due = await rounds.pass_(1)
    assert await rounds.store.rows("SELECT at, outcome FROM ticks") == [(first, "job")]
    assert due == (first + 600 if isinstance(schedule, Cron) else rounds.since + 600)


async def test_the_same_content_again_changes_nothing(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=1))
    began = rounds.since
    await rounds.store.clock.advance(30)
    await rounds.live(Period(minutes=1))
    assert await rounds.schedules.tick() == began + MINUTE


async def test_what_is_no_longer_live_makes_no_more_jobs(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=1))
    (old,) = await rounds.store.catalog.deployments("app")
    await rounds.store.clock.advance(61)
    await rounds.live(None)
    assert await rounds.pass_(HOUR) is None and await rounds.jobs() == 0
    assert not await rounds.schedules.any()
    await rounds.store.catalog.activate("app", old.id)
    rounds.since = rounds.store.clock.now()
    assert await rounds.schedules.any()
    await rounds.pass_(MINUTE)
    assert await rounds.ticks() == [(60, "job")]
    await rounds.store.clock.advance(61)  # the next one is due
    await rounds.store.catalog.stop_app("app")
    assert await rounds.pass_(HOUR) is None and await rounds.jobs() == 1
    await rounds.store.catalog.activate("app", old.id)
    assert await rounds.schedules.tick() == rounds.store.clock.now() + MINUTE


async def test_a_clock_that_jumps_back_makes_no_tick_twice(rounds: Rounds) -> None:
    schedule = Cron("*/10 * * * *")
    await rounds.live(schedule)
    for _ in range(6):
        await rounds.pass_(600)
        await rounds.end_jobs()
    seen = await rounds.ticks()
    rounds.store.clock.jump(-HOUR)
    await rounds.pass_(HOUR - 700, look_every=100)
    assert await rounds.ticks() == seen
    await rounds.live(schedule, max_containers=2)  # which counts anew, from the earlier time
    rounds.since += 700
    await rounds.pass_(1200, look_every=100)
    await rounds.end_jobs()
    ats = [at for (at,) in await rounds.store.rows("SELECT at FROM ticks ORDER BY at")]
    assert ats == [ats[0] + 600 * n for n in range(len(ats))] and len(ats) >= 7
    assert await rounds.jobs() == len(ats)


async def test_a_clock_that_was_years_ahead_is_believed_again_once_it_is_right(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=10))
    await rounds.pass_(600)
    await rounds.end_jobs()
    rounds.store.clock.jump(1e9)
    await rounds.pass_(600)
    await rounds.end_jobs()
    rounds.store.clock.jump(-1e9)
    assert await rounds.pass_(1) == rounds.since + 30 * MINUTE
    await rounds.pass_(599)
    assert [each for each in await rounds.ticks() if each[0] < 1e8] == [(600, "job"), (1800, "job")]
    again = Schedules(rounds.store.db, rounds.store.clock, rounds.store.jobs)  # a server that was down meanwhile
    rounds.store.clock.jump(1e9)
    await again.tick()
    rounds.store.clock.jump(-1e9)
    after = Schedules(rounds.store.db, rounds.store.clock, rounds.store.jobs)
    await after.restart()
    assert await after.tick() == rounds.since + 40 * MINUTE


async def test_a_clock_that_jumps_ahead_is_a_time_away(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=10))
    rounds.store.clock.jump(HOUR)
    due = await rounds.pass_(1)
    assert await rounds.ticks() == [(50 * MINUTE, "missed"), (60 * MINUTE, "job")]
    assert due == rounds.since + 70 * MINUTE


async def test_two_that_look_at_once_make_each_tick_once(store: Store, rounds: Rounds) -> None:
    other = Store(store.path, store.clock)
    other.db.open()
    beside = Schedules(other.db, store.clock, other.jobs)
    await rounds.live(Period(minutes=1))
    store.db.last_word = other.db.last_word = None  # who places jobs is not what this is about
    for n in range(1, 101):
        await store.clock.advance(60)
        await asyncio.gather(*(each.tick() for each in (rounds.schedules, beside) for _ in range(2)))
        for (job,) in await store.rows("SELECT id FROM jobs WHERE ended_at IS NULL"):
            await store.jobs.cancel(job)
        assert len(await rounds.ticks()) == n
    await other.db.close()
    assert {outcome for _, outcome in await rounds.ticks()} == {"job"} and await rounds.jobs() == 100


async def test_the_newest_ticks_are_kept_and_one_whose_job_runs(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "KEPT", 5)
    await rounds.live(Period(minutes=1))
    await rounds.pass_(20 * MINUTE, look_every=MINUTE)
    assert await rounds.ticks() == [(60, "job"), *((60.0 * n, "overlap") for n in range(16, 21))]
    await rounds.end_jobs()
    await rounds.pass_(MINUTE)
    assert await rounds.ticks() == [*((60.0 * n, "overlap") for n in range(17, 21)), (21 * MINUTE, "job")]


async def test_what_was_live_before_schedules_were_kept_begins_with_the_server(rounds: Rounds) -> None:
    await rounds.live(Period(minutes=1))
    await rounds.store.db.write(lambda tx: tx.run("end_schedules", app="app"))
    await rounds.store.clock.advance(HOUR)
    await rounds.schedules.restart()
    assert await rounds.schedules.tick() == rounds.store.clock.now() + MINUTE


async def test_a_schedule_that_cannot_be_read_does_not_hold_up_the_others(rounds: Rounds) -> None:
    await rounds.store.live("other", spec(schedule=Period(minutes=1)))
    await rounds.live(Period(minutes=1))

    def spoil(tx: Tx) -> None:
        tx._connection.execute(
            "UPDATE versions SET spec = X'00' WHERE deployment_id = (SELECT live FROM apps WHERE name = 'other')"
        )

    await rounds.store.db.write(spoil)
    await rounds.schedules.restart()
    assert await rounds.pass_(60) == rounds.since + 2 * MINUTE
    assert await rounds.ticks() == [(60, "job")]


async def test_one_that_never_comes_round_again_is_no_schedule(rounds: Rounds) -> None:
    await rounds.live(Cron("* * */20 * 1L"))
    assert await rounds.schedules.tick() is None


async def test_a_tick_outlives_what_is_left_of_its_job(store: Store, rounds: Rounds) -> None:
    await rounds.live(Period(minutes=1))
    await rounds.pass_(MINUTE)

    def forget(tx: Tx) -> None:
        (job,) = tx._connection.execute("SELECT job FROM ticks").fetchone()
        columns = [row[1] for row in tx._connection.execute("PRAGMA table_info(gone_jobs)")]
        values = {"id": job, "version": 1, "function_id": rounds.function, "status": "succeeded"}
        given = [values.get(name, 0) for name in columns]
        tx._connection.execute(f"INSERT INTO gone_jobs VALUES ({', '.join('?' * len(given))})", given)
        tx._connection.execute("DELETE FROM gone_jobs")

    await store.db.write(forget)
    assert await store.rows("SELECT outcome, job FROM ticks") == [("job", None)]
    assert broken(store.path) == {}


def test_a_key_is_short_and_the_same_for_the_same_tick(tmp_path: Path) -> None:
    assert key_of("fn_1", 1_700_000_060.0) == "sched:fn_1:1700000060"
    assert key_of("fn_1", 1_700_000_060.25) == "sched:fn_1:1700000060.25"
