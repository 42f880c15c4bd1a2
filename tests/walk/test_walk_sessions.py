"""Leases and sessions: what is lost, what comes back, and that nothing happens twice."""

from __future__ import annotations

import asyncio
import threading

import pytest
from walkrig import DONE, Puppet, Stage, spec

from apothic.protocol.session import (
    CancelAttempt,
    ContainerNews,
    Outcome,
    Packed,
    Renew,
    Renewed,
    Reports,
    StartContainer,
    StopContainer,
    Welcome,
    Work,
)


async def test_the_welcome_has_the_limits(stage: Stage) -> None:
    agent = Puppet(stage, "agt_x")
    welcome = await agent.connect()
    assert (welcome.lease_s, welcome.inline_limit, welcome.dead_leases) == (30.0, 64 << 10, [])
    (seen,) = (await stage.got("GET /v1/agents"))["agents"]
    assert (seen["id"], seen["connected"], seen["jobs"]) == ("agt_x", True, 0)


async def test_a_lease_that_runs_out_moves_the_job_to_another_agent(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    lost = await agent.work()
    await agent.begin(lost)
    await agent.cut()
    await stage.sweep(29)
    assert await stage.status(job) == "running"
    await stage.sweep(2)
    assert await stage.status(job) == "retrying"
    other = await stage.agent("agt_two", pid=2)
    await stage.sweep(2)
    given = await other.work()
    assert (given.job, given.attempt) == (job, 2)
    await other.finish(given, DONE, "done by two")
    late = agent.report(lost, outcome=DONE, texts=["late"])
    await other.tell(late)  # acknowledged, so that it is not sent for ever, and not applied
    logs = await stage.got(f"GET /v1/jobs/{job}/logs")
    assert [line["text"] for line in logs["lines"]] == ["done by two"]
    assert (await stage.job(job))["attempt"] == 2
    welcome = await _again(agent, extra=lost)
    assert welcome.dead_leases == [lost.token]


async def _again(agent: Puppet, extra: object) -> Welcome:
    agent.held[extra.token] = extra  # type: ignore[attr-defined,assignment]
    return await agent.connect()


async def test_renewing_keeps_a_lease_for_ever(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    for _ in range(10):
        await stage.sweep(20)
        await agent.frames()  # asks for a renewal
    assert await stage.status(job) == "starting"
    await agent.finish(given)
    assert (await stage.job(job))["attempt"] == 1


async def test_a_renewal_names_the_leases_that_were_refused(stage: Stage, agent: Puppet) -> None:
    await stage.submit(await stage.live(agent))
    given = await agent.work()
    await stage.sweep(31)
    assert (await agent.next(Renewed)).dead_leases == [given.token]  # told at once
    await agent.cut()
    await agent.connect()
    await agent.begin(given)
    await agent.say(Renew(number=1))
    assert (await agent.next(Renewed)).dead_leases == [given.token]
    await agent.say(Renew(number=2))
    assert (await agent.next(Renewed)).dead_leases == []


async def test_an_agent_that_comes_back_loses_and_repeats_nothing(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(max_containers=2))
    one, two = await stage.submit(function), await stage.submit(function)
    first, second = await agent.work(), await agent.work()
    await agent.begin(first)
    await agent.begin(second)
    await agent.tell(agent.report(first, texts=["a"]))
    await agent.cut()
    agent.post([agent.report(first, texts=["b"])])
    frame = agent.post([agent.report(first, outcome=DONE, texts=["c"])])
    agent.held[first.token] = first  # ended, but nobody has acknowledged it
    await stage.sweep(10)
    welcome = await agent.connect()
    assert (welcome.dead_leases, welcome.dead_containers) == ([], [])
    await agent.say(frame)  # and once more for good measure
    await agent.frames()
    assert agent.outbox == {}
    logs = await stage.got(f"GET /v1/jobs/{one}/logs")
    assert [line["text"] for line in logs["lines"]] == ["a", "b", "c"]
    assert [await stage.status(job) for job in (one, two)] == ["succeeded", "running"]
    await agent.finish(second)
    assert [(await stage.job(job))["attempt"] for job in (one, two)] == [1, 1]


async def test_work_pushed_into_a_cut_session_goes_back_to_the_queue(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    job = await stage.submit(function)
    await agent.cut()  # it never read the frame
    assert await stage.status(job) == "starting"
    await agent.connect()
    given = await agent.work()
    assert (given.job, given.attempt) == (job, 2)
    await agent.finish(given)
    assert await stage.status(job) == "succeeded"


async def test_a_container_that_was_never_heard_of_is_started_anew(stage: Stage, agent: Puppet) -> None:
    deployment = await stage.deploy()
    first = await agent.next(StartContainer)
    await agent.cut()
    await agent.connect()
    second = await agent.next(StartContainer)
    assert second.container != first.container
    await agent.ready(second)
    assert (await stage.got(f"GET /v1/deployments/{deployment['id']}"))["status"] == "live"


async def test_a_new_session_of_an_agent_ends_its_old_one(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    old, down = agent._session, agent._down
    await agent.connect()
    assert old is not None and (await down.get())["type"] == "websocket.close"
    job = await stage.submit(function)
    assert (await agent.work()).job == job
    assert (await stage.got("GET /v1/agents"))["agents"][0]["connected"]
    old.cancel()


async def test_a_cancel_that_an_agent_missed_is_told_at_its_return(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    await agent.begin(given)
    await agent.cut()
    assert await stage.got(f"POST /v1/jobs/{job}/cancel") == {"status": "cancelling"}
    await agent.connect()
    assert (await agent.next(CancelAttempt)).token == given.token


async def test_a_cancelled_job_whose_agent_is_lost_is_cancelled(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    await agent.begin(await agent.work())
    await stage.got(f"POST /v1/jobs/{job}/cancel")
    await agent.cut()
    await stage.sweep(31)
    assert await stage.status(job) == "cancelled"


async def test_a_new_control_plane_finds_the_jobs_and_the_agent_as_they_were(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    await agent.begin(given)
    await agent.cut()
    await stage.control.db.close()
    after = await Stage(stage.data_dir).open()
    try:
        await after.sweep(29)  # the lease has a full new term
        assert await after.status(job) == "running"
        agent.stage = after
        welcome = await agent.connect()
        assert welcome.dead_leases == []
        await agent.finish(given, DONE, "went on")
        assert (await after.job(job))["status"] == "succeeded"
        assert (await after.job(job))["attempt"] == 1
    finally:
        await agent.cut()
        await after.close()


async def test_a_container_that_dies_leaves_its_jobs_to_others(stage: Stage, agent: Puppet) -> None:
    from apothic.protocol.messages import Failure

    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    died = Failure(kind="oom", type="MemoryError", message="over its limit", retriable=True)
    agent.containers.pop(given.container)
    await agent.tell(containers=[ContainerNews(id=given.container, state="gone", failure=died)])
    assert await stage.status(job) == "retrying"
    await stage.sweep(61)
    again = await agent.work()
    assert (again.attempt, again.container != given.container) == (2, True)


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"{}", b"\x81\xa4type\xa5hello", b"\x80" * 50])
async def test_garbage_ends_the_session_and_nothing_else(stage: Stage, agent: Puppet, garbage: bytes) -> None:
    await agent.say(garbage)
    with pytest.raises(ConnectionError, match="1007"):
        await agent.next(Work)
    await agent.connect()
    assert (await stage.got("GET /v1/agents"))["agents"][0]["connected"]


async def test_a_frame_before_hello_counts_for_nothing(stage: Stage) -> None:
    agent = Puppet(stage, "agt_rude")
    await agent.open()
    await agent.say(Reports(number=0))
    await agent.connect()
    assert len((await stage.got("GET /v1/agents"))["agents"]) == 1


async def test_a_container_whose_lease_ran_out_is_given_nothing_more(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    await agent.begin(given)

    await stage.sweep(31)
    assert (await agent.next(StopContainer)).container == given.container
    await agent.cut()
    await agent.connect()
    await stage.sweep(5)

    again = await agent.next(StartContainer)
    assert again.container != given.container
    assert await stage.status(job) == "starting"


async def test_what_was_pushed_while_an_agent_came_back_is_not_told_to_it(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    before = stage.control.sessions._sessions["agt_one"]
    placed, met = threading.Event(), threading.Event()

    def commit_late() -> None:
        placed.set()
        assert met.wait(10)

    stage.control.db.commit_s = 1.0  # a slow disk: its commits are made in a thread
    stage.probe.on("commit.before", commit_late)
    writing = asyncio.create_task(stage.submit(function))
    await asyncio.to_thread(placed.wait, 10)  # the job is placed, and not yet committed
    await agent.cut_unseen()
    await agent.open()
    await agent.hello()
    while stage.control.sessions._sessions["agt_one"] is before:
        await asyncio.sleep(0)
    met.set()  # so its work is pushed into the session that says hello
    job = await writing
    await agent.next(Welcome)

    work = [each for frame in await agent.frames() if isinstance(frame, Work) for each in frame.assignments]

    held = await stage.control.db.read(lambda tx: [r["token"] for r in tx.all("tokens_of_agent", agent_id="agt_one")])
    assert [each.token for each in work] == held
    assert (await stage.job(job))["attempt"] == 2


async def test_a_report_that_can_never_be_stored_fails_its_own_job_alone(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(max_containers=2))
    one, two = await stage.submit(function), await stage.submit(function)
    await agent.ready(await agent.next(StartContainer))
    first, second = await agent.work(), await agent.work()
    nowhere = Outcome(value=Packed(encoding="pickle", sha256="0" * 64, size=1))

    await agent.tell(agent.report(first, began=True, outcome=nowhere), agent.report(second, began=True, outcome=DONE))

    assert sorted([await stage.status(one), await stage.status(two)]) == ["failed", "succeeded"]
    failed = await stage.job(first.job)
    assert failed["failure"]["kind"] == "serialization"


async def test_a_session_ends_when_its_key_is_revoked(stage: Stage) -> None:
    made = await stage.got("POST /v1/keys", {"name": "an agent", "scopes": ["worker"]})
    agent = await stage.agent("agt_k", key=made["secret"])

    await stage.got(f"DELETE /v1/keys/{made['key']['id']}")
    await agent.say(Renew(number=1))

    with pytest.raises(ConnectionError, match="1008"):
        await agent.next(Renewed)


async def test_a_job_that_has_begun_is_past_its_queue_deadline(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent), body={"options": {"expires_in_s": 60}})
    given = await agent.work()
    await agent.begin(given)
    await agent.tell(agent.report(given, outcome=Outcome(requeue="the agent leaves")))

    await stage.sweep(100)

    assert await stage.status(job) != "failed"


async def test_a_report_that_cannot_be_applied_closes_the_session_unacknowledged(stage: Stage, agent: Puppet) -> None:
    await stage.submit(await stage.live(agent))
    given = await agent.work()
    agent.seqs[given.token] = 3
    frame = agent.post([agent.report(given, began=True)])
    await agent.say(frame)
    with pytest.raises(ConnectionError, match="1001"):
        await agent.next(StopContainer)
    assert frame.number in agent.outbox


async def test_only_an_agents_key_opens_a_session(stage: Stage) -> None:
    for key in ("nonsense", await stage.create_key("invoke"), ""):
        agent = Puppet(stage, "agt_y", key=key)
        agent.key = key
        await agent.open()
        assert agent.closed == 1008
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}, {"host": "[::1"}):
        agent = Puppet(stage, "agt_z")
        await agent.open(**headers)
        assert agent.closed == 1008
    assert (await stage.got("GET /v1/agents"))["agents"] == []
