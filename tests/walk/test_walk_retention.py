"""Jobs past their retention, as HTTP tells of them; a full data directory; what the metrics count."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from followrig import Follower
from walkrig import DONE, Puppet, Stage, spec

from apothic.protocol.messages import AppManifest, SourceFile
from apothic.protocol.session import Outcome, Packed
from apothic.store.collector import GRACE_S, HASTE_S

DAY = 86_400.0
DATA = b"some bytes"
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = f"/v1/blobs/{SHA256}"


async def clean(stage: Stage, seconds: float = 0.0) -> None:
    """Let time pass, then delete all that is due."""
    await stage.clock.advance(seconds)
    while any([await stage.control.retention.step(), await stage.control.collector.step()]):
        pass


async def ran(stage: Stage, agent: Puppet, **more: Any) -> str:
    """Return a job that has succeeded."""
    function = await stage.live(agent)
    job = await stage.submit(function, body=more)
    await agent.finish(await agent.work(), DONE, "a line")
    return job


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/jobs/{}", "GET /v1/jobs/{}/result", "GET /v1/jobs/{}/logs", "GET /v1/jobs/{}/events",
        "POST /v1/jobs/{}/stream-token", "POST /v1/jobs/{}/cancel", "POST /v1/jobs/{}/retry", "GATHER",
    ],
)  # fmt: skip
async def test_every_route_of_a_job_says_that_it_is_gone(stage: Stage, agent: Puppet, line: str) -> None:
    job = await ran(stage, agent)

    async def look(**headers: str) -> Any:
        if line == "GATHER":
            return await stage.ask("POST /v1/jobs/results", {"jobs": [job]})
        return await stage.ask(line.format(job), headers=headers)

    await clean(stage, 7 * DAY)
    for accept in ("application/json", "text/event-stream"):
        answer = await look(accept=accept)
        assert (answer.status, answer.code) == (410, "job_gone"), answer
        error = answer.json()["error"]
        assert job in error["message"] and "retention_days" in error["hint"]
        assert error["details"]["job"] == job
    await clean(stage, 30 * DAY)
    answer = await look()
    assert (answer.status, answer.code) == (404, "not_found")


async def test_of_many_the_ones_that_never_were_are_named_first(stage: Stage, agent: Puppet) -> None:
    job = await ran(stage, agent)
    await clean(stage, 7 * DAY)
    other = "job_" + "0" * 26
    answer = await stage.ask("POST /v1/jobs/results", {"jobs": [job, other]})
    assert (answer.status, answer.json()["error"]["details"]["jobs"]) == (404, [other])


async def test_a_key_of_other_functions_is_not_told_that_a_job_was(stage: Stage, agent: Puppet) -> None:
    job = await ran(stage, agent)
    mine, other = await stage.create_key("invoke:app/f"), await stage.create_key("invoke:app/g")
    await clean(stage, 7 * DAY)
    assert (await stage.ask(f"GET /v1/jobs/{job}", key=mine)).status == 410
    assert (await stage.ask(f"GET /v1/jobs/{job}", key=other)).status == 404


async def test_a_page_that_was_read_before_is_not_shown_again(stage: Stage, agent: Puppet) -> None:
    """Readers of the same share a page as long as nothing has happened; that the job has gone is something."""
    job = await ran(stage, agent)
    with stage.control.hub.listen([job]):  # somebody listens, so the page may be shared
        assert (await stage.ask(f"GET /v1/jobs/{job}/events", query={"limit": 5})).status == 200
        await clean(stage, 7 * DAY)
        assert (await stage.ask(f"GET /v1/jobs/{job}/events", query={"limit": 5})).status == 410


async def test_a_slow_reader_is_cut_off_when_its_job_goes_and_then_told_why(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    await stage.submit(function)
    given = await agent.work()
    for n in range(4):
        await agent.tell(agent.report(given, began=n == 0, texts=["x" * 400] * 500))
    await agent.finish(given)
    reader = await Follower(stage, given.job).open()
    reader.takes.clear()
    await reader.stuck.wait()
    stage.control.retention._keep_s = 1.0  # a week later the connection has ended anyway
    await clean(stage, 1.0)
    reader.takes.set()
    assert reader._task is not None
    await reader._task
    assert reader.aborted
    assert (await Follower(stage, given.job, after=3).refused()).status == 410


async def test_who_waits_for_one_of_many_hears_that_it_is_gone(stage: Stage, agent: Puppet) -> None:
    """Ended and gone within the moment for which an answer is held back, it is in no answer."""
    function = await stage.live(agent)
    jobs = [await stage.submit(function) for _ in range(2)]
    first = await agent.work()
    stage.control.retention._keep_s = 0.0
    resting = len(stage.clock._sleepers)
    looking = asyncio.ensure_future(stage.ask("POST /v1/jobs/results", {"jobs": jobs}, query={"wait_s": 30}))
    while len(stage.clock._sleepers) == resting:  # it has looked, and seen neither
        await asyncio.sleep(0)
    await agent.finish(first)
    await clean(stage)
    answer = await stage.settled(looking)
    assert (answer.status, answer.json()["error"]["details"]["jobs"]) == (410, [first.job])


async def test_a_stream_token_of_a_gone_job_opens_nothing(stage: Stage, agent: Puppet) -> None:
    job = await ran(stage, agent)
    stage.control.retention._keep_s = 1.0
    url = (await stage.got(f"POST /v1/jobs/{job}/stream-token"))["url"]
    await clean(stage, 1.0)
    path, _, query = url.partition("?")
    answer = await stage.ask(f"GET {path}", key=None, query={"token": query.removeprefix("token="), "limit": 1})
    assert answer.status == 410


async def test_a_job_token_of_a_gone_job_is_no_key(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    await stage.submit(function)
    given = await agent.work()
    await agent.finish(given)
    token = stage.control.keys.sign(given.job, given.attempt)
    stream = stage.control.keys.sign_stream(given.job, (await stage.control.keys.check(stage.key)))[0]
    await clean(stage, 7 * DAY)
    assert (await stage.ask("GET /v1/jobs", key=token)).status == 401
    assert stream and not await stage.control.keys.still_good(given.job)


async def test_a_submit_under_the_key_of_a_gone_job(stage: Stage, agent: Puppet) -> None:
    stage.control.retention._keep_s = 60.0
    job = await ran(stage, agent, idempotency_key="k")
    function = (await stage.job(job))["function_id"]
    await clean(stage, 60)
    path = f"POST /v1/functions/{function}/jobs"
    again = await stage.ask(path, {"args": [], "idempotency_key": "k"})
    assert (again.status, again.json()["job"]["id"], again.json()["job"]["status"]) == (200, job, "succeeded")
    assert again.json()["value"] is None
    waiting = await stage.ask(path, {"args": [], "idempotency_key": "k"}, query={"wait_s": 5})
    assert (waiting.status, waiting.code) == (410, "job_gone")  # and not a value that there is no more
    assert (await stage.ask(path, {"args": [1], "idempotency_key": "k"})).status == 409
    await stage.clock.advance(DAY)
    assert await stage.submit(function, body={"idempotency_key": "k"}) != job


# --- blobs --------------------------------------------------------------------------------------------------------


async def test_a_blob_that_nobody_names_is_not_there_after_an_hour(stage: Stage, agent: Puppet) -> None:
    assert (await stage.ask(f"PUT {NAME}", body=DATA)).status == 200
    await clean(stage)
    await clean(stage, GRACE_S - 1)
    assert (await stage.ask(f"HEAD {NAME}")).status == 200  # who asks is about to name it
    await clean(stage, GRACE_S - 1)
    assert (await stage.ask(f"GET {NAME}")).body == DATA
    await clean(stage, 1)
    await clean(stage, GRACE_S)
    assert (await stage.ask(f"HEAD {NAME}")).status == (await stage.ask(f"GET {NAME}")).status == 404
    assert "apothic_blobs_collected_total 1" in (await stage.ask("GET /metrics")).body.decode()


async def test_a_deploy_whose_blob_was_collected_is_told_that_it_is_missing(
    stage: Stage, agent: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = AppManifest(app="app", functions=[spec()], files=[SourceFile(path="a.py", sha256=SHA256, size=10)])
    path = "POST /v1/apps/app/deployments"
    await stage.ask(f"PUT {NAME}", body=DATA)
    look = stage.control.catalog.missing_blobs

    async def late(manifest: AppManifest) -> list[str]:
        missing = await look(manifest)
        await clean(stage)
        await clean(stage, GRACE_S)
        return missing

    monkeypatch.setattr(stage.control.catalog, "missing_blobs", late)
    assert await stage.got(path, manifest) == {"missing": [SHA256], "deployment": None}


# --- the ceiling --------------------------------------------------------------------------------------------------


async def test_a_full_data_directory_is_507_but_takes_what_runs(stage: Stage, agent: Puppet) -> None:
    function = await stage.live(agent)
    job = await stage.submit(function)
    given = await agent.work()
    room = stage.control.jobs.room
    room.ceiling = 10_000
    await clean(stage)
    manifest = AppManifest(app="other", functions=[spec()])
    refused = [
        await stage.ask(f"POST /v1/functions/{function}/jobs", {"args": []}),
        await stage.ask(f"POST /v1/functions/{function}/jobs/batch", {"jobs": [{"args": []}]}),
        await stage.ask("POST /v1/apps/other/deployments", manifest),
        await stage.ask(f"PUT {NAME}", body=DATA),
    ]
    for answer in refused:
        assert (answer.status, answer.code) == (507, "storage_full"), answer
        assert "disk_ceiling" in answer.json()["error"]["message"]
    assert (await stage.ask(f"PUT {NAME}", body=DATA, key=stage.agent_key)).status == 200
    value = Packed(encoding="pickle", sha256=SHA256, size=len(DATA))
    await agent.finish(given, Outcome(value=value, ran_s=60.0), "still heard")
    assert await stage.status(job) == "succeeded"
    assert (await stage.ask(f"GET {NAME}")).body == DATA
    room.ceiling = 1 << 30
    await clean(stage)
    assert await stage.submit(function)


async def test_metrics_tell_what_is_held_and_what_went(stage: Stage, agent: Puppet) -> None:
    await ran(stage, agent)
    await clean(stage, 7 * DAY)
    text = (await stage.ask("GET /metrics")).body.decode()
    held = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("apothic_held_bytes "))
    on_disk = sum(path.stat().st_size for path in stage.data_dir.glob("apothic.db*"))
    assert 50_000 < held <= 2 * on_disk  # pages that the log holds are counted twice until they are in place
    assert "apothic_jobs_gone_total 1" in text and "apothic_blobs_collected_total 0" in text


@pytest.mark.parametrize("stage", [{"retention_days": 1, "disk_ceiling": "3MiB"}], indirect=True)
async def test_the_settings_hold(stage: Stage, agent: Puppet) -> None:
    job = await ran(stage, agent)
    await clean(stage, DAY - 1)
    assert (await stage.ask(f"GET /v1/jobs/{job}")).status == 200
    await clean(stage, 1)
    assert (await stage.ask(f"GET /v1/jobs/{job}")).status == 410
    large = bytes(4 << 20)
    name = f"/v1/blobs/{hashlib.sha256(large).hexdigest()}"
    assert (await stage.ask(f"PUT {name}", body=large)).status == 200
    await clean(stage)
    assert (await stage.ask(f"PUT {NAME}", body=DATA)).status == 507
    await clean(stage, HASTE_S)
    await clean(stage)
    assert (await stage.ask(f"PUT {NAME}", body=DATA)).status == 200
