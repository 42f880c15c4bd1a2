"""Nobody begins a job before its claim is on disk: a server that dies at the commit would have it run a second time."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from walkrig import Puppet, Stage

from apothic.protocol.session import Assignment


async def warm(stage: Stage, agent: Puppet) -> str:
    """Deploy a function, and let a container of it be free."""
    function = await stage.live(agent)
    await stage.submit(function)
    await agent.finish(await agent.work())
    await agent.frames()
    return function


async def nothing_comes(agent: Puppet) -> None:
    """Fail if the agent is told anything."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agent._down.get(), 0.05)


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


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
async def test_an_agent_is_told_of_a_job_when_its_claim_is_on_disk(stage: Stage, agent: Puppet, delivery: str) -> None:
    function = await warm(stage, agent)
    async with slow_commit(stage):
        submitting = asyncio.create_task(stage.submit(function, body={"options": {"delivery": delivery}}))
        await nothing_comes(agent)
    job = await submitting
    assert (await agent.work()).job == job


async def test_a_job_that_had_waited_is_begun_when_its_claim_is_on_disk(stage: Stage, agent: Puppet) -> None:
    function = await warm(stage, agent)
    given: list[Assignment] = []
    waiting = ""
    while not waiting:  # one after the other, until the container is given no more ahead
        job = await stage.submit(function)
        try:
            given.append(await asyncio.wait_for(agent.work(), 0.05))
        except TimeoutError:
            waiting = job
    async with slow_commit(stage):
        finishing = asyncio.create_task(agent.finish(given[0]))
        await nothing_comes(agent)
    await finishing
    assert (await agent.work()).job == waiting


async def test_of_work_whose_commit_fails_nobody_is_told(stage: Stage, agent: Puppet) -> None:
    function = await warm(stage, agent)

    def full() -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    stage.probe.on("commit.before", full)
    answer = await stage.ask(f"POST /v1/functions/{function}/jobs", {"args": []})
    assert answer.status == 507
    await nothing_comes(agent)
    stage.probe.clear()
    job = await stage.submit(function)
    assert (await agent.work()).job == job


async def test_a_job_may_call_others_as_soon_as_it_is_given(stage: Stage, agent: Puppet) -> None:
    function = await warm(stage, agent)
    await stage.submit(function)
    given = await agent.work()
    assert (await stage.ask("GET /v1/functions", query={"app": "app"}, key=given.job_token)).status == 200
    stranger = given.job_token.replace(given.job, given.job[:-1] + ("0" if given.job[-1] != "0" else "1"))
    assert (await stage.ask("GET /v1/functions", query={"app": "app"}, key=stranger)).status == 401
