"""What several files of this folder need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yields
from executing import SMALL
from rig import Server

from apothic import ControlPlaneClient, Executor


@pytest.fixture(scope="module")
def yielding(server: Server) -> Iterator[None]:
    """Deploy the app of generators to this module's server."""
    with server.lending(yields.app):
        yield


@pytest.fixture(scope="module")
def client(server: Server) -> ControlPlaneClient:
    """A client of this module's server."""
    return server.client()


@pytest.fixture
def executor(client: ControlPlaneClient) -> Iterator[Executor]:
    """An executor of two workers on this module's server."""
    with Executor(client=client, **SMALL) as executor:
        yield executor


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that jobs wait for; none waits for longer than its test."""
    path = tmp_path / "gate"
    yield path
    path.touch()
