"""Services through the whole control plane: what the API tells of them, and what keeps them and their server up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from walkrig import Puppet, Stage, spec

from apothic.control.sweeps import IDLE_S, idle
from apothic.protocol.messages import FunctionSpec
from apothic.protocol.session import ContainerNews, Renew, StartContainer, StopContainer
from apothic.protocol.specs import FunctionOptions, Period


def web(name: str = "web", kind: Any = "asgi", **options: Any) -> FunctionSpec:
    given = {"cpu": 0.01, "memory_mb": 1} | options
    return FunctionSpec(name=name, module="app", qualname=name, kind=kind, options=FunctionOptions(**given))


async def ready(agent: Puppet, start: StartContainer) -> str:
    """Let a service's container answer."""
    news = ContainerNews(id=start.container, state="ready", pid=7, address=f"unix:/{start.container}")
    agent.containers[start.container] = news
    await agent.tell(containers=[news])
    return start.container


async def test_a_service_is_live_once_it_answers_and_has_its_url_then(stage: Stage, agent: Puppet) -> None:
    stage.control.catalog.gateway_url = "http://gate"
    deployment = await stage.deploy("shop", spec("job"), web())
    assert [one["service_url"] for one in deployment["functions"]] == [None, None]
    start = await agent.next(StartContainer)
    assert start.function.name == "web" and start.secret  # what shows that it starts is the service
    await ready(agent, start)
    (job, served) = (await stage.got("GET /v1/apps/shop"))["functions"]
    assert (job["service_url"], served["service_url"]) == (None, "http://gate/shop/web/")
    assert (await stage.got(f"GET /v1/functions/{served['id']}"))["service_url"] == "http://gate/shop/web/"
    await stage.got("DELETE /v1/apps/shop")
    (version,) = (await stage.got("GET /v1/apps/shop/deployments"))["deployments"]
    assert version["functions"][1]["service_url"] is None


async def test_a_service_runs_no_jobs_and_has_no_schedule(stage: Stage, agent: Puppet) -> None:
    await stage.deploy("shop", web(kind="web_server"))
    await ready(agent, await agent.next(StartContainer))
    (served,) = (await stage.got("GET /v1/functions", query={"app": "shop"}))["functions"]
    for path, body in (("jobs", {"args": []}), ("jobs/batch", {"jobs": [{"args": []}]})):
        answer = await stage.ask(f"POST /v1/functions/{served['id']}/{path}", body)
        assert (answer.status, answer.code) == (400, "invalid_request")
        error = answer.json()["error"]
        assert (
            error["message"] == "shop.web is a web_server service and runs no jobs" and error["hint"] == "ask its URL"
        )
    scheduled = {"app": "shop", "functions": [web(schedule=Period(days=1))], "files": []}
    answer = await stage.ask("POST /v1/apps/shop/deployments", scheduled)
    assert answer.status == 400 and "no schedule" in answer.json()["error"]["message"]


async def test_idle_containers_end_and_demand_brings_them_back(stage: Stage, agent: Puppet) -> None:
    await stage.deploy("shop", web(keep_warm_s=5))
    first = await ready(agent, await agent.next(StartContainer))
    await stage.sweep(5)
    stop = await agent.next(StopContainer)
    assert (stop.container, stop.reason) == (first, "idle")
    await agent.tell(containers=[ContainerNews(id=first, state="gone")])
    (served,) = (await stage.control.services.table()).live
    await stage.control.services.want({served.version: 1})
    assert (await agent.next(StartContainer)).function.name == "web"


async def test_a_live_service_keeps_an_embedded_server_up(stage: Stage, agent: Puppet) -> None:
    await stage.deploy("shop", web())
    await ready(agent, await agent.next(StartContainer))
    stopped, control = asyncio.Event(), stage.control
    idling = idle(stage.clock, control.jobs, control.schedules, control.services, lambda: 0, stopped.set)
    loop = asyncio.create_task(idling)

    async def pass_(seconds: float) -> None:
        for _ in range(round(seconds / 30)):
            await stage.clock.advance(30)
            await asyncio.sleep(0.005)

    await pass_(2 * IDLE_S)
    assert not stopped.is_set()
    await control.catalog.stop_app("shop")
    await stage.settled(asyncio.ensure_future(stopped.wait()), 30)
    await loop


@pytest.mark.parametrize("leaves", [True, False])
async def test_who_is_away_is_not_asked(stage: Stage, agent: Puppet, leaves: bool) -> None:
    await stage.deploy("shop", web())
    container = await ready(agent, await agent.next(StartContainer))

    async def usable() -> dict[str, bool]:
        return {each.container: each.usable for each in (await stage.control.services.table()).containers}

    assert await usable() == {container: True}
    if leaves:
        await stage.control.fleet.leaving(agent.name)
    else:
        await agent.cut()
    assert await usable() == {container: False}
    await agent.cut()
    await agent.connect()
    assert await usable() == {container: not leaves}  # who leaves has been told to stop it


@pytest.mark.parametrize("address", ["unix:/etc/x", "port:22", "unix:", "file:/x", "http://10.0.0.1/", "RELAY:x:1"])
async def test_an_agent_elsewhere_cannot_lead_the_gateway_to_sockets_of_this_machine(
    stage: Stage, address: str
) -> None:
    away = await stage.agent("agt_away", key=await stage.create_key("worker"))
    await stage.deploy("shop", web())
    start = await away.next(StartContainer)
    await away.tell(containers=[ContainerNews(id=start.container, state="ready", pid=7, address=address)])
    assert (await stage.control.services.table()).containers == ()
    await away.tell(containers=[ContainerNews(id=start.container, state="ready", pid=7, address="relay:10.0.0.7:4711")])
    (serving,) = (await stage.control.services.table()).containers
    assert serving.address == "relay:10.0.0.7:4711"


async def test_services_of_an_agent_that_leaves_are_told_to_stop_once(stage: Stage, agent: Puppet) -> None:
    await stage.deploy("shop", spec("job"), web())
    container = await ready(agent, await agent.next(StartContainer))
    for _ in range(2):
        await agent.say(Renew(number=1, leaving=True))
    stop = await agent.next(StopContainer)
    assert (stop.container, stop.finish) == (container, True)
    assert [frame for frame in await agent.frames() if isinstance(frame, StopContainer)] == []
    assert not any(serving.usable for serving in (await stage.control.services.table()).containers)
