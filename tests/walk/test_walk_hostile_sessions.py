"""What an agent must not say: numbers that nothing can hold, text that is none, a second hello."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from walkrig import Puppet, Stage

from apothic.protocol.session import StartContainer

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
