"""How many containers there are, seen from outside."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import scaled
from rig import Server, until

from apothic import ControlPlaneClient, Job
from apothic.protocol import messages as m
from apothic.protocol import routes


@pytest.fixture
def client(server: Server) -> Iterator[ControlPlaneClient]:
    with server.lending(scaled.app) as client:
        yield client


def containers(client: ControlPlaneClient) -> int:
    return sum(each.containers for each in client.ask_blocking(routes.LIST_AGENTS, m.ListAgents()).agents)


def run(jobs: list[Job]) -> bool:
    return all(job.status() == "running" for job in jobs)


def grown(client: ControlPlaneClient, gate: Path, name: str, steps: list[tuple[int, int]]) -> None:
    """Spawn so many more jobs at each step, and see how many more containers there are once all of them run."""
    before = containers(client)
    had = int(name == "to_target")  # the container of the first function has proved the deployment
    jobs: list[Job] = []
    try:
        for count, more in steps:
            jobs += [getattr(scaled, name).spawn(str(gate)) for _ in range(count)]
            until(partial(run, jobs), 60)
            assert containers(client) - before + had == more
    finally:
        gate.touch()
    assert {job.wait() for job in jobs} == {"let go"}


def test_to_the_target_then_one_more_then_to_the_maximum(client: ControlPlaneClient, tmp_path: Path) -> None:
    grown(client, tmp_path / "gate", "to_target", [(2, 1), (1, 2), (1, 2), (4, 2)])


def test_containers_are_jobs_by_tasks_per_container(client: ControlPlaneClient, tmp_path: Path) -> None:
    grown(client, tmp_path / "gate", "by_tasks", [(2, 1), (1, 2), (2, 3), (3, 3)])


def test_without_keep_warm_a_container_ends_with_its_work(client: ControlPlaneClient, tmp_path: Path) -> None:
    before = containers(client)
    job = scaled.cold.spawn(str(tmp_path / "gate"))
    until(partial(run, [job]), 60)
    assert containers(client) == before + 1
    (tmp_path / "gate").touch()
    assert job.wait() == "let go"
    until(lambda: containers(client) == before, 60)
