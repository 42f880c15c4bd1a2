"""Work is pushed beside the commit of its claim, where it may be done twice; what is never committed is recalled."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from walkrig import Puppet, Stage

from apothic.protocol.session import Renewed, Work


async def warm(stage: Stage, agent: Puppet) -> str:
    """Deploy a function, and let a container of it be free."""
    function = await stage.live(agent)
    await stage.submit(function)
    await agent.finish(await agent.work())
    await agent.frames()
    return function


@asynccontextmanager
async def slow_commit(stage: Stage) -> AsyncIterator[None]:
    """Hold the next commit, as a slow disk does."""
    go_on = threading.Event()
    stage.control.db.commit_s = 1.0
    stage.probe.on("commit.before", lambda: assert_waited(go_on))
    try:
        yield
    finally:
        stage.probe.clear()
        go_on.set()


def assert_waited(event: threading.Event) -> None:
    assert event.wait(10)


async def test_a_container_begins_beside_the_commit_and_nobody_else_is_told(stage: Stage, agent: Puppet) -> None:
    function = await warm(stage, agent)
    async with slow_commit(stage):
        submitting = asyncio.create_task(stage.submit(function))
        given = await agent.work()
        assert not submitting.done()
        seen = await stage.control.db.read(lambda tx: tx.one("function_of_job", id=given.job))
        assert seen is None
    assert await submitting == given.job
    await agent.finish(given)
    assert await stage.status(given.job) == "succeeded"


async def test_what_may_not_be_done_twice_waits_for_the_commit(stage: Stage, agent: Puppet) -> None:
    function = await warm(stage, agent)
    once = {"options": {"delivery": "at_most_once"}}
    async with slow_commit(stage):
        submitting = asyncio.create_task(stage.submit(function, body=once))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent._down.get(), 0.05)
    job = await submitting
    assert (await agent.work()).job == job


async def test_work_whose_commit_fails_is_recalled(stage: Stage, agent: Puppet) -> None:
    function = await warm(stage, agent)

    def full() -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    stage.probe.on("commit.before", full)
    answer = await stage.ask(f"POST /v1/functions/{function}/jobs", {"args": []})
    assert answer.status == 507
    stage.probe.clear()
    work = await agent.next(Work)
    recalled = await agent.next(Renewed)
    assert recalled.dead_leases == [work.assignments[0].token]
    # A report that was on its way counts for nothing.
    await agent.finish(work.assignments[0])
    assert (await stage.ask(f"GET /v1/jobs/{work.assignments[0].job}")).status == 404


async def test_an_agent_that_has_not_been_welcomed_is_told_after_the_commit(stage: Stage, agent: Puppet) -> None:
    function = await warm(stage, agent)
    await agent.cut_unseen()
    stage.control.sessions._sessions[agent.name].is_welcome = False
    async with slow_commit(stage):
        submitting = asyncio.create_task(stage.submit(function))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(agent._down.get(), 0.05)
    await submitting


async def test_a_job_that_began_early_may_call_others(stage: Stage, agent: Puppet) -> None:
    function = await warm(stage, agent)
    async with slow_commit(stage):
        submitting = asyncio.create_task(stage.submit(function))
        given = await agent.work()
        asking = asyncio.create_task(stage.ask("GET /v1/functions", query={"app": "app"}, key=given.job_token))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asking.done()  # its claim is not on disk, so nobody knows yet whether it runs
    assert (await asking).status == 200
    await submitting
    stranger = given.job_token.replace(given.job, given.job[:-1] + ("0" if given.job[-1] != "0" else "1"))
    assert (await stage.ask("GET /v1/functions", query={"app": "app"}, key=stranger)).status == 401
