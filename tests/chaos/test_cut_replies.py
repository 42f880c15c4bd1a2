"""The server has committed, and its answer is cut on the way: what is sent again finds its job, and makes no other.

SEED repeats a history; ROUND is how many answers were cut so far, ROUNDS how many there are in all.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from aftermath import broken, loaded, rows
from proxy import Proxy, proxied
from rig import Server, serving, until
from storm import fresh_seed

from apothic import ControlPlaneClient
from apothic.errors import ConflictError
from apothic.protocol import messages as m
from apothic.protocol import routes

AT_ONCE = 8
APP = """
import apothic

app = apothic.App("cut")


@app.function(max_pending_tasks=1_000_000)
def same(number: int) -> int:
    return number
"""


class Cuts:
    """Cuts an answer at random; knows how many it has cut."""

    def __init__(self, seed: str) -> None:
        self.dice = random.Random(seed)
        self.count = 0
        self._lock = threading.Lock()

    def spares(self) -> bool:
        with self._lock:
            cut = self.dice.random() < 0.4
            self.count += cut
        return not cut


@contextlib.contextmanager
def cutting(tmp_path: Path, seed: str) -> Iterator[tuple[Server, Proxy, Cuts, ModuleType, ControlPlaneClient]]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path / "data"))
        proxy = stack.enter_context(proxied(server.base_url))
        key = (server.data_dir / "admin.key").read_text().strip()
        client = stack.enter_context(ControlPlaneClient(proxy.base_url, api_key=key))
        app = stack.enter_context(loaded(tmp_path, "cut", APP, client))
        app.app.deploy()
        yield server, proxy, Cuts(seed), app, client


def submits(tmp_path: Path, seed: str, first: int, last: int) -> None:
    begun, asked, reported, given = time.monotonic(), 0, first, 0
    with contextlib.ExitStack() as stack:
        server, proxy, cuts, app, client = stack.enter_context(cutting(tmp_path, f"{seed}/{first}"))
        (found,) = client.ask_blocking(routes.FIND_FUNCTIONS, m.FindFunctions(app="cut", name="same")).functions

        def submit(number: int) -> list[str]:
            if number % 5:
                return [app.same.spawn(number).job_id]
            # Several at once, each under a key of its own.
            inputs = [m.JobInput(args=[number], idempotency_key=f"{seed}-{number}-{n}") for n in range(3)]
            return client.ask_blocking(routes.SUBMIT_BATCH, m.SubmitBatch(function=found.id, jobs=inputs)).jobs

        proxy.spares_reply = cuts.spares
        pool = stack.enter_context(ThreadPoolExecutor(AT_ONCE))
        while first + cuts.count < last:
            taken = [job for jobs in pool.map(submit, range(given, given + AT_ONCE)) for job in jobs]
            given += AT_ONCE
            asked += len(taken)
            assert len(set(taken)) == len(taken)
            if first + cuts.count >= min(reported + 500, last):
                reported = first + cuts.count
                assert rows(server.data_dir, "SELECT count(*) FROM jobs") == [(asked,)]
                spent = time.monotonic() - begun
                print(f"SEED={seed} ROUND={reported}: {asked} submits, {asked} jobs, {spent:.0f} s", flush=True)
        proxy.spares_reply = lambda: True
        until(lambda: not rows(server.data_dir, "SELECT 1 FROM jobs WHERE ended_at IS NULL"), 120, "the end of all")
        assert rows(server.data_dir, "SELECT count(*), max(attempt) FROM jobs") == [(asked, 1)]
        assert broken(server.data_dir) == {}


def test_an_answer_that_is_cut_makes_no_second_job(tmp_path: Path) -> None:
    submits(tmp_path, os.environ.get("SEED", "1"), 0, 40)


def test_a_key_is_no_empty_text_and_belongs_to_one_input(tmp_path: Path) -> None:
    with cutting(tmp_path, "keys") as (_, _, _, app, _):
        job = app.same.with_options(idempotency_key="mine").spawn(1)
        assert app.same.with_options(idempotency_key="mine").spawn(1) == job
        with pytest.raises(ConflictError):
            app.same.with_options(idempotency_key="mine").spawn(2)
        for key in ("", "x" * 201):
            with pytest.raises(ValueError, match="idempotency_key"):
                app.same.with_options(idempotency_key=key).spawn(1)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_five_thousand_answers_are_cut(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    submits(tmp_path, seed, int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "5000")))
