"""What an agent must not say: numbers that nothing can hold, text that is none, a second hello."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import msgspec
import pytest
from walkrig import PATIENCE_S, Puppet, Stage

from apothic.protocol.session import StartContainer, Welcome

HELLO: dict[str, Any] = {
    "type": "hello", "agent": "agt_bad", "version": "0", "host": "h", "pid": 1, "cpu": 1.0, "memory_mb": 1,
}  # fmt: skip
REPORT: dict[str, Any] = {"job": "job_x", "attempt": 1, "token": "t", "seq": 0, "at": 0.0}
HELLOS = [{"pid": 2**63}, {"pid": -1}, {"memory_mb": 2**64 - 1}, {"cpu": math.nan}, {"cpu": math.inf}, {"cpu": -1.0}]
REPORTS = [{"attempt": 2**63}, {"seq": -1}, {"at": math.nan}, {"at": -math.inf}, {"seq": 1.0}]


async def refused(agent: Puppet, said: bytes) -> None:
    await agent.say(said)
    with pytest.raises(ConnectionError, match="1007"):
        await agent.next(StartContainer)
    assert agent._session is not None
    await agent._session  # it ended by itself, with nothing left over


@pytest.mark.parametrize("odd", HELLOS)
async def test_a_hello_with_numbers_that_nothing_can_hold_is_refused(stage: Stage, odd: dict[str, Any]) -> None:
    agent = Puppet(stage, "agt_bad")
    await agent.open()
    await refused(agent, msgspec.msgpack.encode({**HELLO, **odd}))
    assert await stage.control.fleet.agents() == []


@pytest.mark.parametrize("odd", REPORTS)
async def test_a_report_with_numbers_that_nothing_can_hold_is_refused(
    stage: Stage, agent: Puppet, odd: dict[str, Any]
) -> None:
    await refused(agent, msgspec.msgpack.encode({"type": "reports", "number": 0, "reports": [{**REPORT, **odd}]}))


@pytest.mark.parametrize("said", [b"\x81\xa4type\xa2\xc0\x80", b"\x91" * 100_000])
async def test_text_that_is_none_and_a_bottomless_list_are_refused(stage: Stage, agent: Puppet, said: bytes) -> None:
    await refused(agent, said)


async def test_a_session_has_one_hello(stage: Stage, agent: Puppet) -> None:
    await refused(agent, msgspec.msgpack.encode(HELLO))
    connected = {one.id: one.connected for one in await stage.control.fleet.agents()}
    assert connected == {agent.name: False}


# --- under another's name


async def turned_away(agent: Puppet) -> None:
    await agent.open()
    await agent.hello()
    with pytest.raises(ConnectionError, match="1008"):
        await agent.next(Welcome)


async def test_a_key_cannot_take_over_the_agent_of_another(
    stage: Stage, agent: Puppet, caplog: pytest.LogCaptureFixture
) -> None:
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    thief = Puppet(stage, agent.name, key=await stage.create_key("worker"))

    with caplog.at_level("WARNING", "apothic.control"):
        await turned_away(thief)

    (line,) = caplog.messages
    assert line.startswith(f"session.refused agent={agent.name} error=another key")
    await agent.finish(given)  # in the session that it had all the time
    assert await stage.status(job) == "succeeded"


async def test_an_agent_that_is_away_is_still_its_keys(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    await agent.cut()
    thief = Puppet(stage, agent.name, key=await stage.create_key("worker"))

    await turned_away(thief)

    await agent.connect()
    await agent.finish(given)
    assert await stage.status(job) == "succeeded"


async def test_of_two_keys_that_come_at_once_as_one_agent_one_is_let_in(stage: Stage) -> None:
    both = [Puppet(stage, "agt_new", key=await stage.create_key("worker")) for _ in range(2)]
    placed, met = threading.Event(), threading.Event()

    def commit_late() -> None:
        placed.set()
        assert met.wait(10)

    for each in both:
        await each.open()
    stage.control.db.commit_s = 1.0  # a slow disk: its commits are made in a thread
    stage.probe.on("commit.before", commit_late)
    deploying = asyncio.create_task(stage.deploy())
    await asyncio.to_thread(placed.wait, 10)  # so that neither of the two is known when the other comes
    here = stage.control.sessions._sessions
    for each in both:
        before = here.get("agt_new")
        await each.hello()
        async with asyncio.timeout(PATIENCE_S):
            while here.get("agt_new") is before:
                await asyncio.sleep(0.001)
    met.set()
    await deploying

    outcomes = await asyncio.gather(*(each.next(Welcome) for each in both), return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [Welcome, ConnectionError]
    assert both[1].closed == 1008
    with pytest.raises(ConnectionError, match="1001"):  # the other had taken its place
        await both[0].next(StartContainer)
    await both[0].connect()
    assert {one.id: one.connected for one in await stage.control.fleet.agents()} == {"agt_new": True}


@pytest.mark.parametrize("end", ["revoked", "expired"])
async def test_an_agent_comes_back_with_a_new_key_once_its_old_one_is_dead(stage: Stage, end: str) -> None:
    made = await stage.got("POST /v1/keys", {"name": "old", "scopes": ["worker"], "expires_in_s": 60})
    agent = await stage.agent("agt_two", key=made["secret"])
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    await agent.begin(given)
    await agent.cut()
    agent.key = await stage.create_key("worker")
    await turned_away(agent)  # as long as the old one is good

    if end == "revoked":
        await stage.got(f"DELETE /v1/keys/{made['key']['id']}")
    else:
        await stage.clock.advance(61)
    await agent.connect()

    await agent.finish(given)
    assert (await stage.job(job))["attempt"] == 1
    thief = Puppet(stage, agent.name, key=stage.agent_key)
    await turned_away(thief)  # it is the new key's by now


async def test_a_name_is_free_once_its_agent_is_gone(stage: Stage, agent: Puppet) -> None:
    await agent.cut()
    other = Puppet(stage, agent.name, key=await stage.create_key("worker"))
    await turned_away(other)
    await stage.sweep(31)
    await other.connect()
    assert {one.id: one.connected for one in await stage.control.fleet.agents()} == {agent.name: True}
