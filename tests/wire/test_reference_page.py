"""One test for each line of the reference page, named after it: what the line does, end to end."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import page
import pytest
from page import add, app, double, greet, held, letters
from rig import Server

from apothic import (
    ConcurrencySpec,
    ControlPlaneClient,
    Function,
    FunctionOptions,
    Job,
    JobEndEvent,
    JobErrorEvent,
    JobLogEvent,
    JobResetEvent,
    JobResultEvent,
    JobSnapshotEvent,
    JobStatusEvent,
    JobStreamCheckpoint,
    JobStreamCursor,
    JobStreamEvent,
    JobStreamItemEvent,
    JobStreamResetError,
    RemoteFunction,
    Retries,
)
from apothic.errors import JobCancelledError, NotAServiceError

LINES = tomllib.loads((Path(__file__).parent.parent / "unit" / "reference.toml").read_text())


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ControlPlaneClient]:
    client = server.client()
    app._client = client
    app.deploy()
    yield client
    app._client = None
    app.forget()


@pytest.fixture
def remote(client: ControlPlaneClient) -> RemoteFunction:
    return RemoteFunction.from_name("page", "double", client=client)


@pytest.fixture
def served(client: ControlPlaneClient) -> RemoteFunction:
    return RemoteFunction.from_name("page", "greet", client=client)


@pytest.fixture
def job(client: ControlPlaneClient) -> Job:
    return double.spawn(21)


@pytest.fixture
def spelt(client: ControlPlaneClient) -> Job:
    """A generator's job that has ended and kept all it said."""
    job = letters.spawn("abc")
    job.wait()
    return job


@pytest.fixture
def story(spelt: Job) -> list[JobStreamEvent]:
    """All events of that job."""
    return list(spelt.stream_events())


def test_every_line_has_a_test_here() -> None:
    wanted = {
        f"test_{owner.lower()}_{'aio_' if line.get('async') else ''}{line['text'].split(' ->')[0].split('(')[0]}"
        for owner, told in LINES.items()
        for line in told.get("lines", [])
    } | {f"test_{name.lower()}" for name in LINES["stream_helper_types"]["names"]}
    here = {name for name in vars(sys.modules[__name__]) if name.startswith("test_")}
    assert wanted - here == set()


# --- Function ---------------------------------------------------------------------------------------------------


def test_function_from_name(client: ControlPlaneClient) -> None:
    assert Function.from_name("page", "double", client=client).remote(4) == 8
    assert isinstance(Function.from_name("page", "double", base_url=client.base_url), RemoteFunction)


def test_function_name() -> None:
    assert double.name == "double"


def test_function_options() -> None:
    assert isinstance(double.options, FunctionOptions)
    assert (double.options.timeout_s, double.options.max_containers, add.options.max_containers) == (120, 2, 1)


def test_function_kind() -> None:
    assert (double.kind, greet.kind) == ("function", "endpoint")


def test_function_schedule() -> None:
    assert double.schedule is None


def test_function_service_url(client: ControlPlaneClient) -> None:
    assert double.service_url is None
    assert greet.service_url == greet.get_web_url()


async def test_function_aio(client: ControlPlaneClient) -> None:
    assert await double.aio.remote(4) == 8
    assert await (await double.aio.spawn(5)).aio.wait() == 10
    assert await double.aio.map([1, 2]) == [2, 4]
    assert [each async for each in double.aio.map_iter([1, 2])] == [2, 4]


def test_function_spawn(client: ControlPlaneClient) -> None:
    job = add.spawn(1, b=2)
    assert isinstance(job, Job)
    assert job.wait() == 3


def test_function_remote(client: ControlPlaneClient) -> None:
    assert add.remote(1, b=2) == 3


def test_function_remote_gen(client: ControlPlaneClient) -> None:
    assert list(letters.remote_gen("abc")) == ["a", "b", "c"]
    assert list(letters.remote_gen(word="d")) == ["d"]


def test_function_remote_events(client: ControlPlaneClient) -> None:
    events = double.remote_events(21, snapshot=True, event_types=["job.result"])
    assert [event.event for event in events] == ["job.snapshot", "job.result", "job.end"]
    assert [event.event for event in add.remote_events(1, b=2)][-2:] == ["job.result", "job.end"]


