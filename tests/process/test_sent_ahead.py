"""Jobs that a container is sent ahead: it goes from one to the next by itself, and each is still its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from containerbench import MIB, Bench

from apothic.agent.frames import Run
from apothic.agent.process import Process

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The turns of the inputs in each piece that was written to a container."""
    pieces: list[list[int]] = []
    send = Process.send

    def counted(self: Process, *frames: Any) -> None:
        if isinstance(frames[0], Run):
            pieces.append([frame.turn for frame in frames])
        send(self, *frames)

    monkeypatch.setattr(Process, "send", counted)
    return pieces


async def test_many_jobs_are_sent_in_two_pieces(bench: Bench, sent: list[list[int]]) -> None:
    container = bench.start("def f(n): return n * n")
    await bench.ready(container)

    tokens = bench.give_all(container, *range(100))

    assert [await bench.value(token) for token in tokens] == [n * n for n in range(100)]
    assert sent == [[0], list(range(1, 100))]


async def test_each_has_its_own_run_time(bench: Bench) -> None:
    container = bench.start("import time\ndef f(s): time.sleep(s)")
    await bench.ready(container)

    quick, slow, last = [await bench.outcome(token) for token in bench.give_all(container, 0, 0.02, 0)]

    assert slow.ran_s >= 0.02 and 0 < quick.ran_s < 0.02 and 0 < last.ran_s < 0.02


async def test_async_functions_and_batches_are_sent_nothing_ahead(bench: Bench, sent: list[list[int]]) -> None:
    container = bench.start("import asyncio\nasync def f(n): await asyncio.sleep(0); return n")
    await bench.ready(container)

    assert [await bench.value(token) for token in bench.give_all(container, *range(10))] == list(range(10))
    assert sent == [[0]] * 10


async def test_what_is_written_past_python_is_told_from_the_next_jobs(bench: Bench) -> None:
    container = bench.start("import os\ndef f(n):\n if n % 7 == 3: os.write(1, b'%d\\n' % n)\n return n")
    await bench.ready(container)

    tokens = bench.give_all(container, *range(60))

    assert [await bench.value(token) for token in tokens] == list(range(60))
    assert [bench.text(token) for token in tokens] == [[str(n)] if n % 7 == 3 else [] for n in range(60)]


async def test_who_writes_while_it_runs_is_known_though_its_predecessors_end_is_not_read(bench: Bench) -> None:
    code = """
        import os, time
        def f(n):
            if n == 20:
                os.write(2, b"mine\\n")
                time.sleep(0.01)
            return n
    """
    container = bench.start(code)
    await bench.ready(container)

    tokens = bench.give_all(container, *range(40))

    assert [await bench.value(token) for token in tokens] == list(range(40))
    assert [n for n, token in enumerate(tokens) if bench.text(token)] == [20]


async def test_one_that_is_cancelled_before_its_turn_is_not_entered(bench: Bench) -> None:
    container = bench.start("import time, sys\ndef f(n):\n print(n)\n time.sleep(0.3 if n == 0 else 0)\n return n")
    await bench.ready(container)
    tokens = bench.give_all(container, *range(4))
    await bench.printed(tokens[0], "0")

    bench.cancel(tokens[2])

    assert (await bench.failure(tokens[2])).kind == "cancelled"
    outcomes = [await bench.outcome(token) for token in (tokens[0], tokens[1], tokens[3])]
    assert outcomes[0].value is not None
    assert bench.text(tokens[2]) == []
    assert all(outcome.value is not None or outcome.behind for outcome in outcomes)


@pytest.mark.parametrize("bench", [{"grace_s": 5.0}], indirect=True)
async def test_behind_a_long_one_they_are_given_back_though_nobody_can_interrupt_it(bench: Bench) -> None:
    # PyDLL keeps the interpreter's lock, so no thread and no signal handler of the container gets a turn.
    container = bench.start("import ctypes\ndef f(n):\n if n == 0: ctypes.PyDLL(None).usleep(900_000)\n return n")
    await bench.ready(container)

    first, *others = bench.give_all(container, *range(5))
    given_back = [await bench.outcome(token) for token in others]

    assert all(outcome.requeue and outcome.behind for outcome in given_back)
    assert not any(report.outcome for report in bench.told(first))
    again = bench.give_all(container, 7, 8)
    assert await bench.value(first) == 0
    assert [(await bench.outcome(token)).failure for token in again] == [None, None]


async def test_those_that_had_not_begun_when_it_died_are_given_back(bench: Bench) -> None:
    container = bench.start("import os\ndef f(n):\n if n == 3: os.kill(os.getpid(), 9)\n return n")
    await bench.ready(container)

    tokens = bench.give_all(container, *range(8))
    outcomes = [await bench.outcome(token) for token in tokens]

    assert [outcome.value is not None for outcome in outcomes] == [True] * 3 + [False] * 5
    assert outcomes[3].failure is not None and outcomes[3].failure.kind == "worker_lost"
    assert all(outcome.requeue for outcome in outcomes[4:])
    assert not any(report.began for token in tokens[4:] for report in bench.told(token))


async def test_the_next_one_waits_until_a_large_result_is_stored(bench: Bench) -> None:
    container = bench.start(f"def f(n): return 'x' * ({MIB} if n == 1 else 1)")
    await bench.ready(container)
    bench.folder.gate.clear()
    tokens = bench.give_all(container, 0, 1, 2, 3)
    await bench.outcome(tokens[0])
    await asyncio.sleep(0.04)

    assert not any(report.began for report in bench.told(tokens[2]))
    bench.folder.gate.set()

    assert [len(await bench.value(token)) for token in tokens] == [1, MIB, 1, 1]


async def test_the_time_limit_of_one_begins_with_its_turn(bench: Bench) -> None:
    container = bench.start("import time\ndef f(n): time.sleep(0.02)")
    await bench.ready(container)
    assignments = [bench.assignment(container, n, timeout_s=0.1) for n in range(8)]

    bench.containers.assign(*assignments)
    outcomes = [await bench.outcome(assignment.token) for assignment in assignments]

    assert [outcome.failure for outcome in outcomes] == [None] * 8


async def test_a_container_that_stops_gives_back_what_has_not_begun(bench: Bench) -> None:
    container = bench.start("import time\ndef f(n):\n print(n)\n time.sleep(0.2)\n return n")
    await bench.ready(container)
    first, *others = bench.give_all(container, *range(3))
    await bench.printed(first, "0")

    bench.containers.stop(container, "it is time")

    assert [(await bench.outcome(token)).requeue for token in others] == ["it is time"] * 2
    assert await bench.value(first) == 0
    await bench.gone(container)
