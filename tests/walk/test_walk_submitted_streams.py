"""A submission that is answered with the stream of its items: one request for a job and all that it yields."""

from __future__ import annotations

import json
from typing import Any

import pytest
from followrig import Follower
from walkrig import DONE, HOST, Puppet, Stage, items, scope_of, spec

from apothic.control import streams
from apothic.protocol.session import Outcome


def submitter(stage: Stage, function: str, *, accept: str = "text/event-stream", **body: Any) -> Follower:
    """Return a connection that submits a job when it is opened."""
    follower = Follower(stage, "")
    sent = {"host": HOST, "accept": accept, "authorization": f"Bearer {stage.key}"}
    sent["content-type"] = "application/json"
    state = follower.scope["state"]
    follower.scope = scope_of("http", "POST", f"/v1/functions/{function}/jobs", sent, "") | {"state": state}
    follower.body = json.dumps({"args": [], "attached": True} | body).encode()
    return follower


async def test_an_attached_submission_is_answered_with_its_items_and_named_in_the_head(
    stage: Stage, agent: Puppet
) -> None:
    reader = await submitter(stage, await stage.live(agent, "app", spec())).open()
    job = reader.headers["apothic-job"]
    assert (reader.status, reader.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert await reader.next() == ("", None, -1)

    given = await agent.work()
    assert given.job == job
    await agent.begin(given)
    await agent.tell(agent.report(given, said=items("a", "b"), texts=["a line"]))
    await agent.finish(given, Outcome(value=DONE.value, items=2, ran_s=1.0))
    told = await reader.rest()
    assert [one.event for one in told] == ["job.stream_item", "job.stream_item", "job.end"]
    assert told[0].data["value"] == {"encoding": "json", "data": "a"}


async def test_the_same_submission_again_is_answered_with_the_same_stream_from_its_first_item(
    stage: Stage, agent: Puppet
) -> None:
    function = await stage.live(agent, "app", spec())
    first = await submitter(stage, function, idempotency_key="once").open()
    given = await agent.work()
    await agent.begin(given)
    await agent.tell(agent.report(given, said=items("a")))
    await first.cut()

    again = await submitter(stage, function, idempotency_key="once").open()
    assert again.headers["apothic-job"] == first.headers["apothic-job"] == given.job
    told = [await again.next(), await again.next()]
    assert [one and one.event for one in told] == ["", "job.stream_item"]
    await again.cut()


@pytest.mark.parametrize(
    "more", [{"attached": False}, {"accept": "application/json"}], ids=["not attached", "no stream wanted"]
)
async def test_otherwise_it_is_answered_with_its_job(stage: Stage, agent: Puppet, more: dict[str, Any]) -> None:
    answer = await submitter(stage, await stage.live(agent, "app", spec()), **more).refused()
    assert answer.status == 202
    assert answer.json()["job"]["id"].startswith("job_")
    assert "apothic-job" not in answer.headers


async def test_where_there_is_no_room_for_another_stream_the_job_is_named_all_the_same(
    stage: Stage, agent: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LARGEST_PER_KEY", 0)
    answer = await submitter(stage, await stage.live(agent, "app", spec())).refused()
    assert answer.status == 202
    assert (await stage.job(answer.json()["job"]["id"]))["status"] in ("queued", "starting")
