"""Streams under `kill -9`: the generator runs once, and its reader gets each item once.

SEED repeats a storm; ROUND is the round to go on from, ROUNDS how many there are in all.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aftermath import broken, loaded
from rig import Server, serving
from storm import free_port, fresh_seed

from apothic import Job

ITEMS = 10_000
STREAMER = f"""
import apothic

app = apothic.App("streamer")


@app.function(stream_window={ITEMS})
def stream(book: str):
    with open(book, "a") as notes:
        notes.write(f"{{apothic.current_job().attempt}}\\n")
    yield from range({ITEMS})
    return {ITEMS}
"""
WAIT_S = 60.0


class Reading(threading.Thread):
    """A reader in a thread: what it got, and what it failed with."""

    def __init__(self, job: Job) -> None:
        super().__init__(daemon=True)
        self.got: list[Any] = []
        self.error: BaseException | None = None
        self._job = job

    def run(self) -> None:
        try:
            for item in self._job.wait_gen(timeout_s=WAIT_S):
                self.got.append(item)
        except BaseException as error:
            self.error = error


@contextmanager
def streaming(tmp_path: Path) -> Iterator[tuple[Server, ModuleType]]:
    """Hold a server on a port that it keeps, with the generator deployed and warm."""
    with serving(tmp_path / "data", port=free_port()) as server:
        client = server.client()
        with loaded(tmp_path, "streamer", STREAMER, client) as app:
            assert app.stream.spawn(str(tmp_path / "first")).wait(timeout_s=WAIT_S) == ITEMS
            yield server, app


def kill_once(server: Server, app: ModuleType, book: Path, after_s: float) -> int:
    """Kill the server at an instant of a stream, start it again, check the whole; return how many items were read."""
    job = app.stream.spawn(str(book))
    reading = Reading(job)
    reading.start()
    reading.join(after_s)
    at_kill = len(reading.got)
    server.kill()
    server.start()
    reading.join(WAIT_S)
    assert reading.error is None and not reading.is_alive()
    assert reading.got == list(range(ITEMS)), f"{len(reading.got)} items; killed after {at_kill}"
    assert job.wait(timeout_s=WAIT_S) == ITEMS
    assert book.read_text() == "1\n", "the generator ran once"
    return at_kill


def rounds(tmp_path: Path, seed: str, first: int, last: int) -> None:
    begun = time.monotonic()
    in_the_middle = 0
    with streaming(tmp_path) as (server, app):
        for number in range(first, last):
            dice = random.Random(f"{seed}/{number}")
            at_kill = kill_once(server, app, tmp_path / f"book-{number}", dice.uniform(0.0, 0.6))
            in_the_middle += 0 < at_kill < ITEMS
            if (number + 1) % 10 == 0 or number + 1 == last:
                spent = time.monotonic() - begun
                told = f"{number + 1 - first} kills, {in_the_middle} in mid-read, 0 items lost or doubled"
                print(f"SEED={seed} ROUND={number + 1}: {told}, {spent:.0f} s", flush=True)
                assert broken(server.data_dir) == {}


def test_a_stream_outlives_its_killed_server(tmp_path: Path) -> None:
    rounds(tmp_path, os.environ.get("SEED", "1"), 0, 4)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_stream_outlives_two_hundred_kills(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    rounds(tmp_path, seed, int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "200")))
