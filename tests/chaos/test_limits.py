"""A function never runs more inputs at a time than it may, whatever is killed, cancelled, timed out and tried again.

SEED repeats a run; MINUTES is how long the long form goes on.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from aftermath import check_no_slot_leaks, loaded
from limited import LIMITS
from rig import serving, until
from storm import fresh_seed

from apothic import ControlPlaneClient
from apothic.protocol import messages as m
from apothic.protocol import routes
from apothic.protocol.lifecycle import FINAL

SAMPLE_S = 0.01
OUTSTANDING = 14  # of each function
HOWS = ("loop", "loop", "c", "c", "c", "stubborn", "raise")


@dataclass
class Totals:
    samples: int = 0
    slowest_s: float = 0.0
    kills: int = 0
    jobs: int = 0
    cancels: int = 0
    most: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return (
            f"{self.samples} samples, longest pause {self.slowest_s * 1000:.0f} ms, {self.kills} kills, {self.cancels}"
            f" cancels, {self.jobs} jobs, ended {dict(self.ended)}, most at a time {dict(self.most)}"
        )


class Sampler(threading.Thread):
    """Counts the running inputs of each function, again and again."""

    def __init__(self, root: Path, totals: Totals) -> None:
        super().__init__(name="sampler")
        self.root = root
        self.totals = totals
        self.over = threading.Event()
        self.broken: list[str] = []
        self.pids: set[int] = set()

    def run(self) -> None:
        last = time.monotonic()
        while not self.over.wait(SAMPLE_S):
            for name, limit in LIMITS.items():
                self._look(name, limit)
            now = time.monotonic()
            self.totals.slowest_s = max(self.totals.slowest_s, now - last)
            self.totals.samples += 1
            last = now

    def _look(self, name: str, limit: int) -> None:
        # A directory this small is read in one call, under its lock: an instant.
        marks = os.listdir(self.root / name)
        live = [mark for mark in marks if _lives(int(mark.split("-")[0]))]
        for mark in set(marks) - set(live):
            (self.root / name / mark).unlink(missing_ok=True)
        self.pids = {pid for pid in self.pids if _lives(pid)} | {int(mark.split("-")[0]) for mark in live}
        self.totals.most[name] = max(self.totals.most[name], len(live))
        if len(live) > limit:
            self.broken.append(f"{name} runs {len(live)}, its limit is {limit}: {sorted(live)}")


def _lives(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


class Load:
    """Keeps every function's queue full, kills containers and cancels jobs, as the dice say."""

    def __init__(self, app: ModuleType, client: ControlPlaneClient, root: Path, dice: random.Random) -> None:
        self.app = app
        self.client = client
        self.root = root
        self.dice = dice
        self.totals = Totals()
        self.open: dict[str, list[str]] = {name: [] for name in LIMITS}

    @property
    def disturbed(self) -> bool:
        """Whether the dice have fallen for each kind of disturbance; on a busy machine few are thrown in a second, and
        most cancellations come too late for what they are about."""
        return self.totals.kills >= 2 and self.totals.cancels >= 2 and self.totals.ended["cancelled"] > 0

    def round(self, sampler: Sampler) -> None:
        """Fill up, disturb, see who has ended."""
        for name, jobs in self.open.items():
            for _ in range(OUTSTANDING - len(jobs)):
                jobs.append(self._submit(name))
        if self.dice.random() < 0.1 and (pids := sorted(sampler.pids)):
            with suppress(ProcessLookupError):
                os.kill(self.dice.choice(pids), signal.SIGKILL)
                self.totals.kills += 1
        for jobs in self.open.values():
            if self.dice.random() < 0.05:
                self.client.ask_blocking(routes.CANCEL, m.CancelJob(job=self.dice.choice(jobs[:8])))
                self.totals.cancels += 1
        self.gather(0.05)

    def gather(self, wait_s: float) -> bool:
        """Forget those that have ended; tell whether all have."""
        ask = m.GatherResults(jobs=[job for jobs in self.open.values() for job in jobs], wait_s=wait_s)
        ended = {each.job.id: each.job.status for each in self.client.ask_blocking(routes.GATHER, ask).results}
        assert set(ended.values()) <= FINAL
        self.totals.ended.update(status.value for status in ended.values())
        for jobs in self.open.values():
            jobs[:] = [job for job in jobs if job not in ended]
        return not any(self.open.values())

    def _submit(self, name: str) -> str:
        how, run_s = self.dice.choice(HOWS), self.dice.choice((0.0, 0.005, 0.02, 0.1, 0.4))
        timeout_s = self.dice.choice((60.0,) * 7 + (0.05,))
        function = getattr(self.app, name).with_options(timeout_s=timeout_s)
        self.totals.jobs += 1
        return str(function.spawn(str(self.root / name), how, run_s).job_id)


def run(tmp_path: Path, seed: str, seconds: float) -> Totals:
    """Let it go on for so long; fail at the first sample that is over a limit."""
    print(f"SEED={seed}")
    for name in LIMITS:
        (tmp_path / "marks" / name).mkdir(parents=True)
    source = Path(__file__).with_name("limited.py").read_text()
    with serving(tmp_path / "data", grace_s=1) as server:
        client = server.client()
        with loaded(tmp_path, "limited_app", source, client) as app:
            app.app.deploy()
            load = Load(app, client, tmp_path / "marks", random.Random(seed))
            sampler = Sampler(tmp_path / "marks", load.totals)
            sampler.start()
            try:
                begun = told = time.monotonic()
                while (time.monotonic() < begun + seconds or not load.disturbed) and not sampler.broken:
                    load.round(sampler)
                    if time.monotonic() > told + 30:
                        told = time.monotonic()
                        print(f"{told - begun:.0f} s: {load.totals}", flush=True)
                until(lambda: sampler.broken or load.gather(1.0), 120, "the end of all jobs")
            finally:
                sampler.over.set()
                sampler.join()
            assert sampler.broken == []
            check_no_slot_leaks(server, client)
    print(load.totals)
    return load.totals


@pytest.mark.timeout(300)
def test_no_function_runs_more_than_it_may(tmp_path: Path) -> None:
    totals = run(tmp_path, os.environ.get("SEED", "1"), 8.0)
    assert totals.kills >= 2 and totals.cancels >= 2
    assert totals.most["one"] == 1 and totals.most["two_async"] == 2
    assert {"succeeded", "failed", "cancelled"} <= set(totals.ended)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_no_function_runs_more_than_it_may_for_an_hour(tmp_path: Path) -> None:
    run(tmp_path, os.environ.get("SEED") or fresh_seed(), 60.0 * float(os.environ.get("MINUTES", "60")))
