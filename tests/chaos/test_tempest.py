"""Everything dies, sleeps past its lease, or leaves, in any order: nothing is lost, stuck, doubled, or left running.

SEED repeats a tempest; ROUND is the cycle to go on from, ROUNDS how many there are in all.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from storm import fresh_seed
from tempest import Tempest, raging

STAGE = 100  # after so many cycles everything is brought to its end and checked


def cycles(tempest: Tempest, seed: str, first: int, last: int, stage: int) -> None:
    begun = time.monotonic()
    tempest.blow()
    for number in range(first, last):
        tempest.gust(random.Random(f"{seed}/{number}"))
        if (number + 1) % stage == 0 or number + 1 == last:
            tempest.calm()
            tempest.settle()
            spent = time.monotonic() - begun
            rate = (number + 1 - first) * 60 / spent
            print(f"SEED={seed} ROUND={number + 1}: {tempest.totals}, {spent:.0f} s, {rate:.0f} a minute", flush=True)
            if number + 1 < last:
                tempest.blow()


def test_every_process_may_die_sleep_or_leave(tmp_path: Path) -> None:
    seed = os.environ.get("SEED", "1")
    with raging(tmp_path, seed) as tempest:
        cycles(tempest, seed, 0, 16, 16)
        assert sum(tempest.totals.ended.values()) > 20


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_ten_thousand_cycles(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "10000"))
    with raging(tmp_path, f"{seed}/{first}") as tempest:
        cycles(tempest, seed, first, last, STAGE)
