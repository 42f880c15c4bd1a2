from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from storerig import Store, broken


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open store with one agent; no rule of the auditor may be broken after the test."""
    made = Store(tmp_path / "apothic.db")
    made.db.open()
    await made.hello()
    yield made
    await made.db.close()
    assert broken(made.path) == {}
