"""Who gets a container when there are too few, through the whole control plane with an agent played by hand."""

from __future__ import annotations

from walkrig import Puppet, Stage, spec

from apothic.protocol.session import Assignment, ContainerNews, Outcome, StartContainer, StopContainer, Work

OVER = Outcome(requeue="its turn is over", behind=True)


async def gone(agent: Puppet, container: str) -> None:
    """Tell that a container has ended."""
    del agent.containers[container]
    await agent.tell(containers=[ContainerNews(id=container, state="gone")])


async def two_apps(stage: Stage) -> tuple[Puppet, str, str]:
    """Deploy two apps to an agent that has room for one container of either at a time."""
    agent = await stage.agent(cpu=1.0)
    first = await stage.live(agent, "a", spec(cpu=1.0))
    second = await stage.live(agent, "b", spec(cpu=1.0))
    await gone(agent, (await agent.next(StopContainer)).container)
    return agent, first, second


async def begun(stage: Stage, agent: Puppet, jobs: list[str]) -> Assignment:
    """Let the container that was just ordered begin one of the jobs, in the place of the one that was idle."""
    given = await agent.work()
    await agent.begin(given)
    assert given.job in jobs
    return given


async def asked_to_stop(agent: Puppet) -> list[StopContainer]:
    return [frame for frame in await agent.frames() if isinstance(frame, StopContainer)]


async def test_two_apps_take_turns_on_one_slot(stage: Stage) -> None:
    agent, first, second = await two_apps(stage)
    jobs = {first: [await stage.submit(first) for _ in range(3)]}
    await gone(agent, (await agent.next(StopContainer)).container)  # it was idle
    running = await begun(stage, agent, jobs[first])
    await stage.sweep(5)
    assert await asked_to_stop(agent) == []  # nobody else wants one

    jobs[second] = [await stage.submit(second) for _ in range(2)]
    for mine, other in ((first, second), (second, first), (first, second)):
        await stage.sweep(1.1)
        stop = await agent.next(StopContainer)
        assert (stop.container, stop.finish) == (running.container, True)
        await stage.sweep(1.1)
        assert await asked_to_stop(agent) == []  # once is enough
        await agent.finish(running)
        assert (await stage.job(jobs[mine][1]))["status"] == "queued"  # it begins nothing more
        await gone(agent, running.container)
        running = await begun(stage, agent, jobs[other])
        jobs[mine].append(await stage.submit(mine))
        jobs[mine].pop(0)


async def test_what_is_given_back_to_make_room_costs_nothing_and_says_nothing_of_its_function(stage: Stage) -> None:
    agent, first, second = await two_apps(stage)
    for _ in range(40):
        await stage.submit(first)
    await gone(agent, (await agent.next(StopContainer)).container)
    given = await agent.work()
    for _ in range(3):  # it turns out to be quick, so that several wait in the container
        await agent.finish(given, Outcome(value=given.input, ran_s=0.001))
        waiting = [a for frame in await agent.frames() if isinstance(frame, Work) for a in frame.assignments]
        given = waiting[0] if waiting else next(iter(agent.held.values()))
    assert len(agent.held) > 5
    await agent.begin(given)
    await stage.sweep(2)
    await stage.submit(second)
    assert (await agent.next(StopContainer)).finish

    back = [each for each in agent.held.values() if each is not given]
    await agent.tell(*(agent.report(each, outcome=OVER) for each in back))
    assert {await stage.status(each.job) for each in back} == {"queued"}
    rows = await stage.control.db.read(lambda tx: [tx.one("job_row", id=each.job) for each in back])
    assert {row["drains"] for row in rows if row is not None} == {0}
    assert stage.control.jobs.pace.ahead(1) > 0
    await agent.finish(given)
    await gone(agent, given.container)
    start = await agent.next(StartContainer)
    assert start.app == "b"
