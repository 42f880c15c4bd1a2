"""What becomes of a deployment, as a stream: by the rules of the jobs' streams, over both transports."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from followrig import Follower
from walkrig import DONE, Puppet, Stage, spec

from apothic.protocol.messages import Failure
from apothic.protocol.session import ContainerNews, StartContainer

BROKEN = Failure(kind="startup", type="ImportError", message="no module", traceback="long", log_tail="longer")


async def page(stage: Stage, deployment: str, **query: Any) -> dict[str, Any]:
    return dict(await stage.got(f"GET /v1/deployments/{deployment}/events", query={"wait_s": 0} | query))


async def told(stage: Stage, deployment: str) -> list[str]:
    return [one["data"]["status"] for one in (await page(stage, deployment))["events"]]


async def gone(agent: Puppet, failure: Failure | None = None) -> None:
    """Let all containers of an agent end."""
    ended = [ContainerNews(id=container, state="gone", failure=failure) for container in agent.containers]
    agent.containers.clear()
    await agent.tell(containers=ended)


async def test_from_the_manifest_to_the_last_container(stage: Stage, agent: Puppet) -> None:
    deployment = (await stage.deploy())["id"]
    assert await told(stage, deployment) == ["building", "starting"]
    await agent.ready(await agent.next(StartContainer))
    assert await told(stage, deployment) == ["building", "starting", "ready", "live"]
    await stage.live(agent, "app", spec("other"))
    assert (await told(stage, deployment))[4:] == ["draining"]
    await gone(agent)
    whole = await page(stage, deployment)
    assert [(one["index"], one["event"]) for one in whole["events"]] == [(n, "deployment.status") for n in range(6)]
    assert whole["events"][-1]["data"] == {"status": "stopped", "at": stage.clock.now()}
    assert (whole["next_index"], whole["head_index"], whole["oldest_index"], whole["end"]) == (5, 5, 0, False)


async def test_one_that_was_live_is_live_again(stage: Stage, agent: Puppet) -> None:
    first = (await stage.deploy())["id"]
    await agent.ready(await agent.next(StartContainer))
    await stage.live(agent, "app", spec("other"))
    await stage.got(f"POST /v1/apps/app/deployments/{first}/activate")
    assert (await told(stage, first))[4:] == ["draining", "live"]
    await stage.got("DELETE /v1/apps/app")
    assert (await told(stage, first))[6:] == ["draining"]
    await gone(agent)
    assert (await told(stage, first))[7:] == ["stopped"]


async def test_without_a_container_it_starts_nothing_and_is_stopped_at_once(stage: Stage) -> None:
    deployment = (await stage.deploy())["id"]
    assert await told(stage, deployment) == ["building"]
    await stage.got("DELETE /v1/apps/app")
    assert await told(stage, deployment) == ["building", "stopped"]
    assert (await stage.deploy())["id"] == deployment
    assert await told(stage, deployment) == ["building", "stopped", "building"]


async def test_what_works_on_is_draining_until_it_has_ended(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    deployment = (await stage.got("GET /v1/apps/app"))["deployment_id"]
    await stage.submit(function)
    given = await agent.work()
    await agent.begin(given)
    await stage.live(agent, "app", spec("other"))
    assert (await told(stage, deployment))[-1] == "draining"
    await agent.finish(given, DONE)
    assert (await told(stage, deployment))[-1] == "draining"
    await gone(agent)
    assert (await told(stage, deployment))[-1] == "stopped"


async def test_a_failure_says_why_without_all_that_was_printed(stage: Stage, agent: Puppet) -> None:
    deployment = (await stage.deploy())["id"]
    start = await agent.next(StartContainer)
    await agent.tell(containers=[ContainerNews(id=start.container, state="gone", failure=BROKEN)])
    (*_, last) = (await page(stage, deployment))["events"]
    why = {"kind": "startup", "type": "ImportError", "message": "no module"}
    assert last["data"] == {"status": "failed", "at": stage.clock.now(), "failure": why}


async def test_one_that_is_overtaken_is_ready_and_never_live(stage: Stage, agent: Puppet) -> None:
    late = (await stage.deploy())["id"]
    start = await agent.next(StartContainer)
    await stage.live(agent, "app", spec("newer"))
    await agent.ready(start)
    assert await told(stage, late) == ["building", "starting", "ready"]
    await gone(agent)
    assert await told(stage, late) == ["building", "starting", "ready", "stopped"]


async def test_a_page_waits_for_what_comes_next(stage: Stage, agent: Puppet) -> None:
    deployment = (await stage.deploy())["id"]
    asked = asyncio.ensure_future(page(stage, deployment, after=1, wait_s=20))
    await asyncio.sleep(0)
    await agent.ready(await agent.next(StartContainer))
    assert [one["index"] for one in (await stage.settled(asked))["events"]] == [2, 3]
    nothing = await stage.settled(asyncio.ensure_future(page(stage, deployment, after=3, wait_s=20)))
    assert (nothing["events"], nothing["next_index"], nothing["end"]) == ([], 3, False)


async def test_pages_of_any_size_and_the_stream_are_the_same(stage: Stage, agent: Puppet) -> None:
    await stage.live(agent)
    await stage.live(agent, "app", spec("other"))
    await gone(agent)
    deployment = next(
        one["id"] for one in (await stage.got("GET /v1/apps/app/deployments"))["deployments"] if not one["live"]
    )
    whole = (await page(stage, deployment))["events"]
    for limit in (1, 2, 5):
        after, pieces = -1, []
        while (piece := await page(stage, deployment, after=after, limit=limit))["events"]:
            assert len(piece["events"]) <= limit
            pieces += piece["events"]
            after = piece["next_index"]
        assert pieces == whole
    follower = await Follower(stage, deployment, of="deployments").open()
    assert (await follower.next()) == ("", None, -1)  # the place it starts from
    frames = [await follower.next() for _ in whole]
    assert [(one.event, one.data, one.id) for one in frames if one is not None] == [
        (one["event"], one["data"], one["index"]) for one in whole
    ]
    await follower.cut()


async def test_a_stream_goes_on_where_it_was_and_hears_what_comes(stage: Stage, agent: Puppet) -> None:
    deployment = (await stage.deploy())["id"]
    follower = await Follower(stage, deployment, of="deployments", headers={"last-event-id": "0"}).open()
    blocks = [await follower.next() for _ in range(2)]
    assert [(one.event, one.id) for one in blocks if one is not None] == [("", 0), ("deployment.status", 1)]
    await agent.ready(await agent.next(StartContainer))
    news = [await follower.next() for _ in range(2)]
    assert [one.data["status"] for one in news if one is not None] == ["ready", "live"]
    assert await follower.quiet()  # it has no end
    await follower.cut()


async def test_a_cursor_that_is_ahead_is_told_so_and_all_is_sent(stage: Stage, agent: Puppet) -> None:
    await stage.live(agent)
    deployment = (await stage.got("GET /v1/apps/app"))["deployment_id"]
    first = await page(stage, deployment, after=99)
    assert (first["events"], first["next_index"]) == ([], -1)
    assert first["reset"] | {"retained_from": 0, "trimmed": 0} == {
        "reason": "cursor_ahead", "requested_index": 99, "resume_index": -1, "oldest_index": 0, "head_index": 3,
        "retained_from": 0, "trimmed": 0, "status": "live",
    }  # fmt: skip
    assert len((await page(stage, deployment, after=first["next_index"]))["events"]) == 4


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [({"after": -2}, 400, "after"), ({"limit": 0}, 400, "limit"), ({"type": "job.log"}, 400, "no parameter 'type'")],
)
async def test_bad_parameters_are_named(stage: Stage, query: dict[str, Any], status: int, said: str) -> None:
    deployment = (await stage.deploy())["id"]
    answer = await stage.ask(f"GET /v1/deployments/{deployment}/events", query={"wait_s": 0} | query)
    assert answer.status == status and said in answer.json()["error"]["message"]


async def test_who_may_read_it_and_what_is_not_there(stage: Stage, agent: Puppet) -> None:
    await stage.live(agent)
    deployment = (await stage.got("GET /v1/apps/app"))["deployment_id"]
    path = f"GET /v1/deployments/{deployment}/events"
    query = {"wait_s": 0}
    assert (await stage.ask(path, key=None, query=query)).status == 401
    assert (await stage.ask(path, key=await stage.create_key("worker"), query=query)).status == 403
    assert (await stage.ask(path, key=await stage.create_key("read:jobs"), query=query)).status == 200
    assert (await stage.ask("GET /v1/deployments/dep_none/events", query=query)).status == 404
    # Each kind of id at its own address.
    assert (await stage.ask(f"GET /v1/jobs/{deployment}/events", query=query)).status == 404
    assert (await Follower(stage, "dep_none", of="deployments").refused()).status == 404
