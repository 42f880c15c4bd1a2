"""A function calling functions, and what happens when that cannot end."""

from __future__ import annotations

from collections.abc import Iterator

import nests
import pytest
from rig import Server

from apothic import ControlPlaneClient, Job
from apothic.errors import DeadlockError
from apothic.protocol import messages as m
from apothic.protocol import routes


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[ControlPlaneClient]:
    with server.lending(nests.app, deploy=False) as client:
        yield client


def test_a_function_maps_another_and_is_the_parent_of_its_jobs(client: ControlPlaneClient) -> None:
    job = nests.squares.spawn(5)

    assert job.wait() == [0, 1, 4, 9, 16]
    leaves = client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="nests", function="leaf")).jobs
    assert len(leaves) == 5
    assert {leaf.parent for leaf in leaves} == {job.job_id}


def test_a_thread_of_a_function_calls_on_its_behalf(client: ControlPlaneClient) -> None:
    job = nests.threaded.spawn(4)

    assert job.wait() == 16
    assert client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="nests", function="leaf")).jobs[0].parent == job.job_id


def test_a_job_may_outlive_the_one_that_started_it(client: ControlPlaneClient) -> None:
    started = nests.starter.remote()

    assert Job(started, client).wait() == 9


def test_a_job_that_waits_for_its_own_slot_fails_instead_of_hanging(client: ControlPlaneClient) -> None:
    job = nests.deeper.spawn(1)

    with pytest.raises(DeadlockError, match="held by jobs that wait"):
        job.wait()
    inner = client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="nests", function="deeper")).jobs[0]
    assert inner.parent == job.job_id
    assert inner.failure is not None and inner.failure.kind == "deadlock"
    assert nests.deeper.remote(0) == 0
