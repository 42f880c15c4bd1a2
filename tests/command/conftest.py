"""A server and the command, for modules that have a `home`: a folder with the files that they are about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commandbench import Runs, Server, runner


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    """A server in that home."""
    running = Server(home)
    yield running
    running.close()


@pytest.fixture
def run(home: Path, server: Server) -> Runs:
    """Run the command as a user of that home does."""
    return runner(home, APOTHIC_DATA_DIR=str(server.data_dir))
