"""Random histories of a job, read in pages from the store. The long form is that of the transports, in `tests/walk`."""

from __future__ import annotations

import os
from pathlib import Path

from storeground import StoreGround
from streammachine import play
from streamreaders import Pages


def test_every_reader_is_told_all_that_is_kept_and_of_all_that_is_lost(tmp_path: Path) -> None:
    play(tmp_path, StoreGround, (Pages,), named=os.environ.get("SEED", "1"), first=0, last=500)