def test_function_spawn_map(client: ControlPlaneClient) -> None:
    assert [job.wait() for job in double.spawn_map(iter([1, 2, 3]))] == [2, 4, 6]


def test_function_map(client: ControlPlaneClient) -> None:
    assert double.map(iter([3, 1, 2])) == [6, 2, 4]


def test_function_starmap(client: ControlPlaneClient) -> None:
    assert add.starmap([(1, 2), (3, 4)]) == [3, 7]


def test_function_for_each(client: ControlPlaneClient) -> None:
    assert double.for_each([1, 2]) is None  # type: ignore[func-returns-value]


def test_function_get_web_url(client: ControlPlaneClient) -> None:
    assert greet.get_web_url().endswith("/page/greet/")
    with pytest.raises(NotAServiceError, match=r"page\.double"):
        double.get_web_url()


async def test_function_aio_get_web_url(client: ControlPlaneClient) -> None:
    assert await greet.aio.get_web_url() == greet.service_url
    with pytest.raises(NotAServiceError, match=r"page\.double"):
        await double.aio.get_web_url()


# --- RemoteFunction ---------------------------------------------------------------------------------------------


def test_remotefunction_from_name(client: ControlPlaneClient) -> None:
    assert RemoteFunction.from_name("page", "add", client=client).remote(1, 2) == 3


def test_remotefunction_function_id(remote: RemoteFunction) -> None:
    assert remote.function_id.startswith("fn_")


def test_remotefunction_name(remote: RemoteFunction) -> None:
    assert remote.name == "double"


def test_remotefunction_kind(remote: RemoteFunction, served: RemoteFunction) -> None:
    assert (remote.kind, served.kind) == ("function", "endpoint")


def test_remotefunction_service_url(remote: RemoteFunction, served: RemoteFunction) -> None:
    assert (remote.service_url, served.service_url) == (None, greet.service_url)


def test_remotefunction_schedule(remote: RemoteFunction) -> None:
    assert remote.schedule is None


def test_remotefunction_timeout_s(remote: RemoteFunction) -> None:
    assert remote.timeout_s == 120


def test_remotefunction_retries(remote: RemoteFunction) -> None:
    assert remote.retries == Retries(2, initial_delay_s=0.1)


def test_remotefunction_concurrency(client: ControlPlaneClient) -> None:
    assert RemoteFunction.from_name("page", "add", client=client).concurrency == ConcurrencySpec(3)


def test_remotefunction_batching(remote: RemoteFunction) -> None:
    assert remote.batching is None


def test_remotefunction_app_name(remote: RemoteFunction) -> None:
    assert remote.app_name == "page"


async def test_remotefunction_aio(remote: RemoteFunction) -> None:
    assert await remote.aio.remote(4) == 8
    assert await remote.aio.map([1, 2]) == [2, 4]


def test_remotefunction_spawn(remote: RemoteFunction) -> None:
    assert remote.spawn(3).wait() == 6


def test_remotefunction_remote(remote: RemoteFunction) -> None:
    assert remote.remote(3, timeout_s=60.0) == 6


def test_remotefunction_remote_gen(client: ControlPlaneClient) -> None:
    remote = RemoteFunction.from_name("page", "letters", client=client)
    assert list(remote.remote_gen("abc", timeout_s=60.0)) == ["a", "b", "c"]


def test_remotefunction_remote_events(remote: RemoteFunction) -> None:
    events = remote.remote_events(21, snapshot=True, event_types=("job.result",))
    assert [event.event for event in events] == ["job.snapshot", "job.result", "job.end"]


def test_remotefunction_spawn_map(remote: RemoteFunction) -> None:
    assert [job.wait() for job in remote.spawn_map([1, 2])] == [2, 4]


def test_remotefunction_map(remote: RemoteFunction) -> None:
    assert remote.map([1, 2], timeout_s=60.0) == [2, 4]


def test_remotefunction_starmap(remote: RemoteFunction) -> None:
    assert remote.starmap([(1,), (2,)], timeout_s=60.0) == [2, 4]


def test_remotefunction_for_each(remote: RemoteFunction) -> None:
    assert remote.for_each([1, 2], timeout_s=60.0) is None  # type: ignore[func-returns-value]


