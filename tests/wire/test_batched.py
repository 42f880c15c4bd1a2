"""Batched functions on a real server: who shares a batch, when it begins, and that one bad item hurts nobody else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import baker
import pytest
from rig import Server, until

import apothic
from apothic import Job
from apothic.errors import ConfigError, JobCancelledError, JobFailedError, JobTimedOutError


@pytest.fixture(scope="module", autouse=True)
def deployed(server: Server) -> Iterator[None]:
    with server.lending(baker.app):
        yield


def running(gate: Path) -> list[str]:
    """Wait until a held batch runs; return what it noted: its process, then its jobs."""
    noted = Path(f"{gate}.runs")
    until(lambda: noted.exists() and bool(noted.read_text()))
    return noted.read_text().split()


def test_a_full_batch_begins_at_once_and_the_rest_when_its_time_is_over() -> None:
    results = baker.sizes.map(range(12))
    assert [item for item, _ in results] == list(range(12))
    assert max(size for _, size in results) == 8
    assert baker.sizes.remote(7) == (7, 1)


def test_a_batch_waits_for_its_oldest_item_no_longer_than_it_may() -> None:
    began = time.monotonic()
    assert baker.sizes.remote(1) == (1, 1)
    assert 0.15 <= time.monotonic() - began < 5


def test_an_async_function_and_a_large_map() -> None:
    assert baker.eventually.map([1, 2, 3, 4]) == [5, 6, 7, 8]
    assert baker.double.map(range(5_000)) == [2 * n for n in range(5_000)]


def test_two_batches_run_at_once_in_one_container(tmp_path: Path) -> None:
    threads = baker.meet.map([str(tmp_path / name) for name in "abcd"])
    assert len(set(threads)) == 2


def test_one_that_raises_hurts_nobody_else() -> None:
    results = baker.picky.map(["a", "raise", "c", "d"], return_exceptions=True)
    assert [results[0], *results[2:]] == ["a", "c", "d"]
    assert isinstance(results[1], ValueError)
    assert str(results[1]) == "a raise among 1"


def test_an_exception_in_its_place_a_bad_input_and_a_bad_result_fail_alone() -> None:
    results = baker.picky.map(["apart", "b", baker.Unreadable(), "lock"], return_exceptions=True)
    assert isinstance(results[0], KeyError)
    assert results[1] == "b"
    assert isinstance(results[2], Exception)
    assert "cannot be read" in str(results[2]) + str(results[2].__cause__)
    assert isinstance(results[3], JobFailedError)
    assert "lock" in str(results[3])


def test_what_may_run_once_is_not_run_again() -> None:
    jobs = [baker.picky.with_options(delivery="at_most_once").spawn(item) for item in ("raise", "b", "c", "d")]
    for job in jobs:
        with pytest.raises(ValueError, match="a raise among 4"):
            job.wait()


def test_a_wrong_number_of_results_is_an_error_of_every_item() -> None:
    for result in baker.short.map([1, 2], return_exceptions=True):
        assert isinstance(result, ValueError)
        assert "as many results as it was given items: 2, not 1" in str(result)
    for result in baker.short.map(["no list", 2], return_exceptions=True):
        assert isinstance(result, TypeError)
        assert "returned str" in str(result)


def test_what_a_batch_prints_is_in_the_log_of_each_job(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs = [baker.held.spawn(str(gate)) for _ in range(3)]
    _, *noted = running(gate)
    assert sorted(noted) == sorted(f"{job.job_id}/1" for job in jobs)
    gate.touch()
    assert [job.wait() for job in jobs] == ["3"] * 3
    assert [job.logs() for job in jobs] == [["a batch of 3"]] * 3


def test_one_that_is_cancelled_while_the_batch_runs_hurts_nobody_else(tmp_path: Path) -> None:
    for number in range(5):  # now and then the batch ends before it hears of the cancellation
        gate = tmp_path / f"gate{number}"
        jobs = [baker.held.spawn(str(gate)) for _ in range(3)]
        running(gate)
        assert jobs[1].cancel() == "cancelling"
        gate.touch()
        assert [jobs[0].wait(), jobs[2].wait()] == ["3", "3"]
        assert not Path(f"{gate}.struck").exists()
        if ended(jobs[1]) == "cancelled":
            with pytest.raises(JobCancelledError):
                jobs[1].wait()
            return
    raise AssertionError("no cancellation was ever in time")


def test_a_batch_that_nobody_wants_any_more_is_interrupted(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs = [baker.held.spawn(str(gate)) for _ in range(3)]
    running(gate)
    for job in jobs:
        job.cancel()
    until(Path(f"{gate}.struck").exists)
    assert [ended(job) for job in jobs] == ["cancelled"] * 3


def test_one_over_its_time_hurts_nobody_else() -> None:
    # The batch takes half a second: behind the limit of the one, and far before that of the others.
    jobs = [baker.lasting.with_options(timeout_s=limit).spawn(0.5) for limit in (60, 0.2, 60)]
    assert [jobs[0].wait(), jobs[2].wait()] == [3, 3]
    with pytest.raises(JobTimedOutError):
        jobs[1].wait()


def test_one_that_waits_for_its_batch_is_cancelled_at_once() -> None:
    first, second = (baker.patient.spawn(n) for n in range(2))
    assert first.wait() == 0
    waiting = baker.patient.spawn(2)
    until(lambda: waiting.status() == "starting")
    waiting.cancel()
    assert ended(waiting) == "cancelled"
    assert second.wait() == 1


def test_a_batch_whose_process_is_killed_is_run_again(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    jobs = [baker.held.spawn(str(gate)) for _ in range(3)]
    pid, *_ = running(gate)
    os.kill(int(pid), signal.SIGKILL)
    gate.touch()
    assert all(job.wait(timeout_s=60) in ("1", "2", "3") for job in jobs)


def test_the_jobs_of_a_batch_are_named_by_current_batch() -> None:
    assert "current_batch() returns the jobs in it" in baker.whose.remote(1)
    assert apothic.current_batch() == []


def test_the_body_can_be_called_here() -> None:
    assert baker.double.local([1, 2]) == [2, 4]


def test_a_call_with_keywords_says_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="one item by position"):
        baker.double.remote(items=3)


def test_what_cannot_be_batched_is_refused_where_it_is_written() -> None:
    app = apothic.App("refused")

    def two(a: int, b: int) -> list[int]:
        return [a, b]

    def gen(items: list[int]) -> Iterator[int]:
        yield from items

    for fn, what in ((two, "does not take one list"), (gen, "is a generator")):
        with pytest.raises(ConfigError, match=what):
            app.function()(apothic.batched(max_batch_size=2, wait_ms=1)(fn))
    with pytest.raises(ConfigError, match="schedule"):
        app.function(schedule=apothic.Period(hours=1))(
            apothic.batched(max_batch_size=2, wait_ms=1)(lambda items=(): list(items))
        )


def test_both_handles_tell_of_the_batching(server: Server) -> None:
    found = apothic.RemoteFunction.from_name("baker", "double", client=server.client())
    assert found.batching == baker.double.options.batching == apothic.BatchingSpec(500, 20)


def ended(job: Job) -> str:
    until(lambda: job.status() in ("succeeded", "failed", "cancelled", "timed_out"))
    return job.status()


@pytest.mark.soak
def test_how_well_the_wait_is_kept() -> None:
    """The promise is 20 ms: print how far behind `wait_ms` a batch of one begins, from its submit to its result."""
    baker.sizes.remote(0)
    late = []
    for number in range(int(os.environ.get("ROUNDS", "200"))):
        began = time.monotonic()
        baker.sizes.remote(number)
        late.append(1000 * (time.monotonic() - began) - 150)
    late.sort()
    print(f"\n{len(late)} batches: {late[0]:.1f} to {late[-1]:.1f} ms late, median {late[len(late) // 2]:.1f} ms")
    assert late[0] >= 0
