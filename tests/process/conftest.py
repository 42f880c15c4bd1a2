from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from containerbench import Bench


@pytest.fixture
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Containers without a control plane; limits come from `@pytest.mark.parametrize(..., indirect=True)`."""
    limits: dict[str, Any] = getattr(request, "param", {})
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    made = Bench(tmp_path, **limits)
    yield made
    await made.close()
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert left == []
    assert not any(psutil.pid_exists(pid) for pid in made.pids)
