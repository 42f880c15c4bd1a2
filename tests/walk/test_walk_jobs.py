"""The walk of a call: submitted, pushed, reported, answered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from walkrig import DONE, Puppet, Stage, spec

from apothic.protocol.messages import Failure
from apothic.protocol.session import CancelAttempt, Line, Outcome, Packed, Work

RAISED = Outcome(failure=Failure(kind="user", type="ValueError", message="no", traceback="tb", retriable=True))
CRASHED = Outcome(failure=Failure(kind="worker_lost", type="ProcessDied", message="signal 9", retriable=True))
KILLED = Outcome(failure=Failure(kind="cancelled", type="Cancelled", message="by request"))


async def test_submit_and_push_share_one_commit(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    before = stage.control.db.commits
    job = await stage.submit(function, "hello", 1)
    assert stage.control.db.commits - before == 1
    given = await agent.work()
    assert (given.job, given.attempt, given.timeout_s, given.accept) == (job, 1, 600.0, ["json"])
    assert given.input.data == b'{"args":["hello",1],"kwargs":{}}'
    await agent.finish(given)
    assert stage.control.db.commits - before == 2


async def test_a_submit_that_waits_is_answered_with_the_result(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    waiting = asyncio.ensure_future(
        stage.ask(f"POST /v1/functions/{function}/jobs", {"args": []}, query={"wait_s": 60})
    )
    await agent.finish(await agent.work())
    answer = await waiting
    assert answer.status == 200
    assert answer.json()["value"] == {"encoding": "json", "data": 42}
    assert answer.json()["job"]["status"] == "succeeded"


async def test_a_result_that_does_not_come_in_time_is_202(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    await agent.work()
    asked = asyncio.ensure_future(stage.ask(f"GET /v1/jobs/{job}/result", query={"wait_s": 1000}))
    await asyncio.sleep(0)
    while not stage.clock._sleepers:
        await asyncio.sleep(0.001)
    await stage.clock.advance(59)
    assert not asked.done()
    await stage.clock.advance(1.1)
    answer = await asyncio.wait_for(asked, 10)
    assert (answer.status, answer.json()["job"]["status"]) == (202, "starting")


@pytest.mark.parametrize("wait", ["nan", "-inf", "-1", "0"])
async def test_a_wait_that_is_no_time_is_none(stage: Stage, agent: Puppet, wait: str) -> None:
    job = await stage.submit(await stage.live(agent))
    for line in ("GET /v1/jobs/{}/result", "GET /v1/jobs/{}/logs"):
        answer = await asyncio.wait_for(stage.ask(line.format(job), query={"wait_s": wait}), 10)
        assert answer.status in (200, 202)
    gathered = await stage.ask("POST /v1/jobs/results", {"jobs": [job]}, query={"wait_s": wait})
    assert gathered.json() == {"results": []}


async def test_gather_answers_with_those_that_have_ended(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(max_containers=3))
    jobs = [await stage.submit(function, n) for n in range(3)]
    work = [await agent.work() for _ in jobs]
    waiting = asyncio.ensure_future(stage.got("POST /v1/jobs/results", {"jobs": jobs}, query={"wait_s": 50}))
    await agent.begin(work[0])
    await agent.finish(work[1])
    assert [each["job"]["id"] for each in (await stage.settled(waiting))["results"]] == [work[1].job]
    await agent.finish(work[0], RAISED)
    results = (await stage.got("POST /v1/jobs/results", {"jobs": jobs}))["results"]
    assert {each["job"]["id"]: each["job"]["status"] for each in results} == {
        work[1].job: "succeeded", work[0].job: "failed",
    }  # fmt: skip
    assert (await stage.ask("POST /v1/jobs/results", {"jobs": [*jobs, "job_x"]})).status == 404


async def test_a_batch_is_one_commit_and_one_frame(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(concurrent_requests=50))
    before = stage.control.db.commits
    batch = {"jobs": [{"args": [n], "idempotency_key": f"m:{n}"} for n in range(20)]}
    submitted = await stage.got(f"POST /v1/functions/{function}/jobs/batch", batch)
    assert len(submitted["jobs"]) == 20 and submitted["retry_after_s"] is None
    assert stage.control.db.commits - before == 1
    frame = await agent.next(Work)
    assert [given.job for given in frame.assignments] == submitted["jobs"]
    assert len((await stage.ask(f"POST /v1/functions/{function}/jobs/batch", {"jobs": [{}] * 501})).code) > 0


async def test_the_queue_is_full(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec(max_pending_tasks=1))
    await stage.submit(function)
    await stage.submit(function)
    answer = await stage.ask(f"POST /v1/functions/{function}/jobs", {"args": []})
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "queue_full", "1")
    batch = await stage.got(f"POST /v1/functions/{function}/jobs/batch", {"jobs": [{}, {}]})
    assert batch == {"jobs": [], "retry_after_s": 1.0}


@pytest.mark.parametrize(("key", "status"), [("", 400), ("x" * 201, 400), ("x" * 200, 202), ("\0", 400), ("a\0b", 400)])
async def test_idempotency_keys_have_1_to_200_characters(stage: Stage, agent: Puppet, key: str, status: int) -> None:
    path = f"POST /v1/functions/{await stage.live(agent)}/jobs"
    assert (await stage.ask(path, {"args": [], "idempotency_key": key})).status == status
    assert (await stage.ask(path, {"args": []}, headers={"idempotency-key": key})).status == status
    many = await stage.ask(f"{path}/batch", {"jobs": [{"idempotency_key": key}]})
    assert many.status == (200 if status == 202 else 400)


async def test_the_same_key_is_the_same_job(stage: Stage, agent: Puppet) -> None:
    path = f"POST /v1/functions/{await stage.live(agent)}/jobs"
    first = await stage.got(path, {"args": [1]}, headers={"idempotency-key": "k"})
    again = await stage.got(path, {"args": [1], "idempotency_key": "k"})
    assert first["job"]["id"] == again["job"]["id"]
    other = await stage.ask(path, {"args": [2]}, headers={"idempotency-key": "k"})
    assert (other.status, other.code) == (409, "conflict")
    both = await stage.ask(path, {"args": [1], "idempotency_key": "l"}, headers={"idempotency-key": "k"})
    assert both.status == 400


async def test_logs_can_be_waited_for(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    given = await agent.work()
    await agent.tell(agent.report(given, began=True, texts=["one"]))
    logs = await stage.got(f"GET /v1/jobs/{job}/logs")
    assert [line["text"] for line in logs["lines"]] == ["one"]
    waiting = asyncio.ensure_future(stage.got(f"GET /v1/jobs/{job}/logs", query={"after": 0, "wait_s": 50}))
    await agent.finish(given, DONE, "two")
    logs = await waiting
    assert [(line["line"], line["text"]) for line in logs["lines"]] == [(1, "two")] and logs["ended"]


async def test_cancelling_what_waits(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    first, second = await stage.submit(function), await stage.submit(function)
    assert await stage.got(f"POST /v1/jobs/{second}/cancel") == {"status": "cancelled"}
    assert await stage.got(f"POST /v1/jobs/{second}/cancel") == {"status": "cancelled"}
    given = await agent.work()
    await agent.finish(given, CRASHED)
    assert await stage.status(first) == "retrying"
    assert await stage.got(f"POST /v1/jobs/{first}/cancel") == {"status": "cancelled"}
    await stage.sweep(100)
    assert not [frame for frame in await agent.frames() if isinstance(frame, Work)]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("outcome", "status"), [(KILLED, "cancelled"), (DONE, "succeeded"), (RAISED, "failed")])
async def test_cancelling_what_runs(stage: Stage, agent: Puppet, begun: bool, outcome: Outcome, status: str) -> None:
    job = await stage.submit(await stage.live(agent, "app", spec(retries=3)))
    given = await agent.work()
    if begun:
        await agent.begin(given)
    for _ in range(2):
        assert await stage.got(f"POST /v1/jobs/{job}/cancel") == {"status": "cancelling"}
    assert await agent.next(CancelAttempt) == CancelAttempt(job=job, token=given.token)
    await agent.finish(given, outcome)
    assert await stage.status(job) == status
    assert await stage.got(f"POST /v1/jobs/{job}/cancel") == {"status": status}


async def test_cancelling_what_is_not_there(stage: Stage) -> None:
    answer = await stage.ask("POST /v1/jobs/job_nothing/cancel")
    assert (answer.status, answer.code) == (404, "not_found")


async def test_a_retry_is_a_new_job_with_the_same_input(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent), 7)
    assert (await stage.ask(f"POST /v1/jobs/{job}/retry")).status == 409
    await agent.finish(await agent.work(), RAISED)
    again = await stage.got(f"POST /v1/jobs/{job}/retry")
    assert (again["retry_of"], again["attempt"]) == (job, 1)
    assert (await agent.work()).input.data == b'{"args":[7],"kwargs":{}}'


async def test_retries_wait_by_the_clock(stage: Stage, agent: Puppet) -> None:
    policy = {"max_retries": 2, "initial_delay_s": 10.0, "backoff": 3.0, "jitter": False}
    job = await stage.submit(await stage.live(agent), body={"options": {"retries": policy}})
    for wait in (10.0, 30.0):
        await agent.finish(await agent.work(), RAISED)
        view = await stage.job(job)
        assert (view["status"], view["reason"]) == ("retrying", "backoff")
        await stage.sweep(wait - 0.5)
        assert await stage.status(job) == "retrying"
        await stage.sweep(0.5)
        assert await stage.status(job) == "starting"
    await agent.finish(await agent.work(), RAISED)
    view = await stage.job(job)
    assert (view["status"], view["attempt"], view["failure"]["type"]) == ("failed", 3, "ValueError")


async def test_the_crash_budget(stage: Stage, agent: Puppet) -> None:
    job = await stage.submit(await stage.live(agent))
    for _ in range(3):
        await agent.finish(await agent.work(), CRASHED)
        assert await stage.status(job) == "retrying"
        await stage.sweep(61)
    await agent.finish(await agent.work(), CRASHED)
    view = await stage.job(job)
    assert (view["status"], view["attempt"], view["failure"]["kind"]) == ("failed", 4, "worker_lost")


async def test_at_most_once_is_not_begun_twice(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    job = await stage.submit(function, body={"options": {"delivery": "at_most_once"}})
    await agent.tell(agent.report(await agent.work(), outcome=CRASHED))  # before it began: costs a crash
    assert await stage.status(job) == "retrying"
    await stage.sweep(61)
    await agent.finish(await agent.work(), CRASHED)
    assert await stage.status(job) == "failed"


async def test_a_job_past_its_queue_deadline_fails(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    await stage.submit(function)
    late = await stage.submit(function, body={"options": {"expires_in_s": 5.0}})
    await stage.sweep(4.9)
    assert await stage.status(late) == "queued"
    waiting = asyncio.ensure_future(stage.got(f"GET /v1/jobs/{late}/result", query={"wait_s": 50}))
    await stage.sweep(0.2)
    result = await waiting
    assert (result["job"]["status"], result["job"]["failure"]["kind"]) == ("failed", "expired")


async def test_a_job_that_nothing_can_run_fails_with_the_reason(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent, "app", spec("f"), spec("big", memory_mb=1 << 20))
    big = (await stage.got("GET /v1/functions", query={"name": "big"}))["functions"][0]["id"]
    answer = await stage.got(f"POST /v1/functions/{big}/jobs", {"args": []}, query={"wait_s": 1})
    failure = answer["job"]["failure"]
    assert (answer["job"]["status"], failure["kind"]) == ("failed", "unsatisfiable")
    assert "memory_mb=1048576" in failure["message"]
    assert await stage.status(await stage.submit(function)) == "starting"


async def test_a_delayed_job_begins_when_it_is_due(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    job = await stage.submit(function, body={"options": {"run_at": stage.clock.now() + 30}})
    await stage.sweep(29)
    assert (await stage.job(job))["reason"] == "delayed"
    await stage.sweep(1)
    assert (await agent.work()).job == job


async def test_pickles_pass_through_unopened(stage: Stage, agent: Puppet, nothing_is_unpickled: list[str]) -> None:
    import base64
    import pickle

    data = pickle.dumps(((Line, ValueError("x")), {}))
    value: dict[str, Any] = {"encoding": "pickle", "data": base64.b64encode(data).decode()}
    body = {"input": value, "args": None, "accept": ["json", "pickle"]}
    job = await stage.submit(await stage.live(agent), body=body)
    given = await agent.work()
    assert given.input.data == data
    await agent.finish(given, Outcome(value=Packed(encoding="pickle", data=data, size=len(data))))
    assert (await stage.got(f"GET /v1/jobs/{job}/result"))["value"]["data"] == value["data"]
    assert nothing_is_unpickled == []
    with pytest.raises(RuntimeError, match="unpickles"):
        pickle.loads(data)  # the watch itself works
    nothing_is_unpickled.clear()
