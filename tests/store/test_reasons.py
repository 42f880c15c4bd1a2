"""Why a job is not at work."""

from __future__ import annotations

import pytest
from storerig import Store, spec

from apothic.protocol.session import ContainerNews, Outcome
from apothic.protocol.specs import BatchingSpec


async def test_a_job_whose_container_is_being_started(store: Store) -> None:
    function = await store.live("app", spec(max_containers=2))
    jobs = [await store.submit(function) for _ in range(2)]
    first, second = store.taken()
    assert [(await store.jobs.show(job)).reason for job in jobs] == [None, "building_env"]
    await store.news("agt", ContainerNews(id=second.container, state="ready", pid=1))
    assert (await store.jobs.show(jobs[1])).reason is None
    await store.report(first, began=True)
    assert (await store.jobs.show(jobs[0])).reason is None


async def test_a_job_that_waits_for_its_batch(store: Store) -> None:
    job = await store.submit(await store.live("app", spec(batching=BatchingSpec(8, 1000))))
    (given,) = store.taken()
    assert (await store.jobs.show(job)).reason == "batching"
    await store.report(given, began=True)
    assert (await store.jobs.show(job)).reason is None


async def test_a_job_that_no_agent_has_room_for(store: Store) -> None:
    function = await store.live("app", spec(cpu=40.0, max_containers=9))
    _, second, third = [await store.submit(function) for _ in range(3)]
    assert [(v.reason, v.ahead) for v in [await store.jobs.show(job) for job in (second, third)]] == [
        ("no_capacity", 0), ("no_capacity", 1),
    ]  # fmt: skip


async def test_a_container_that_ends_counts_towards_the_limit_while_it_runs_something(store: Store) -> None:
    function = await store.live("app", spec(concurrent_requests=2))
    for _ in range(2):
        await store.submit(function)
    running, back = store.taken()
    await store.report(running, began=True)
    await store.report(back, outcome=Outcome(requeue="its turn is over"))
    job = back.job
    assert store.started() == [] and store.taken() == []  # two containers would run three at a time
    assert (await store.jobs.show(job)).reason == "concurrency_limit"
    await store.report(running, seq=1, outcome=Outcome(requeue="its turn is over"))
    assert len(store.started()) == 1


@pytest.mark.parametrize("stop", [False, True])
async def test_the_jobs_of_an_app_that_was_stopped_are_worked_off(store: Store, stop: bool) -> None:
    function = await store.live("app", spec())
    jobs = [await store.submit(function) for _ in range(3)]
    if stop:
        await store.catalog.stop_app("app")
    for job in jobs:
        (given,) = store.taken()
        assert given.job == job
        await store.finish(given)
    assert {await store.status(job) for job in jobs} == {"succeeded"}
