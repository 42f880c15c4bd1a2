"""Jobs that wait inside a container are not held up by a long one before them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mixed
import pytest
from rig import Server

from apothic import ControlPlaneClient
from apothic.protocol import messages as m
from apothic.protocol import routes


@pytest.fixture
def client(server: Server) -> Iterator[ControlPlaneClient]:
    with server.lending(mixed.app, deploy=False) as client:
        yield client


def test_quick_jobs_end_while_a_long_one_runs(client: ControlPlaneClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    assert sum(mixed.quick_or_held.map([""] * 300)) == 300  # now it is known to be quick

    try:
        jobs = mixed.quick_or_held.spawn_map([str(gate), *[""] * 200])

        assert [job.wait(timeout_s=30) for job in jobs[1:]] == [1] * 200
        assert jobs[0].status() == "running"
    finally:
        gate.touch()
    assert jobs[0].wait() == 1
    views = client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="mixed", limit=1000)).jobs
    assert {view.status for view in views} == {"succeeded"}
