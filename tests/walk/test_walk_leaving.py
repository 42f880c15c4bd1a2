"""Agents that leave, containers that take no more, and a control plane that was away itself."""

from __future__ import annotations

import pytest
from walkrig import Puppet, Stage, spec

from apothic.protocol.session import ContainerNews, Hello, Outcome, Renew, Renewed, StartContainer

BACK = Outcome(requeue="it leaves")


async def test_a_leaving_agent_is_given_nothing_more_and_keeps_what_it_has(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(max_containers=3))
    one, two = await stage.submit(function), await stage.submit(function)
    first, second = await agent.work(), await agent.work()
    await agent.begin(first)
    await agent.begin(second)
    await agent.say(Renew(number=1, leaving=True))
    await agent.next(Renewed)
    await agent.tell(agent.report(first, outcome=BACK))
    for number in range(2, 5):  # longer than a lease; each time it says that it is still there
        await stage.sweep(20)
        await agent.say(Renew(number=number, leaving=True))
        await agent.next(Renewed)
    assert [await stage.status(job) for job in (one, two)] == ["queued", "running"]
    assert (await stage.job(one))["attempt"] == 1

    other = await stage.agent("agt_two")

    started = await other.next(StartContainer)
    assert (await other.work()).job == one
    assert started.container not in agent.containers
    await agent.finish(second)
    assert await stage.status(two) == "succeeded"


async def test_an_agent_that_comes_back_leaving_is_given_nothing(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    await agent.cut()
    await agent.open()
    await agent.say(
        Hello(agent=agent.name, version="0", containers=list(agent.containers.values()), leaving=True, **agent.about)
    )
    job = await stage.submit(function)
    await agent.say(Renew(number=1, leaving=True))
    await agent.next(Renewed)
    assert await stage.status(job) == "queued"


@pytest.mark.parametrize(("delivery", "status"), [("at_least_once", "retrying"), ("at_most_once", "failed")])
async def test_an_attempt_that_ran_and_that_its_agent_has_not_any_more_was_lost(
    stage: Stage, agent: Puppet, delivery: str, status: str
) -> None:
    job = await stage.submit(await stage.live(agent), body={"options": {"delivery": delivery}})
    await agent.begin(await agent.work())
    await agent.cut()
    agent.held.clear()  # it ended them itself when its lease ran out
    agent.containers.clear()
    await agent.connect()
    assert await stage.status(job) == status


async def test_a_container_whose_end_is_about_to_be_told_is_given_nothing(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    (ending,) = agent.containers
    await agent.cut()
    agent.containers[ending] = ContainerNews(id=ending, state="stopping")
    await agent.connect()
    job = await stage.submit(function)
    assert (await agent.next(StartContainer)).container != ending
    assert (await agent.work()).job == job


async def test_a_container_that_gave_a_job_back_is_not_given_it_again(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    await agent.tell(agent.report(given, outcome=BACK))
    assert (await agent.next(StartContainer)).container != given.container
    again = await agent.work()
    assert (again.job, again.attempt) == (job, 2) and again.container != given.container


async def test_a_control_plane_that_stood_still_blames_nobody(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    await agent.begin(await agent.work())
    await stage.clock.advance(100)  # stopped; what the agent said meanwhile waits in the socket
    await stage.control.fleet.overslept(100)
    await stage.sweep(20)
    assert await stage.status(job) == "running"
    await stage.sweep(20)
    assert await stage.status(job) == "retrying"
