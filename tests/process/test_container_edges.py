"""What happens to containers at the edges: answers nobody wants, forged ones, attempts that overlap, shared memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from containerbench import Bench

from apothic.agent.cgroup import Groups

DEAF = """
    import signal
    for n in (signal.SIGTERM, signal.SIGUSR1): signal.signal(n, signal.SIG_IGN)
    def f(wait=True):
        print("here")
        while wait: signal.pause()
"""
LARGE_AT_THE_END = """
    import time
    def f(wait=True):
        try:
            print("here")
            if wait: time.sleep(60)
        except BaseException:
            return b"x" * 1_000_000
"""
# A frame as a container sends it, but of the job's own making.
FORGED = """
    import gc, os
    from apothic.agent.channel import Channel
    from apothic.agent.frames import Done
    from apothic.agent.perform import Performer
    from apothic.context import CURRENT
    from apothic.protocol.session import Packed
    def f(path):
        files = next(o for o in gc.get_objects() if isinstance(o, Performer))._spool_dir
        os.mkfifo(files / "pipe")
        (files / "link").symlink_to("/etc/passwd")
        channel = next(o for o in gc.get_objects() if isinstance(o, Channel))
        value = Packed(encoding="pickle", sha256="0" * 64, size=1)
        channel.send(Done(job=CURRENT.get().id, value=value, path=path))
"""


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
async def test_an_async_job_that_is_cancelled_before_its_first_step_is_answered(bench: Bench, tmp_path: Path) -> None:
    code = """
        import os, time
        async def f(gate):
            print("here")
            while not os.path.exists(gate): time.sleep(0.005)  # nothing else on the loop moves
            return 1
    """
    container = bench.start(code, concurrent_requests=2)
    gate = tmp_path / "gate"
    first = bench.give(container, str(gate))
    await bench.printed(first, "here")

    second = bench.give(container, str(gate))
    bench.cancel(second)
    await asyncio.sleep(0)  # the cancellation is sent by a task
    gate.touch()

    failure = await bench.failure(second)
    assert (failure.kind, failure.exit) == ("cancelled", None)
    assert bench.text(second) == [] and await bench.value(first) == 1
    assert await bench.value(bench.give(container, str(gate))) == 1


@pytest.mark.parametrize("bench", [{"groups": Groups({})}], indirect=True)  # nobody counts but the watchdog
async def test_memory_that_processes_share_counts_once(bench: Bench, tmp_path: Path) -> None:
    code = """
        import os, time
        def f(gate):
            shared = b"x" * 60_000_000
            for _ in range(3):
                if os.fork() == 0:
                    while not os.path.exists(gate): time.sleep(0.01)
                    os._exit(0)
            print("here")
            return [os.wait()[1] for _ in range(3)]
    """
    container = bench.start(code, memory_mb=128)
    await bench.ready(container)
    gate = tmp_path / "gate"
    token = bench.give(container, str(gate))
    await bench.printed(token, "here")
    one = bench.containers.live[container].memory
    take, taken = one.sampled, list[int]()

    def sampled(held: int) -> None:
        taken.append(held)
        take(held)
        bench._changed.set()

    one.sampled = sampled  # type: ignore[method-assign]
    await bench.until(lambda: len(taken) >= 3 or bench.told(token)[-1].outcome is not None)
    gate.touch()

    assert await bench.value(token) == [0, 0, 0]
    assert 60_000_000 < max(taken) < 128 << 20


async def test_a_next_attempt_of_a_job_that_still_runs_here_is_refused(bench: Bench) -> None:
    container = bench.start("import signal\ndef f(): print('here'); signal.pause()")
    first = bench.give(container, job="job_same")
    await bench.printed(first, "here")

    second = await bench.outcome(bench.give(container, job="job_same", attempt=2))

    assert second.requeue == "an earlier attempt of it still runs here" and not second.behind
    bench.cancel(first)
    assert (await bench.failure(first)).kind == "cancelled"
    await bench.gone(container)  # as the control plane expects of one that gives work back


async def test_a_next_attempt_of_a_job_that_still_waits_here_is_refused(bench: Bench) -> None:
    container = bench.start("def f(): print('here')")
    first = bench.give(container, job="job_same")  # the container is only starting
    second = bench.give(container, job="job_same", attempt=2)

    assert (await bench.outcome(second)).requeue == "an earlier attempt of it still runs here"
    assert (await bench.outcome(first)).requeue is not None
    await bench.gone(container)
    assert bench.text(first) == bench.text(second) == []


async def test_a_lost_lease_of_a_deaf_job_ends_its_container_after_the_grace(bench: Bench) -> None:
    container = bench.start(DEAF)
    token = bench.give(container)
    await bench.printed(token, "here")

    bench.containers.drop([token])
    again = bench.give(container, job=bench.told(token)[-1].job, attempt=2)

    assert (await bench.outcome(again)).requeue is not None
    await bench.gone(container)
    assert not any(report.outcome for report in bench.told(token))
    assert bench.containers.leases() == [] and container not in bench.containers.live
    assert bench.containers._held == {}


@pytest.mark.parametrize("path", [None, "/none", "/..", "/pipe", "/link", "/a\0b", "/" + "x" * 300])
async def test_a_large_result_without_a_file_is_a_serialization_failure(bench: Bench, path: str | None) -> None:
    container = bench.start(FORGED)

    failure = await bench.failure(bench.give(container, path))

    assert failure.kind == "serialization" and "file" in failure.message
    assert container in bench.containers.live and bench.containers.leases() == []


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
async def test_a_large_result_that_comes_after_the_time_is_deleted(bench: Bench, tmp_path: Path) -> None:
    container = bench.start(LARGE_AT_THE_END)

    failure = await bench.failure(bench.give(container, timeout_s=0.3))

    assert failure.kind == "timeout" and container in bench.containers.live
    assert list((tmp_path / "containers" / container / "files").iterdir()) == []


@pytest.mark.parametrize("bench", [{"grace_s": 20.0}], indirect=True)
async def test_a_large_result_of_a_lost_lease_is_deleted(bench: Bench, tmp_path: Path) -> None:
    container = bench.start(LARGE_AT_THE_END)
    token = bench.give(container)
    await bench.printed(token, "here")
    before = set(bench.folder.root.iterdir())

    bench.containers.drop([token])
    await bench.outcome(bench.give(container, False))

    assert list((tmp_path / "containers" / container / "files").iterdir()) == []
    assert set(bench.folder.root.iterdir()) == before and list((tmp_path / "files").iterdir()) == []
