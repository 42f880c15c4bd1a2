"""A real server that keeps ended jobs for a second: what callers, waiters and readers are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
import yields
from rig import Server, serving

from apothic import ControlPlaneClient, Job
from apothic.errors import JobGoneError

pytestmark = pytest.mark.usefixtures("yielding")

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "data", retention_days=0.00001, grace_s=1) as running:
        yield running


def gone(job: Job) -> JobGoneError:
    """Wait until a job has gone; return what a look at it raises."""
    over = time.monotonic() + PATIENCE_S
    while time.monotonic() < over:
        try:
            job.status()
        except JobGoneError as error:
            return error
    raise AssertionError(f"{job} is still there")


def test_every_method_of_a_job_that_has_gone_says_so() -> None:
    job = yields.talk.spawn(3)
    error = gone(job)
    assert error.job == job
    assert str(error).startswith(f"{job.job_id} is past its retention") and "retention_days" in error.hint
    looks = [
        job.wait, job.logs, job.cancel, lambda: list(job.stream_events()), lambda: list(job.watch(snapshot=True)),
        lambda: list(job.wait_gen()),
    ]  # fmt: skip
    for look in looks:
        with pytest.raises(JobGoneError) as caught:
            look()
        assert caught.value.job == job


async def test_so_it_does_to_asynchronous_callers() -> None:
    job = await yields.talk.aio.spawn(3)
    await asyncio.to_thread(gone, job)
    with pytest.raises(JobGoneError):
        await job.aio.wait()
    with pytest.raises(JobGoneError):
        async for _ in job.aio.stream_events():
            pass


def test_calls_and_maps_have_their_results_before_they_go() -> None:
    assert list(yields.count.remote_gen(300)) == list(range(300))
    assert yields.talk.map([1] * 20) == [None] * 20


def test_a_reader_in_the_middle_never_hangs(server: Server) -> None:
    client: ControlPlaneClient = server.client()
    client.paged_until = time.monotonic() + 1_000.0  # pages: of a stream, sockets hold the next megabytes
    job = Job(yields.last_words.spawn("10 MB").job_id, client)
    events = job.stream_events()
    next(events)
    gone(job)
    with pytest.raises(JobGoneError) as caught:
        for _ in events:
            pass
    assert caught.value.job == job


def test_a_key_of_a_job_that_has_gone_still_names_it() -> None:
    again = yields.talk.with_options(idempotency_key="once")
    job = again.spawn(1)
    gone(job)
    assert again.spawn(1) == job
    with pytest.raises(JobGoneError) as caught:
        again.remote(1)
    assert caught.value.job == job
