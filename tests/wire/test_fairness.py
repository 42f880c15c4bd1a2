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
@pytest.mark.parametrize("count", [30_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_a_single_job_of_another_app_runs_amid_a_long_map(client: ControlPlaneClient, count: int) -> None:
    long = greedy.no_op.spawn_map(range(count))
    before = count // 10
    long[before].wait(timeout_s=60)  # every container of this machine is at it
    (agent,) = client.ask_blocking(routes.LIST_AGENTS, m.ListAgents()).agents
    assert agent.containers >= min(2, os.cpu_count() or 1)

    single = greedy.single.spawn()
    assert single.wait(timeout_s=60) == "served"
    assert long[-1].wait(timeout_s=120) == count - 1

    served = ended(client, single.job_id)
    rest = long[before :: count // 100]
    earlier = sum(ended(client, job.job_id) < served for job in rest)
    print(f"{earlier} % of the map's rest was done before the other app's job")
    assert earlier < len(rest) / 3
