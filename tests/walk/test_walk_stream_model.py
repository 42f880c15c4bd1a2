"""Random histories of a job, read in pages, by polling, and as server-sent events that are cut off after any frame.

SEED repeats a run; START is the history to go on from, HISTORIES how many there are in all.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
from streammachine import play
from streamreaders import Pages
from walkreaders import Followed, Polled, StageGround

KINDS = (Followed, Polled, Followed, Pages)


def test_both_transports_tell_all_that_is_kept_and_of_all_that_is_lost(tmp_path: Path) -> None:
    play(tmp_path, StageGround, KINDS, named=os.environ.get("SEED", "1"), first=0, last=500)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_fifty_thousand_histories(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or secrets.token_hex(4)
    first, last = int(os.environ.get("START", "0")), int(os.environ.get("HISTORIES", "50000"))
    play(tmp_path, StageGround, KINDS, named=seed, first=first, last=last)
