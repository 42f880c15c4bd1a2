from __future__ import annotations

import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from gatewayrig import Front
from walkrig import Puppet, Stage

from apothic.store.schema import audit

_watching = False
_unpickled: list[str] = []


def _listen(event: str, details: tuple[Any, ...]) -> None:
    if _watching and event == "pickle.find_class":
        _unpickled.append(".".join(map(str, details)))
        raise RuntimeError(f"the control plane unpickles {_unpickled[-1]}")


sys.addaudithook(_listen)  # can never be taken away again, hence the switch


@pytest.fixture(autouse=True)
def nothing_is_unpickled() -> Iterator[list[str]]:
    """Break whatever unpickles in this process, and fail the test even if that was swallowed."""
    global _watching
    _unpickled.clear()
    _watching = True
    yield _unpickled
    _watching = False
    assert _unpickled == []


@pytest.fixture
async def stage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A control plane; settings by `@pytest.mark.parametrize("stage", [...], indirect=True)`. Audited at the end."""
    made = await Stage(tmp_path / "data", **getattr(request, "param", {})).open()
    yield made
    await made.close()
    connection = sqlite3.connect(tmp_path / "data" / "apothic.db")
    assert audit(connection) == {}
    connection.close()
    left = list((tmp_path / "data" / "blobs").rglob(".part-*"))
    assert left == []


@pytest.fixture
async def agent(stage: Stage) -> Puppet:
    """An agent with much room."""
    return await stage.agent()


@pytest.fixture
async def front(stage: Stage, agent: Puppet, tmp_path: Path) -> AsyncIterator[Front]:
    """The stage's gateway, listening."""
    made = Front(stage, agent, tmp_path)
    await made.open()
    yield made
    await made.close()
