"""What containers print that belongs to no job: each line once, the newest kept, a gap told."""

from __future__ import annotations

import asyncio

import pytest
from walkrig import Puppet, Stage, spec

from apothic.protocol.session import ContainerSaid, Line, StartContainer
from apothic.store import applogs


def said(container: str, *texts: str, first: int = 0, stream: str = "stdout") -> ContainerSaid:
    lines = [Line(stream=stream, text=text, at=5.0) for text in texts]  # type: ignore[arg-type]
    return ContainerSaid(container=container, first=first, lines=lines)


async def started(stage: Stage, agent: Puppet, name: str = "f", app: str = "app") -> str:
    await stage.deploy(app, spec(name))
    start = await agent.next(StartContainer)
    await agent.ready(start)
    return start.container


async def texts(stage: Stage, query: str = "") -> list[str]:
    return [line["text"] for line in (await stage.got(f"GET /v1/apps/app/logs{query}"))["lines"]]


async def test_the_lines_of_a_container_are_the_apps(stage: Stage, agent: Puppet) -> None:
    container = await started(stage, agent)
    await agent.tell(said=[said(container, "loading", "a warning", stream="stderr")])
    logs = await stage.got("GET /v1/apps/app/logs")
    assert logs["trimmed"] == 0
    assert logs["lines"][0] == {
        "line": 0, "function": "f", "container": container, "stream": "stderr", "text": "loading", "at": 5.0,
    }  # fmt: skip
    more = (await stage.ask("GET /v1/apps/app/logs", query={"after": 0})).json()["lines"]
    assert [line["text"] for line in more] == ["a warning"]
    assert (await stage.ask("GET /v1/apps/app/logs", query={"function": "g"})).json()["lines"] == []
    assert (await stage.ask("GET /v1/apps/none/logs")).status == 404


async def test_a_frame_that_comes_twice_counts_once(stage: Stage, agent: Puppet) -> None:
    container = await started(stage, agent)
    await agent.tell(said=[said(container, "one", "two")])
    await agent.tell(said=[said(container, "one", "two")])
    await agent.tell(said=[said(container, "two", "three", first=1)])
    assert await texts(stage) == ["one", "two", "three"]


async def test_another_agents_container_is_not_believed(stage: Stage, agent: Puppet) -> None:
    container = await started(stage, agent)
    other = await stage.agent("agt_two")
    await other.tell(said=[said(container, "a lie"), said("ctr_none", "another")])
    assert await texts(stage) == []


async def test_the_newest_are_kept_and_the_gap_is_told(
    stage: Stage, agent: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applogs, "KEPT", 3)
    container = await started(stage, agent)
    for number in range(5):
        await agent.tell(said=[said(container, f"line {number}", first=number)])
    assert await texts(stage) == ["line 2", "line 3", "line 4"]
    assert (await stage.got("GET /v1/apps/app/logs"))["trimmed"] == 2


async def test_who_waits_is_told_when_a_line_comes(stage: Stage, agent: Puppet) -> None:
    container = await started(stage, agent)
    waiting = asyncio.ensure_future(stage.ask("GET /v1/apps/app/logs", query={"wait_s": 30}))
    while repr(stage.control.hub) == "<Hub 0 listening>":
        await asyncio.sleep(0)
    await agent.tell(said=[said(container, "at last")])
    assert [line["text"] for line in (await waiting).json()["lines"]] == ["at last"]


async def test_a_key_of_one_function_does_not_open_the_logs_of_its_app(stage: Stage, agent: Puppet) -> None:
    await started(stage, agent)
    key = await stage.create_key("invoke:app/f")
    refused = await stage.ask("GET /v1/apps/app/logs", key=key)
    assert (refused.status, refused.code) == (403, "auth")
