"""Fixtures for tests that send what nobody should send."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("fuzzground")
for neighbour in ("chaos", "process"):
    sys.path.insert(0, str(Path(__file__).parent.parent / neighbour))

from containerbench import Bench  # noqa: E402
from fuzzground import Target, targeting  # noqa: E402


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A real server with an app, and ids of real things to aim at."""
    with targeting(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """The containers of an agent, without a control plane."""
    home = tmp_path / "bench"
    home.mkdir()
    made = Bench(home)
    yield made
    await made.close()
