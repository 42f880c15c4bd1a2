"""Cancelling what does not want to end: `cancelled` comes within grace + 5 s, and only once the whole tree is dead.

ROUNDS says how often each kind is cancelled in the long form; ROUND is the round to go on from.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from aftermath import agent_pid, check_no_slot_leaks, job_of, loaded, rows
from rig import Server, serving, until

from apothic import Job

GRACE_S, KILL_S = 0.5, 5.0
SLACK_S = 15.0  # of a machine that starts thirty containers meanwhile
MODES = ("solo", "threads", "tasks")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ModuleType, Path]]:
    home = tmp_path_factory.mktemp("stubborn")
    source = Path(__file__).with_name("stubborn.py").read_text().replace("{flag}", str(home / "flag"))
    with (
        serving(home / "data", lease_s=10, grace_s=GRACE_S) as server,
        loaded(home, "stubborn", source, server.client()) as app,
    ):
        app.app.deploy()
        (home / "book").mkdir()
        yield server, app, home


def free(path: Path) -> bool:
    """Tell whether nobody of a job's tree lives any more."""
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Ending(threading.Thread):
    """Cancels one job that is at work, and looks at its tree in the moment in which it is said to be cancelled."""

    def __init__(self, job: Job, book: Path, server: Server) -> None:
        super().__init__(name=job.job_id)
        self.job, self.server, self.path = job, server, book / job.job_id
        self.trouble: str | None = None
        self.took_s = 0.0

    def run(self) -> None:
        try:
            self._end()
        except BaseException as error:
            self.trouble = repr(error)

    def _end(self) -> None:
        until(lambda: self.path.exists() and self.path.read_text() == "here", 60, "the job's begin")
        begun = time.monotonic()
        self.job.cancel()
        with pytest.raises(Exception, match="cancelled"):
            self.job.wait(timeout_s=GRACE_S + KILL_S + SLACK_S)
        dead = free(self.path)
        self.took_s = time.monotonic() - begun
        leased = rows(self.server.data_dir, "SELECT 1 FROM leases JOIN jobs ON seq = job WHERE id = ?", self.job.job_id)
        assert dead, "its tree lives on"
        assert not leased, "its slot is not free"


def storm(server: Server, app: ModuleType, book: Path, kinds: list[tuple[str, int]]) -> float:
    """Cancel one job of each kind, all at once; return how long the slowest took."""
    endings = [(kind, Ending(getattr(app, kind[0]).spawn(str(book), kind[1]), book, server)) for kind in kinds]
    for _, ending in endings:
        ending.start()
    for _, ending in endings:
        ending.join()
    trouble = [f"{mode}/{app.DEEDS[how].__name__}: {e.trouble}" for (mode, how), e in endings if e.trouble]
    assert not trouble, "\n".join(trouble)
    return max(ending.took_s for _, ending in endings)


def test_one_of_each_that_does_not_want_to_end(ground: tuple[Server, ModuleType, Path]) -> None:
    server, app, home = ground
    slowest = storm(server, app, home / "book", [(mode, how) for mode in MODES for how in range(len(app.DEEDS))])
    print(f"the slowest of {3 * len(app.DEEDS)} took {slowest:.1f} s")
    check_no_slot_leaks(server, server.client())


def test_jobs_that_have_not_begun_are_cancelled_at_once(ground: tuple[Server, ModuleType, Path]) -> None:
    server, app, home = ground
    unbegun(server, app, home / "gate")
    check_no_slot_leaks(server, server.client())


def unbegun(server: Server, app: ModuleType, gate: Path) -> None:
    """Cancel a job in each place in which one waits."""
    client, told = server.client(), str(gate)
    flag = gate.with_name("flag")
    app.quick.map([""] * 40)  # quick: its container holds jobs ahead from now on
    busy = [app.narrow.spawn(told), app.quick.spawn(told), app.starts.spawn(told)]
    for job in busy:
        until(lambda job=job: job.status() == "running", what="a job at work")  # type: ignore[misc]
    waiting = {
        "behind another": app.quick.spawn(told),
        "queued": app.narrow.spawn(told),
        "delayed": app.narrow.with_options(run_at=time.time() + 3600).spawn(told),
        "in back-off": app.fails.spawn(),
    }
    until(lambda: waiting["in back-off"].status() == "retrying", what="the back-off")
    for word in ("sleep", "spin"):
        flag.write_text(word)
        waiting[f"at import: {word}"] = app.starts.spawn(told)
        until(lambda w=word: job_of(client, waiting[f"at import: {w}"].job_id).status == "starting", what=word)  # type: ignore[misc]
    waiting["being fetched"] = app.large.spawn(os.urandom(8_000_000))
    for name, job in waiting.items():
        begun = time.monotonic()
        job.cancel()
        until(lambda job=job: job.status() == "cancelled", 10, f"the end of a job {name}")  # type: ignore[misc]
        assert time.monotonic() - begun < 5, name
    flag.unlink()
    assert [job_of(client, job.job_id).status for job in busy] == ["running"] * 3, "nobody else was hurt"
    gate.touch()
    assert [job.wait(timeout_s=30) for job in busy] == [None] * 3
    gate.unlink()
    for container in psutil.Process(agent_pid(client)).children():
        container.kill()  # those that import for ever take a whole processor from the next round


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_hundred_of_each(ground: tuple[Server, ModuleType, Path]) -> None:
    server, app, home = ground
    first, last = int(os.environ.get("ROUND", "0")), int(os.environ.get("ROUNDS", "100"))
    begun, slowest = time.monotonic(), 0.0
    kinds = [(mode, how) for mode in MODES for how in range(len(app.DEEDS))]
    for number in range(first, last):
        slowest = max(slowest, storm(server, app, home / "book", kinds))
        unbegun(server, app, home / "gate")
        check_no_slot_leaks(server, server.client())
        done, spent = number + 1 - first, time.monotonic() - begun
        print(f"ROUND={number + 1}: {done} of each of {len(kinds)} kinds and 7 places, slowest {slowest:.1f} s,"
              f" {spent:.0f} s", flush=True)  # fmt: skip
