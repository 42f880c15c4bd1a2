"""Apps share a machine: the long queue of one does not keep the others out."""

from __future__ import annotations

import os
from collections.abc import Iterator

import greedy
import pytest
from rig import Server

from apothic import ControlPlaneClient
from apothic.protocol import messages as m
from apothic.protocol import routes


@pytest.fixture
def client(server: Server) -> Iterator[ControlPlaneClient]:
    with server.lending(greedy.greedy, greedy.modest, timeout_s=120.0) as client:
        yield client


def ended(client: ControlPlaneClient, job: str) -> float:
    at = client.ask_blocking(routes.SHOW_JOB, m.ShowJob(job=job)).ended_at
    assert at is not None
    return at


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [15_000, pytest.param(60_000, marks=pytest.mark.soak)])
def test_a_single_job_of_another_app_runs_amid_a_long_map(client: ControlPlaneClient, count: int) -> None:
    long = greedy.no_op.spawn_map(range(count))
    long[count // 10].wait(timeout_s=60)  # every container of this machine is at it
    (agent,) = client.ask_blocking(routes.LIST_AGENTS, m.ListAgents()).agents
    assert agent.containers >= min(2, os.cpu_count() or 1)

    single = greedy.single.spawn()
    assert single.wait(timeout_s=60) == "served"
    assert long[-1].wait(timeout_s=120) == count - 1

    view = client.ask_blocking(routes.SHOW_JOB, m.ShowJob(job=single.job_id))
    served = ended(client, single.job_id)
    ends = [ended(client, job.job_id) for job in long[:: count // 200]]
    rest = [end for end in ends if end > view.created_at]  # the first ones were done while the others were submitted
    earlier = sum(end < served for end in rest)
    print(f"{earlier} of {len(rest)} of the map's rest were done before the other app's job")
    assert earlier < len(rest) / 3
