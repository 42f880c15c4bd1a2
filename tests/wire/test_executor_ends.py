"""`apothic.Executor` with many calls, and at its end: that of a queue, a thread, a process."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import sums
from executing import DEADLINE_S, SMALL, Script, held, until
from rig import Server

from apothic import ControlPlaneClient, Executor
from apothic.client import pool
from apothic.errors import QueueFullError


def test_many_threads_submit_many_calls_in_few_requests(
    client: ControlPlaneClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = client._ask

    def counted(route: Any, message: Any, timeout_s: float | None) -> Any:
        asked.append(route.name)
        return ask(route, message, timeout_s)

    monkeypatch.setattr(client, "_ask", counted)
    found: list[futures.Future[int]] = []
    with Executor(client=client, **SMALL) as executor:

        def submit(start: int) -> None:
            found.extend([executor.submit(pow, n, 2) for n in range(start, start + 250)])

        threads = [threading.Thread(target=submit, args=(250 * n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(future.result() for future in found) == [n * n for n in range(2000)]
        assert len({future.job.job_id for future in found}) == 2000  # type: ignore[attr-defined]
    assert asked.count("submit_batch") + asked.count("submit") < 200
    assert asked.count("result") == 0


def test_futures_are_forgotten_when_they_are_done(executor: Executor) -> None:
    calls = [executor.submit(sums.Point, n, n) for n in range(50)]
    seen = [weakref.ref(future) for future in calls]
    kept = [weakref.ref(future.result()) for future in calls]
    del calls

    def forgotten() -> bool:
        gc.collect()
        return not any(ref() is not None for ref in [*seen, *kept])

    until(forgotten)
    assert not executor._pool._line and not executor._pool._unsent and not executor._pool._outstanding


def test_a_full_queue_slows_down_whoever_submits(
    client: ControlPlaneClient, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "UNSENT", 3)
    hasty = ControlPlaneClient(client.base_url, api_key=client.settings.api_key)
    with Executor(client=hasty, app_name="full", max_workers=1, max_pending_tasks=2, **SMALL) as executor:
        calls = [executor.submit(held, gate)]
        assert calls[0].job
        hasty.timeout_s = 1
        with pytest.raises(QueueFullError):
            for _ in range(20):
                calls.append(executor.submit(held, gate))
        gate.touch()
        hasty.timeout_s = DEADLINE_S
        assert 3 < len(calls) < 8
        assert [future.result() for future in calls] == ["let go"] * len(calls)
    hasty.close()


def test_the_thread_ends_with_an_executor_that_nobody_has(client: ControlPlaneClient, gate: Path) -> None:
    executor = Executor(client=client, **SMALL)
    future = executor.submit(held, gate)
    thread = executor._pool._thread
    del executor
    gate.touch()
    assert future.result() == "let go"
    assert thread is not None
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_an_interpreter_that_ends_waits_for_its_calls_and_takes_no_more(server: Server, tmp_path: Path) -> None:
    out, err = Script(
        server, tmp_path, """
        import atexit, time, apothic

        @atexit.register
        def last():
            print(future.done(), future.result(), left.result())
            try:
                executor.submit(id, None)
            except RuntimeError as error:
                print(error)

        def slow():
            time.sleep(1)
            return "done"

        executor = apothic.Executor(cpu=0.1, memory_mb=128)
        future = executor.submit(slow)
        other = apothic.Executor(cpu=0.1, memory_mb=128)
        left = other.submit(slow)
        other.shutdown(wait=False)
        """,
    ).end()  # fmt: skip
    assert (out, err) == ("True done done\ncannot schedule new futures after interpreter shutdown\n", "")


def test_a_forked_child_has_an_executor_of_its_own(server: Server, tmp_path: Path) -> None:
    out, err = Script(
        server, tmp_path, """
        import os, time, apothic

        executor = apothic.Executor(cpu=0.1, memory_mb=128)
        mine = executor.submit(time.sleep, 0.5)
        mine.job
        more = [executor.submit(time.sleep, 0.1) for _ in range(4)]
        child = os.fork()
        if not child:
            print("child", more[-1].cancel(), executor.submit(pow, 2, 10).result(), flush=True)
            executor.shutdown()
            raise SystemExit
        assert os.waitpid(child, 0)[1] == 0
        print("parent", mine.result(), more[-1].result(), executor.submit(pow, 2, 11).result())
        """,
    ).end()  # fmt: skip
    assert (out, err) == ("child True 1024\nparent None None 2048\n", "")
