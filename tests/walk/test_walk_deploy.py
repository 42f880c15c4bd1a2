"""Deploying, going live, failing to, going back, stopping."""

from __future__ import annotations

import asyncio

import pytest
from walkrig import Puppet, Stage, spec

from apothic.protocol.messages import AppManifest, Failure
from apothic.protocol.session import ContainerNews, StartContainer, StopContainer

NO_IMPORT = Failure(kind="startup", type="ImportError", message="no module", log_tail="Traceback …")
DIED = Failure(kind="startup", type="ProcessDied", message="status 0", retriable=True, log_tail="bye")


async def test_a_deployment_is_live_once_a_container_has_started(stage: Stage, agent: Puppet) -> None:
    deployment = await stage.deploy("app", spec("f"), spec("g"))
    assert deployment["status"] == "starting" and not deployment["live"]
    start = await agent.next(StartContainer)
    assert (start.app, start.function.name, start.deployment) == ("app", "f", deployment["id"])
    waiting = asyncio.ensure_future(stage.got(f"GET /v1/deployments/{deployment['id']}", query={"wait_s": 30}))
    await agent.ready(start)
    assert (await waiting)["status"] == "live"
    app = await stage.got("GET /v1/apps/app")
    assert (app["deployment_id"], app["stopped"]) == (deployment["id"], False)
    found = await stage.got("GET /v1/functions", query={"app": "app"})
    assert [each["name"] for each in found["functions"]] == ["f", "g"]


@pytest.mark.parametrize("failure", [NO_IMPORT, DIED])
async def test_a_failed_start_keeps_the_old_version_live(stage: Stage, agent: Puppet, failure: Failure) -> None:
    function = await stage.live(agent, "app", spec("f"))
    old = (await stage.got("GET /v1/apps/app"))["deployment_id"]
    manifest = AppManifest(app="app", functions=[spec("f", cpu=0.02)])
    waiting = asyncio.ensure_future(stage.got("POST /v1/apps/app/deployments", manifest, query={"wait_s": 30}))
    start = await agent.next(StartContainer)
    await agent.tell(containers=[ContainerNews(id=start.container, state="gone", failure=failure)])
    new = (await waiting)["deployment"]
    assert (new["status"], new["live"], new["startup_log"]) == ("failed", False, failure.log_tail)
    assert new["failure"]["message"] == failure.message
    app = await stage.got("GET /v1/apps/app")
    assert app["deployment_id"] == old
    assert (await stage.job(await stage.submit(function)))["deployment_id"] == old
    assert (await agent.work()).input.data == b'{"args":[],"kwargs":{}}'
    await stage.sweep(2)  # and it is not tried over and over
    assert not [frame for frame in await agent.frames() if isinstance(frame, StartContainer)]


async def test_an_older_version_that_starts_late_does_not_take_over(stage: Stage, agent: Puppet) -> None:
    first = await stage.deploy("app", spec("f"))
    slow = await agent.next(StartContainer)
    second = await stage.deploy("app", spec("f"), spec("g"))
    await agent.ready(await agent.next(StartContainer))

    await agent.ready(slow)

    assert (await stage.got("GET /v1/apps/app"))["deployment_id"] == second["id"]
    assert (await stage.got(f"GET /v1/deployments/{first['id']}"))["status"] == "ready"


async def test_deploying_the_live_version_again_wins_over_one_that_is_being_started(
    stage: Stage, agent: Puppet
) -> None:
    first = await stage.deploy("app", spec("f"))
    await agent.ready(await agent.next(StartContainer))
    second = await stage.deploy("app", spec("f"), spec("g"))
    starting = await agent.next(StartContainer)

    await stage.deploy("app", spec("f"))
    await agent.ready(starting)

    assert (await stage.got("GET /v1/apps/app"))["deployment_id"] == first["id"]
    assert (await stage.got(f"GET /v1/deployments/{second['id']}"))["status"] == "ready"


async def test_a_failed_deployment_can_be_tried_again(stage: Stage, agent: Puppet) -> None:
    first = await stage.deploy()
    start = await agent.next(StartContainer)
    await agent.tell(containers=[ContainerNews(id=start.container, state="gone", failure=NO_IMPORT)])
    again = await stage.deploy()
    assert (again["id"], again["status"]) == (first["id"], "starting")
    await agent.ready(await agent.next(StartContainer))
    assert (await stage.got(f"GET /v1/deployments/{first['id']}"))["status"] == "live"


async def test_a_proof_whose_agent_is_lost_is_given_to_another(stage: Stage, agent: Puppet) -> None:
    deployment = await stage.deploy()
    await agent.next(StartContainer)
    other = await stage.agent("agt_two", pid=2)
    await stage.control.fleet.dead("h", 1)
    await other.ready(await other.next(StartContainer))
    assert (await stage.got(f"GET /v1/deployments/{deployment['id']}"))["status"] == "live"


