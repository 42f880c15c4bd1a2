"""Time that jumps, stands still or is lost: wall time is set, an agent or the control plane is stopped for a while."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from walkrig import PATIENCE_S, Puppet, Stage, items, spec

from apothic.control.sweeps import sweep
from apothic.protocol.messages import Failure
from apothic.protocol.session import ContainerNews, Outcome, StartContainer, StopContainer
from apothic.store.intake import HOLD_S

HOUR = 3600.0
RAISED = Outcome(failure=Failure(kind="user", type="ValueError", message="no", retriable=True))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    made = await Stage(tmp_path / "data").open()
    yield made
    await made.close()


@pytest.fixture
async def agent(stage: Stage) -> Puppet:
    return await stage.agent()


@contextlib.asynccontextmanager
async def sweeping(stage: Stage) -> AsyncIterator[None]:
    """Run the loop of the sweeps itself, on the stage's clock."""
    control = stage.control
    loop = sweep(control.jobs, control.fleet, control.holds, control.sessions.drop, stage.clock)
    task = asyncio.create_task(loop)
    try:
        await rounds(stage, 1)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def rounds(stage: Stage, seconds: int) -> None:
    """Let time pass second by second, and each round of the sweeps come to its end."""
    for _ in range(seconds):
        async with asyncio.timeout(PATIENCE_S):
            while not stage.clock._sleepers:
                await asyncio.sleep(0.001)
        await stage.clock.advance(1.01)
        async with asyncio.timeout(PATIENCE_S):
            while not stage.clock._sleepers:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_wall_time_that_jumps_neither_ends_a_lease_nor_keeps_it(stage: Stage, agent: Puppet, jump: float) -> None:
    job = await stage.submit(await stage.live(agent))
    async with sweeping(stage):
        await agent.begin(await agent.work())
        stage.clock.jump(jump)
        await rounds(stage, 20)
        assert await stage.status(job) == "running"
        await rounds(stage, 12)
        assert await stage.status(job) != "running"  # nobody has renewed it


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_wall_time_that_jumps_holds_no_job_back(stage: Stage, agent: Puppet, jump: float) -> None:
    function = await stage.live(agent, "app", spec(retries=1, max_containers=2))
    async with sweeping(stage):
        stage.clock.jump(jump)
        await rounds(stage, 1)
        job = await stage.submit(function)
        given = await agent.work()
        assert given.job == job
        await agent.finish(given, RAISED)
        assert await stage.status(job) == "retrying"
        stage.clock.jump(jump)
        await rounds(stage, 3)
        again = await agent.work()  # after its back-off of a second at most
        assert (again.job, again.attempt) == (job, 2)
        await agent.finish(again)
        assert await stage.status(job) == "succeeded"


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_deadline_and_an_instant_that_was_named_are_of_wall_time(
    stage: Stage, agent: Puppet, jump: float
) -> None:
    function = await stage.live(agent, "app", spec(max_containers=1))
    async with sweeping(stage):
        await stage.submit(function)
        await agent.work()
        patient = await stage.submit(function, body={"options": {"expires_in_s": 20}})
        at = stage.clock.now() + HOUR / 2
        later = await stage.submit(function, body={"options": {"run_at": at}})
        stage.clock.jump(jump)
        await rounds(stage, 2)
        assert await stage.status(patient) == ("failed" if jump > 0 else "queued")
        assert (await stage.job(later))["run_at"] == at


async def test_a_control_plane_that_is_stopped_amid_a_sweep_blames_nobody(
    stage: Stage, agent: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await stage.submit(await stage.live(agent))
    stopped = 0

    async def stop_there(_at: float) -> None:
        nonlocal stopped
        stopped += 1
        if stopped == 3:
            stage.clock._pass(100.0)  # what the agent said meanwhile waits in the socket

    monkeypatch.setattr(stage.control.holds, "sweep", stop_there)
    async with sweeping(stage):
        await agent.begin(await agent.work())
        await rounds(stage, 6)
        assert stopped > 3
        assert await stage.status(job) == "running"
        await rounds(stage, 32)
        assert await stage.status(job) != "running"


@pytest.mark.parametrize("amid_a_sweep", [False, True])
async def test_a_control_plane_that_is_stopped_takes_nothing_from_a_reader_who_could_not_come_back(
    stage: Stage, agent: Puppet, amid_a_sweep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await stage.submit(await stage.live(agent, "app", spec(stream_window=1)), body={"attached": True})
    given = await agent.work()
    await agent.tell(agent.report(given, began=True, said=items(*range(10))))
    expire, stop = stage.control.jobs.expire, amid_a_sweep

    async def stop_there() -> None:
        nonlocal stop
        if stop:
            stage.clock._pass(10 * HOLD_S)
            stop = False
        await expire()

    async def kept() -> int:
        page = await stage.got(f"GET /v1/jobs/{job}/events", query={"limit": 50})
        return sum(event["event"] == "job.stream_item" for event in page["events"])

    monkeypatch.setattr(stage.control.jobs, "expire", stop_there)
    async with sweeping(stage):
        if not amid_a_sweep:
            stage.clock._pass(10 * HOLD_S)
        await rounds(stage, int(HOLD_S) - 10)
        assert not stop
        assert await kept() == 10
        await rounds(stage, 20)
        assert await kept() < 10


async def test_an_agent_that_was_silent_for_a_term_is_given_nothing_until_it_is_back(
    stage: Stage, agent: Puppet
) -> None:
    function = await stage.live(agent, "app", spec(max_containers=3))
    lost = await stage.submit(function)
    await agent.begin(await agent.work())
    await stage.sweep(31)
    waiting = [await stage.submit(function) for _ in range(3)]
    await stage.sweep(5)
    assert {await stage.status(job) for job in waiting} == {"queued"}
    assert (await stage.job(lost))["attempt"] == 1
    await agent.cut()
    await agent.connect()
    await agent.next(StartContainer)
    assert "starting" in {await stage.status(job) for job in [lost, *waiting]}


async def test_a_container_that_was_to_stop_when_the_session_was_cut_is_told_again(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(keep_warm_s=5, max_containers=1))
    (idle,) = agent.containers
    await agent.cut_unseen()
    await stage.sweep(6)  # what this pushes, nobody gets
    await agent.connect()
    assert (await agent.next(StopContainer)).container == idle
    await agent.tell(containers=[ContainerNews(id=idle, state="gone")])
    del agent.containers[idle]
    job = await stage.submit(function)
    assert (await agent.work()).job == job
