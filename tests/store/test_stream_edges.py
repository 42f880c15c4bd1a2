"""The edges of resuming, in pages from the store: all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from storeground import StoreGround
from streamedges import TRIMS, check_edges
from streamreaders import Pages


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("trim", TRIMS)
async def test_every_edge_with_every_filter(tmp_path: Path, trim: str, ends: bool) -> None:
    ground = StoreGround(tmp_path)
    await ground.furnish()
    count = await check_edges(ground, Pages, trim, ends=ends)
    await ground.close()
    assert count > 300 and ground.broken() == {}
