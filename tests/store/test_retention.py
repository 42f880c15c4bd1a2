"""Jobs past their retention: deleted in small steps, remembered for a month, their keys for a day."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from keeprig import DAY, Keeper
from storerig import DONE, Store, broken, items, lines, new_job

from apothic.errors import ConflictError, JobGoneError, NotFoundError, StorageFullError
from apothic.store import retention
from apothic.store.intake import HOLD_S
from apothic.store.retention import TOMBSTONE_S
from apothic.store.tx import Tx


@pytest.fixture
def keeper(store: Store, tmp_path: Path) -> Keeper:
    return Keeper(store, tmp_path / "blobs")


async def left(store: Store) -> set[str]:
    return {job for (job,) in await store.rows("SELECT id FROM jobs")}


async def test_an_ended_job_goes_after_its_time_and_no_other(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    old = await keeper.run(function, "one", "two")
    running, given = await keeper.take(function)
    await keeper.pass_time(6 * DAY)
    young = await keeper.run(function)
    assert await left(store) == {old, running, young}
    store.rung.clear()
    await keeper.pass_time(1 * DAY)
    assert await left(store) == {running, young}
    assert old in store.rung  # whoever reads it hears of it
    for table in ("events", "windows", "restarts"):
        assert await store.rows(f"SELECT count(*) FROM {table} WHERE job = 1") == [(0,)]
    with pytest.raises(JobGoneError, match=f"{old} is past its retention: it was deleted at 20") as caught:
        await store.jobs.show(old)
    assert caught.value.details["job"] == old and "retention_days" in caught.value.hint
    assert keeper.room.gone == 1
    assert await store.finish(given) == []


async def test_a_month_later_it_never_was(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    job = await keeper.run(function)
    await keeper.pass_time(7 * DAY)
    await keeper.pass_time(TOMBSTONE_S - 1)
    with pytest.raises(JobGoneError):
        await store.jobs.result(job)
    await keeper.pass_time(1)
    with pytest.raises(NotFoundError):
        await store.jobs.result(job)
    assert await store.rows("SELECT count(*) FROM gone_jobs") == [(0,)]


async def test_every_look_at_a_gone_job_says_so(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    job = await keeper.run(function)
    await keeper.pass_time(8 * DAY)
    looks = [
        store.jobs.show(job), store.jobs.result(job), store.jobs.logs(job, after=-1, limit=10),
        store.jobs.cancel(job), store.jobs.again(job), store.page(job), store.page(job, None, snapshot=True),
    ]  # fmt: skip
    for look in looks:
        with pytest.raises(JobGoneError):
            await look
    assert await store.jobs.ended([job]) == ([], [job])
    assert (await store.jobs.missing([job])).details["jobs"] == [job]
    assert isinstance(await store.jobs.missing([job, "job_none"]), NotFoundError)
    assert await store.jobs.whose(job) == ("app", "f")


async def test_a_job_that_is_kept_for_a_reader_waits_for_it(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    job, given = await keeper.take(function)

    def hold(tx: Tx) -> None:
        tx.run("insert_hold", job=1, until=store.clock.monotonic() + 9 * DAY)

    await store.db.write(hold)
    await store.finish(given)
    await keeper.pass_time(8 * DAY)
    assert await left(store) == {job}
    await store.holds.sweep()
    await keeper.pass_time(HOLD_S)
    assert await left(store) == {job}
    await store.holds.end(job)
    await keeper.pass_time(0)
    assert await left(store) == set()


async def test_much_output_goes_in_pieces_and_is_right_in_between(store: Store, keeper: Keeper) -> None:
    function = await keeper.start(window=20_000)
    job, given = await keeper.take(function)
    for n in range(6):
        said = [*lines(*["x" * 50] * 500), *items(*range(100), first=100 * n)]
        await store.report(given, seq=n, began=True, said=said)
    await store.report(given, seq=6, outcome=DONE)
    await store.clock.advance(7 * DAY)
    seen = 0
    while await left(store):
        assert await keeper.retention.step()
        assert broken(store.path) == {}
        (kept,) = (await store.rows("SELECT count(*) FROM events"))[0]
        if kept:
            page = await store.page(job)
            while page.more:
                page = await store.page(job, page.next_index)
            assert page.end
        seen += 1
    assert seen == 4  # 3,600 lines and items, a thousand at a time


async def test_a_reader_in_the_middle_is_told_of_a_gap_and_then_that_it_is_gone(store: Store, keeper: Keeper) -> None:
    function = await keeper.start(window=20_000)
    job, given = await keeper.take(function)
    for n in range(3):
        await store.report(given, seq=n, began=True, said=lines(*[f"{n}.{m}" for m in range(500)]))
    await store.report(given, seq=3, outcome=DONE)
    first = await store.page(job, -1, limit=200)
    assert first.events and first.more
    await store.clock.advance(7 * DAY)
    await keeper.retention.step()
    behind = await store.page(job, first.next_index)
    assert behind.reset is not None and "window_rotated" in behind.reset[1]
    await keeper.pass_time(0)
    with pytest.raises(JobGoneError):
        await store.page(job, behind.next_index)


async def test_large_lines_count_by_their_bytes(store: Store, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "STEP_BYTES", 10_000)
    function = await keeper.start()
    for _ in range(5):
        await keeper.run(function, "x" * 6_000)
    await store.clock.advance(7 * DAY)
    went = []
    while await keeper.retention.step():
        went.append(5 - len(await left(store)))
    assert went == [2, 4, 5]


async def test_an_idle_step_writes_nothing(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    await keeper.run(function)
    await keeper.pass_time(0)
    commits = store.db.commits
    for _ in range(5):
        await keeper.pass_time(60)
    assert store.db.commits == commits


# --- idempotency keys ---------------------------------------------------------------------------------------------


@pytest.fixture
async def gone_early(store: Store, keeper: Keeper) -> tuple[str, str]:
    """A function, and a job of key `k` that went an hour after its submit."""
    function = await keeper.start()
    job = await keeper.run(function, key="k")
    keeper.retention._keep_s = 3600.0
    await keeper.pass_time(3600)
    assert await left(store) == set()
    return function, job


async def test_a_key_outlives_its_job_for_a_day(store: Store, keeper: Keeper, gone_early: tuple[str, str]) -> None:
    function, job = gone_early
    assert await store.submit(function, key="k") == job
    assert await store.jobs.submit_batch([new_job(function, key="k")]) == [job]
    remains = await store.jobs.remains(job)
    assert (remains.id, remains.status, remains.function, remains.app) == (job, "succeeded", "f", "app")
    with pytest.raises(ConflictError, match="another input"):
        await store.submit(function, b"[1]", key="k")
    await keeper.pass_time(DAY - 3600 - 1)
    assert await store.submit(function, key="k") == job
    await keeper.pass_time(1)
    assert await store.submit(function, b"[1]", key="k") != job


async def test_a_key_that_is_used_again_is_that_of_the_newest_job(
    store: Store, keeper: Keeper, gone_early: tuple[str, str]
) -> None:
    function, first = gone_early
    await keeper.pass_time(DAY)
    second = await keeper.run(function, key="k")
    await keeper.pass_time(3600)
    assert await left(store) == set()
    assert {job for (job,) in await store.rows("SELECT id FROM gone_jobs")} == {first, second}
    assert await store.submit(function, key="k") == second


# --- the ceiling --------------------------------------------------------------------------------------------------


async def fill(store: Store, keeper: Keeper, function: str, jobs: int) -> list[str]:
    """Run jobs of 60 KB each."""
    found = []
    for _ in range(jobs):
        job = await store.submit(function, b"x" * 60_000)
        for given in store.taken():
            await store.finish(given)
        found.append(job)
        await store.clock.advance(1)
    return found


async def held(keeper: Keeper) -> int:
    await keeper.retention.step()
    return keeper.room.held


async def test_over_the_ceiling_the_oldest_jobs_go_early(
    store: Store, keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    function = await keeper.start()
    jobs = await fill(store, keeper, function, 150)
    keeper.room.ceiling = await held(keeper) - 1_000_000
    assert await left(store) == set(jobs)
    await keeper.pass_time(0)
    rest = await left(store)
    assert rest == set(jobs[-len(rest) :]) and 0 < len(rest) < 130
    assert keeper.room.held <= 0.9 * keeper.room.ceiling
    assert len(rest) > 30  # no more than it takes
    assert caplog.text.count("retention.over_ceiling") == 1
    assert await store.submit(function)  # it takes jobs all the time


async def test_with_nothing_left_to_delete_it_takes_no_more_until_there_is_room(
    store: Store, keeper: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    function = await keeper.start()
    job, given = await keeper.take(function)
    again = await keeper.run(function, key="k")
    keeper.room.ceiling = 1000
    await keeper.pass_time(0)
    assert await left(store) == {job}
    with pytest.raises(StorageFullError, match="disk_ceiling of 1,000") as caught:
        await store.submit(function)
    assert "let jobs end" in caught.value.hint
    assert "retention.full" in caplog.text
    assert await store.submit(function, key="k") == again  # nothing new
    assert await store.finish(given, DONE, "what runs may go on") == []
    assert await store.status(job) == "succeeded"
    keeper.room.ceiling = 1 << 30
    await keeper.pass_time(0)
    assert "retention.room_again" in caplog.text
    assert await store.submit(function)


async def test_the_log_of_the_database_stays_bounded_beside_readers(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    job, given = await keeper.take(function)
    for n in range(120):
        await store.report(given, seq=n, began=True, said=lines("y" * 60_000))
        await store.page(job, -1)
        await store.submit(function, b"x" * 60_000)
    wal = store.path.with_name(store.path.name + "-wal").stat().st_size
    assert wal < 16 << 20, wal


async def test_what_cannot_be_deleted_is_no_error_of_others(store: Store, keeper: Keeper) -> None:
    function = await keeper.start()
    job = await keeper.run(function)

    def refuse(tx: Tx) -> None:
        tx._connection.execute("CREATE TRIGGER stay BEFORE DELETE ON jobs BEGIN SELECT RAISE(ABORT, 'stay'); END")

    await store.db.write(refuse)
    await store.clock.advance(7 * DAY)
    with pytest.raises(sqlite3.IntegrityError, match="stay"):
        await keeper.retention.step()
    assert await store.status(job) == "succeeded"
    assert broken(store.path) == {}
