"""`apothic.Executor` against a real server: what it promises beyond the standard ones."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import sums
from executing import DEADLINE_S, SMALL, Script, held, until
from rig import Server, serving

from apothic import ControlPlaneClient, Executor, Job
from apothic.errors import (
    ConfigError,
    JobCancelledError,
    NotDeployedError,
    SerializationError,
    WorkerLostError,
)
from apothic.protocol import messages as m
from apothic.protocol import routes

# --- what can be submitted --------------------------------------------------------------------------------------


def test_anything_that_can_be_pickled_runs(executor: Executor) -> None:
    offset = 40
    assert executor.submit(lambda n: n + offset, 2).result() == 42
    assert executor.submit(sorted, [3, 1, 2], reverse=True).result() == [3, 2, 1]
    assert executor.submit("-".join, ["a", "b"]).result() == "a-b"
    assert executor.submit(held, Path("/")).result() == "let go"


def test_classes_of_modules_that_are_not_installed_come_back_as_themselves(executor: Executor) -> None:
    point = executor.submit(lambda p: sums.Point(p.y, p.x), sums.Point(1, 2)).result()
    assert point == sums.Point(2, 1)
    assert type(point) is sums.Point


def test_large_values_travel_both_ways_and_leave_no_files(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    large = os.urandom(300_000)
    assert executor.submit(bytes.upper, large).result() == large.upper()
    assert list(tmp_path.iterdir()) == []


def test_a_scripts_own_functions_run_and_so_do_those_of_modules_beside_it(server: Server, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("RATE = 3\ndef scale(n):\n    return n * RATE\n")
    out, err = Script(
        server, tmp_path, """
        import apothic, beside
        app = apothic.App("also")

        @app.function()
        def own(n: int) -> int:
            return n

        class Pair:
            def __init__(self, a, b):
                self.a, self.b = a, b

        def pair(n):
            return Pair(n, beside.scale(n))

        if __name__ == "__main__":
            with apothic.Executor(cpu=0.1, memory_mb=128) as executor:
                found = executor.submit(pair, 2).result()
                print(type(found) is Pair, found.a, found.b, executor.submit(beside.scale, 5).result())
        """,
    ).end()  # fmt: skip
    assert (out, err) == ("True 2 6 15\n", "")


def test_functions_of_an_app_are_called_as_what_is_deployed(executor: Executor, client: ControlPlaneClient) -> None:
    sums.app._client = client
    sums.app.deploy()
    try:
        assert executor.submit(lambda n: sums.square.remote(n), 9).result() == 81
    finally:
        sums.app._client = None
        sums.app.forget()


def test_an_executor_inside_a_job(executor: Executor) -> None:
    def inside() -> int:
        import apothic

        with apothic.Executor(app_name="executor") as nested:
            return nested.submit(pow, 2, 5).result()

    assert executor.submit(inside).result() == 32


# --- exceptions -------------------------------------------------------------------------------------------------


def test_an_exception_is_the_functions_own_with_its_traceback(executor: Executor) -> None:
    def refuse() -> None:
        raise sums.Refusal(7, "no")  # marked

    future = executor.submit(refuse)
    error = future.exception()
    assert type(error) is sums.Refusal and error.code == 7
    assert "raise sums.Refusal(7" in str(error.__cause__)
    assert ", in run\n" not in str(error.__cause__)
    assert future.job.job_id in error.__notes__[0]


def test_what_cannot_be_packed_is_the_futures_exception(executor: Executor) -> None:
    future = executor.submit(len, threading.Lock())  # type: ignore[arg-type]
    assert isinstance(future.exception(), SerializationError)
    with pytest.raises(SerializationError):
        _ = future.job


def test_a_process_that_dies_fails_its_own_call_alone(executor: Executor) -> None:
    assert isinstance(executor.submit(os._exit, 3).exception(), WorkerLostError)
    assert executor.submit(pow, 2, 3).result() == 8


def test_a_function_that_cannot_be_deployed_fails_the_futures(client: ControlPlaneClient) -> None:
    with Executor(client=client, app_name="nowhere", gpu="none-such") as executor:
        for _ in range(2):
            future = executor.submit(pow, 2, 3)
            assert isinstance(future.exception(), NotDeployedError)
            with pytest.raises(NotDeployedError):
                _ = future.job


def test_a_job_that_somebody_else_cancels_raises_as_its_wait_does(executor: Executor, gate: Path) -> None:
    future = executor.submit(held, gate)
    future.job.cancel()
    assert isinstance(future.exception(), JobCancelledError)


@pytest.mark.parametrize(
    "options", [{"max_workers": 0}, {"max_workers": True}, {"max_containers": 3}, {"schedule": None}, {"cpu": "all"}]
)
def test_wrong_options_raise_where_they_are_written(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Executor(**options)


# --- cancelling, and the end ------------------------------------------------------------------------------------


def test_a_call_that_no_worker_has_can_be_cancelled_and_one_that_runs_cannot(executor: Executor, gate: Path) -> None:
    busy = [executor.submit(held, gate) for _ in range(2)]
    waiting = [executor.submit(held, gate) for _ in range(3)]
    jobs = [future.job for future in waiting]

    assert [future.cancel() for future in busy] == [False, False]
    assert all(future.running() for future in busy) and not any(future.running() for future in waiting)
    assert waiting[1].cancel() and waiting[1].cancel()
    assert waiting[1].cancelled()
    until(lambda: jobs[1].status() == "cancelled")
    assert futures.wait([waiting[1], waiting[0]], return_when="FIRST_COMPLETED").done == {waiting[1]}

    gate.touch()
    assert [future.result() for future in [*busy, waiting[0], waiting[2]]] == ["let go"] * 4
    with pytest.raises(futures.CancelledError):
        waiting[1].result()


def test_a_call_that_was_not_sent_is_cancelled_here(client: ControlPlaneClient, gate: Path) -> None:
    with Executor(client=client, app_name="narrow", max_workers=1, max_pending_tasks=1, **SMALL) as executor:
        calls = [executor.submit(held, gate) for _ in range(6)]
        until(lambda: sum(future.accepted is not None for future in calls) == 2)
        assert calls[5].cancel()
        with pytest.raises(futures.CancelledError):
            _ = calls[5].job
        gate.touch()
        assert [future.result() for future in calls[:5]] == ["let go"] * 5


def test_shutdown_cancels_what_no_worker_has_and_waits_for_the_rest(client: ControlPlaneClient, gate: Path) -> None:
    executor = Executor(client=client, **SMALL)
    calls = [executor.submit(held, gate) for _ in range(20)]
    jobs = [future.job for future in calls]
    executor.shutdown(wait=False, cancel_futures=True)

    assert [future.cancelled() for future in calls] == [False] * 2 + [True] * 18
    until(lambda: {job.status() for job in jobs[2:]} == {"cancelled"})  # a container may have held some ahead
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(pow, 2, 3)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(threading.Lock())  # type: ignore[arg-type]

    gate.touch()
    executor.shutdown()
    assert all(future.done() for future in calls)


def test_callbacks_may_submit_and_cancel(executor: Executor, gate: Path) -> None:
    followed: list[futures.Future[Any]] = []
    last = [executor.submit(held, gate) for _ in range(4)][-1]
    told: list[bool] = []

    def follow(_: Any) -> None:
        told.append(last.cancel())
        followed.append(executor.submit(pow, 2, 4))

    first = executor.submit(held, gate)
    first.add_done_callback(follow)
    assert first.cancel()
    assert told == [True]
    gate.touch()
    assert followed[0].result() == 16


def test_cancelling_what_is_just_ending_leaves_every_future_done(executor: Executor) -> None:
    calls = [executor.submit(pow, n, 2) for n in range(200)]

    def cancel(some: list[Any]) -> None:
        for future in some:
            future.cancel()

    threads = [threading.Thread(target=cancel, args=(calls[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert futures.wait(calls, timeout=DEADLINE_S).not_done == set()
    assert all(future.cancelled() or future.result() == n * n for n, future in enumerate(calls))
    assert executor.submit(pow, 2, 3).result() == 8


async def test_wrap_future(executor: Executor, gate: Path) -> None:
    assert await asyncio.wrap_future(executor.submit(pow, 2, 6)) == 64
    assert await asyncio.get_running_loop().run_in_executor(executor, pow, 2, 7) == 128

    busy = [executor.submit(held, gate) for _ in range(2)]
    waiting = executor.submit(held, gate)
    wrapped = asyncio.wrap_future(waiting)
    wrapped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wrapped
    async with asyncio.timeout(DEADLINE_S):  # asyncio passes it on in the loop's next turn
        while not waiting.cancelled():
            await asyncio.sleep(0)
    gate.touch()
    await asyncio.gather(*map(asyncio.wrap_future, busy))


# --- map --------------------------------------------------------------------------------------------------------


def test_map_keeps_the_order_and_chunks_share_jobs(client: ControlPlaneClient) -> None:
    with Executor(client=client, app_name="chunks", **SMALL) as executor:
        assert list(executor.map(lambda a, b: a * b, range(100), range(100), chunksize=30)) == [
            n * n for n in range(100)
        ]
        assert list(executor.map(abs, [], chunksize=30)) == []
    listed = client.ask_blocking(routes.LIST_JOBS, m.ListJobs(app="chunks", limit=500)).jobs
    assert len(listed) == 4


def test_a_map_that_is_left_cancels_what_no_worker_has(executor: Executor, gate: Path) -> None:
    results = executor.map(held, [gate] * 20, timeout=1)
    with pytest.raises(TimeoutError):
        next(results)
    gate.touch()
    assert executor.submit(pow, 2, 2).result() == 4


# --- jobs -------------------------------------------------------------------------------------------------------


def test_jobs_outlive_the_process_that_submitted_them(server: Server, tmp_path: Path, gate: Path) -> None:
    script = Script(
        server, tmp_path, f"""
        import pathlib, time, apothic

        def held(gate):
            while not gate.exists():
                time.sleep(0.01)
            return "let go"

        executor = apothic.Executor(cpu=0.1, memory_mb=128)
        for future in [executor.submit(held, pathlib.Path({str(gate)!r})) for _ in range(4)]:
            print(future.job.job_id, flush=True)
        time.sleep(600)
        """,
    )  # fmt: skip
    assert script.process.stdout is not None
    ids = [script.process.stdout.readline().strip() for _ in range(4)]
    script.process.send_signal(signal.SIGKILL)
    script.end()
    gate.touch()

    again = server.client()
    assert [Job.attach(job, client=again).wait() for job in ids] == ["let go"] * 4


def test_futures_outlive_their_server(tmp_path: Path, gate: Path) -> None:
    with serving(tmp_path / "data") as server, Executor(client=server.client(), **SMALL) as executor:
        calls = [executor.submit(held, gate) for _ in range(3)]
        for future in calls:
            assert future.job
        server.settings["port"] = server.base_url.rpartition(":")[2]
        server.kill()
        late = executor.submit(pow, 2, 9)
        server.start()
        gate.touch()
        assert [future.result() for future in calls] == ["let go"] * 3
        assert late.result() == 512


def test_executors_of_one_name_keep_to_their_own_options(client: ControlPlaneClient) -> None:
    with Executor(client=client, **SMALL) as first, Executor(client=client, **SMALL, timeout_s=1) as second:
        assert first.submit(pow, 2, 1).result() == 2
        assert second.submit(pow, 2, 2).result() == 4
        assert first.submit(time.sleep, 1.5).exception() is None
