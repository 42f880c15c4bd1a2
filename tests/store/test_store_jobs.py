"""Submitting, reporting, logs: what the tables hold afterwards."""

from __future__ import annotations

import pytest
from storerig import DONE, RAISED, Store, lines, new_job, spec

from apothic.errors import ConflictError, InvalidRequestError, NotFoundError, QueueFullError
from apothic.protocol.messages import AppManifest, Failure, ListJobs
from apothic.protocol.session import ContainerNews, Lease, Line, Outcome, Packed, Report, Reports
from apothic.store import events

GIVEN_BACK = Outcome(requeue="the agent leaves")
CRASHED = Outcome(failure=Failure(kind="worker_lost", type="ProcessDied", message="signal 9", retriable=True))


async def test_one_key_and_one_input_are_one_job(store: Store) -> None:
    function = await store.live()
    job = await store.submit(function, b"[1]", key="k")
    assert await store.submit(function, b"[1]", key="k") == job
    with pytest.raises(ConflictError, match="'k' belongs to job") as caught:
        await store.submit(function, b"[2]", key="k")
    assert caught.value.details == {"job": job}
    assert await store.rows("SELECT count(*) FROM jobs") == [(1,)]


async def test_a_key_is_of_its_function(store: Store) -> None:
    first = await store.live("one")
    second = await store.live("two")
    assert await store.submit(first, key="k") != await store.submit(second, b"[2]", key="k")


async def test_a_submit_sent_again_finds_its_job_though_the_app_was_stopped(store: Store) -> None:
    function = await store.live()
    job = await store.submit(function, key="k")
    await store.finish(store.taken()[0])
    await store.catalog.stop_app("app")
    assert await store.submit(function, key="k") == job
    with pytest.raises(NotFoundError):
        await store.submit(function, key="fresh")


async def test_a_stopped_app_takes_no_jobs_for_a_pinned_deployment_either(store: Store) -> None:
    function = await store.live()
    deployment = (await store.catalog.app("app")).deployment_id
    await store.catalog.stop_app("app")
    pinned = new_job(function)
    pinned = type(pinned)(**{**{n: getattr(pinned, n) for n in pinned.__struct_fields__}, "deployment_id": deployment})
    with pytest.raises(NotFoundError, match="takes jobs"):
        await store.jobs.submit(pinned)


async def test_a_full_queue_takes_no_more(store: Store) -> None:
    function = await store.live("app", spec(max_pending_tasks=2))
    await store.submit(function)  # taken by the container that is there
    await store.submit(function)
    await store.submit(function)
    with pytest.raises(QueueFullError, match="2 jobs waiting") as caught:
        await store.submit(function)
    assert caught.value.details == {"retry_after_s": 1.0}
    await store.finish(store.taken()[0])
    await store.submit(function)


async def test_a_batch_takes_the_first_there_is_room_for(store: Store) -> None:
    function = await store.live("app", spec(max_pending_tasks=5))
    batch = [new_job(function, b"[%d]" % n, key=f"m:{n}") for n in range(8)]
    taken = await store.jobs.submit_batch(batch)
    inputs = await store.rows("SELECT idempotency_key FROM jobs ORDER BY seq")
    assert [key for (key,) in inputs] == [f"m:{n}" for n in range(5)]
    again = await store.jobs.submit_batch(batch)
    assert again[:5] == taken
    assert len(again) == 6  # one was begun meanwhile


async def test_a_batch_with_a_conflict_is_refused_whole(store: Store) -> None:
    function = await store.live()
    await store.submit(function, b"[1]", key="k")
    with pytest.raises(ConflictError):
        await store.jobs.submit_batch([new_job(function), new_job(function, b"[2]", key="k")])
    assert await store.rows("SELECT count(*) FROM jobs") == [(1,)]


async def test_an_input_by_a_blob_that_is_not_here_is_refused(store: Store) -> None:
    function = await store.live()
    job = new_job(function)
    other = {n: getattr(job, n) for n in job.__struct_fields__} | {
        "input": Packed(encoding="pickle", sha256="0" * 64, size=1)
    }
    with pytest.raises(InvalidRequestError, match="is not here"):
        await store.jobs.submit(type(job)(**other))


async def test_reports_are_applied_once(store: Store) -> None:
    job = await store.submit(await store.live())
    (given,) = store.taken()
    for _ in range(2):
        assert await store.report(given, seq=0, began=True, said=lines("a")) == []
    assert await store.report(given, seq=1, said=lines("b")) == []
    assert await store.report(given, seq=0, began=True, said=lines("a")) == []
    logs = await store.jobs.logs(job, after=-1, limit=10)
    assert [line.text for line in logs.lines] == ["a", "b"]
    assert await store.report(given, seq=2, outcome=DONE) == []
    assert await store.report(given, seq=2, outcome=DONE) == [given.token]


