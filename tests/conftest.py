"""Fixtures that every folder of tests may use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rig import Server, serving

from apothic.agent.cgroup import Groups


def pytest_sessionfinish() -> None:
    """Remove the control groups of agents that were killed, which only a next agent would do."""
    Groups().close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server, one for each module of tests: `base_url`, `data_dir`, `pid`, `client()`."""
    with serving(tmp_path_factory.mktemp("server") / "data", lease_s=5, grace_s=1) as running:
        yield running
