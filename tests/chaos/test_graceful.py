"""SIGTERM of a server or an agent while jobs succeed, fail, yield and print: nothing is lost, and no budget pays.

A run that failed in the moment in which its worker was told to leave was dropped elsewhere, and stood still for ever
(kestra#17124). SEED repeats a history; ROUND is the cycle to go on from, ROUNDS how many there are in all.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from aftermath import check_no_slot_leaks, end, loaded, rows
from rig import Server, until
from storm import free_port, fresh_seed
from tempest import Remote
from tempest_check import read

from apothic.protocol.messages import Failure
from apothic.store.verdicts import DRAIN_MOVES

GRACE_S = 0.5
WAITS = (0.0, 0.0, 0.02, 0.1, 0.3, 0.6, 1.2)  # some are longer than the grace
KINDS = ("steady", "flaky", "refuses", "replays", "together")
JOBS = 12  # a cycle
STAGE = 25


class Leaving:
    """A server, an agent from outside, and jobs; one of the two is told to leave, again and again."""

    def __init__(self, server: Server, app: ModuleType) -> None:
        self.server, self.app = server, app
        self.remote = Remote(server, server.home / "remote")
        self.book = server.home / "books"
        self.book.mkdir()
        self.kinds: dict[str, str] = {}
        self.told: Counter[str] = Counter()

    def cycle(self, dice: random.Random) -> None:
        """Submit, wait a moment, tell one to leave, wait until it has, and start it again."""
        self.remote.ensure()
        here = "SELECT pid FROM agents WHERE connected AND pid = ?"
        until(lambda: rows(self.server.data_dir, here, self.remote.pid), 30, "the agent from outside")
        for number in range(JOBS):
            kind = dice.choice(KINDS)
            job = getattr(self.app, kind).spawn(str(self.book), number, dice.choice(WAITS))
            self.kinds[job.job_id] = kind
        time.sleep(dice.uniform(0.0, 0.8))  # the instant itself is what is drawn here
        process = self.server._process if dice.random() < 0.4 else self.remote.process
        assert process is not None
        process.terminate()
        assert process.wait(40) == 0, "it was not in peace"
        self.told["server" if process is self.server._process else "agent"] += 1
        if process is self.server._process:
            self.server.start()  # the agent from outside has left with it, if it was there

    def settle(self) -> None:
        """Wait until all has ended; hold each job against its kind."""
        self.remote.ensure()
        unfinished = "SELECT id, status, attempt, drains FROM jobs WHERE ended_at IS NULL"
        until(lambda: not rows(self.server.data_dir, unfinished), 90, "the end of all jobs")
        check_no_slot_leaks(self.server, self.server.client())
        noted = read(self.book)
        assert noted.beside == []
        found = rows(
            self.server.data_dir, "SELECT id, status, attempt, user_failures, crashes, drains, failure FROM jobs"
        )
        assert {row[0] for row in found} >= self.kinds.keys()
        for job, status, attempt, user_failures, crashes, drains, failure in found:
            kind, ran = self.kinds[job], noted.ran.get(job, [])
            told = (
                f"{kind} {job} {status} attempt={attempt} {user_failures=} {crashes=} {drains=} ran={ran} {failure!r}"
            )
            assert crashes == 0 and drains <= DRAIN_MOVES, told
            assert attempt <= 1 + user_failures + drains + _behind(self.server.data_dir, job), told
            assert status == ("failed" if kind == "refuses" else "succeeded"), told
            assert user_failures <= (2 if kind == "flaky" else 0), told
            if kind == "refuses":
                assert msgspec.msgpack.decode(failure, type=Failure).kind == "user", told
            self.told["moved"] += drains


def _behind(data_dir: Path, job: str) -> int:
    """Return how often a job was given back because it waited in vain: that costs nothing."""
    queued = (
        "SELECT count(*) FROM events JOIN jobs ON seq = job WHERE id = ? AND json_extract(data, '$.status') = 'queued'"
    )
    ((count,),) = rows(data_dir, f"{queued} AND type = 'job.status'", job)
    return int(count) - 1


@contextlib.contextmanager
def leaving(tmp_path: Path) -> Iterator[Leaving]:
    server = Server(tmp_path / "data", {"port": free_port(), "lease_s": 10, "grace_s": GRACE_S})
    source = Path(__file__).with_name("tempestuous.py").read_text()
    made: Leaving | None = None
    try:
        server.start()
        with loaded(tmp_path, "tempestuous", source, server.client()) as app:
            app.app.deploy()
            made = Leaving(server, app)
            yield made
        made.remote.stop()
        end(server)
    finally:
        if made is not None and made.remote.process is not None:
            made.remote.process.kill()
            made.remote.process.wait()
        server.stop()


def cycles(tmp_path: Path, seed: str, first: int, last: int) -> None:
    begun = time.monotonic()
    with leaving(tmp_path) as storm:
        for number in range(first, last):
            storm.cycle(random.Random(f"{seed}/{number}"))
            if (number + 1) % STAGE == 0 or number + 1 == last:
                storm.settle()
                jobs, spent = len(storm.kinds), time.monotonic() - begun
                print(f"SEED={seed} ROUND={number + 1}: {dict(storm.told)}, {jobs} jobs, {spent:.0f} s", flush=True)


def test_leaving_loses_nothing_and_costs_nothing(tmp_path: Path) -> None:
    cycles(tmp_path, os.environ.get("SEED", "1"), 0, 6)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_thousand_times_leaving(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    cycles(tmp_path, seed, int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "1000")))