async def test_a_report_out_of_order_refuses_its_frame_whole(store: Store) -> None:
    function = await store.live("app", spec(max_containers=2))
    one, two = await store.submit(function), await store.submit(function)
    first, second = store.taken()
    at = store.clock.now()
    good = Report(job=one, attempt=1, token=first.token, seq=0, at=at, began=True, outcome=DONE)
    gap = Report(job=two, attempt=1, token=second.token, seq=1, at=at, outcome=DONE)
    with pytest.raises(ConflictError, match="report 1 came before report 0"):
        await store.fleet.reports("agt", Reports(number=1, reports=[good, gap]))
    assert [await store.status(job) for job in (one, two)] == ["starting", "starting"]
    assert await store.fleet.reports("agt", Reports(number=1, reports=[good])) == ([], [])
    assert await store.status(one) == "succeeded"


async def test_a_stale_token_writes_nothing(store: Store) -> None:
    job = await store.submit(await store.live())
    (old,) = store.taken()
    await store.report(old, began=True)
    await store.clock.advance(31)
    await store.fleet.sweep()
    assert await store.status(job) == "retrying"
    before = await store.rows("SELECT count(*) FROM events")
    assert await store.report(old, seq=1, outcome=DONE, said=lines("late")) == [old.token]
    assert await store.rows("SELECT count(*) FROM events") == before


async def test_a_token_with_another_jobs_name_writes_nothing(store: Store) -> None:
    function = await store.live("app", spec(max_containers=2))
    one, two = await store.submit(function), await store.submit(function)
    first, _ = store.taken()
    forged = Report(job=two, attempt=1, token=first.token, seq=0, at=0.0, began=True, outcome=DONE)
    assert await store.fleet.reports("agt", Reports(number=0, reports=[forged])) == ([first.token], [])
    assert [await store.status(job) for job in (one, two)] == ["starting", "starting"]


async def test_the_log_window_trims_by_lines(store: Store) -> None:
    job = await store.submit(await store.live("app", spec(stream_window=10)))
    (given,) = store.taken()
    for n in range(5):
        await store.report(given, seq=n, began=n == 0, said=lines(*(f"{n}.{i}" for i in range(7))))
    logs = await store.jobs.logs(job, after=-1, limit=100)
    assert [line.line for line in logs.lines] == list(range(25, 35))
    assert logs.trimmed == 25
    assert not logs.ended
    assert logs.lines[-1].text == "4.6"
    await store.report(given, seq=5, outcome=DONE)
    assert (await store.jobs.logs(job, after=-1, limit=100)).ended


async def test_more_lines_at_once_than_the_window(store: Store) -> None:
    job = await store.submit(await store.live("app", spec(stream_window=3)))
    (given,) = store.taken()
    await store.finish(given, DONE, *(str(n) for n in range(100)))
    logs = await store.jobs.logs(job, after=-1, limit=100)
    assert [line.text for line in logs.lines] == ["97", "98", "99"]
    assert logs.trimmed == 97


async def test_the_log_window_trims_by_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(events.BUDGETS, events.LOG, 4096)
    job = await store.submit(await store.live())
    (given,) = store.taken()
    for n in range(20):
        await store.report(given, seq=n, began=n == 0, said=lines("ä" * 500))
    ((kept, size, lost, _),) = await store.rows("SELECT kept, bytes, lost, trimmed FROM windows")
    assert size <= 4096 and kept + lost == 20 and 5 <= kept <= 8
    await store.report(given, seq=20, said=lines("x" * 10_000))
    assert (await store.jobs.logs(job, after=-1, limit=100)).trimmed == 21  # one line alone may be too much
    await store.report(given, seq=21, said=lines("small"), outcome=DONE)
    logs = await store.jobs.logs(job, after=-1, limit=100)
    assert [(line.line, line.text) for line in logs.lines] == [(21, "small")]


async def test_pages_of_a_log(store: Store) -> None:
    job = await store.submit(await store.live("app", spec(stream_window=10)))
    (given,) = store.taken()
    await store.finish(given, DONE, *(str(n) for n in range(20)))
    seen: list[int] = []
    logs = await store.jobs.logs(job, after=-1, limit=3)
    while logs.lines:
        seen += [line.line for line in logs.lines]
        logs = await store.jobs.logs(job, after=seen[-1], limit=3)
    assert seen == list(range(10, 20))
    assert logs.ended
    assert (await store.jobs.logs(job, after=4, limit=1)).lines[0].line == 10
    assert (await store.jobs.logs(job, after=-1, limit=-1)).lines == []


async def test_a_continued_line_stays_marked(store: Store) -> None:
    job = await store.submit(await store.live())
    (given,) = store.taken()
    parts = [Line(stream="stderr", text="a\x00b", at=1.0, cont=True), Line(stream="stderr", text='"c"', at=1.0)]
    await store.report(given, began=True, said=parts, outcome=DONE)
    logs = (await store.jobs.logs(job, after=-1, limit=10)).lines
    assert [(line.text, line.cont, line.stream) for line in logs] == [
        ("a\x00b", True, "stderr"), ('"c"', False, "stderr"),
    ]  # fmt: skip


