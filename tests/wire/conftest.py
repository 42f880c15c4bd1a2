"""What several files of this folder need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yields
from rig import Server


@pytest.fixture(scope="module")
def yielding(server: Server) -> Iterator[None]:
    """Deploy the app of generators to this module's server."""
    yields.app._client = server.client()
    yields.app.deploy()
    yield
    yields.app._client = None
    yields.app.forget()