def test_remotefunction_get_web_url(remote: RemoteFunction, served: RemoteFunction) -> None:
    assert served.get_web_url() == greet.service_url
    with pytest.raises(NotAServiceError):
        remote.get_web_url()


async def test_remotefunction_aio_get_web_url(remote: RemoteFunction, served: RemoteFunction) -> None:
    assert await served.aio.get_web_url() == greet.service_url
    with pytest.raises(NotAServiceError):
        await remote.aio.get_web_url()


# --- Job --------------------------------------------------------------------------------------------------------


def test_job___init__(client: ControlPlaneClient, job: Job) -> None:
    assert Job(job.job_id, client).wait() == 42


def test_job_job_id(job: Job) -> None:
    assert job.job_id.startswith("job_")


async def test_job_aio(client: ControlPlaneClient) -> None:
    assert await (await double.aio.spawn(2)).aio.wait() == 4


def test_job_status(job: Job) -> None:
    job.wait()
    assert job.status() == "succeeded"


def test_job_logs(job: Job) -> None:
    job.wait()
    logs = job.logs()
    assert logs == ["doubling 21"]
    assert logs.trimmed == 0  # type: ignore[attr-defined]


def test_job_cancel(client: ControlPlaneClient, tmp_path: Path) -> None:
    job = held.spawn(str(tmp_path / "gate"))
    assert job.cancel() in ("cancelled", "cancelling")
    with pytest.raises(JobCancelledError):
        job.wait()
    assert job.cancel() == "cancelled"


def test_job_wait(job: Job) -> None:
    assert job.wait(poll_interval_s=0.1, timeout_s=60.0) == 42


def test_job_wait_gen(spelt: Job) -> None:
    assert list(spelt.wait_gen(poll_interval_s=0.1, timeout_s=60.0)) == ["a", "b", "c"]
    after_b = spelt.checkpoint().last_index - 1
    assert list(spelt.wait_gen(last_index=after_b, on_reset="continue")) == ["c"]
    assert list(spelt.wait_gen(cursor=JobStreamCursor(after_b))) == ["c"]
    assert list(spelt.wait_gen(checkpoint=JobStreamCheckpoint(spelt.job_id, after_b))) == ["c"]


def test_job_stream_events(spelt: Job) -> None:
    whole = list(spelt.stream_events())
    assert [event.index for event in whole] == list(range(len(whole)))
    assert list(spelt.stream_events(last_index=2)) == whole[3:]
    assert list(spelt.stream_events(cursor=JobStreamCursor(2))) == whole[3:]
    here = JobStreamCheckpoint(spelt.job_id, 2, ("job.stream_item",))
    assert [event.event for event in spelt.stream_events(checkpoint=here)] == ["job.stream_item"] * 3 + ["job.end"]
    assert [event.event for event in spelt.stream_events(event_types=["job.log"])] == ["job.log", "job.end"]


def test_job_watch(spelt: Job) -> None:
    assert list(spelt.watch()) == list(spelt.stream_events())
    first, *rest = spelt.watch(snapshot=True, last_index=2, event_types=("job.result",))
    assert isinstance(first, JobSnapshotEvent) and first.status == "succeeded"
    assert [event.event for event in rest] == ["job.result", "job.end"]
    assert list(spelt.watch(cursor=JobStreamCursor(100))) == []
    assert list(spelt.watch(checkpoint=spelt.checkpoint(last_index=100))) == []


def test_job_checkpoint(spelt: Job) -> None:
    assert spelt.checkpoint() == JobStreamCheckpoint(spelt.job_id)
    for event in spelt.stream_events(event_types=["job.stream_item"]):
        assert spelt.checkpoint() == JobStreamCheckpoint(spelt.job_id, event.index or 0, ("job.stream_item",))
    assert spelt.checkpoint(last_index=3, event_types=()) == spelt.checkpoint(cursor=JobStreamCursor(3), event_types=())


async def test_job_aio_status(job: Job) -> None:
    await job.aio.wait()
    assert await job.aio.status() == "succeeded"


async def test_job_aio_logs(job: Job) -> None:
    await job.aio.wait()
    assert await job.aio.logs() == ["doubling 21"]


async def test_job_aio_cancel(job: Job) -> None:
    await job.aio.wait()
    assert await job.aio.cancel() == "succeeded"