async def test_what_is_given_back_is_queued_again_ten_times(store: Store) -> None:
    job = await store.submit(await store.live())
    for _ in range(10):
        (given,) = store.taken()
        await store.finish(given, GIVEN_BACK)
    (given,) = store.taken()
    assert given.attempt == 11
    await store.finish(given, GIVEN_BACK)
    view = await store.jobs.show(job)
    assert (view.status, view.failure and view.failure.kind) == ("failed", "worker_lost")
    assert view.failure is not None and "moved too often" in view.failure.message


async def test_a_lost_workers_failure_has_the_last_lines(store: Store) -> None:
    job = await store.jobs.submit(new_job(await store.live(), delivery="at_most_once"))
    (given,) = store.taken()
    await store.report(given, began=True, said=lines(*(str(n) for n in range(30))))
    await store.fleet.dead("h", 1)
    failure = (await store.jobs.show(job)).failure
    assert failure is not None and failure.kind == "worker_lost"
    assert failure.log_tail == "\n".join(str(n) for n in range(10, 30))


async def test_an_ended_jobs_input_can_be_submitted_again(store: Store) -> None:
    function = await store.live("app", spec())
    job = await store.submit(function, b"[7]", timeout_s=9.0, delivery="at_most_once")
    with pytest.raises(ConflictError, match="only an ended job"):
        await store.jobs.again(job)
    await store.finish(store.taken()[0], RAISED)
    again = await store.jobs.again(job)
    assert (again.retry_of, again.input.data) == (job, b"[7]")
    assert (again.options.timeout_s, again.options.delivery) == (9.0, "at_most_once")


async def test_pages_of_jobs(store: Store) -> None:
    function = await store.live("app", spec(max_containers=1))
    other = await store.live("other", spec("g"))
    jobs = [await store.submit(function) for _ in range(7)] + [await store.submit(other)]
    seen, after = [], None
    while True:
        page, after = await store.jobs.list(ListJobs(app="app", after=after, limit=3))
        seen += [view.id for view in page]
        if after is None:
            break
    assert seen == jobs[6::-1]
    page, _ = await store.jobs.list(ListJobs(function="g"))
    assert [view.id for view in page] == jobs[7:]
    page, _ = await store.jobs.list(ListJobs(app="app", status="starting"))  # type: ignore[arg-type]
    assert [view.id for view in page] == [jobs[0]]
    with pytest.raises(NotFoundError):
        await store.jobs.list(ListJobs(after="job_nothing"))


async def test_why_a_job_waits(store: Store) -> None:
    function = await store.live("app", spec(max_containers=1))
    await store.submit(function)
    second, third = await store.submit(function), await store.submit(function)
    later = await store.submit(function, run_at=store.clock.now() + 100)
    assert [(v.reason, v.ahead) for v in [await store.jobs.show(j) for j in (second, third)]] == [
        ("concurrency_limit", 0), ("concurrency_limit", 1),
    ]  # fmt: skip
    assert (await store.jobs.show(later)).reason == "delayed"
    await store.finish(store.taken()[0], CRASHED)
    page, _ = await store.jobs.list(ListJobs())
    assert (await store.jobs.show(page[-1].id)).reason == "backoff"


async def test_an_agent_that_is_greeted_again_is_told_what_is_dead(store: Store) -> None:
    function = await store.live("app", spec(max_containers=2))
    await store.submit(function)
    await store.submit(function)
    first, second = store.taken()
    containers = [ContainerNews(id=each.container, state="ready", pid=1) for each in (first, second)]
    strange = ContainerNews(id="ctr_strange", state="ready", pid=1)
    held = [Lease(job=first.job, attempt=1, token=first.token), Lease(job="job_gone", attempt=1, token="gone")]
    reconciled = await store.hello(containers=[*containers, strange], leases=held)
    assert (reconciled.dead_leases, reconciled.dead_containers) == (["gone"], ["ctr_strange"])
    (again,) = store.taken()  # the one it had never heard of
    assert (again.job, again.attempt, again.token != second.token) == (second.job, 2, True)


async def test_the_same_content_is_the_same_deployment(store: Store) -> None:
    await store.live("app", spec("f"), spec("g"))
    first = await store.catalog.app("app")
    again = await store.catalog.deploy(AppManifest(app="app", functions=[spec("g"), spec("f")]))
    assert (again.id, again.status) == (first.deployment_id, "live")
    await store.live("app", spec("f"))
    assert (await store.catalog.app("app")).deployment_id != first.deployment_id
    back = await store.catalog.deploy(AppManifest(app="app", functions=[spec("f"), spec("g")]))
    assert (back.id, back.status) == (first.deployment_id, "live")