async def test_without_an_agent_a_deployment_waits_for_one(stage: Stage) -> None:
    deployment = await stage.deploy()
    await stage.sweep(5)
    assert (await stage.got(f"GET /v1/deployments/{deployment['id']}"))["status"] == "starting"
    agent = await stage.agent()
    await agent.ready(await agent.next(StartContainer))
    assert (await stage.got(f"GET /v1/deployments/{deployment['id']}"))["status"] == "live"


async def test_a_proof_starts_though_every_cpu_is_taken(stage: Stage) -> None:
    agent = await stage.agent(cpu=1.0)
    function = await stage.live(agent, "one", spec(cpu=1.0))
    await stage.submit(function)
    await agent.begin(await agent.work())
    await stage.deploy("two", spec(cpu=1.0))
    assert (await agent.next(StartContainer)).app == "two"


async def test_what_no_agent_can_ever_start_fails_the_deployment(stage: Stage, agent: Puppet) -> None:
    manifest = AppManifest(app="app", functions=[spec(gpu="H100")])
    deployed = await stage.got("POST /v1/apps/app/deployments", manifest, query={"wait_s": 30})
    deployment = deployed["deployment"]
    assert (deployment["status"], deployment["failure"]["kind"]) == ("failed", "unsatisfiable")
    assert "H100" in deployment["failure"]["message"]


async def test_going_back_to_an_older_version(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec())
    old = (await stage.got("GET /v1/apps/app"))["deployment_id"]
    assert await stage.live(agent, "app", spec(cpu=0.02)) == function
    new = (await stage.got("GET /v1/apps/app"))["deployment_id"]
    assert new != old
    assert (await stage.got(f"POST /v1/apps/app/deployments/{old}/activate"))["status"] == "live"
    listed = (await stage.got("GET /v1/apps/app/deployments"))["deployments"]
    assert {each["id"]: each["status"] for each in listed} == {old: "live", new: "ready"}
    assert (await stage.job(await stage.submit(function)))["deployment_id"] == old
    pinned = await stage.submit(function, body={"deployment_id": new})
    assert (await stage.job(pinned))["deployment_id"] == new
    other = await stage.ask(f"POST /v1/apps/other/deployments/{old}/activate")
    assert (other.status, other.code) == (404, "not_found")


async def test_a_version_that_never_started_cannot_be_activated(stage: Stage, agent: Puppet) -> None:
    deployment = await stage.deploy()
    answer = await stage.ask(f"POST /v1/apps/app/deployments/{deployment['id']}/activate")
    assert (answer.status, answer.code) == (409, "conflict")


async def test_a_stopped_app_takes_no_jobs_and_its_containers_end(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    assert (await stage.got("DELETE /v1/apps/app"))["stopped"]
    assert (await agent.next(StopContainer)).reason == "its deployment is no longer live"
    answer = await stage.ask(f"POST /v1/functions/{function}/jobs", {"args": []})
    assert (answer.status, answer.code) == (404, "not_found")
    assert (await stage.ask("DELETE /v1/apps/nothing")).status == 404
    assert (await stage.deploy())["status"] == "starting"


async def test_stopping_an_app_ends_the_wait_for_its_start(stage: Stage, agent: Puppet) -> None:
    manifest = AppManifest(app="app", functions=[spec()])
    waiting = asyncio.ensure_future(stage.got("POST /v1/apps/app/deployments", manifest, query={"wait_s": 50}))
    start = await agent.next(StartContainer)
    await stage.got("DELETE /v1/apps/app")
    assert (await waiting)["deployment"]["status"] == "stopped"
    await agent.ready(start)
    assert (await stage.got("GET /v1/apps/app"))["deployment_id"] is None
    assert (await agent.next(StopContainer)).container == start.container


async def test_an_idle_container_is_stopped_after_keep_warm(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(keep_warm_s=100))
    await stage.sweep(60)
    await stage.submit(function)
    await agent.finish(await agent.work())
    await stage.sweep(99)
    assert not [frame for frame in await agent.frames() if isinstance(frame, StopContainer)]
    await stage.sweep(1)
    stop = await agent.next(StopContainer)
    assert (stop.reason, stop.container in agent.containers) == ("idle", True)
    await agent.tell(containers=[ContainerNews(id=stop.container, state="gone")])
    await stage.submit(function)
    assert (await agent.next(StartContainer)).container != stop.container


async def test_a_manifest_that_contradicts_itself_is_refused(stage: Stage) -> None:
    wrong = [
        ({"app": "b", "functions": []}, "the manifest 'b'"),
        ({"app": "a", "functions": [{"name": "f", "module": "m", "qualname": "f"}] * 2}, "same name"),
        ({"app": "a", "functions": [{"name": "f"}]}, "needs a module"),
        ({"app": "a", "functions": [{"name": "f", "module": "m", "qualname": "f", "options": {"cpu": -1}}]}, "cpu"),
    ]
    for manifest, why in wrong:
        answer = await stage.ask("POST /v1/apps/a/deployments", manifest)
        assert answer.status == 400
        assert why in answer.json()["error"]["message"]
    assert (await stage.got("GET /v1/apps"))["apps"] == []
