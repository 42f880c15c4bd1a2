"""Containers that make room for others: they begin nothing more, and finish what they run, however long it takes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from containerbench import Bench

HELD = """
    import pathlib, time
    def f(gate):
        print("here")
        while not pathlib.Path(gate).exists(): time.sleep(0.01)
        return 1
"""


async def test_what_runs_may_run_on_past_the_grace_and_what_has_not_begun_is_given_back(
    bench: Bench, tmp_path: Path
) -> None:
    container, gate = bench.start(HELD), tmp_path / "gate"
    first, second = bench.give(container, str(gate)), bench.give(container, str(gate))
    await bench.printed(first, "here")

    bench.containers.stop(container, "its turn is over", finish=True)

    back = await bench.outcome(second)
    assert (back.requeue, back.behind) == ("its turn is over", True)  # so no budget pays
    late = await bench.outcome(bench.give(container, str(gate)))
    assert late.requeue == "its turn is over"
    await bench.quiet()  # as long as the bench's grace
    assert bench.told(first)[-1].outcome is None
    gate.touch()
    assert await bench.value(first) == 1
    assert (await bench.gone(container)).failure is None


async def test_an_idle_one_ends_at_once(bench: Bench, tmp_path: Path) -> None:
    container = bench.start(HELD)
    await bench.ready(container)
    bench.containers.stop(container, "its turn is over", finish=True)
    assert (await bench.gone(container)).failure is None


async def test_a_process_that_dies_while_it_finishes_was_lost_and_not_given_back(bench: Bench, tmp_path: Path) -> None:
    container = bench.start(HELD)
    gate = tmp_path / "gate"
    token = bench.give(container, str(gate))
    await bench.printed(token, "here")
    bench.containers.stop(container, "its turn is over", finish=True)
    await bench.quiet()
    os.kill(bench.news[container][-1].pid, signal.SIGKILL)
    assert (await bench.failure(token)).kind == "worker_lost"
    await bench.gone(container)


async def test_an_agent_that_ends_does_not_wait_for_what_finishes(bench: Bench, tmp_path: Path) -> None:
    container = bench.start(HELD)
    token = bench.give(container, str(tmp_path / "gate"))
    await bench.printed(token, "here")
    bench.containers.stop(container, "its turn is over", finish=True)

    await bench.containers.drain("leaving", 0.2)

    assert (await bench.outcome(token)).requeue is not None  # the agent's doing: a move pays, not a crash
    await bench.gone(container)
