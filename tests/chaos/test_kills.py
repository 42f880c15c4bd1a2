"""`kill -9` of the control plane under load: what was acknowledged is there and ends, nothing runs twice.

SEED repeats a storm; ROUND is the round to go on from, ROUNDS how many there are in all.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from storm import fresh_seed, storming

# The edges where most is in flight; each point by itself is in test_failpoints.py and test_failpoint_exits.py.
POINTS = ("commit.before", "commit.after", "blob.before", "blob.after", "dispatch.push", "report.reply")
STAGE = 10  # after so many kills of the long form, everything is brought to its end and checked


def test_the_control_plane_may_be_killed_at_any_instant(tmp_path: Path) -> None:
    seed = os.environ.get("SEED", "1")
    print(f"SEED={seed}")
    with storming(tmp_path, seed) as storm:
        for number in range(6):
            storm.kill(random.Random(f"{seed}/{number}"))
        storm.calm()
        storm.settle()
        print(storm.totals)
        assert storm.totals.jobs > 20


def test_the_control_plane_may_be_killed_at_each_exact_instant(tmp_path: Path) -> None:
    with storming(tmp_path, "exact") as storm:
        for point in POINTS:
            storm.kill_at(point, 12 if point.startswith("commit") else 3)
        storm.calm()
        storm.settle()
        print(storm.totals)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_hundred_kills(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "100"))
    begun = time.monotonic()
    with storming(tmp_path, f"{seed}/{first}") as storm:
        for number in range(first, last):
            dice = random.Random(f"{seed}/{number}")
            if dice.random() < 0.3:
                storm.kill_at(dice.choice(POINTS), dice.randint(8, 40))
            else:
                storm.kill(dice)
            if (number + 1 - first) % STAGE == 0 or number + 1 == last:
                storm.calm()
                storm.settle()
                print(f"SEED={seed} ROUND={number + 1}: {storm.totals}, {time.monotonic() - begun:.0f} s", flush=True)
                if number + 1 < last:
                    storm.blow()
