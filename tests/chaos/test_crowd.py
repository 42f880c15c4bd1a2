"""Eight processes that write, two hundred readers, others that open the file themselves: nobody sees a locked database.

SEED repeats a crowd; ROUND is how many operations were done so far, ROUNDS how many there are in all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aftermath import audit, broken, loaded, opened, rows
from rig import Server, environment, serving
from storm import fresh_seed

from apothic.protocol import messages as m
from apothic.protocol import routes

APP = """
import apothic

app = apothic.App("crowded")


@app.function(max_containers=1, max_pending_tasks=500, cpu=0.1, memory_mb=64)
def count(number: float) -> float:
    print("counted", number)
    return number


@app.function(max_containers=1, cpu=0.1, memory_mb=64)
def yields():
    for item in range(20):
        print("yields", item)
        yield item
"""
WRITERS, READERS, READING = 8, 200, 4  # READING processes share the readers
ROUND = 40_000  # operations before the next look


class Peeping(threading.Thread):
    """Opens the file again and again, as `doctor` does, while the server writes."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(name="peeping")
        self.data_dir = data_dir
        self.over = threading.Event()
        self.looks = 0
        self.trouble: list[str] = []

    def run(self) -> None:
        while not self.over.is_set():
            try:
                rows(self.data_dir, "SELECT status, count(*) FROM jobs GROUP BY status")
                if self.looks % 20 == 0:
                    with opened(self.data_dir) as connection:
                        audit(connection)
            except Exception as error:
                self.trouble.append(repr(error))
            self.looks += 1


def member(server: Server, role: str, function: str, at_once: int, count: int, seed: str) -> subprocess.Popen[str]:
    key = (server.data_dir / "admin.key").read_text().strip()
    program = Path(__file__).with_name("crowd.py")
    words = [role, server.base_url, key, function, str(at_once), str(count), seed]
    return subprocess.Popen(
        [sys.executable, str(program), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=environment(server.data_dir, server.home),
    )  # fmt: skip


def gather(server: Server, app: Any, count: int, seed: str, writers: int, readers: int) -> Counter[str]:
    """Let a crowd do so many operations; return what it did. Nobody of it may be told of a lock."""
    functions = server.client().ask_blocking(routes.FIND_FUNCTIONS, m.FindFunctions(app="crowded")).functions
    function = next(each.id for each in functions if each.name == "count")
    jobs = [app.yields.spawn().job_id for _ in range(20)]
    each = count // 2
    crowd = [member(server, "writes", function, 1, each // writers, f"{seed}/w{n}") for n in range(writers)]
    at_once = readers // READING
    crowd += [member(server, "reads", function, at_once, each // READING, f"{seed}/r{n}") for n in range(READING)]
    done: Counter[str] = Counter()
    try:
        for process in crowd:
            assert process.stdin is not None
            process.stdin.write(json.dumps(jobs) + "\n")
            process.stdin.flush()
        for process in crowd:
            told, _ = process.communicate(timeout=600)
            assert process.returncode == 0, told[-2000:]
            found = json.loads(told.splitlines()[-1])
            assert "locked" not in told and found["errors"] == {}, found["errors"]
            done.update(found["done"])
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    return done


def crowds(tmp_path: Path, seed: str, first: int, last: int, size: int, writers: int, readers: int) -> None:
    begun, total = time.monotonic(), first
    settings = {"lease_s": 30, "grace_s": 1, "durability": "fast"}
    with serving(tmp_path / "data", **settings) as server, loaded(tmp_path, "crowded", APP, server.client()) as app:
        app.app.deploy()
        peeping = Peeping(server.data_dir)
        peeping.start()
        try:
            while total < last:
                done = gather(server, app, min(size, last - total), f"{seed}/{total}", writers, readers)
                total += done.total()
                logs = server.log() + (server.data_dir / "agent.log").read_text(errors="replace")
                assert "locked" not in logs and peeping.trouble == []
                spent = time.monotonic() - begun
                rate = (total - first) / spent
                print(f"SEED={seed} ROUND={total}: {dict(done)}, {peeping.looks} looks into the file, 0 locked,"
                      f" {spent:.0f} s, {rate:.0f} a second", flush=True)  # fmt: skip
        finally:
            peeping.over.set()
            peeping.join()
        assert broken(server.data_dir) == {}


def test_a_crowd_never_finds_the_database_locked(tmp_path: Path) -> None:
    crowds(tmp_path, os.environ.get("SEED", "1"), 0, 1_200, 1_200, 3, 40)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_million_operations(tmp_path: Path) -> None:
    seed = os.environ.get("SEED") or fresh_seed()
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "1000000"))
    crowds(tmp_path, seed, first, last, ROUND, WRITERS, READERS)