async def test_job_aio_wait(job: Job) -> None:
    assert await job.aio.wait(poll_interval_s=0.1, timeout_s=60.0) == 42


async def test_job_aio_wait_gen(spelt: Job) -> None:
    assert [letter async for letter in spelt.aio.wait_gen(timeout_s=60.0, on_reset="continue")] == ["a", "b", "c"]


async def test_job_aio_stream_events(spelt: Job) -> None:
    found = [event.event async for event in spelt.aio.stream_events(event_types=["job.log"])]
    assert found == ["job.log", "job.end"]


async def test_job_aio_watch(spelt: Job) -> None:
    assert [event.event async for event in spelt.aio.watch(snapshot=True)] == ["job.snapshot"]


# --- stream helper types ----------------------------------------------------------------------------------------


def test_jobstreamcursor___init__(spelt: Job) -> None:
    assert JobStreamCursor().last_index == -1
    assert list(spelt.watch(cursor=JobStreamCursor(last_index=-1))) == list(spelt.watch())


def test_jobstreamcheckpoint___init__(spelt: Job) -> None:
    here = JobStreamCheckpoint(spelt.job_id)
    assert (here.job_id, here.last_index, here.event_types) == (spelt.job_id, -1, ())
    there = JobStreamCheckpoint(job_id=spelt.job_id, last_index=3, event_types=("job.end",))
    assert [event.event for event in spelt.watch(checkpoint=there)] == ["job.end"]


def test_jobstreamevent___init__(story: list[JobStreamEvent]) -> None:
    assert all(isinstance(event, JobStreamEvent) for event in story)
    made = JobStreamEvent("job.log", {"text": "hi"})
    assert (made.event, made.data, made.index) == ("job.log", {"text": "hi"}, None)


def test_joblogevent(story: list[JobStreamEvent]) -> None:
    (event,) = [event for event in story if isinstance(event, JobLogEvent)]
    assert (event.event, event.text, event.stream, event.attempt) == ("job.log", "spelling abc", "stdout", 1)


def test_jobstreamitemevent(story: list[JobStreamEvent]) -> None:
    items = [(event.item_index, event.value) for event in story if isinstance(event, JobStreamItemEvent)]
    assert items == [(0, "a"), (1, "b"), (2, "c")]


def test_jobstatusevent(story: list[JobStreamEvent]) -> None:
    moves = [event.status for event in story if isinstance(event, JobStatusEvent)]
    assert moves == ["queued", "starting", "running", "succeeded"]


def test_jobresultevent(story: list[JobStreamEvent]) -> None:
    (event,) = [event for event in story if isinstance(event, JobResultEvent)]
    assert (event.value, event.items) == (None, 3)


def test_joberrorevent(client: ControlPlaneClient) -> None:
    (event,) = [event for event in letters.remote_events("a1") if isinstance(event, JobErrorEvent)]
    assert (event.kind, event.type, event.message) == ("user", "ValueError", "a1 is no word")
    with pytest.raises(ValueError, match="a1 is no word"):
        list(letters.remote_gen("a1"))


def test_jobendevent(story: list[JobStreamEvent]) -> None:
    event = story[-1]
    assert isinstance(event, JobEndEvent)
    assert (event.status, event.attempts, event.data["last_index"]) == ("succeeded", 1, event.index)


def test_jobresetevent(client: ControlPlaneClient) -> None:
    job = letters.spawn("abcdefgh")
    job.wait()
    reset, *rest = job.stream_events(event_types=["job.stream_item"])
    assert isinstance(reset, JobResetEvent)
    assert (reset.reason, reset.index, reset.lost) == ("window_rotated", None, {"job.stream_item": 5})
    assert list(job.stream_events(last_index=reset.resume_index, event_types=["job.stream_item"])) == rest


def test_jobstreamreseterror(client: ControlPlaneClient) -> None:
    job = letters.spawn("abcdefgh")
    job.wait()
    with pytest.raises(JobStreamResetError) as caught:
        list(job.wait_gen())
    assert isinstance(caught.value.event, JobResetEvent)
    assert list(job.wait_gen(checkpoint=caught.value.checkpoint)) == ["f", "g", "h"]


def test_the_app_is_found_by_its_own_name(client: ControlPlaneClient) -> None:
    assert set(page.app.functions) == {"double", "add", "held", "letters", "greet"}
