"""The edges of resuming over both transports."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamedges import TRIMS, check_edges
from streamreaders import Reader
from walkreaders import Followed, Polled, StageGround


@pytest.mark.parametrize("kind", [Followed, Polled])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("trim", TRIMS)
async def test_every_edge_with_every_filter(tmp_path: Path, trim: str, ends: bool, kind: type[Reader]) -> None:
    ground = StageGround(tmp_path)
    await ground.furnish()
    count = await check_edges(ground, kind, trim, ends=ends)
    await ground.close()
    assert count > 300 and ground.broken() == {}
