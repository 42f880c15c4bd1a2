"""Which of those that wait make the next batch, and when: pure, and told the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apothic.agent.batch import LARGEST_BYTES, pause_s, take
from apothic.protocol.specs import BatchingSpec, FunctionOptions


@dataclass(eq=False)
class Input:
    arrived_at: float
    is_here: bool = True
    size: int = 1


SPEC = BatchingSpec(max_batch_size=3, wait_ms=100)


def test_a_full_batch_does_not_wait() -> None:
    waiting = deque(Input(0.0) for _ in range(5))
    first = list(waiting)[:3]
    assert take(waiting, SPEC, 0.0) == first
    assert take(waiting, SPEC, 0.0) == []
    assert len(waiting) == 2


def test_the_oldest_waits_so_long_and_no_longer() -> None:
    waiting = deque([Input(10.0), Input(10.09)])
    assert take(waiting, SPEC, 10.0999) == []
    assert pause_s(waiting, SPEC, 10.04) == pytest.approx(0.06)
    assert len(take(waiting, SPEC, 10.1)) == 2


def test_one_that_is_on_its_way_holds_up_no_batch() -> None:
    late, there = Input(10.0, is_here=False), Input(10.05)
    waiting = deque([late, there])
    assert pause_s(waiting, SPEC, 10.1) == pytest.approx(0.05)
    assert take(waiting, SPEC, 10.1) == []
    assert take(waiting, SPEC, 10.15) == [there]
    assert pause_s(waiting, SPEC, 10.15) is None
    late.is_here = True
    assert take(waiting, SPEC, 10.15) == [late]


def test_inputs_that_are_too_large_for_one_frame_make_smaller_batches() -> None:
    third = LARGEST_BYTES // 3 + 1
    waiting = deque(Input(0.0, size=third) for _ in range(3))
    assert [len(take(waiting, SPEC, 0.0)), len(take(waiting, SPEC, 0.0))] == [2, 0]
    assert len(take(waiting, SPEC, 0.1)) == 1
    assert len(take(deque([Input(0.0, size=2 * LARGEST_BYTES)]), SPEC, 0.1)) == 1


def test_without_batching_they_go_one_by_one_and_in_order() -> None:
    late, there = Input(0.0, is_here=False), Input(0.0)
    assert take(deque([late, there]), None, 9.0) == []
    assert take(deque([there, late]), None, 0.0) == [there]
    assert take(deque[Input](), None, 0.0) == []


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=12), st.floats(0, 3), st.integers(1, 5))
def test_a_batch_is_the_oldest_that_are_there(arrivals: list[tuple[float, bool]], now: float, most: int) -> None:
    spec = BatchingSpec(max_batch_size=most, wait_ms=500)
    inputs = [Input(at, here) for at, here in sorted(arrivals)]
    waiting = deque(inputs)
    taken = take(waiting, spec, now)
    here = [each for each in inputs if each.is_here]
    assert taken == here[: len(taken)]
    assert len(taken) <= most
    assert bool(taken) == (len(here) >= most or (bool(here) and here[0].arrived_at + 0.5 <= now))
    assert list(waiting) == [each for each in inputs if each not in taken]


def test_a_container_has_room_for_whole_batches() -> None:
    assert FunctionOptions(batching=SPEC, concurrent_requests=4).slots == 12
    assert FunctionOptions(concurrent_requests=4).slots == FunctionOptions(concurrent_requests=4).inputs_at_once == 4
